"""Before training: do clips played backwards look like the class that names say they show?

A hand that swipes to the left may come back, or its swipe may look unlike one to the right for another reason. Then
clips played backwards teach what never comes, which cost 5 to 10 points on depth swipes. The network as it is before
training tells: fitted to clips as they are, it should know clips played backwards about as well, by their exchanged
labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from frameflex.data.clips import ClipDataset
from frameflex.data.directions import NEVER_REVERSED
from frameflex.data.loading import read_batches
from frameflex.data.records import VideoList
from frameflex.data.transforms import EvalTransform
from frameflex.engine.confidence import wilson_interval
from frameflex.engine.first_answer import LeastSquares, order_features
from frameflex.engine.recipe import Recipe
from frameflex.engine.starting import build_model, preprocessing_of

_MOST_CLIPS = 96
_SHARE = 0.9  # of what is known forwards has to be known backwards


class Look(NamedTuple):
    """Clips of classes that are each other's reverse, by classifiers that were fitted to the others.

    Attributes:
        num_clips: that were looked at.
        forwards: how many are told right as they are.
        backwards: how many are told to be the opposite class, played backwards.
        num_classes: to choose from.
    """

    num_clips: int
    forwards: int
    backwards: int
    num_classes: int

    @property
    def agrees(self) -> bool:
        """Whether order is seen at all, beyond chance (95 %), and backwards nearly as well as forwards."""
        seen = self.num_clips and wilson_interval(self.forwards, self.num_clips)[0] > 1 / self.num_classes
        return bool(seen) and self.backwards >= _SHARE * self.forwards


def look_backwards(recipe: Recipe, videos: VideoList, reversals: Sequence[int]) -> Look:
    """Show the frozen network clips forwards and backwards.

    Args:
        recipe: of the run, started from weights; says the frames, their pixels and the start.
        videos: the training videos; at most 96 of them are decoded, evenly over the list.
        reversals: of each class the one that it is backwards.

    Raises:
        RecipeError: as building the network does.
    """
    exchanged = [a for a, b in enumerate(reversals) if b not in (NEVER_REVERSED, a)]
    rows = [i for i, label in enumerate(videos.labels) if label in exchanged]
    rows = (
        [rows[i * len(rows) // _MOST_CLIPS] for i in range(_MOST_CLIPS)] if len(rows) > _MOST_CLIPS else rows
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(recipe, videos.classes).eval().to(device)
    dataset = ClipDataset(
        videos.subset(rows),
        frame_counts=recipe.trained_counts[-1:],
        transform=EvalTransform(preprocessing_of(recipe, model)),
        training=False,
        sampling=recipe.clip.sampling,
        window=recipe.clip.window,
        on_bad_video="skip",  # which training counts
    )
    forwards, backwards, found = [], [], []
    with read_batches(dataset, batch_size=recipe.training.batch_size, num_workers=0) as batches:
        for batch in batches:
            for clips in batch.clips.values() if len(batch) else ():
                clip = clips[:, 0].to(device)
                forwards.append(order_features(model, clip))
                backwards.append(order_features(model, clip.flip(2)))
                found += [exchanged.index(label) for label in batch.labels.tolist()]
    opposite = torch.tensor([exchanged.index(reversals[label]) for label in exchanged])
    if len(set(found)) < 2:
        return Look(len(found), 0, 0, len(exchanged))
    return _told(torch.cat(forwards), torch.cat(backwards), torch.tensor(found), opposite)


def _told(
    forwards: torch.Tensor, backwards: torch.Tensor, labels: torch.Tensor, opposite: torch.Tensor
) -> Look:
    """Each clip, and its reverse, by least squares over all other clips."""
    right = [0, 0]
    change = slice(forwards.shape[1] // 2, None)  # means over the frames are the same both ways
    forwards, backwards = forwards[:, change], backwards[:, change]
    forwards, backwards = (torch.cat([torch.zeros_like(half), half], 1) for half in (forwards, backwards))
    for i, label in enumerate(labels.tolist()):
        others = torch.arange(len(labels)) != i
        fitted = LeastSquares(forwards[others], labels[others], len(opposite))
        first, second = fitted.scores(torch.stack([forwards[i], backwards[i]])).argmax(1).tolist()
        right[0] += first == label
        right[1] += second == int(opposite[label])
    return Look(len(labels), right[0], right[1], len(opposite))
