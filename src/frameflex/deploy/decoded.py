"""The frames of a video that a network is shown, before they are clips: for who wants to show them to people, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frameflex.data.clips import ClipDataset, select_views
from frameflex.data.transforms import EvalTransform
from frameflex.video import VideoReader


@dataclass(frozen=True)
class Decoded:
    """The frames of a video that a network may be shown.

    Attributes:
        crops: uint8 ``(N, num_crops, 3, h, w)``, each frame once.
        views: T -> V lists of T rows of ``crops``.
        frame_numbers: which frame of the video each row is.
        num_frames: of the video.
        fps: of the video.
        size: ``(height, width)`` of the video, in pixels.
    """

    crops: np.ndarray
    views: dict[int, list[list[int]]]
    frame_numbers: list[int]
    num_frames: int
    fps: float
    size: tuple[int, int]

    @property
    def seconds(self) -> float:
        """How long the video is, at its mean rate."""
        return self.num_frames / self.fps

    def clip(self, num_frames: int, transform: EvalTransform) -> Tensor:
        """The clip ``(V, 3, T, h, w)``: what `ClipDataset.clips` makes of the same video."""
        crops = transform.normalise(torch.from_numpy(self.crops).transpose(0, 1))  # (num_crops, 3, N, h, w)
        return select_views(crops, self.views[num_frames])

    def shown(self, num_frames: int) -> list[int]:
        """The rows of the first view, in their order."""
        return self.views[num_frames][0]


def decode(reader: VideoReader, rule: ClipDataset) -> Decoded:
    """Decode the frames that an evaluation's rule chooses.

    Raises:
        VideoError: if one can't be decoded.
    """
    transform = rule.transform
    assert isinstance(transform, EvalTransform)
    views: dict[int, list[list[int]]] = {}
    numbers: list[int] = []

    def choose(num_frames: int) -> list[int]:
        # Called again where the count turns out wrong: nothing is kept of the first answer.
        chosen = rule.choose(num_frames)
        numbers[:] = sorted({i for lists in chosen.values() for view in lists for i in view})
        row = {number: i for i, number in enumerate(numbers)}
        views.clear()
        views.update({t: [[row[i] for i in view] for view in lists] for t, lists in chosen.items()})
        return numbers

    crops = reader.sample(choose, each=lambda few: transform.crops(few).transpose(0, 1))
    size = reader.height, reader.width
    return Decoded(crops.contiguous().numpy(), views, numbers, reader.num_frames, reader.fps, size)
