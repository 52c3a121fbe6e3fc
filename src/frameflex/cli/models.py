"""``frameflex models``: what can be built, and what can be loaded by name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from frameflex.cli.options import fail, parser_of, positive
from frameflex.printable import to_json


def run(argv: list[str], console: Any) -> int:
    args = _parser().parse_args(argv)
    if args.delete is not None:
        return _delete(args.delete)
    if args.cached or args.weights:
        return _show_weights(args, console)
    return _show_backbones(args, console)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "models",
        "List the architectures of timm that take the temporal shift. With a PATTERN each match is built, without\n"
        "its weights, to show parameters, GFLOPs (multiply-adds) of one clip, and which ImageNet weights exist.\n"
        "--weights lists published weights that every command takes by name, with their accuracy and terms.",
        "frameflex models 'mobilenetv*_100' --frames 8\n  frameflex models --weights '*.ssv2*'",
    )
    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="such as 'resnet*' (default: names by family, at once)"
    )
    parser.add_argument("--weights", action="store_true", help="published weights, instead of architectures")
    parser.add_argument(
        "--cached", action="store_true", help="those of them that are on this machine already"
    )
    parser.add_argument("--delete", metavar="NAME", help="remove downloaded weights from this machine")
    parser.add_argument(
        "--frames", type=positive, help="of the clip that is counted (default: 8, of weights their own)"
    )
    parser.add_argument(
        "--size", type=positive, default=224, help="its height and width in pixels (default: 224)"
    )
    parser.add_argument(
        "--ms", action="store_true", help="also measure the milliseconds of one clip on this machine's CPU"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    return parser


# ------------------------------------------------------------------------------------ published weights


def _show_weights(args: argparse.Namespace, console: Any) -> int:
    from fnmatch import fnmatch

    from frameflex.checkpoint.published import published
    from frameflex.console import progress

    pattern = args.pattern or "*"
    rows = [row for name, row in published().items() if fnmatch(name, pattern)]
    if not rows:
        return fail(
            f"no published weights match {pattern!r}; list all with frameflex models --weights", status=1
        )
    if args.cached:
        rows = [row for row in rows if row.path.is_file()]
        if not rows:
            console.print(
                "nothing is in the cache; the first use of a name fetches its weights", markup=False
            )
            return 0
    told = []
    with progress(console, "counting") as on_progress:
        for done, row in enumerate(rows, start=1):
            told.append(_describe_weights(row, args))
            on_progress(done, len(rows))
    if args.json:
        for values in told:
            print(to_json(values))  # noqa: T201
    else:
        _print_weights(told)
    return 0


def _describe_weights(row: Any, args: argparse.Namespace) -> dict[str, Any]:
    num_frames = args.frames or row.num_frames
    return {
        "name": row.name,
        "data": row.data,
        "num_classes": len(row.class_names),
        **_cost(
            row.backbone,
            num_frames,
            args.size,
            num_classes=len(row.class_names),
            non_local=row.non_local,
            measure=args.ms,
        ),
        "metrics": [dict(metric) for metric in row.metrics],
        "license": row.license,
        "terms": row.terms,
        "address": row.address,
        "cached_bytes": row.path.stat().st_size if row.path.is_file() else None,
    }


def _print_weights(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from frameflex.console import results_console

    timed = "ms" in rows[0]
    size = rows[0]["size"]
    table = Table(
        title=f"published weights; top-1 as their makers report it; one clip of {size} x {size} pixels",
        title_justify="left",
    )
    table.add_column("name", no_wrap=True)
    table.add_column("frames", justify="right")
    table.add_column("top-1 %", justify="right")
    table.add_column("clips x crops", no_wrap=True)
    table.add_column("GFLOPs", justify="right")
    if timed:
        table.add_column("ms", justify="right")
    table.add_column("here", justify="right")
    for row in rows:
        best = row["metrics"][0]
        protocol = best.get("views") or best["protocol"]
        cells = [row["name"], str(row["num_frames"]), f"{best['top1']:.2f}", protocol]
        cells.append(f"{row['gflops']:.3g}")
        if timed:
            cells.append(f"{row['ms']:.0f}")
        kept = row["cached_bytes"]
        table.add_row(*cells, f"{kept / 1e6:.0f} MB" if kept else "")
    out = results_console()
    out.print(table)
    terms = dict.fromkeys(row["terms"] for row in rows)
    out.print(f"the data sets bind their use: {'. '.join(terms)}", markup=False, highlight=False)


def _delete(name: str) -> int:
    from frameflex.checkpoint.published import delete

    removed = delete(name)
    if not removed:
        return fail(f"{name} isn't in the cache; frameflex models --cached shows what is", status=1)
    print(f"removed {name}: {sum(size for _, size in removed) / 1e6:.0f} MB")  # noqa: T201
    return 0


# ------------------------------------------------------------------------------------------- backbones


def _show_backbones(args: argparse.Namespace, console: Any) -> int:
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
        console.print("published weights of whole networks: frameflex models --weights", markup=False)
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
            rows.append(_describe_model(name, args.frames or 8, args.size, measure=args.ms))
            on_progress(done, len(names))
    if args.json:
        for row in rows:
            print(json.dumps(row))  # noqa: T201
    else:
        _print_models(rows)
    return 0


def _print_models(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from frameflex.console import results_console

    first = rows[0]
    table = Table(
        title=f"one clip of {first['num_frames']} frames, {first['size']} x {first['size']} pixels, 174 classes",
        title_justify="left",
    )
    table.add_column("architecture", no_wrap=True)
    table.add_column("M parameters", justify="right")
    table.add_column("GFLOPs/clip", justify="right")
    if "ms" in first:
        table.add_column("ms/clip", justify="right")
    table.add_column("ImageNet weights")
    for row in rows:
        weights = row["weights"]
        shown = ", ".join(weights[:3]) + (f", {len(weights) - 3} more" if len(weights) > 3 else "")
        cells = [row["name"], f"{row['parameters'] / 1e6:.2f}", f"{row['gflops']:.3g}"]
        if "ms" in row:
            cells.append(f"{row['ms']:.0f}")
        table.add_row(*cells, shown or "none")
    results_console().print(table)


def _describe_model(name: str, num_frames: int, size: int, *, measure: bool = False) -> dict[str, Any]:
    from frameflex.models.backbones import family_of, pretrained_tags

    return {
        "name": name,
        "family": family_of(name).title,
        **_cost(name, num_frames, size, num_classes=174, measure=measure),
        "weights": pretrained_tags(name),
    }


def _cost(
    backbone: str, num_frames: int, size: int, *, num_classes: int, non_local: str = "none", measure: bool
) -> dict[str, Any]:
    """What a network costs, counted on torch's meta device: no memory, no weights, no arithmetic."""
    import torch

    from frameflex.engine.evaluation import clip_gflops
    from frameflex.models import TSM

    with torch.device("meta"):
        model = TSM(backbone, num_classes=num_classes, non_local=non_local).eval()
        gflops = clip_gflops(model, torch.empty(1, 3, num_frames, size, size))
    cost = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_frames": num_frames,
        "size": size,
        "gflops": gflops,
    }
    if measure:
        cost["ms"] = _milliseconds(backbone, num_frames, size, num_classes=num_classes, non_local=non_local)
    return cost


def _milliseconds(backbone: str, num_frames: int, size: int, **options: Any) -> float:
    """Median of three forwards of one clip on the CPU, after one that doesn't count."""
    import torch

    from frameflex.deploy.benchmark import paired_seconds
    from frameflex.models import TSM

    model = TSM(backbone, **options).eval()
    clip = torch.randn(1, 3, num_frames, size, size)
    with torch.inference_mode():
        (times,) = paired_seconds([lambda: model(clip)], 3)
    return 1000 * sorted(times)[1]
