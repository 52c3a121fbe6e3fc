"""``frameflex models``: list the backbones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from frameflex.cli.options import fail, parser_of, positive


def run(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "models",
        "List the architectures of timm that take the temporal shift. With a PATTERN each match is built, without\n"
        "its weights, to show parameters, GFLOPs (multiply-adds) of one clip, and which ImageNet weights exist.",
        "frameflex models 'mobilenetv*_100' --frames 8",
    )
    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="such as 'resnet*' (default: names by family, at once)"
    )
    parser.add_argument("--frames", type=positive, default=8, help="of the clip that is counted (default: 8)")
    parser.add_argument(
        "--size", type=positive, default=224, help="its height and width in pixels (default: 224)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    args = parser.parse_args(argv)
    from fnmatch import fnmatch

    from frameflex.models.backbones import architectures_by_family, family_of

    families = architectures_by_family()
    if args.pattern is None:
        for family, members in families.items():
            if args.json:
                for name in members:
                    print(json.dumps({"name": name, "family": family.title}))  # noqa: T201
            else:
                print(f"{family.title}: shift {family.placed}")  # noqa: T201
                print("  " + "\n  ".join(members) + "\n")  # noqa: T201
        return 0
    names = sorted(name for members in families.values() for name in members if fnmatch(name, args.pattern))
    if not names:
        if not set("*?[") & set(args.pattern):
            family_of(args.pattern)  # tells close matches, or why this one can't take the shift
        return fail(f"no architecture matches {args.pattern!r}; list all with frameflex models", status=1)
    from frameflex.console import progress

    rows = []
    with progress(console, "counting") as on_progress:
        for done, name in enumerate(names, start=1):
            rows.append(_describe_model(name, args.frames, args.size))
            on_progress(done, len(names))
    if args.json:
        for row in rows:
            print(json.dumps(row))  # noqa: T201
    else:
        _print_models(rows)
    return 0


def _print_models(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    table = Table(
        title=f"one clip of {first['num_frames']} frames, {first['size']} x {first['size']} pixels, 174 classes",
        title_justify="left",
    )
    table.add_column("architecture", no_wrap=True)
    table.add_column("M parameters", justify="right")
    table.add_column("GFLOPs/clip", justify="right")
    table.add_column("ImageNet weights")
    for row in rows:
        weights = row["weights"]
        shown = ", ".join(weights[:3]) + (f", {len(weights) - 3} more" if len(weights) > 3 else "")
        table.add_row(row["name"], f"{row['parameters'] / 1e6:.2f}", f"{row['gflops']:.3g}", shown or "none")
    Console().print(table)


def _describe_model(name: str, num_frames: int, size: int) -> dict[str, Any]:
    """What one architecture costs, counted on torch's meta device: no memory, no weights, no arithmetic."""
    import torch

    from frameflex.engine.evaluation import clip_gflops
    from frameflex.models import TSM
    from frameflex.models.backbones import family_of, pretrained_tags

    with torch.device("meta"):
        model = TSM(name, num_classes=174).eval()
        gflops = clip_gflops(model, torch.empty(1, 3, num_frames, size, size))
    return {
        "name": name,
        "family": family_of(name).title,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_frames": num_frames,
        "size": size,
        "gflops": gflops,
        "weights": pretrained_tags(name),
    }
