"""Frozen features that know order, and least squares over them: what a few clips a class say without training."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frameflex.models import TSM

_PENALTY = 3.0  # beside a gram matrix whose diagonal is about 1.25
_MEAN_WEIGHT = (
    0.5  # beside the change: 0 is better where places are as varied as classes, 1 where they are all alike
)


@torch.no_grad()
def order_features(model: TSM, clips: Tensor) -> Tensor:
    """What a network makes of clips before its last stage: the mean over frames, and which way it changes.

    Before the last stage, because it has given up less of the pictures for the classes that it was trained on. The
    change is the mean over the second half of the frames less that over the first half.

    Args:
        model: in evaluation mode.
        clips: ``(B, 3, T, H, W)``, normalised. A clip of one frame has no change.

    Returns:
        ``(B, 2 F)``, float32, on the CPU.
    """
    with before_last_stage(model) as found:
        model(clips)
    return mean_and_change(found[0], len(clips))


@contextlib.contextmanager
def before_last_stage(model: TSM) -> Iterator[list[Tensor]]:
    """What the last stage is given for every frame in each of this thread's forwards, ``(B * T, F)``."""
    backbone: Any = model.backbone
    stage = backbone.feature_info[-2]  # timm's, of every family
    mine = threading.get_ident()
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        if threading.get_ident() == mine:  # others may use the same network
            sides = (2, 3) if output.shape[1] == stage["num_chs"] else (1, 2)  # MambaOut's channels come last
            found.append(output.float().mean(sides))

    handle = backbone.get_submodule(stage["module"]).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def mean_and_change(frames: Tensor, num_clips: int) -> Tensor:
    """``(B, 2 F)`` on the CPU of all frames ``(B * T, F)`` of B clips."""
    frames = frames.unflatten(0, (num_clips, -1)).cpu()  # (B, T, F)
    half = max(1, frames.shape[1] // 2)
    return torch.cat([frames.mean(1), frames[:, -half:].mean(1) - frames[:, :half].mean(1)], 1)


class LeastSquares:
    """Classes told apart by ridge regression of their indicators, with every clip's score without itself.

    Args:
        features: ``(N, 2 F)`` of `order_features`.
        labels: N class numbers, below ``num_classes``.
        num_classes: K.

    Attributes:
        rows: ``(N, 2 F)``, the features standardised, means at half of their weight.
        held_out: ``(N, K)``, scores of each clip by a fit to all others (mean, deviation and the classes' shares are
            those of all).
    """

    def __init__(self, features: Tensor, labels: Tensor | Sequence[int], num_classes: int) -> None:
        self._mean, self._deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        self.rows = self.prepared(features)
        targets = nn.functional.one_hot(torch.as_tensor(labels), num_classes).double()
        self._shares = targets.mean(0)
        gram = self.rows @ self.rows.T
        inverse = torch.linalg.inv(gram + _PENALTY * torch.eye(len(gram), dtype=gram.dtype))
        duals = inverse @ (targets - self._shares)
        self._weights = self.rows.T @ duals
        self.held_out = targets - duals / inverse.diagonal()[:, None]  # as if each had been left out in turn

    def prepared(self, features: Tensor) -> Tensor:
        """Other features ``(M, 2 F)`` as `rows` are."""
        size = features.shape[-1] // 2
        standard = ((features - self._mean) / self._deviation).double() / size**0.5
        return torch.cat([_MEAN_WEIGHT * standard[..., :size], standard[..., size:]], -1)

    def scores(self, features: Tensor) -> Tensor:
        """Of each class, ``(M, K)``, for the features of other clips; about 1 for theirs, about 0 for the rest."""
        return self.prepared(features) @ self._weights + self._shares
