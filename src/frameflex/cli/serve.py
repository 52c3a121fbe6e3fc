"""``frameflex serve``: answers over HTTP."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from frameflex.cli.event_options import seconds
from frameflex.cli.options import (
    MAX_FRAMES,
    add_device_option,
    add_precision_option,
    parser_of,
    positive,
    say_precision,
)
from frameflex.tuning import objects_that_stay

TOKEN_VARIABLE = "FRAMEFLEX_TOKEN"


def run(argv: list[str], console: Any) -> int:
    args = _parser().parse_args(argv)
    token = _token(args)
    from frameflex.app.running import needed, run_server

    needed()
    from frameflex.app.guarding import is_local

    if token is None and not is_local(args.host):
        raise ValueError(
            f"--host {args.host} lets other machines ask; expected a token: set {TOKEN_VARIABLE}, or give "
            "--token-file"
        )
    with objects_that_stay():
        from frameflex.app.answers import Answers, UploadLimits
        from frameflex.app.service import make_service
        from frameflex.deploy.recognizer import Recognizer

        recognizer = Recognizer.from_checkpoint(args.checkpoint, device=args.device, precision=args.precision)
    say_precision(console, args.precision, recognizer.precision)
    limits = UploadLimits(
        max_bytes=args.max_megabytes * 2**20,
        max_video_seconds=args.max_seconds,
        max_pixels=args.max_pixels,
        max_frames=min(args.max_frames, MAX_FRAMES),
        timeout_seconds=args.timeout,
    )
    answers = Answers(recognizer, limits=limits, num_processes=args.workers, batch_size=args.batch_size)
    app = make_service(answers, max_queue=args.max_queue, timeout_seconds=args.timeout, token=token)
    run_server(
        app,
        host=args.host,
        port=args.port,
        on_start=lambda address: console.print(
            f"serving {args.checkpoint} at {address}: POST /predict, GET /healthz, /metrics, /openapi.json; "
            "Ctrl-C ends it",
            markup=False,
            soft_wrap=True,
        ),
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "serve",
        "Answer over HTTP what happens in videos: POST a file's bytes to /predict, with ?frames=8&top=3&views=1x1.\n"
        "Also /healthz, /metrics (Prometheus) and /openapi.json. Needs frameflex[app].",
        "frameflex serve best.safetensors --port 8000\n"
        "  curl --data-binary @clip.mp4 'http://127.0.0.1:8000/predict?frames=8'",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex, or an export"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; any but this machine's own needs a token (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=port, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"its first line is the token that requests have to bring (default: ${TOKEN_VARIABLE})",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=8, help="most clips through the network at once (default: 8)"
    )
    parser.add_argument("--workers", type=positive, default=2, help="processes that decode (default: 2)")
    add_device_option(parser)
    add_precision_option(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-megabytes", type=positive, default=64, help="of a file (default: 64 MiB)")
    limits.add_argument(
        "--max-seconds", type=seconds, default=120.0, metavar="TIME", help="of a video (default: 120s)"
    )
    limits.add_argument(
        "--max-pixels", type=positive, default=3840 * 2160, help="of a frame (default: 3840 x 2160)"
    )
    limits.add_argument("--max-frames", type=positive, default=64, help="largest T (default: 64)")
    limits.add_argument("--max-queue", type=positive, default=64, help="requests at once (default: 64)")
    limits.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="TIME", help="for one request (default: 30s)"
    )
    return parser


def port(text: str) -> int:
    """Parse a port's number."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a port from 0 to 65535")
    return int(text)


def _token(args: argparse.Namespace) -> str | None:
    """From the file, else the environment: on a command line every user of the machine could read it."""
    if args.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    lines = args.token_file.read_text(encoding="utf-8").splitlines()
    if not lines or len(lines[0].strip()) < 16:
        raise ValueError(f"--token-file {args.token_file}: expected a token of at least 16 characters")
    return str(lines[0].strip())
