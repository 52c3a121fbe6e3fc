"""What is learnt: the videos of a recipe, to train and to validate on, and their classes."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

from frameflex.checkpoint import load_checkpoint
from frameflex.data.datasets import load_split
from frameflex.data.finding import find_video_files
from frameflex.data.label_sets import LabelSets, split_label_sets, with_nothing
from frameflex.data.quarantine import quarantined_files
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.splits import Division, KnownVideos, hold_out
from frameflex.engine.recipe import Recipe, RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is learnt: videos to train and to validate on, and their classes."""

    training: VideoList
    validation: VideoList
    classes: list[str]
    label_sets: LabelSets | None  # where labels stand for sets of classes
    division: Division | None = None


def read_task(recipe: Recipe) -> Task:
    training, validation = find_videos(recipe)
    _check_labels(training, validation)
    divided_here = not recipe.data.validation and not training.splits
    division = Division(
        KnownVideos.of(training),
        KnownVideos.of(validation),
        recipe.data.validation_fraction if divided_here else None,
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
    data = recipe.data
    training = load_split(data.train, "train", video_dir=data.video_dir, quarantine=data.quarantine)
    if data.validation:
        source = data.validation
    elif "train" in training.splits:
        source = data.train
    else:
        logger.warning(
            "%s has no validation split: %.0f %% of each class is held out. Videos of one scene or person on both "
            "sides make its accuracy too good; give data.validation for a split of your own",
            data.train,
            100 * data.validation_fraction,
        )
        try:
            training, validation = hold_out(training, data.validation_fraction, by_class=not data.multi_label)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        return _with_nothing(training, validation, recipe)
    # Sets of several classes may well occur in one of the two only.
    expected = None if data.multi_label else training.classes
    validation = load_split(
        source, "validation", classes=expected, video_dir=data.video_dir, quarantine=data.quarantine
    )
    return _with_nothing(training, validation, recipe)


def division_of(recipe: Recipe, task: Task) -> Division | None:
    """What the checkpoints of a run remember of their videos, those of ``model.init`` included."""
    if task.division is None or not recipe.model.init:
        return task.division
    return task.division.after(load_checkpoint(recipe.model.init).videos)


def _with_nothing(training: VideoList, validation: VideoList, recipe: Recipe) -> tuple[VideoList, VideoList]:
    """Add the videos in which none of the classes happens, held out as others are where nothing is divided."""
    if not recipe.data.nothing:
        return training, validation
    files, _ = quarantined_files(find_video_files([recipe.data.nothing]), recipe.data.quarantine)
    records = [VideoRecord(file, 0, str(file)) for file in files]
    first, second = hold_out(VideoList(records, ["nothing"]), recipe.data.validation_fraction)
    name = "" if recipe.data.multi_label else "nothing"
    return with_nothing(training, first, name), with_nothing(validation, second, name)


def _check_labels(training: VideoList, validation: VideoList) -> None:
    """Refuse what would else show only after the first epoch, or never."""
    for what, videos in (("training", training), ("validation", validation)):
        unlabelled = videos.labels.count(-1)
        if unlabelled:
            raise RecipeError(
                f"{unlabelled} of {len(videos)} {what} videos have no label; expected one for each. Give another "
                f"split as data.{'train' if what == 'training' else what}, or leave those videos out of the list"
            )
    check_classes(training)


def check_classes(training: VideoList) -> None:
    """Refuse videos of one class with a RecipeError: there is nothing to tell apart."""
    if len(training.classes) < 2:
        raise RecipeError(
            f"all training videos are of one class, {training.classes[0]!r}; expected at least 2. Is data.train "
            "the folder with a sub-folder for each class?"
        )
