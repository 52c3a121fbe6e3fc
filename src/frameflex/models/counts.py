"""Which trained frame counts serve a T."""

from __future__ import annotations

import math
from collections.abc import Iterable


def nearest_count(frame_counts: Iterable[int], num_frames: int) -> int:
    """The trained count whose parts serve ``num_frames``; ties go to the larger count: FFN's rule."""
    nearest, *others = frame_counts
    for count in others:  # no min(..., key=...): some versions of torch.compile can't trace one
        nearer = abs(nearest - num_frames) - abs(count - num_frames)
        if nearer > 0 or (nearer == 0 and count > nearest):
            nearest = count
    return nearest


def blend_weight(frame_counts: Iterable[int], num_frames: int) -> tuple[int, int, float]:
    """The two counts around ``num_frames`` and how far it is from the first to the second, in log T.

    Outside the range of the counts, and at a count itself, both are the nearest one.
    """
    counts = sorted(frame_counts)
    below = max((count for count in counts if count <= num_frames), default=counts[0])
    above = min((count for count in counts if count >= num_frames), default=counts[-1])
    if below == above:
        return below, above, 0.0
    return below, above, math.log(num_frames / below) / math.log(above / below)
