"""Tables and plots of what was measured."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from rich.markup import escape
from rich.table import Table

from frameflex.data.checking import Checked
from frameflex.engine.adaptive import AdaptivePoint, AdaptiveReport
from frameflex.engine.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def accuracy_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row for each model and frame count: accuracy, points lost against the trained count, cost.

    The drop is top-1 at the largest trained count less top-1 at this one; GFLOPs are multiply-adds of one clip;
    clips a second are of the network alone.

    Args:
        evaluations: by the name of the model; the name is shown where there are several.
    """
    several = len(evaluations) > 1
    first = next(iter(evaluations.values()))
    title = f"{len(first.names)} videos, views {first.views}; * trained at this count"
    if any(evaluation.bad for evaluation in evaluations.values()):
        title += f"; {len(first.bad)} undecodable ones left out"
    table = Table(title=title, title_justify="left")
    if several:
        table.add_column("model")
    several_labels = any(
        r.mean_average_precision is not None for e in evaluations.values() for r in e.results
    )
    headings = ("frames", "top-1 %", "top-5 %", "class %", "drop", "GFLOPs", "clips/s")
    for heading in (*headings, *(["mAP %"] if several_labels else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, evaluation in evaluations.items():
        for result in evaluation.results:
            drop = evaluation.drop(result.num_frames)
            trained = result.num_frames in evaluation.trained_counts
            cells = [
                f"{'*' if trained else ''}{result.num_frames}",
                f"{100 * result.top1:.1f}",
                f"{100 * result.top5:.1f}",
                f"{100 * result.mean_class_accuracy:.1f}",
                "–" if drop is None else f"{100 * drop + 0.0:.1f}",
                f"{result.gflops:.3g}",
                f"{result.clips_per_second:.1f}",
            ]
            if result.mean_average_precision is not None:
                cells.append(f"{100 * result.mean_average_precision:.1f}")
            table.add_row(*([name] if several else []), *cells)
        table.add_section()
    return table


def findings_table(found: Checked, limit: int | None = None) -> Table:
    """A row for each finding of `frameflex data check`, bad ones first.

    Args:
        found: what `check` found.
        limit: rows at most.
    """
    shown = found.findings[:limit]
    table = Table(title_justify="left")
    table.title = f"{found.num_videos} videos, {found.num_bad} bad, {found.num_doubtful} doubtful"
    if len(shown) < len(found.findings):
        table.title += f"; the first {len(shown)} of {len(found.findings)} findings"
    table.add_column("finding", no_wrap=True)
    table.add_column("video", overflow="fold")
    table.add_column("why", overflow="fold")
    for finding in shown:
        name = f"{finding.split}: {finding.name}" if finding.split else finding.name
        kind = finding.kind + ("" if finding.bad else " (doubtful)")
        table.add_row(kind, escape(name), escape(finding.reason))
    return table


def comparison_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row for each model: its largest drop, the area under its curve, its parameters."""
    counts = sorted(next(iter(evaluations.values())).logits)
    table = Table(title=f"over {counts[0]} to {counts[-1]} frames", title_justify="left")
    table.add_column("model")
    for heading in (
        "trained at",
        "best top-1 %",
        "worst top-1 %",
        "largest drop",
        "area over log2 T",
        "parameters",
    ):
        table.add_column(heading, justify="right")
    for name, evaluation in evaluations.items():
        top1 = [result.top1 for result in evaluation.results]
        drops = [evaluation.drop(result.num_frames) for result in evaluation.results]
        measured = [drop for drop in drops if drop is not None]
        table.add_row(
            name,
            ", ".join(map(str, evaluation.trained_counts)),
            f"{100 * max(top1):.1f}",
            f"{100 * min(top1):.1f}",
            f"{100 * max(measured):.1f}" if measured else "–",
            f"{100 * evaluation.area():.1f}",
            f"{evaluation.num_parameters / 1e6:.2f} M",
        )
    return table


def adaptive_table(found: AdaptiveReport, name: str | None = None) -> Table:
    """Accuracy against mean cost for a sweep of confidence thresholds; rows that change nothing are left out."""
    counts = found.frame_counts
    title = f"{name}: " if name else ""
    table = Table(title=f"{title}{' then '.join(map(str, counts))} frames, {found.num_reported_on} videos")
    for heading in (
        "confidence",
        "top-1 %",
        "mean GFLOPs",
        "of full",
        *(f"stop at {count}" for count in counts),
    ):
        table.add_column(heading, justify="right")
    shown: dict[float, AdaptivePoint] = {}
    for point in found.points:
        near = [old for old in shown.values() if abs(old.gflops - point.gflops) < 0.1 * found.full_gflops]
        if not near or point == found.chosen:
            shown[point.confidence] = point
    for point in shown.values():
        table.add_row(
            f"{point.confidence:.2f}{' *' if point == found.chosen else ''}",
            f"{100 * point.top1:.1f}",
            f"{point.gflops:.3g}",
            f"{100 * point.gflops / found.full_gflops:.0f} %",
            *(f"{100 * share:.0f} %" for share in point.shares.values()),
        )
    return table


def adaptive_sentence(found: AdaptiveReport, max_drop: float) -> str:
    """What the chosen way gives on videos that it was not chosen on."""
    chosen = found.chosen
    counts = ",".join(map(str, found.frame_counts))
    use = f"--frames {counts}"
    if len(found.frame_counts) > 1:
        use = f"--budget {counts} --confidence {chosen.confidence:g}"
    return (
        f"* chosen on {found.num_chosen_on} other videos as the cheapest that loses at most {max_drop:g} points "
        f"there. On these {found.num_reported_on}: {100 * chosen.top1:.1f} % against "
        f"{100 * found.full_top1:.1f} % at the largest count, for "
        f"{100 * chosen.gflops / found.full_gflops:.0f} % of its GFLOPs. "
        f"Use it: predict {use}"
    )


def plot_adaptive(reports: Mapping[str, AdaptiveReport], path: Path) -> None:
    """Draw top-1 over mean GFLOPs, a line for each model; the chosen threshold is a filled dot."""

    def draw(axes: Axes) -> None:
        for name, found in reports.items():
            points = sorted(found.points, key=lambda point: point.gflops)
            (line,) = axes.plot([p.gflops for p in points], [100 * p.top1 for p in points], label=name)
            axes.plot(found.chosen.gflops, 100 * found.chosen.top1, "o", color=line.get_color())
            axes.plot(found.full_gflops, 100 * found.full_top1, "s", color=line.get_color())
        axes.set_xlabel("mean GFLOPs a video (dot: chosen threshold, square: largest count alone)")
        axes.set_ylabel("top-1 accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")

    save_figure(path, draw, size=(6.4, 4.2))


def plot_accuracy(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Draw top-1 over the number of frames, a line for each model; trained counts are filled dots.

    Args:
        evaluations: by the name of the model.
        path: ends in .png, .svg or .pdf; written under a temporary name first.
    """

    def draw(axes: Axes) -> None:
        counts = sorted({result.num_frames for e in evaluations.values() for result in e.results})
        for name, evaluation in evaluations.items():
            xs = [result.num_frames for result in evaluation.results]
            ys = [100 * result.top1 for result in evaluation.results]
            (line,) = axes.plot(xs, ys, marker="o", markerfacecolor="white", label=name)
            trained = [(x, y) for x, y in zip(xs, ys, strict=True) if x in evaluation.trained_counts]
            if trained:
                axes.plot(*zip(*trained, strict=True), "o", color=line.get_color())
        num_classes = len(next(iter(evaluations.values())).class_names)
        axes.axhline(100 / num_classes, color="grey", linestyle=":", label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_ylim(0, 100)
        axes.set_xlabel("frames at evaluation (filled: trained at)")
        axes.set_ylabel("top-1 accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")

    save_figure(path, draw, size=(6.4, 4.2))


def plot_confusion(evaluation: Evaluation, num_frames: int, path: Path) -> None:
    """Draw which class is taken for which, as shares of the true class; of many classes the most confused 40."""
    confusion = evaluation.confusion(num_frames).double()
    names = evaluation.class_names
    keep = torch.arange(len(names))
    if len(names) > 40:
        mistakes = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
        keep = mistakes.topk(40).indices.sort().values
    shares = (confusion / confusion.sum(1, keepdim=True).clamp(min=1))[keep][:, keep]
    labels = [names[i] if len(names[i]) <= 45 else names[i][:44] + "…" for i in keep.tolist()]
    side = max(4.0, 0.32 * len(labels)) + 3

    def draw(axes: Axes) -> None:
        image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        if len(labels) <= 16:
            for y, row in enumerate(shares.tolist()):
                for x, share in enumerate(row):
                    if share >= 0.005:
                        colour = "white" if share > 0.5 else "black"
                        axes.text(
                            x, y, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=7
                        )
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        which = "" if len(names) <= 40 else ", the 40 most confused classes"
        axes.set_title(f"% of each true class at {num_frames} frames{which}", fontsize=10)
        axes.figure.colorbar(image, ax=axes, fraction=0.046)

    save_figure(path, draw, size=(side + 1, side))


def save_figure(path: Path, draw: Callable[[Axes], None], *, size: tuple[float, float]) -> None:
    """Draw on one pair of axes, ``size`` inches large, and write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")  # no pyplot: no global state, no display
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    kind = path.suffix.lstrip(".") or "png"
    _write(path, lambda file: figure.savefig(file, dpi=150, format=kind), binary=True)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, complete or not at all."""
    _write(path, lambda file: file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n"))


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write a CSV row for each video and frame count: true label, best guess, its probability, right or not."""

    def write(file: IO[str]) -> None:
        rows = csv.writer(file)
        rows.writerow(["video", "num_frames", "label", "prediction", "probability", "right"])
        for num_frames, logits in evaluation.logits.items():
            best = logits.softmax(1).max(1)
            for name, label, guess, probability in zip(
                evaluation.names,
                evaluation.labels.tolist(),
                best.indices.tolist(),
                best.values.tolist(),
                strict=True,
            ):
                classes = evaluation.class_names
                rows.writerow(
                    [
                        name,
                        num_frames,
                        classes[label],
                        classes[guess],
                        f"{probability:.6f}",
                        int(guess == label),
                    ]
                )

    _write(path, write)


def _write(path: Path, write: Callable[[Any], object], *, binary: bool = False) -> None:
    """Fill a file under a temporary name and rename it, so that no half-written one is ever found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") if binary else open(handle, "w", newline="", encoding="utf-8") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
