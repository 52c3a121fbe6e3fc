"""``frameflex calibrate``: fit statistics to other frame counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frameflex.cli.options import (
    add_bad_video_options,
    add_device_option,
    fail,
    frame_counts,
    make_folder,
    parser_of,
    positive,
)


def run(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "calibrate",
        "Re-estimate a checkpoint's normalisation statistics at frame counts that it was not trained at, from some\n"
        "tens of unlabelled videos. Weights, and what it does at its trained counts, stay as they are.",
        "frameflex calibrate best.safetensors my_videos --frames 6,12 --output calibrated.safetensors",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="files, folders (searched) or quoted patterns"
    )
    parser.add_argument("--frames", type=frame_counts, required=True, help="such as 6,12 or 5-7")
    parser.add_argument("--output", type=Path, required=True, help="the new checkpoint")
    parser.add_argument(
        "--batch-size", type=positive, default=16, help="videos whose statistics are taken together"
    )
    add_bad_video_options(parser, skip="leave it out, named; stop when more than 1 %% is bad")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    add_device_option(parser)
    args = parser.parse_args(argv)
    from frameflex.checkpoint import load_checkpoint, save_checkpoint
    from frameflex.console import progress
    from frameflex.data.datasets import VideoList, VideoRecord, find_video_files
    from frameflex.data.quarantine import quarantined_files
    from frameflex.deploy.recognizer import best_device
    from frameflex.engine.calibration import calibrate

    if args.output.exists():
        raise FileExistsError(f"{args.output} is there already; choose another --output")
    if args.output.suffix != ".safetensors":
        return fail(f"--output {args.output}: expected a name that ends in .safetensors", status=2)
    make_folder(args.output.parent)
    checkpoint = load_checkpoint(args.checkpoint)
    checkpoint.model.to(args.device or best_device())
    files, left_out = quarantined_files(find_video_files(args.videos), args.quarantine)
    videos = VideoList([VideoRecord(path, None, str(path)) for path in files], checkpoint.class_names)
    with progress(console, "calibrating") as on_progress:
        bad = calibrate(
            checkpoint,
            videos,
            args.frames,
            batch_size=args.batch_size,
            num_workers=args.workers,
            on_bad_video=args.on_bad_video,
            on_progress=on_progress,
        )
    save_checkpoint(args.output, checkpoint)
    counts = ", ".join(map(str, args.frames))
    console.print(f"statistics at {counts} frames re-estimated from {len(files) - len(bad)} videos")
    if bad or left_out:
        console.print(f"left out: {len(bad)} that can't be decoded and {len(left_out)} in quarantine")
    print(args.output)  # noqa: T201
    return 0
