"""What was measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from frameflex.data.checking import Checked
from frameflex.engine.adaptive import AdaptivePoint, AdaptiveReport
from frameflex.engine.cross_validation import CrossValidation
from frameflex.engine.evaluation import Evaluation


def top1_sentence(evaluation: Evaluation) -> str:
    """Top-1 at the largest trained count that was measured, in a sentence with its 95 % interval."""
    counts = [result.num_frames for result in evaluation.results]
    num_frames = max([count for count in counts if count in evaluation.trained_counts] or counts)
    top1, number = evaluation.at(num_frames).top1, len(evaluation.names)
    interval = evaluation.top1_interval(num_frames)
    if interval is None:
        return f"top-1 at {num_frames} frames {top1:.1%} of {number} videos"
    low, high = interval
    return (
        f"top-1 at {num_frames} frames {top1:.1%} ({round(top1 * number)} of {number} videos), 95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f} %"
    )


def accuracy_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row for each model and frame count: accuracy, points lost against the trained count, cost.

    The drop is top-1 at the largest trained count less top-1 at this one; GFLOPs are multiply-adds of one clip;
    clips a second are of the network alone. ECE is how far probabilities are from shares of right answers: of the
    network's own, and at the checkpoint's temperature.

    Args:
        evaluations: by the name of the model; the name is shown where there are several.
    """
    several = len(evaluations) > 1
    first = next(iter(evaluations.values()))
    title = f"{len(first.names)} videos, views {first.views}; * trained at this count"
    if any(evaluation.bad for evaluation in evaluations.values()):
        title += f"; {len(first.bad)} undecodable ones left out"
    if first.precision != "float32":
        title += f"; computed in {first.precision}"
    remembered = max(len(evaluation.trained_on or ()) for evaluation in evaluations.values())
    if remembered:
        title += f"; {remembered} of them were trained on"
    table = Table(title=title, title_justify="left")
    if several:
        table.add_column("model", min_width=12)
    several_labels = any(
        r.mean_average_precision is not None for e in evaluations.values() for r in e.results
    )
    believable = any(r.calibration_error is not None for e in evaluations.values() for r in e.results)
    # Beside names there is room for fewer numbers in 80 columns.
    headings = [
        "frames",
        "top-1 %",
        "top-5 %",
        *([] if several else ["class %"]),
        "drop",
        "GFLOPs",
        "clips/s",
    ]
    for heading in (
        *headings,
        *(["mAP %"] if several_labels else []),
        *(["ECE %", *([] if several else ["at temp."])] if believable else []),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, evaluation in evaluations.items():
        for result in evaluation.results:
            drop = evaluation.drop(result.num_frames)
            trained = result.num_frames in evaluation.trained_counts
            cells = [
                f"{'*' if trained else ''}{result.num_frames}",
                f"{100 * result.top1:.1f}",
                f"{100 * result.top5:.1f}",
                *([] if several else [f"{100 * result.mean_class_accuracy:.1f}"]),
                "–" if drop is None else f"{100 * drop + 0.0:.1f}",
                f"{result.gflops:.3g}",
                f"{result.clips_per_second:.1f}",
            ]
            if result.mean_average_precision is not None:
                cells.append(f"{100 * result.mean_average_precision:.1f}")
            elif several_labels:
                cells.append("–")
            if believable:
                errors = (result.calibration_error, result.calibrated_error)[: 1 if several else 2]
                cells += ["–" if error is None else f"{100 * error:.1f}" for error in errors]
            table.add_row(*([name] if several else []), *cells)
        table.add_section()
    return table


def folds_table(validated: CrossValidation) -> Table:
    """A row for each frame count: the folds' mean and deviation, and all videos together with their interval."""
    title = f"{len(validated.folds)} folds, {len(validated.evaluation.names)} videos, each held out once"
    if validated.grouped:
        title += f", with its group ({validated.num_groups})"
    table = Table(title=title, title_justify="left")
    for heading in ("frames", "mean %", "deviation", "pooled %", "95 % interval", "right"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in validated.accuracies():
        low, high = one.interval
        table.add_row(
            str(one.num_frames),
            f"{100 * one.mean:.1f}",
            f"{100 * one.deviation:.1f}",
            f"{100 * one.top1:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{one.right} of {one.number}",
        )
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
        table.add_row(kind, name, finding.reason)
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
