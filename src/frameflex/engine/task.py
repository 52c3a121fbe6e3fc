"""What is learnt: the videos of a recipe, to train and to validate on, and their classes."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from frameflex.checkpoint import load_checkpoint
from frameflex.data.datasets import load_split
from frameflex.data.finding import find_video_files
from frameflex.data.label_sets import LabelSets, split_label_sets, with_nothing
from frameflex.data.quarantine import quarantined_files
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.splits import Division, KnownVideos, divide_into_folds, groups_of, hold_out
from frameflex.engine.recipe import Recipe, RecipeError
from frameflex.video import Limits, VideoError

logger = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True)
class Task:
    """What is learnt: videos to train and to validate on, and their classes."""

    training: VideoList
    validation: VideoList
    classes: list[str]
    label_sets: LabelSets | None  # where labels stand for sets of classes
    division: Division | None = None


def read_task(recipe: Recipe) -> Task:
    """Find the videos of a run and their classes.

    Raises:
        RecipeError: if there is nothing to train on or to validate on, or not all that there is has a label.
    """
    training, validation = find_videos(recipe)
    _check_labels(training, validation)
    held_out_here = not recipe.data.folds and not _has_validation(recipe, training)
    division = Division(
        KnownVideos.of(training),
        KnownVideos.of(validation),
        recipe.data.validation_fraction if held_out_here else None,
    )
    if not recipe.data.multi_label:
        return Task(training, validation, list(training.classes), None, division)
    (training, validation), label_sets = split_label_sets([training, validation])
    return Task(training, validation, list(label_sets.classes), label_sets, division)


def digest(videos: VideoList) -> str:
    """Which videos, in which order, with which labels: SHA-256 of their names, classes and stretches."""
    text = hashlib.sha256()
    for record in videos:
        label = None if record.label is None else videos.classes[record.label]
        what = (record.name, label, record.start_seconds, record.end_seconds)
        text.update(json.dumps(what, ensure_ascii=True).encode() + b"\n")
    return text.hexdigest()


def find_videos(recipe: Recipe) -> tuple[VideoList, VideoList]:
    """Training and validation videos of a recipe; both with the training videos' classes.

    Raises:
        RecipeError: if there is nothing to train on or to validate on.
    """
    training, validation = _divided(recipe)
    return training.within(_limits(recipe)), validation.within(_limits(recipe))


def _divided(recipe: Recipe) -> tuple[VideoList, VideoList]:
    data = recipe.data
    if data.fold is not None:
        videos, folds = find_folds(recipe)
        held_out = folds[data.fold - 1]
        rest = sorted(set(range(len(videos))) - set(held_out))
        return videos.subset(rest), videos.subset(held_out)
    training = load_split(data.train, "train", **_where(recipe))
    if not _has_validation(recipe, training):
        _log_holding_out(recipe, training)
        try:
            training, validation = hold_out(training, data.validation_fraction, by_class=not data.multi_label)
        except ValueError as error:
            raise RecipeError(str(error)) from error
    else:
        validation = _validation_videos(recipe, training)
    return _with_nothing(training, validation, recipe)


def find_folds(recipe: Recipe) -> tuple[VideoList, list[list[int]]]:
    """All videos of a recipe for cross-validation, and the indices of each fold's.

    A division into training and validation that the data set came with is given up; a test split is left alone.

    Raises:
        RecipeError: if they can't be divided into that many folds.
    """
    data = recipe.data
    assert data.folds is not None
    videos = load_split(data.train, "train", **_where(recipe))
    if _has_validation(recipe, videos):
        validation = _validation_videos(recipe, videos)
        videos = VideoList(
            [*videos, *validation],
            videos.classes,
            layout=videos.layout,
            splits=videos.splits,
            left_out=[*videos.left_out, *validation.left_out],
            notes=[*videos.notes, *validation.notes],
        )
    if data.nothing:
        videos = with_nothing(videos, _nothing_videos(recipe), "nothing")
    _check_labels(videos)
    try:
        folds = divide_into_folds(videos, data.folds)
    except ValueError as error:
        raise RecipeError(f"data.folds: {error}") from error
    return videos.within(_limits(recipe)), folds


def _limits(recipe: Recipe) -> Limits:
    return Limits(max_seconds=recipe.data.max_decode_seconds)


def _where(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    return {"video_dir": data.video_dir, "quarantine": data.quarantine, "group": data.group}


def _has_validation(recipe: Recipe, training: VideoList) -> bool:
    """Whether videos to validate on are given, so that none need be held out."""
    return bool(recipe.data.validation) or "validation" in training.splits


def _validation_videos(recipe: Recipe, training: VideoList) -> VideoList:
    data = recipe.data
    # Sets of several classes may well occur in one of the two only.
    expected = None if data.multi_label else training.classes
    return load_split(data.validation or data.train, "validation", classes=expected, **_where(recipe))


def _log_holding_out(recipe: Recipe, training: VideoList) -> None:
    groups = len(groups_of(training))
    if groups < len(training):
        how = f"whole groups are held out (there are {groups}), so that none is on both sides"
    else:
        how = (
            "videos of one scene or person on both sides make its accuracy too good; name their groups "
            "(CLASS/GROUP/video.mp4, or a list's column group), or give data.validation for a split of your own"
        )
    rest = "; its test split is left for frameflex evaluate" if "test" in training.splits else ""
    logger.warning(
        "%s has no validation split: about %.0f %% of each class is held out%s. %s%s",
        recipe.data.train,
        100 * recipe.data.validation_fraction,
        rest,
        how[0].upper(),
        how[1:],
    )


def division_of(recipe: Recipe, task: Task) -> Division | None:
    """What the checkpoints of a run remember of their videos, those of ``model.init`` included."""
    if task.division is None or not recipe.model.init:
        return task.division
    return task.division.after(load_checkpoint(recipe.model.init).videos)


def _with_nothing(training: VideoList, validation: VideoList, recipe: Recipe) -> tuple[VideoList, VideoList]:
    """Add the videos in which none of the classes happens, held out as others are where nothing is divided."""
    if not recipe.data.nothing:
        return training, validation
    nothing = VideoList(_nothing_videos(recipe), ["nothing"])
    first, second = hold_out(nothing, recipe.data.validation_fraction)
    name = "" if recipe.data.multi_label else "nothing"
    return with_nothing(training, first, name), with_nothing(validation, second, name)


def _nothing_videos(recipe: Recipe) -> list[VideoRecord]:
    assert recipe.data.nothing
    files, _ = quarantined_files(find_video_files([recipe.data.nothing]), recipe.data.quarantine)
    return [VideoRecord(file, 0, str(file)) for file in files]


def _check_labels(training: VideoList, validation: VideoList | None = None) -> None:
    """Refuse what would else show only after the first epoch, or never."""
    for what, videos in (("training", training), ("validation", validation)):
        unlabelled = videos.labels.count(-1) if videos else 0
        if videos and unlabelled:
            raise RecipeError(
                f"{unlabelled} of {len(videos)} {what} videos have no label; expected one for each. Give another "
                f"split as data.{'train' if what == 'training' else what}, or leave those videos out of the list"
                + "".join(f" ({note})" for note in videos.notes if "no label is read" in note)
            )
    check_classes(training)


def check_classes(training: VideoList) -> None:
    """Refuse videos of one class with a RecipeError: there is nothing to tell apart."""
    if len(training.classes) < 2:
        raise RecipeError(
            f"all training videos are of one class, {training.classes[0]!r}; expected at least 2. Is data.train "
            "the folder with a sub-folder for each class?"
        )


def check_videos_open(videos: VideoList, why: str) -> None:
    """Decode a frame from the middle of every video, before work that would stop at one that can't be.

    Args:
        videos: to open.
        why: it would stop.

    Raises:
        VideoError: naming the first few, with what is wrong with the first.
    """
    bad: dict[str, str] = {}
    for record in videos:
        try:
            with record.open(limits=videos.limits) as reader:
                reader.frames([reader.num_frames // 2])
        except (VideoError, OSError) as error:
            bad[record.name] = str(error)
    if bad:
        named = ", ".join(list(bad)[:_NAMED]) + (", …" if len(bad) > _NAMED else "")
        raise VideoError(
            f"{len(bad)} of {len(videos)} videos can't be decoded: {named}; {why}. Mend them, or leave them out with "
            f"data.quarantine and the list of `frameflex data check`. The first: {next(iter(bad.values()))}"
        )
