"""What making a checkpoint frame-flexible was worth: the one before and the one after, over T, on the same videos."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.records import VideoList
from frameflex.engine.evaluation import Evaluation, evaluate
from frameflex.engine.recipe import Recipe
from frameflex.engine.task import read_task


def measure_gain(
    recipe: Recipe, after: Path, *, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Evaluation]:
    """The checkpoint that a run started from and its result, "before" and "after", on its validation videos.

    Args:
        recipe: of the run: method ffn, from `model.init`.
        after: its checkpoint.
        on_progress: called with (videos done, videos in all), of both together.

    Returns:
        Nothing where there is nothing to compare: another method, no checkpoint to start from, or one that doesn't
        know all classes or was frame-flexible already.
    """
    if recipe.method != "ffn" or not recipe.model.init or recipe.data.multi_label:
        return {}
    former, made = load_checkpoint(recipe.model.init), load_checkpoint(after)
    if set(former.class_names) != set(made.class_names) or former.model.frame_counts:
        return {}
    videos = read_task(recipe).validation
    counts = counts_over(made.frame_counts)

    def progress(begun: int) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(begun * total + done, 2 * total) if on_progress else None

    return {
        "before": _measure(former, _with_classes(videos, former.class_names), counts, recipe, progress(0)),
        "after": _measure(made, _with_classes(videos, made.class_names), counts, recipe, progress(1)),
    }


def counts_over(trained: Sequence[int]) -> tuple[int, ...]:
    """The T's to look at: the trained ones, halfway between them, and half of the smallest."""
    ascending = sorted(trained)
    between = [(a + b) // 2 for a, b in itertools.pairwise(ascending)]
    return tuple(sorted({max(1, ascending[0] // 2), *between, *ascending}))


def _measure(
    checkpoint: Checkpoint,
    videos: VideoList,
    counts: Sequence[int],
    recipe: Recipe,
    on_progress: Callable[[int, int], None],
) -> Evaluation:
    return evaluate(
        checkpoint.model,
        videos,
        preprocessing=checkpoint.preprocessing,
        frame_counts=counts,
        trained_counts=checkpoint.frame_counts,
        batch_size=recipe.training.batch_size,
        num_workers=recipe.data.num_workers,
        temperature=checkpoint.temperature,
        on_progress=on_progress,
        **checkpoint.sampling,
    )


def _with_classes(videos: VideoList, classes: Sequence[str]) -> VideoList:
    """The videos with labels that are indices of other classes, the same in another order."""
    if tuple(classes) == videos.classes:
        return videos
    index = {name: number for number, name in enumerate(classes)}
    records = (
        record if record.label is None else replace(record, label=index[videos.classes[record.label]])
        for record in videos
    )
    return VideoList(records, classes, layout=videos.layout, limits=videos.limits)
