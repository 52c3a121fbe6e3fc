"""Which frames of a video become a clip: index arithmetic alone, no I/O.

A video of `num_available` frames is a stretch of time in which frame k is shown during `[k, k + 1)`.
*Segment sampling* (TSN, arXiv 1608.00859, section 3.1; used by TSM and FFN) cuts it into T equal segments and
takes one frame of each, so that a clip of any T spans the whole video. *Dense sampling* takes T frames a
fixed stride apart instead, so that a clip spans a window of it.

All indices are non-decreasing, and each lies in `[0, num_available)`.
"""

import torch

__all__ = ["dense_indices", "eval_indices", "train_indices"]


def train_indices(num_available: int, num_frames: int, generator: torch.Generator | None = None) -> list[int]:
    """Pick a random frame of each of T equal segments.

    A frame belongs to the segment that its middle `k + 0.5` lies in: every frame can be drawn, and no frame
    is drawn twice. A video of at most T frames leaves nothing to draw: all of its frames are spread evenly
    over the clip, as in `eval_indices`.

    Args:
        num_available: frames in the video, at least 1.
        num_frames: T, the frames to pick, at least 1.
        generator: source of randomness; torch's global one when None.

    Raises:
        ValueError: if either count is below 1.

    Example:
        >>> picked = train_indices(32, 8, torch.Generator().manual_seed(0))  # segments of 4 frames
        >>> [index // 4 for index in picked]
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> train_indices(3, 8)
        [0, 0, 0, 1, 1, 2, 2, 2]
    """
    _check_counts(num_available, num_frames)
    if num_available <= num_frames:
        return eval_indices(num_available, num_frames)
    # The first frame whose middle is not before i * num_available / num_frames, in exact integers.
    starts = [-((num_frames - 2 * i * num_available) // (2 * num_frames)) for i in range(num_frames)] + [
        num_available
    ]
    draws = torch.rand(num_frames, generator=generator, dtype=torch.float64).tolist()
    return [
        min(first + int(draw * (end - first)), end - 1)
        for first, end, draw in zip(starts[:-1], starts[1:], draws, strict=True)
    ]


def eval_indices(num_available: int, num_frames: int, *, view: int = 0) -> list[int]:
    """Pick the middle frame of each of T equal segments, or the first one.

    These are the test clips of TSM: its "1 clip" is view 0, its "2 clips" are views 0 and 1. A video of fewer
    than T frames is spread evenly over the clip: each frame appears, in order, and no two frames' numbers of
    appearances differ by more than 1.

    Args:
        num_available: frames in the video, at least 1.
        num_frames: T, the frames to pick, at least 1.
        view: 0 for the frame at each segment's middle, 1 for the one at its start.

    Raises:
        ValueError: if either count is below 1, or the view is neither 0 nor 1.

    Example:
        >>> eval_indices(32, 8)
        [2, 6, 10, 14, 18, 22, 26, 30]
        >>> eval_indices(32, 8, view=1)
        [0, 4, 8, 12, 16, 20, 24, 28]
        >>> eval_indices(4, 8)
        [0, 0, 1, 1, 2, 2, 3, 3]
        >>> eval_indices(100, 1)
        [50]
    """
    _check_counts(num_available, num_frames)
    if view not in (0, 1):
        raise ValueError(f"view is {view}; expected 0 (middle of each segment) or 1 (start of each segment).")
    if view == 1:
        return [i * num_available // num_frames for i in range(num_frames)]
    return [(2 * i + 1) * num_available // (2 * num_frames) for i in range(num_frames)]


def dense_indices(
    num_available: int,
    num_frames: int,
    *,
    stride: int,
    generator: torch.Generator | None = None,
    view: int = 0,
    num_views: int = 1,
) -> list[int]:
    """Pick T frames that are `stride` frames apart.

    The window of `(T - 1) * stride + 1` frames starts at random with a generator; without one it is the
    view-th of `num_views` windows laid evenly over the video, a single one in the centre. Where the video is
    shorter than the window, its frames are spread over the clip as in `eval_indices`, which shortens the
    stride: wrapping round would show a jump back in time that never happened.

    Args:
        num_available: frames in the video, at least 1.
        num_frames: T, the frames to pick, at least 1.
        stride: distance of neighbouring picks in frames, at least 1.
        generator: source of a random start; None for a fixed one.
        view: which window, from 0 to `num_views - 1`; only without a generator.
        num_views: how many windows share the video.

    Raises:
        ValueError: if a count or the stride is below 1, or the view is out of range.

    Example:
        >>> dense_indices(100, 4, stride=8)  # the window has 25 frames
        [37, 45, 53, 61]
        >>> dense_indices(100, 4, stride=8, view=1, num_views=3)
        [37, 45, 53, 61]
        >>> dense_indices(100, 4, stride=8, view=2, num_views=3)
        [62, 70, 78, 86]
        >>> dense_indices(10, 4, stride=8)
        [1, 3, 6, 8]
    """
    _check_counts(num_available, num_frames)
    if stride < 1:
        raise ValueError(f"stride is {stride}; expected at least 1 frame.")
    if not 0 <= view < num_views:
        raise ValueError(f"view is {view}; expected 0 to num_views - 1 = {num_views - 1}.")
    num_spare = num_available - ((num_frames - 1) * stride + 1)
    if num_spare < 0:
        return eval_indices(num_available, num_frames)
    if generator is None:
        start = (2 * view + 1) * num_spare // (2 * num_views)
    else:
        start = int(torch.randint(num_spare + 1, (1,), generator=generator))
    return [start + i * stride for i in range(num_frames)]


def _check_counts(num_available: int, num_frames: int) -> None:
    if num_available < 1:
        raise ValueError(f"num_available is {num_available}; expected a video of at least 1 frame.")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; expected at least 1 frame a clip.")
