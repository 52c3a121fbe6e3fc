"""A first answer within seconds: what clips of a class have in common, by a network that is left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.confidence import fit_temperature, wilson_interval
from frameflex.engine.first_answer import LeastSquares, order_features
from frameflex.export.running import ExportedModel

_NEAREST = 5


def features_of(recognizer: Recognizer, clip: Tensor) -> Tensor:
    """`order_features` of one clip, ``(2 F,)``.

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
    return order_features(model, clip[None].to(recognizer.device))[0]


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


class FirstAnswer:
    """What the clips that are known say of another one.

    Args:
        features: ``(N, 2 F)``.
        labels: N class numbers, below ``num_classes``.
        num_classes: K.
    """

    def __init__(self, features: Tensor, labels: Sequence[int], num_classes: int) -> None:
        self.labels = torch.tensor(labels)
        self._fit = LeastSquares(features, self.labels, num_classes)
        self._temperature = fit_temperature(self._fit.held_out, self.labels)
        self._known = nn.functional.normalize(self._fit.rows, dim=1)

    def probabilities(self, features: Tensor) -> Tensor:
        """Of each class, ``(K,)``, for the features ``(2 F,)`` of another clip."""
        return (self._fit.scores(features[None])[0] / self._temperature).softmax(0)

    def nearest(self, features: Tensor) -> list[int]:
        """The clips that are most alike, nearest first."""
        likeness = self._known @ self._fit.prepared(features)
        return likeness.topk(min(_NEAREST, len(likeness))).indices.tolist()

    def standing(self) -> Standing:
        """Ask for every clip by the others."""
        said = self._fit.held_out.argmax(1)
        likeness = (self._known @ self._known.T).fill_diagonal_(-2.0)
        wrong = (said != self.labels).nonzero()[:, 0].tolist()
        confusions = [(i, int(likeness[i].masked_fill(self.labels != said[i], -2.0).argmax())) for i in wrong]
        right, number = len(said) - len(wrong), len(said)
        return Standing(right, number, wilson_interval(right, number), confusions)
