"""``frameflex calibrate``: fit statistics to other frame counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frameflex.cli.options import fail, frame_counts, parser_of, positive


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
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    args = parser.parse_args(argv)
    from frameflex.checkpoint import load_checkpoint, save_checkpoint
    from frameflex.console import progress
    from frameflex.data.datasets import VideoList, VideoRecord, find_video_files
    from frameflex.engine.calibration import calibrate

    if args.output.exists():
        raise FileExistsError(f"{args.output} is there already; choose another --output")
    if args.output.suffix != ".safetensors":
        return fail(f"--output {args.output}: expected a name that ends in .safetensors", status=2)
    checkpoint = load_checkpoint(args.checkpoint)
    files = find_video_files(args.videos)
    videos = VideoList([VideoRecord(path, None, str(path)) for path in files], checkpoint.class_names)
    with progress(console, "calibrating") as on_progress:
        calibrate(
            checkpoint,
            videos,
            args.frames,
            batch_size=args.batch_size,
            num_workers=args.workers,
            on_progress=on_progress,
        )
    save_checkpoint(args.output, checkpoint)
    counts = ", ".join(map(str, args.frames))
    console.print(f"statistics at {counts} frames re-estimated from {len(files)} videos")
    print(args.output)  # noqa: T201
    return 0
