"""How far numbers can be believed: probabilities, by a temperature for each frame count; shares, by an interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRIOR_DEVIATION = 0.5  # of the temperature's logarithm: with few videos, all of them right, it stays near 1
HIGHEST = 20.0  # and 1 / 20 is the lowest


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that makes probabilities of held-out videos fit their labels (Guo et al., 2017, section 4.2).

    Logits divided by it have the highest likelihood, with a prior around 1. No answer changes, only its probability.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)``.

    Returns:
        The temperature; 1 where there are no videos.
    """
    if not len(labels):
        return 1.0
    logits = logits.double()
    low, high = -math.log(HIGHEST), math.log(HIGHEST)

    def slope(log_temperature: float) -> float:
        """How fast the loss, the prior included, falls as the temperature's logarithm grows."""
        inverse = math.exp(-log_temperature)
        probabilities = (logits * inverse).softmax(1)
        right = logits.gather(1, labels[:, None])[:, 0]
        of_videos = float(((probabilities * logits).sum(1) - right).sum())
        return of_videos * inverse - log_temperature / PRIOR_DEVIATION**2

    for _ in range(60):
        middle = (low + high) / 2
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def calibration_error(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> float:
    """Expected calibration error (ECE), 0 to 1: how far the highest probability is from the share of right answers.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)``.
        num_bins: of equal width, weighted by the videos in them.
    """
    best = logits.double().softmax(1).max(1)
    right = (best.indices == labels).double()
    bins = (best.values * num_bins).long().clamp(max=num_bins - 1)
    sums = torch.zeros(num_bins, dtype=torch.float64)
    gaps = sums.index_add(0, bins, best.values - right)
    return float(gaps.abs().sum() / len(labels))


def wilson_interval(right: int, number: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, by default the 95 % one: sensible for few videos and near 0 and 1."""
    if not number:
        return 0.0, 1.0
    share, square = right / number, z * z / number
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / number + square / (4 * number))
    return max(0.0, centre - half), min(1.0, centre + half)
