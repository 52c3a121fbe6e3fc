"""``frameflex predict``: recognise what happens in videos."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.event_options import probability
from frameflex.cli.long_videos import add_window_options, check_window_options, recognize_long
from frameflex.cli.manifests import add_manifest_options, check_manifest_options, recognize_manifest
from frameflex.cli.options import (
    add_bad_video_options,
    add_decode_limit_option,
    add_loading_options,
    add_precision_option,
    add_views_option,
    budget,
    decoding_workers,
    frame_count,
    limits_of,
    parser_of,
    positive,
    say_precision,
)
from frameflex.printable import printable, to_json
from frameflex.tuning import objects_that_stay

if TYPE_CHECKING:
    from frameflex.storage import Place


def run(argv: list[str], console: Any) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    check_window_options(parser, args)
    check_manifest_options(parser, args)
    if args.manifest is not None:
        return recognize_manifest(args, console)
    with objects_that_stay():
        from frameflex.console import progress
        from frameflex.data.finding import find_video_files
        from frameflex.data.quarantine import quarantined_files
        from frameflex.deploy.recognizer import Recognizer
        from frameflex.video import VideoError

        recognizer = Recognizer.from_checkpoint(
            args.checkpoint, device=args.device, precision=args.precision, limits=limits_of(args)
        )
    files, left_out = quarantined_files(find_video_files(args.videos), args.quarantine)
    for file, reason in left_out.items():
        console.print(f"left out: {file}: {reason}", markup=False)
    if args.window is not None:
        return recognize_long(args, recognizer, files, console)
    say_precision(console, args.precision, recognizer.precision)
    failed = 0
    answers = recognizer.recognize_many(
        files,
        num_frames=args.frames,
        budget=args.budget,
        confidence=args.confidence,
        top=args.top,
        views=args.views,
        batch_size=args.batch_size or 8,
        num_workers=decoding_workers() if args.workers is None else args.workers,
    )
    with progress(console, "recognising") as on_progress, closing(answers):
        for done, (file, answer) in enumerate(answers, start=1):
            on_progress(done, len(files))
            if isinstance(answer, VideoError):
                if args.on_bad_video == "error":
                    raise answer
                failed += 1
                console.print(f"frameflex: {answer}", style="red", markup=False, soft_wrap=True)
            _print_answer(file, answer, as_json=args.json)
    if failed:
        console.print(f"frameflex: {failed} of {len(files)} videos could not be recognised", style="red")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "predict",
        "Recognise what happens in videos. A file that can't be decoded is reported and counted; the others go\n"
        "on, and the exit status is 1. With --window: what happens when in a long video. With --manifest: a list\n"
        "of any length, in parts that a restart keeps.",
        "frameflex predict best.safetensors clip.mp4 'more/*.webm' --frames 8 --top 3\n"
        "  frameflex predict best.safetensors match.mp4 --window 2s --stride 1s --output events.srt\n"
        "  frameflex predict best.safetensors --manifest videos.csv --out predictions",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEO", help="files, folders (searched) or quoted patterns; s3://… too"
    )
    parser.add_argument(
        "--frames", type=frame_count, help="frames to look at (default: the largest trained count)"
    )
    parser.add_argument(
        "--budget",
        type=budget,
        metavar="COUNTS",
        help="such as 4,8: few frames first, more only while the answer is unsure; auto: the trained counts",
    )
    parser.add_argument(
        "--confidence", type=probability, default=0.8, help="for --budget, 0 to 1 (default: 0.8)"
    )
    parser.add_argument("--top", type=positive, default=5, help="answers for each video (default: 5)")
    add_views_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    add_loading_options(parser)
    add_precision_option(parser)
    add_decode_limit_option(parser)
    add_bad_video_options(parser, default="skip", skip="report it, go on, and exit with status 1")
    add_window_options(parser)
    add_manifest_options(parser)
    parser.set_defaults(batch_size=None, workers=None)
    return parser


def _print_answer(file: Place, answer: Any, *, as_json: bool) -> None:
    failed = isinstance(answer, Exception)
    if as_json:
        told = {"error": str(answer)} if failed else {"predictions": [vars(one) for one in answer]}
        print(to_json({"video": str(file), **told}))  # noqa: T201
    elif not failed:
        print(printable(file))  # noqa: T201
        for prediction in answer:
            print(f"  {prediction.probability:6.1%}  {printable(prediction.label)}")  # noqa: T201
