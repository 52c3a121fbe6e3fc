"""What was measured, as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from frameflex.engine.adaptive import AdaptiveReport
from frameflex.engine.evaluation import Evaluation
from frameflex.printable import in_figure
from frameflex.report.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_adaptive(reports: Mapping[str, AdaptiveReport], path: Path) -> None:
    """Draw top-1 over mean GFLOPs, a line for each model; the chosen threshold is a filled dot."""

    def draw(axes: Axes) -> None:
        for name, found in reports.items():
            points = sorted(found.points, key=lambda point: point.gflops)
            (line,) = axes.plot(
                [p.gflops for p in points], [100 * p.top1 for p in points], label=in_figure(name)
            )
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
            (line,) = axes.plot(xs, ys, marker="o", markerfacecolor="white", label=in_figure(name))
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
    labels = [
        in_figure(name if len(name) <= 45 else name[:44] + "…") for name in (names[i] for i in keep.tolist())
    ]
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
    write_whole(path, lambda file: figure.savefig(file, dpi=150, format=kind), binary=True)
