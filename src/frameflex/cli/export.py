"""``frameflex export``: checkpoints into graphs for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.options import (
    PRECISIONS,
    add_bad_video_options,
    add_decode_limit_option,
    check_place,
    frame_counts,
    limits_of,
    parser_of,
    positive,
)
from frameflex.printable import printable, to_json

if TYPE_CHECKING:
    from frameflex.checkpoint import Checkpoint
    from frameflex.data.records import VideoList

FORMATS = ("onnx", "openvino", "torchexport", "torchscript")  # named here so that --help needs no torch


def run(argv: list[str], console: Any) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_precision(parser, args)
    if args.step:
        return _export_step(parser, args, console)
    from frameflex.checkpoint import load_checkpoint
    from frameflex.export import export

    if args.output.exists():
        raise FileExistsError(f"{args.output} is there already; choose another --output")
    check_place(args.output)
    checkpoint = load_checkpoint(args.checkpoint)
    manifest = export(
        checkpoint,
        args.output,
        format=args.format,
        frame_counts=args.frames,
        batch=args.batch,
        half=args.half,
        int8_videos=_calibration_videos(args, checkpoint, console) if args.int8 else None,
        check_videos=_check_videos(args, checkpoint) if args.check else None,
        min_agreement=args.min_agreement,
        uint8_input=args.uint8_input,
        opset=args.opset,
        num_workers=args.workers,
        on_bad_video=args.on_bad_video,
        on_progress=lambda what: console.print(what),
    )
    _say_how_close(manifest, console)
    print(to_json(manifest, indent=1) if args.json else printable(args.output))  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "export",
        "Write a checkpoint as graphs for ONNX Runtime, OpenVINO or torch: a folder with one graph for each frame\n"
        "count and a manifest. Every graph is compared with the model first; where they differ nothing is written.\n"
        "frameflex predict takes the folder like a checkpoint.",
        "frameflex export best.safetensors --format openvino --frames 4,8,16 --output exported",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument("--format", required=True, choices=FORMATS, help="for which runtime")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--frames",
        type=_frames,
        help="such as 4,8,16, a graph for each; or any, one graph for all (onnx and openvino, plain TSM); default: "
        "the trained counts",
    )
    parser.add_argument(
        "--batch", type=_batch, default="dynamic", help='clips at once: a number, or "dynamic" (default)'
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="what the graphs hold: float32 (which auto is), float16 (the same as --half) or int8 (with --int8). In "
        "what OpenVINO computes a float32 graph is chosen where it runs, by predict --precision",
    )
    _add_smaller_options(parser)
    parser.add_argument(
        "--uint8-input",
        action="store_true",
        help="the graph takes pixels, resized and cropped, and normalises them itself",
    )
    parser.add_argument(
        "--step",
        action="store_true",
        help="of a causal checkpoint: the one-frame step for streams, a frame and the state in, logits and the next "
        "state out (onnx and openvino); --frames names the count whose parts serve (default: the largest)",
    )
    parser.add_argument("--opset", type=positive, default=18, help="operator set of onnx (default: 18)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    add_decode_limit_option(parser)
    add_bad_video_options(
        parser,
        skip="leave it out of --int8 and --check, named; stop when more than 1 %% and more than 3 are bad",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest instead of the folder's name")
    return parser


def _add_smaller_options(parser: argparse.ArgumentParser) -> None:
    """--half and --int8, and how they are checked."""
    smaller = parser.add_mutually_exclusive_group()
    smaller.add_argument("--half", action="store_true", help="half-precision weights and arithmetic")
    smaller.add_argument(
        "--int8",
        nargs="+",
        metavar="VIDEO",
        help="8-bit weights and arithmetic (onnx and openvino), calibrated with these videos: files, folders "
        "(searched) or quoted patterns; some tens to hundreds",
    )
    parser.add_argument(
        "--calibrate-with",
        type=positive,
        default=200,
        help="use at most so many of the --int8 videos, spread evenly (default: 200)",
    )
    parser.add_argument(
        "--check",
        metavar="DATA",
        help="labelled videos on which --half or --int8 is measured against the model (default: the --int8 videos, "
        "without labels)",
    )
    parser.add_argument("--split", default="validation", help="of --check data (default: validation)")
    parser.add_argument(
        "--min-agreement",
        type=float,
        default=0.8,
        help="share of the checked videos that must keep their label, 0 to 1 (default: 0.8)",
    )


def _check_precision(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """--precision beside --half and --int8, which say the same."""
    held = "int8" if args.int8 else "float16" if args.half else None
    if args.precision == "bfloat16":
        parser.error(
            "--precision bfloat16: graphs hold float32, float16 or int8; export float32 to openvino, and "
            "give --precision bfloat16 to frameflex predict, where it runs"
        )
    if args.precision == "int8" and not args.int8:
        parser.error("--precision int8 needs videos to calibrate with; give --int8 VIDEO")
    if args.precision != "auto" and held not in (None, args.precision):
        given = "--int8" if args.int8 else "--half"
        parser.error(f"--precision {args.precision} and {given} contradict each other; expected one of them")
    args.half = args.half or args.precision == "float16"


def _export_step(parser: argparse.ArgumentParser, args: argparse.Namespace, console: Any) -> int:
    others = {
        "--half": args.half,
        "--int8": args.int8,
        "--check": args.check,
        "--uint8-input": args.uint8_input,
    }
    for name, value in others.items():
        if value:
            parser.error(f"{name} is not for --step; leave it out")
    if args.frames is not None and (isinstance(args.frames, str) or len(args.frames) != 1):
        parser.error("--step takes one number in --frames: the count whose parts serve")
    from frameflex.export import STEP_FORMATS, export_step

    if args.format not in STEP_FORMATS:
        parser.error(f"--step is for {' and '.join(STEP_FORMATS)}, not {args.format}")
    check_place(args.output)
    manifest = export_step(
        args.checkpoint,
        args.output,
        format=args.format,
        num_frames=args.frames[0] if args.frames else None,
        batch=args.batch,
        opset=args.opset,
    )
    parity = manifest["parity"]
    console.print(
        f"over {parity['steps']} frames logits and states differ by at most {parity['largest_difference']:.2g} of "
        f"the largest value; state: {len(manifest['state'])} tensors, {manifest['state_bytes']:,} bytes a stream"
    )
    print(to_json(manifest, indent=1) if args.json else printable(args.output))  # noqa: T201
    return 0


def _calibration_videos(args: argparse.Namespace, checkpoint: Checkpoint, console: Any) -> VideoList:
    """Those of --int8, at most --calibrate-with of them, spread evenly."""
    from frameflex.data.finding import find_video_files
    from frameflex.data.quarantine import quarantined_files
    from frameflex.data.records import VideoList, VideoRecord

    files, left_out = quarantined_files(find_video_files(args.int8), args.quarantine)
    for file, reason in left_out.items():
        console.print(f"left out: {file}: {reason}", markup=False, soft_wrap=True)
    number = min(len(files), args.calibrate_with)
    files = [files[i * len(files) // number] for i in range(number)]
    return VideoList(
        [VideoRecord(file, None, str(file)) for file in files],
        checkpoint.class_names,
        limits=limits_of(args),
    )


def _check_videos(args: argparse.Namespace, checkpoint: Checkpoint) -> VideoList:
    from frameflex.data.datasets import load_split

    check = load_split(args.check, args.split, classes=checkpoint.class_names, quarantine=args.quarantine)
    return check.within(limits_of(args))


def _say_how_close(manifest: dict[str, Any], console: Any) -> None:
    for row in manifest.get("parity", []):
        console.print(
            f"T = {row['num_frames']}, batch {row['batch']}: logits differ by at most {row['max_difference']:.2g} "
            f"(allowed: {row['allowed']:.2g})"
        )
    for row in manifest.get("agreement", []):
        line = f"T = {row['num_frames']}: the model's label on {row['same_label']:.1%} of {row['num_videos']} videos"
        if "top1_model" in row:
            line += f"; top-1 {row['top1_model']:.1%} before, {row['top1_graph']:.1%} after"
        console.print(line)


def _frames(text: str) -> tuple[int, ...] | str:
    return "any" if text == "any" else frame_counts(text)


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return text
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f'{text!r}; expected "dynamic" or a number of at least 1') from None
