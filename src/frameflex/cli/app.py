"""``frameflex app``: a page in the browser."""

from __future__ import annotations

import argparse
import threading
import webbrowser
from pathlib import Path
from typing import Any

from frameflex.cli.options import (
    add_device_option,
    add_precision_option,
    parser_of,
    positive,
    say_precision,
)
from frameflex.cli.serve import port
from frameflex.tuning import objects_that_stay


def run(argv: list[str], console: Any) -> int:
    args = _parser().parse_args(argv)
    from frameflex.app.running import needed, run_server

    needed()
    with objects_that_stay():
        from frameflex.app.page import Folders, make_page
        from frameflex.deploy.live.sources import LiveSource
        from frameflex.deploy.recognizer import load

        for source in args.source:
            LiveSource(source)  # says early what can't work
        recognizer = load(args.checkpoint, device=args.device, precision=args.precision)
    say_precision(console, args.precision, recognizer.precision)
    app = make_page(
        recognizer,
        name=args.checkpoint,
        folders=Folders(args.videos, args.runs),
        sources=args.source,
        num_processes=args.workers,
    )

    def tell(address: str) -> None:
        console.print(f"the page is at {address}; Ctrl-C ends it", markup=False, soft_wrap=True)
        if not args.no_browser:
            # Apart, because a browser in the terminal would hold the page's own process.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    run_server(app, host="127.0.0.1", port=args.port, on_start=tell)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "app",
        "A page in the browser of this machine: drop a clip or record one, and see what the network says, at any\n"
        "number of frames, and when in a long video. Nothing leaves this machine. Needs frameflex[app].",
        "frameflex app best.safetensors\n  frameflex app best.safetensors --source rtsp://camera/1",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a .safetensors file, an export, a name of published weights, or an address",
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="SOURCE",
        help="a file, an address (rtsp://...) or a camera's number to watch in Live; may be given several times",
    )
    parser.add_argument(
        "--videos",
        type=Path,
        default=Path("my_videos"),
        metavar="FOLDER",
        help="a folder for each class that is taught in Teach (default: my_videos)",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="for trainings (default: runs)"
    )
    parser.add_argument("--port", type=port, default=8010, help="0 takes a free one (default: 8010)")
    parser.add_argument("--no-browser", action="store_true", help="print the page's address alone")
    parser.add_argument("--workers", type=positive, default=2, help="processes that decode (default: 2)")
    add_device_option(parser)
    add_precision_option(parser)
    return parser
