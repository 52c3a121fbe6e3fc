"""A recipe for a folder of videos, chosen from the videos and the machine; each choice is said with its reason."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import psutil
import torch

from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.clips import stretch_of
from frameflex.data.datasets import load_split
from frameflex.data.records import VideoList
from frameflex.engine.loading import MEMORY_SHARE, reversed_labels
from frameflex.engine.recipe import Recipe, RecipeError
from frameflex.engine.reversal_choice import look_backwards
from frameflex.engine.task import check_classes
from frameflex.models.precision import fast_precision
from frameflex.tuning import available_cores
from frameflex.video import Limits
from frameflex.video.reader import VideoError

logger = logging.getLogger(__name__)

_LOOKED_AT = 64  # videos, evenly over the list: their shapes and lengths hardly differ from the others'
_MOST_FRAMES = 8
_PIXELS = 96 * 128  # of a frame, at most; the sides follow the videos' shape
_FEWEST_PIXELS = (
    96 * 96
)  # also of videos that are smaller: networks of images know nothing of so small things
_SIDE_STEP = 16
# Steps: 8 a video up to 1,500 (32 epochs of batches of 4), 4 a video up to 4,000; never fewer than 600, or 5 epochs.
_FEWEST_STEPS, _FEWEST_EPOCHS = 600, 5
_STEPS = ((8, 1500), (4, 4000))
_BATCH = 4
_RATE = 5e-4  # half of it where a network goes on
_VALIDATIONS = 20


class _Choice(NamedTuple):
    """Values of dotted keys of a recipe, and why."""

    values: dict[str, Any]
    reason: str


class _Seen(NamedTuple):
    """Medians over the videos that were looked at."""

    num_frames: int
    aspect: float  # width over height
    num_pixels: int
    upright: int
    flat: int


def automatic_recipe(
    asked: Recipe, given: Collection[str], *, any_frame_count: bool = False, look: bool = False
) -> Recipe:
    """The recipe of a run on `data.train` of which nothing else need be known.

    Args:
        asked: what was given, and defaults; `data.train` says which videos.
        given: the dotted keys that were given; they win over what is chosen.
        any_frame_count: one network for T, half and a quarter of it (method ffn).
        look: load the network that training starts from, which may download it, to see whether clips that names
            say can be played backwards look so; else names alone decide.

    Raises:
        RecipeError: if the videos are of one class, or none of those looked at can be opened.
        FileNotFoundError: if there is nothing at `data.train`.
        ValueError: if there are no videos.
    """
    data = asked.data
    videos = load_split(data.train, "train", video_dir=data.video_dir, quarantine=data.quarantine)
    videos = videos.within(Limits(max_seconds=data.max_decode_seconds))
    if not data.nothing:  # which would be the second class
        check_classes(videos)
    seen = _look_at(videos)
    recipe = _taken(asked, given, _choose(asked, given, videos, seen, any_frame_count=any_frame_count))
    if recipe.trained_counts[-1] > 1 and "clip.reverse" not in given:
        recipe = _taken(recipe, given, _choose_reversal(recipe, videos, look=look))
    return recipe


def _taken(recipe: Recipe, given: Collection[str], choices: list[_Choice]) -> Recipe:
    """The recipe with what is chosen and was not given, each choice said."""
    groups: dict[str, dict[str, Any]] = {}
    for choice in choices:
        taken = {key: value for key, value in choice.values.items() if key not in given}
        for key, value in taken.items():
            group, _, name = key.rpartition(".")
            groups.setdefault(group, {})[name] = value
        if taken:
            said = ", ".join(f"{key} {_shown(value)}" for key, value in taken.items())
            logger.info("chosen: %s: %s", said, choice.reason)
    top = groups.pop("", {})
    changed = {group: replace(getattr(recipe, group), **values) for group, values in groups.items()}
    return replace(recipe, **top, **changed)


def _choose(
    asked: Recipe, given: Collection[str], videos: VideoList, seen: _Seen, *, any_frame_count: bool
) -> list[_Choice]:
    init = load_checkpoint(asked.model.init) if asked.model.init else None
    size = init.preprocessing.size if init else _size_of(seen.aspect, seen.num_pixels)
    precision, why = fast_precision("cuda" if torch.cuda.is_available() else "cpu")
    model = {"model.dropout": 0.0, **({"model.backbone": None} if init else {})}
    return [
        _counts(seen, init, any_frame_count=any_frame_count),
        _pixels(seen, init, size),
        *_schedule(asked, given, videos),
        _Choice(
            {
                "training.optimizer": "adamw",
                "training.learning_rate": _RATE / 2 if init else _RATE,
                "training.reference_batch_size": None,
                "training.weight_decay": 0.05,
                "training.parameter_groups": "plain",
            },
            "learns a few classes from few videos where SGD at its published rates hardly begins",
        ),
        _Choice(model, "the run is short" + ("; the network is that of model.init" if init else "")),
        _decoding(videos, seen, size),
        _Choice({"training.precision": {"bfloat16": "bf16", "float16": "fp16"}.get(precision, "no")}, why),
    ]


def _counts(seen: _Seen, init: Checkpoint | None, *, any_frame_count: bool) -> _Choice:
    if init:
        largest, reason = init.num_frames, f"model.init was trained at {init.num_frames}"
    else:
        largest = 2 ** int(math.log2(min(seen.num_frames, _MOST_FRAMES)))
        reason = f"the videos have {seen.num_frames} frames (median)"
    counts = tuple(sorted({max(1, largest // 4), max(1, largest // 2), largest}))
    if init and init.model.frame_counts:
        any_frame_count, counts = True, init.model.frame_counts
    if any_frame_count:
        return _Choice(
            {"method": "ffn", "clip.frame_counts": counts}, f"one network for all of them; {reason}"
        )
    return _Choice({"clip.frame_counts": (largest,)}, reason)


def _pixels(seen: _Seen, init: Checkpoint | None, size: tuple[int, int]) -> _Choice:
    if init:
        known = init.preprocessing
        pixels = {
            "clip.fit": known.fit,
            "clip.crop_size": known.crop_size,
            "clip.short_side": known.short_side,
        }
        return _Choice(pixels, "as model.init takes them")
    if seen.upright and seen.flat:
        shape = f"{seen.upright} upright and {seen.flat} flat videos, none of them cut off"
    else:
        shape = f"the videos' shape ({seen.aspect:.2f} : 1), nothing cut off"
    return _Choice({"clip.fit": "whole", "clip.crop_size": size}, shape)


def _schedule(asked: Recipe, given: Collection[str], videos: VideoList) -> list[_Choice]:
    num_training = len(videos)
    if asked.data.folds:
        num_training -= round(num_training / asked.data.folds)
    elif not asked.data.validation and "validation" not in videos.splits:
        num_training -= round(asked.data.validation_fraction * num_training)
    batch = asked.training.batch_size if "training.batch_size" in given else _BATCH
    batch *= asked.training.accumulate
    steps = max(_FEWEST_STEPS, *(min(a_video * num_training, most) for a_video, most in _STEPS))
    steps_an_epoch = max(1, math.ceil(num_training / batch))
    epochs = max(math.ceil(steps / steps_an_epoch), _FEWEST_EPOCHS)
    length_of_run = f"about {epochs * steps_an_epoch} steps for {num_training} training videos"
    epochs = asked.training.epochs if "training.epochs" in given else epochs
    return [
        _Choice({"training.batch_size": _BATCH}, "more steps from few videos"),
        _Choice({"training.epochs": epochs}, length_of_run),
        _Choice({"training.warmup_epochs": round(epochs / 20, 2)}, "a twentieth of the epochs"),
        _Choice(
            {"training.validate_every": max(1, epochs // _VALIDATIONS)},
            f"about {min(epochs, _VALIDATIONS)} validations",
        ),
    ]


def _choose_reversal(asked: Recipe, videos: VideoList, *, look: bool) -> list[_Choice]:
    """Clips are played backwards where that is known to show another class, or the same, and looks so."""
    if asked.data.multi_label or asked.model.shift == "none":
        return []
    classes = list(videos.classes)
    if asked.data.nothing and "nothing" not in classes:
        classes.append("nothing")
    known = [(a, b) for a, b in enumerate(reversed_labels(asked, classes)) if b >= a]
    if not known:
        return []
    shown = "; ".join(
        f'"{classes[a]}" is "{classes[b]}"' if a != b else f'"{classes[a]}" stays itself'
        for a, b in known[:3]
    )
    more = f"; {len(known) - 3} more below" if len(known) > 3 else ""
    backwards = f"played backwards {shown}{more}"
    if look and (asked.model.init or asked.model.pretrained) and any(a != b for a, b in known):
        found = look_backwards(asked, videos, reversed_labels(asked, list(videos.classes)))
        told = f"the network as it starts knows {found.forwards} of {found.num_clips} forwards, {found.backwards} so"
        if not found.agrees:
            reason = f"{backwards} by the names, but {told}; --clip.reverse true insists"
            return [_Choice({"clip.reverse": False}, reason)]
        backwards += f", and {told}"
    return [_Choice({"clip.reverse": True}, f"{backwards}; correct it with data.reversed")]


def _decoding(videos: VideoList, seen: _Seen, size: tuple[int, int]) -> _Choice:
    """Each video decoded once, where its frames can be kept; else by processes beside the network."""
    num_bytes = 3 * len(videos) * seen.num_frames * math.prod(size) / 0.85**2
    room = MEMORY_SHARE * psutil.virtual_memory().available
    cores = available_cores()
    if num_bytes <= room:
        reason = f"about {num_bytes / 2**20:.0f} MiB of frames are kept in memory, each video is decoded once"
        return _Choice(
            {"data.cache_frames": True, "data.num_workers": 0}, f"{reason}; {cores} cores for the network"
        )
    workers = 0 if cores == 1 else min(8, cores // 2)
    return _Choice(
        {"data.num_workers": workers},
        f"{cores} core{'s' if cores > 1 else ''}, {max(1, cores - workers)} left to the network; frames would take "
        f"{num_bytes / 2**30:.1f} GiB, too much to keep",
    )


def _look_at(videos: VideoList) -> _Seen:
    """Open some of the videos; which ones can't be is for training to say, unless it is all."""
    number = min(len(videos), _LOOKED_AT)
    lengths, aspects, areas, reasons = [], [], [], []
    for i in range(number):
        record = videos[i * len(videos) // number]
        try:
            with record.open(limits=videos.limits) as reader:
                first, end = stretch_of(record, reader, reader.num_frames)
                [frame] = reader.frames([first])
                lengths.append(end - first)
                aspects.append(frame.shape[-1] / frame.shape[-2])
                areas.append(frame.shape[-1] * frame.shape[-2])
        except (VideoError, OSError) as error:
            reasons.append(f"{record.name}: {error}")
    if not lengths:
        raise RecipeError(
            f"none of the {number} videos looked at can be decoded; the first is {reasons[0]} "
            "`frameflex data check` lists what is wrong"
        )
    upright = sum(aspect < 1 for aspect in aspects)
    return _Seen(
        max(1, int(statistics.median(lengths))),
        math.exp(statistics.median(map(math.log, aspects))),
        int(statistics.median(areas)),
        upright,
        sum(aspect > 1 for aspect in aspects),
    )


def _size_of(aspect: float, num_pixels: int) -> tuple[int, int]:
    """Height and width of about as many pixels as 96 x 128, or as the videos have, where that is less.

    In steps of 16; a very long side is squeezed.
    """
    pixels = min(max(num_pixels, _FEWEST_PIXELS), _PIXELS)
    aspect = min(max(aspect, 0.5), 2.0)
    height, width = math.sqrt(pixels / aspect), math.sqrt(pixels * aspect)
    return round(height / _SIDE_STEP) * _SIDE_STEP, round(width / _SIDE_STEP) * _SIDE_STEP


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)
