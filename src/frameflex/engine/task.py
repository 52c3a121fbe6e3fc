"""What is learnt: the videos of a recipe, to train and to validate on, and their classes."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from frameflex.data.datasets import VideoList, VideoRecord, find_video_files, load_split
from frameflex.data.label_sets import LabelSets, split_label_sets, with_nothing
from frameflex.data.quarantine import quarantined_files
from frameflex.engine.recipe import Recipe, RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is learnt: videos to train and to validate on, and their classes."""

    training: VideoList
    validation: VideoList
    classes: list[str]
    label_sets: LabelSets | None  # where labels stand for sets of classes


def read_task(recipe: Recipe) -> Task:
    training, validation = find_videos(recipe)
    _check_labels(training, validation)
    if not recipe.data.multi_label:
        return Task(training, validation, list(training.classes), None)
    (training, validation), label_sets = split_label_sets([training, validation])
    return Task(training, validation, list(label_sets.classes), label_sets)


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
        training, validation = hold_out(training, data.validation_fraction, by_class=not data.multi_label)
        return _with_nothing(training, validation, recipe)
    # Sets of several classes may well occur in one of the two only.
    expected = None if data.multi_label else training.classes
    validation = load_split(
        source, "validation", classes=expected, video_dir=data.video_dir, quarantine=data.quarantine
    )
    return _with_nothing(training, validation, recipe)


def hold_out(videos: VideoList, fraction: float, *, by_class: bool = True) -> tuple[VideoList, VideoList]:
    """Divide videos into training and validation, the same share of each class, at least one of each on both sides.

    Which ones are held out depends on their names alone, so that it is the same in every run.

    Args:
        videos: to divide.
        fraction: of those held out, above 0 and below 1.
        by_class: False takes the share of all videos together.
    """
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(videos.labels):
        groups.setdefault(label if by_class else 0, []).append(index)
    held_out: set[int] = set()
    for label, members in groups.items():
        if len(members) < 2:
            raise RecipeError(
                f"class {videos.classes[label]!r} has {len(members)} video; expected at least 2, one to train on and "
                "one to validate on. Add videos, or give data.validation"
            )
        order = sorted(members, key=lambda index: hashlib.sha256(videos[index].name.encode()).digest())
        held_out.update(order[: min(max(round(fraction * len(members)), 1), len(members) - 1)])
    everything = range(len(videos))
    return (
        videos.subset(index for index in everything if index not in held_out),
        videos.subset(sorted(held_out)),
    )


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
    if len(training.classes) < 2:
        raise RecipeError(
            f"all training videos are of one class, {training.classes[0]!r}; expected at least 2. Is data.train "
            "the folder with a sub-folder for each class?"
        )
