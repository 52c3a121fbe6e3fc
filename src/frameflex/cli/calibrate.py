"""``frameflex calibrate``: fit statistics to other frame counts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.options import (
    add_bad_video_options,
    add_decode_limit_option,
    add_device_option,
    add_precision_option,
    check_inputs_stay,
    fail,
    frame_counts,
    limits_of,
    make_folder,
    parser_of,
    positive,
    say_precision,
)
from frameflex.printable import printable

if TYPE_CHECKING:
    from frameflex.engine.evaluation import Evaluation
    from frameflex.engine.self_check import CalibrationVideos


def run(argv: list[str], console: Any) -> int:
    args = _parser().parse_args(argv)
    from frameflex.checkpoint import load_checkpoint, save_checkpoint
    from frameflex.console import progress
    from frameflex.deploy.recognizer import chosen_device
    from frameflex.engine.calibration import calibrate
    from frameflex.engine.self_check import (
        give_temperatures,
        measure,
        videos_for_calibration,
    )
    from frameflex.models.precision import chosen_precision, computing_in

    check_inputs_stay([args.output], [args.checkpoint, args.quarantine, *args.videos])
    if args.output.exists():
        raise FileExistsError(f"{args.output} is there already; choose another --output")
    if args.output.suffix != ".safetensors":
        return fail(f"--output {args.output}: expected a name that ends in .safetensors", status=2)
    make_folder(args.output.parent)
    device = chosen_device(args.device)
    precision = chosen_precision(args.precision, device)
    say_precision(console, args.precision, precision)
    checkpoint = load_checkpoint(args.checkpoint)
    checkpoint.model.to(device)
    videos = videos_for_calibration(
        args.videos,
        checkpoint,
        video_dir=args.video_dir,
        quarantine=args.quarantine,
        limits=limits_of(args),
    )
    loading = {
        "batch_size": args.batch_size,
        "num_workers": args.workers,
        "on_bad_video": args.on_bad_video,
    }
    measured_before = measure(checkpoint, videos, args.frames, precision=precision, **loading)
    with progress(console, "calibrating") as on_progress, computing_in(precision, device):
        bad = calibrate(checkpoint, videos.measured_on, args.frames, **loading, on_progress=on_progress)
    # Trained counts as well: one without a temperature would take a neighbour's.
    counts_after = [*args.frames, *checkpoint.frame_counts]
    measured_after = measure(checkpoint, videos, counts_after, precision=precision, **loading)
    if measured_before is None or measured_after is None:
        console.print(f"accuracy not measured: {videos.why_not}")
    else:
        told, worse = _compare(measured_before, measured_after)
        if worse and not args.allow_worse:
            return fail(
                f"calibrated at {', '.join(map(str, worse))} frames the network is worse: {told}; expected no loss. "
                "Nothing was written. Leave those counts out, calibrate with more videos of every class, or write it "
                "all the same with --allow-worse",
                status=1,
            )
        console.print(told)
        give_temperatures(checkpoint, measured_after)
    save_checkpoint(args.output, checkpoint)
    _say_how_many(args, videos, len(bad), console)
    print(printable(args.output))  # noqa: T201
    return 0


def _compare(measured_before: Evaluation, measured_after: Evaluation) -> tuple[str, list[int]]:
    """How accuracy changed, in words, and the frame counts where it fell."""
    from frameflex.engine.self_check import accuracies, changes

    before, after = accuracies(measured_before), accuracies(measured_after)
    told = changes(before, after, len(measured_after.names))
    return told, [count for count in before if after[count] < before[count] - 1e-9]


def _say_how_many(args: argparse.Namespace, videos: CalibrationVideos, num_bad: int, console: Any) -> None:
    counts = ", ".join(map(str, args.frames))
    console.print(
        f"statistics at {counts} frames re-estimated from {len(videos.measured_on) - num_bad} videos"
    )
    left_out = len(videos.measured_on.left_out)
    if num_bad or left_out:
        console.print(f"left out: {num_bad} that can't be decoded and {left_out} in quarantine")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "calibrate",
        "Re-estimate a checkpoint's normalisation statistics at frame counts that it was not trained at, from some\n"
        "tens of videos. Weights, and what it does at its trained counts, stay as they are. Labels are not needed;\n"
        "where there are some, accuracy on held-out videos is measured before and after; nothing worse is written.",
        "frameflex calibrate best.safetensors my_videos --frames 6,12 --output calibrated.safetensors",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="a data set (such as a folder with a sub-folder a class), or files, folders, quoted patterns",
    )
    parser.add_argument("--frames", type=frame_counts, required=True, help="such as 6,12 or 5-7")
    parser.add_argument("--output", type=Path, required=True, help="the new checkpoint")
    parser.add_argument(
        "--batch-size", type=positive, default=16, help="videos that are decoded together (default: 16)"
    )
    add_decode_limit_option(parser)
    add_bad_video_options(
        parser, skip="leave it out, named; stop when more than 1 %% and more than 3 are bad"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--video-dir", help="where the files of a list are (default: beside the list)")
    parser.add_argument(
        "--allow-worse", action="store_true", help="write the result also where held-out accuracy fell"
    )
    add_device_option(parser)
    add_precision_option(parser, default="float32")
    return parser
