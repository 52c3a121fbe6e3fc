"""A compute dial: look at few frames first, and at more only while the answer is not sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from frameflex.engine.evaluation import Evaluation

THRESHOLDS = (*(round(0.3 + 0.01 * step, 2) for step in range(70)), 0.995, 0.999, 1.01)
MOST_LOOKS = 3  # at one video: more of them than that never paid


@dataclass(frozen=True)
class AdaptivePoint:
    """What one threshold gives.

    Attributes:
        confidence: the highest probability from which on an answer is taken; above 1 every video goes the whole way.
        top1: 0 to 1.
        gflops: mean multiply-adds a video, in billions; all passes of a video together.
        shares: for each frame count the share of videos that stopped there.
    """

    confidence: float
    top1: float
    gflops: float
    shares: dict[int, float]


@dataclass(frozen=True)
class AdaptiveReport:
    """Frame counts and a threshold chosen on one half of the videos, and what they give on the other.

    Attributes:
        frame_counts: the T's to look at in turn, fewest first; a single one where no second look pays.
        points: the sweep of thresholds at these counts, on the half that is reported on.
        chosen: the threshold of the cheapest way within the allowed drop on the half it was chosen on, measured on
            the other.
        full_top1: of the largest count alone, on the half that is reported on.
        full_gflops: of the largest count alone.
        num_chosen_on: videos of the one half.
        num_reported_on: videos of the other.
    """

    frame_counts: tuple[int, ...]
    points: list[AdaptivePoint]
    chosen: AdaptivePoint
    full_top1: float
    full_gflops: float
    num_chosen_on: int
    num_reported_on: int


def adaptive_report(measured: Evaluation, frame_counts: Sequence[int], *, max_drop: float) -> AdaptiveReport:
    """Choose counts to look at, and a threshold, on every second video of each class; report on the others.

    Every choice of at most three of ``frame_counts`` is tried at every threshold. A first look that is rarely sure
    costs more than it saves, so the fewest frames are not always the right ones to begin with.

    Args:
        measured: has logits at every count.
        frame_counts: the T's to choose from; the largest is what accuracy is held against.
        max_drop: top-1 that may be lost against the largest count, 0 to 1.

    Raises:
        ValueError: if a count was not measured or there are fewer than two videos.
    """
    counts = sorted(frame_counts)
    missing = [count for count in counts if count not in measured.logits]
    if missing or len(counts) < 2:
        raise ValueError(f"frame counts {counts}: expected at least two, all of them measured")
    seen: dict[int, int] = {}
    for_choice = []
    for label in measured.labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        for_choice.append(seen[label] % 2 == 1)
    mask = torch.tensor(for_choice)
    if bool(mask.all()):
        raise ValueError("one half of the videos would be empty; expected at least two of a class")
    costs = {count: measured.at(count).gflops for count in counts}

    def sweep(schedule: Sequence[int], part: Tensor) -> list[AdaptivePoint]:
        logits = {count: measured.calibrated(count)[part] for count in schedule}
        thresholds = THRESHOLDS if len(schedule) > 1 else THRESHOLDS[-1:]
        return [run_adaptive(logits, measured.labels[part], costs, confidence) for confidence in thresholds]

    def full(part: Tensor) -> float:
        return float((measured.logits[counts[-1]][part].argmax(1) == measured.labels[part]).double().mean())

    needed = full(mask) - max_drop - 1e-9
    schedules = [
        schedule for num_looks in range(1, MOST_LOOKS + 1) for schedule in combinations(counts, num_looks)
    ]
    allowed = [
        (point, schedule) for schedule in schedules for point in sweep(schedule, mask) if point.top1 >= needed
    ]  # never empty: the largest count alone is among them
    cheapest, schedule = min(allowed, key=lambda found: found[0].gflops)
    confidence = cheapest.confidence
    points = sweep(schedule, ~mask)
    return AdaptiveReport(
        frame_counts=schedule,
        points=points,
        chosen=next(point for point in points if point.confidence == confidence),
        full_top1=full(~mask),
        full_gflops=costs[counts[-1]],
        num_chosen_on=int(mask.sum()),
        num_reported_on=int((~mask).sum()),
    )


def run_adaptive(
    logits: dict[int, Tensor], labels: Tensor, gflops: dict[int, float], confidence: float
) -> AdaptivePoint:
    """What happens if each video stops at the first count whose highest probability reaches ``confidence``.

    Args:
        logits: T -> ``(N, K)``.
        labels: ``(N,)``.
        gflops: T -> of one pass.
        confidence: see `AdaptivePoint`.
    """
    counts = sorted(logits)
    going = torch.ones(len(labels), dtype=torch.bool)
    right, cost, shares = 0.0, 0.0, {}
    for count in counts:
        cost += gflops[count] * float(going.double().mean())
        sure = logits[count].softmax(1).amax(1) >= confidence
        stops = going & (sure | torch.tensor(count == counts[-1]))
        right += float(((logits[count].argmax(1) == labels) & stops).double().mean())
        shares[count] = float(stops.double().mean())
        going &= ~stops
    return AdaptivePoint(confidence, right, cost, shares)
