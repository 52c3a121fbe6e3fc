"""``frameflex benchmark``: how fast a network is here, next to its backbone without the shift."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.options import PRECISIONS, check_place, frame_counts, parser_of, positive

if TYPE_CHECKING:
    from frameflex.deploy.benchmark import BenchmarkReport, Timing

# Named here so that --help needs no torch.
BACKENDS = (
    *("eager", "compile", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8"),
    *("cuda", "cuda-compile"),
)


def run(argv: list[str], console: Any) -> int:
    args = _parser().parse_args(argv)
    import torch

    from frameflex.console import progress
    from frameflex.deploy.benchmark import benchmark
    from frameflex.report import write_json

    for name, file in (("--json", args.json), ("--plot", args.plot)):
        if file and file.is_dir():
            raise ValueError(f"{file} is a folder; expected the name of a file to write")
        if file:
            check_place(file, name=name)
    if args.threads:
        torch.set_num_threads(args.threads)
    model, size = _network(args.network, args.size)
    with progress(console, "timing") as on_progress:
        report = benchmark(
            model,
            backends=args.backends,
            frame_counts=args.frames,
            batches=args.batch,
            size=size,
            precisions=args.precision,
            num_runs=args.runs,
            on_progress=on_progress,
        )
    values = {
        "network": args.network,
        "size": size[0] if size[0] == size[1] else list(size),
        **report.to_dict(),
    }
    described = [f"{name} {value}" for name, value in report.hardware.items()]
    print(f"{args.network}, {size[0]} x {size[1]} pixels, {', '.join(described)}")  # noqa: T201
    if report.timings:
        from frameflex.console import results_console

        results_console().print(_table(report))
    for name, reason in report.unavailable.items():
        print(f"{name}: not measured, {reason}")  # noqa: T201
    if args.json:
        write_json(args.json, values)
    if args.plot and report.timings:
        _plot(report, args.network, args.plot)
    if not report.timings:
        raise ValueError("no back end that was asked for can run here")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "benchmark",
        "Time a network on every back end that is installed, next to the same backbone without the shift on the\n"
        "same back end: both in turn, run by run, medians. Other programs should rest meanwhile.",
        "frameflex benchmark resnet50 --frames 8,16 --backends eager,openvino --json times.json --plot times.png",
    )
    parser.add_argument(
        "network",
        nargs="?",
        default="resnet50",
        metavar="CHECKPOINT | MODEL",
        help="a .safetensors file of frameflex, or an architecture of frameflex models (default: resnet50)",
    )
    parser.add_argument("--frames", type=frame_counts, default=(8,), help="such as 8,16 (default: 8)")
    parser.add_argument(
        "--batch", type=frame_counts, default=(1,), help="clips at once, such as 1,4 (default: 1)"
    )
    parser.add_argument(
        "--size", type=positive, help="pixels a side (default: the checkpoint's, or 224 for a MODEL)"
    )
    parser.add_argument(
        "--backends", type=_backends, default=BACKENDS, help=f"some of {', '.join(BACKENDS)} (default: all)"
    )
    parser.add_argument(
        "--precision",
        type=_precisions,
        default=("auto",),
        metavar="PRECISIONS",
        help="such as float32,bfloat16, for the back ends that have a choice; auto: what the hardware does fast "
        "(default: auto)",
    )
    parser.add_argument("--runs", type=_runs, default=10, help="pairs for each (default: 10)")
    parser.add_argument("--threads", type=positive, help="CPU threads of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (.png, .svg, .pdf)")
    return parser


def _network(name: str, size: int | None) -> tuple[Any, tuple[int, int]]:
    from frameflex.checkpoint import load_checkpoint
    from frameflex.models import TSM, create_model

    if Path(name).suffix == ".safetensors" or Path(name).exists():
        checkpoint = load_checkpoint(name)
        if not isinstance(checkpoint.model, TSM):
            raise ValueError(f"{name} is no checkpoint of a network; give the one that it was exported from")
        return checkpoint.model.eval(), (size, size) if size else checkpoint.preprocessing.size
    return create_model(name, num_classes=174).eval(), (size or 224,) * 2


def _table(report: BenchmarkReport) -> Any:
    from rich import box
    from rich.table import Table

    # Eighty columns hold it.
    title = "time of a batch, and over the same network without the shift (2D)"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("back end", "T", "batch", "ms", "clips/s", "2D ms", "ratio", "quartiles"):
        table.add_column(name, justify="left" if name == "back end" else "right", no_wrap=True)
    for timing in report.timings:
        low, high = timing.ratio_quartiles
        table.add_row(
            _name(timing),
            str(timing.num_frames),
            str(timing.batch),
            f"{timing.seconds * 1e3:.1f}",
            f"{timing.clips_per_second:.2f}",
            f"{timing.plain_seconds * 1e3:.1f}",
            f"{timing.ratio:.3f}",
            f"{low:.3f}-{high:.3f}",
        )
    return table


def _plot(report: BenchmarkReport, network: str, path: Path) -> None:
    from frameflex.report import save_figure

    def draw(axes: Any) -> None:
        timings = report.timings[::-1]
        places = range(len(timings))
        axes.barh([p + 0.2 for p in places], [t.seconds * 1e3 for t in timings], 0.38, label=network)
        axes.barh(
            [p - 0.2 for p in places],
            [t.plain_seconds * 1e3 for t in timings],
            0.38,
            label="the same without the shift",
            color="lightgrey",
        )
        for place, timing in zip(places, timings, strict=True):
            axes.annotate(
                f" {timing.seconds * 1e3:.0f} ms, ratio {timing.ratio:.2f}",
                (timing.seconds * 1e3, place + 0.2),
                va="center",
                fontsize=8,
            )
        axes.set_yticks(list(places), [f"{_name(t)}, T = {t.num_frames}, batch {t.batch}" for t in timings])
        axes.set_xlabel("milliseconds a batch (median)")
        axes.margins(x=0.25)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)

    save_figure(path, draw, size=(8, 1.5 + 0.55 * len(report.timings)))


def _name(timing: Timing) -> str:
    """Of the back end, with the precision where it isn't float32 or said by the name."""
    plain = timing.precision in ("float32", "int8")
    return timing.backend if plain else f"{timing.backend}, {timing.precision}"


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    known = [name for name in PRECISIONS if name != "int8"]
    if not names or not set(names) <= set(known):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected some of {', '.join(known)}. int8 is timed by the back ends onnxruntime-int8 and "
            "openvino-int8"
        )
    return names


def _backends(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in BACKENDS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r}; expected some of {', '.join(BACKENDS)}")
    return names


def _runs(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 2")
    return int(text)
