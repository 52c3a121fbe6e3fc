"""``frameflex convert``: bring other code bases' weights."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from frameflex.cli.options import check_inputs_stay, check_place, fail, frame_counts, parser_of, positive
from frameflex.printable import printable, to_json


def run(argv: list[str], console: Any) -> int:
    args = _parser().parse_args(argv)
    from frameflex.checkpoint import fetch, save_checkpoint
    from frameflex.convert import convert, read_class_names

    if args.to.suffix != ".safetensors":
        return fail(f"--to {args.to}: expected a name that ends in .safetensors", status=2)
    check_inputs_stay([args.to], [args.file, args.classes])
    check_place(args.to, name="--to")
    changed: dict[str, Any] = {
        name: value
        for name in ("short_side", "crop_size", "fit", "channel_order")
        if (value := getattr(args, name)) is not None
    }
    for name in ("mean", "std"):
        if (values := getattr(args, name)) is not None:
            changed[name] = tuple(value / args.pixel_scale for value in values)
    if args.trust_pickle:
        console.print("frameflex: --trust-pickle: code inside the file may run now", style="red")
    conversion = convert(
        fetch(args.file),
        class_names=read_class_names(args.classes) if args.classes else None,
        frame_counts=args.frames,
        backbone=args.backbone,
        shift=args.shift,
        shift_div=args.shift_div,
        non_local=args.non_local,
        sampling={"sampling": "dense", "window": args.window} if args.sampling == "dense" else None,
        preprocessing=changed,
        license=args.license,
        trust_pickle=args.trust_pickle,
        ema=args.ema,
        allow_nan=args.allow_nan,
    )
    save_checkpoint(args.to, conversion.checkpoint)
    if args.json:
        values = {"source": conversion.source, "notes": conversion.notes, "checkpoint": str(args.to)}
        print(to_json(values, indent=2))  # noqa: T201
    else:
        for note in conversion.notes:
            print(printable(note))  # noqa: T201
        print(printable(args.to))  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "convert",
        "Turn a checkpoint of another code base into one of frameflex: mit-han-lab TSM, mmaction2 TSM, FFN-pytorch,\n"
        "image weights of torchvision and timm. What it is shows in its tensors' names, not in the file's. Nothing\n"
        "is saved where a tensor is left over or missing.",
        "frameflex convert TSM_somethingv2_RGB_resnet50.pth --to tsm.safetensors --classes labels.txt",
    )
    parser.add_argument("file", metavar="FILE", help=".pth, .pt, .tar or .safetensors")
    parser.add_argument("--to", type=Path, required=True, metavar="OUT", help="ends in .safetensors")
    parser.add_argument(
        "--classes", metavar="FILE", help="class names: one a line, or JSON (default: those in the file)"
    )
    _add_unknown_options(parser)
    _add_pixel_options(parser)
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="DANGER, and hardly ever needed: let FILE run any code it likes on this machine while it is read. Only "
        "for files whose author you trust as you trust a program that you start",
    )
    parser.add_argument(
        "--ema", action="store_true", help="averaged weights, where the file has others beside them"
    )
    parser.add_argument(
        "--allow-nan",
        action="store_true",
        help="take weights that are NaN or infinite (default: refuse them)",
    )
    parser.add_argument("--json", action="store_true", help="what was found as JSON on standard output")
    return parser


def _add_unknown_options(parser: argparse.ArgumentParser) -> None:
    unknown = parser.add_argument_group("where the file doesn't tell")
    unknown.add_argument("--frames", type=frame_counts, help="trained frame count, such as 16 (default: 8)")
    unknown.add_argument("--backbone", help="architecture of timm, where several fit")
    unknown.add_argument("--shift", choices=["bidirectional", "none"])
    unknown.add_argument(
        "--shift-div", type=positive, help="one channel in so many moved each way (default: 8)"
    )
    unknown.add_argument("--non-local", choices=["embedded_gaussian", "dot_product", "gaussian"])
    unknown.add_argument(
        "--sampling", choices=["segments", "dense"], help="how frames were picked (default: segments)"
    )
    unknown.add_argument(
        "--window", type=positive, default=64, help="frames that a dense clip spans (default: 64)"
    )
    unknown.add_argument("--license", default="", help="of the weights, such as cc-by-4.0")


def _add_pixel_options(parser: argparse.ArgumentParser) -> None:
    pixels = parser.add_argument_group("pixels, where they differ from what the code base does")
    pixels.add_argument("--short-side", type=positive, help="pixels of the shorter side after resizing")
    pixels.add_argument(
        "--crop-size", type=_size, help="pixels that the network sees: the side of a square, or HEIGHT,WIDTH"
    )
    pixels.add_argument(
        "--fit",
        choices=["crop", "whole", "pad"],
        help="the centre of a frame, all of it squeezed, or all of it with a border",
    )
    pixels.add_argument(
        "--mean", type=_colours, metavar="R,G,B", help="subtracted, on the scale of --pixel-scale"
    )
    pixels.add_argument(
        "--std", type=_colours, metavar="R,G,B", help="divided by, on the scale of --pixel-scale"
    )
    pixels.add_argument(
        "--pixel-scale", type=int, choices=[1, 255], default=1, help="largest value (default: 1)"
    )
    pixels.add_argument(
        "--channel-order", choices=["rgb", "bgr"], help="in which the network sees the colours"
    )


def _size(text: str) -> int | tuple[int, int]:
    if re.fullmatch(r"[1-9]\d*", text):
        return int(text)
    if found := re.fullmatch(r"([1-9]\d*)\s*,\s*([1-9]\d*)", text):
        return int(found[1]), int(found[2])
    raise argparse.ArgumentTypeError(f"{text!r}; expected whole pixels, such as 224 or 96,128")


def _colours(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected three numbers, such as 0.5,0.5,0.5") from None
    return red, green, blue
