"""A first answer within seconds: nearest neighbours among the features of a network that is left as it is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.confidence import wilson_interval
from frameflex.export.running import ExportedModel

_NEIGHBOURS = 5
_SHARPNESS = 10.0  # of votes: a neighbour's counts e times as much where its cosine is higher by a tenth


def temporal_features(recognizer: Recognizer, clip: Tensor) -> Tensor:
    """What the network knows of a clip before its classifier, ``(2 F,)``.

    The mean over the frames, and beside it the second half's mean less the first half's: which way things went.

    Args:
        recognizer: whose network looks.
        clip: normalised, ``(3, T, h, w)``.

    Raises:
        ValueError: if the network is an export, whose graph gives logits alone.
    """
    model = recognizer.model
    if isinstance(model, ExportedModel):
        raise ValueError(
            "an export can't be taught: its graph gives answers alone. Start with the checkpoint"
        )
    mine = threading.get_ident()
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if threading.get_ident() == mine:  # others may use the same network
            found.append(inputs[0])

    handle = model.head.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            model(clip[None].to(recognizer.device))
    finally:
        handle.remove()
    frames = found[0].float().cpu()  # (T, F)
    half = max(1, len(frames) // 2)
    return torch.cat([frames.mean(0), frames[-half:].mean(0) - frames[:half].mean(0)])


@dataclass(frozen=True)
class Standing:
    """How well clips are told apart, each by all the others.

    Attributes:
        right: clips whose class was found without them.
        number: of clips.
        interval: Wilson's 95 % interval of the share.
        confusions: clips that were taken for another class: (the clip, the nearest one of that class).
    """

    right: int
    number: int
    interval: tuple[float, float]
    confusions: list[tuple[int, int]]


class Neighbours:
    """The clips that are known.

    Args:
        features: ``(N, 2 F)``.
        labels: N class numbers, below ``num_classes``.
        num_classes: K.
    """

    def __init__(self, features: Tensor, labels: Sequence[int], num_classes: int) -> None:
        self.labels = torch.tensor(labels)
        self.num_classes = num_classes
        self._mean, self._deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        self._known = self._prepared(features)

    def _prepared(self, features: Tensor) -> Tensor:
        return nn.functional.normalize((features - self._mean) / self._deviation, dim=-1)

    def probabilities(self, features: Tensor) -> Tensor:
        """Of each class, ``(K,)``, for the features ``(2 F,)`` of another clip."""
        return self._vote(self._known @ self._prepared(features), self.labels)

    def nearest(self, features: Tensor) -> list[int]:
        """The clips that are most alike, nearest first."""
        likeness = self._known @ self._prepared(features)
        return likeness.topk(min(_NEIGHBOURS, len(likeness))).indices.tolist()

    def standing(self) -> Standing:
        """Ask for every clip by the others."""
        likeness = self._known @ self._known.T
        right, confusions = 0, []
        for i, label in enumerate(self.labels.tolist()):
            others = torch.arange(len(self.labels)) != i
            said = int(self._vote(likeness[i][others], self.labels[others]).argmax())
            right += said == label
            if said != label:
                of_said = likeness[i].masked_fill((self.labels != said) | ~others, -2.0)
                confusions.append((i, int(of_said.argmax())))
        number = len(self.labels)
        return Standing(right, number, wilson_interval(right, number), confusions)

    def _vote(self, likeness: Tensor, labels: Tensor) -> Tensor:
        best = likeness.topk(min(_NEIGHBOURS, len(likeness)))
        votes = torch.zeros(self.num_classes, dtype=likeness.dtype)
        return votes.index_add(0, labels[best.indices], (_SHARPNESS * best.values).softmax(0))
