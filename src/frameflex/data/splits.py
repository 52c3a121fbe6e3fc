"""Which videos are trained on and which are held out, and how one recognises them later."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.shards import ShardMember
from frameflex.storage import StoredFile

MAX_REMEMBERED = 200_000  # videos one by one, 8 characters each; of more only how many they were
_KEY_BYTES = 6


def hold_out(videos: VideoList, fraction: float, *, by_class: bool = True) -> tuple[VideoList, VideoList]:
    """Divide videos into training and validation, the same share of each class, at least one of each on both sides.

    Which ones are held out depends on their names alone, so that it is the same in every run. Where videos have
    groups (`VideoRecord.group`), whole groups are held out: as near to the share of each class as they allow, and
    with all classes on both sides where that is possible; training never lacks one.

    Args:
        videos: to divide.
        fraction: of those held out, above 0 and below 1.
        by_class: False takes the share of all videos together.

    Raises:
        ValueError: if a class has less than two videos, or all of them in one group.
    """
    groups = groups_of(videos)
    check_divisible(videos, groups, by_class=by_class)
    if len(groups) < len(videos):
        held_out = _held_out_groups(_Groups.of(videos, groups, by_class=by_class), fraction)
    else:
        held_out = set()
        for members in _by_class(videos, by_class).values():
            order = sorted(members, key=lambda index: _draw(videos[index].name))
            held_out.update(order[: min(max(round(fraction * len(members)), 1), len(members) - 1)])
    everything = range(len(videos))
    return (
        videos.subset(index for index in everything if index not in held_out),
        videos.subset(sorted(held_out)),
    )


def divide_into_folds(videos: VideoList, num_folds: int, *, by_class: bool = True) -> list[list[int]]:
    """Divide videos into folds of about the same size, each class spread evenly, groups kept whole.

    Which video is in which fold depends on names alone, so that it is the same in every run.

    Args:
        videos: to divide.
        num_folds: at least 2.
        by_class: False spreads all videos together.

    Returns:
        The indices of each fold's videos, ascending; every video is in one fold.

    Raises:
        ValueError: if there are fewer videos or groups than folds, or a class would lack training videos.
    """
    if num_folds < 2:
        raise ValueError(f"{num_folds} folds; expected at least 2")
    members = groups_of(videos)
    if len(members) < num_folds:
        what = "groups of videos" if len(members) < len(videos) else "videos"
        raise ValueError(f"{len(members)} {what} for {num_folds} folds; expected at least one for each fold")
    check_divisible(videos, members, by_class=by_class)
    groups = _Groups.of(videos, members, by_class=by_class)
    in_fold: list[Counter[int]] = [Counter() for _ in range(num_folds)]
    folds: list[list[int]] = [[] for _ in range(num_folds)]
    for group in sorted(range(len(members)), key=lambda group: (-len(members[group]), groups.draws[group])):
        labels = groups.labels[group]

        def cost(fold: int, labels: Counter[int] = labels) -> tuple[float, int, int]:
            """How much less even the classes become; a square makes the fullest fold the dearest."""
            there = in_fold[fold]
            grown = sum(
                ((there[label] + number) ** 2 - there[label] ** 2) / groups.sizes[label] ** 2
                for label, number in labels.items()
            )
            return round(grown, 12), len(folds[fold]), fold

        best = min(range(num_folds), key=cost)
        in_fold[best].update(labels)
        folds[best] += members[group]
    for label, number in groups.sizes.items():
        if any(there[label] == number for there in in_fold):
            raise ValueError(
                f"class {videos.classes[label]!r} would be in one fold alone, with nothing left to train it on; "
                "divide into another number of folds, or add groups with that class"
            )
    return [sorted(fold) for fold in folds]


def groups_of(videos: VideoList) -> list[list[int]]:
    """Indices of the videos of each group; a video without a group is one of its own."""
    groups: dict[str | int, list[int]] = {}
    for index, video in enumerate(videos):
        groups.setdefault(video.group or index, []).append(index)
    return list(groups.values())


def check_divisible(videos: VideoList, groups: Sequence[Sequence[int]], *, by_class: bool = True) -> None:
    """Refuse a class that can't stand on both sides of any division.

    Raises:
        ValueError: naming the first such class.
    """
    group_of = {index: number for number, members in enumerate(groups) for index in members}
    for label, members in _by_class(videos, by_class).items():
        if len(members) < 2:
            raise ValueError(
                f"class {videos.classes[label]!r} has {len(members)} video; expected at least 2, one to train on and "
                "one to validate on. Add videos, or give data.validation"
            )
        if len({group_of[index] for index in members}) < 2:
            raise ValueError(
                f"class {videos.classes[label]!r} has all of its {len(members)} videos in one group, "
                f"{videos[members[0]].group!r}; expected at least 2 groups, one to train on and one to validate on. "
                "Add videos of another, or give data.validation"
            )


def _by_class(videos: VideoList, by_class: bool) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, label in enumerate(videos.labels):
        members.setdefault(label if by_class else 0, []).append(index)
    return members


def _draw(name: str) -> bytes:
    """A place in an order that is the same in every run, and not the alphabet's."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class _Groups:
    """Groups of videos, and how many videos of each class are in them."""

    members: list[list[int]]
    draws: list[bytes]
    labels: list[Counter[int]]
    sizes: Counter[int]

    @classmethod
    def of(cls, videos: VideoList, groups: list[list[int]], *, by_class: bool) -> _Groups:
        labels = videos.labels if by_class else [0] * len(videos)
        of_groups = [Counter(labels[index] for index in members) for members in groups]
        names = [videos[members[0]].group or videos[members[0]].name for members in groups]
        return cls(groups, list(map(_draw, names)), of_groups, Counter(labels))


def _held_out_groups(groups: _Groups, fraction: float) -> set[int]:
    """Indices of the videos of whole groups: those, in a drawn order, that bring each class nearer to its share."""
    held: Counter[int] = Counter()
    taken: list[int] = []

    def change(group: int) -> float:
        """Of the squared distance from the share, over all classes; infinite if one had nothing to train on."""
        total = 0.0
        for label, number in groups.labels[group].items():
            size = groups.sizes[label]
            before, after = held[label] / size, (held[label] + number) / size
            if held[label] + number == size:
                return math.inf
            total += (after - fraction) ** 2 - (before - fraction) ** 2
        return total

    def take(group: int) -> None:
        taken.append(group)
        held.update(groups.labels[group])

    order = sorted(range(len(groups.members)), key=lambda group: groups.draws[group])
    for group in order:
        if change(group) < 0:
            take(group)
    for label in sorted(groups.sizes):  # too large a part of their classes for the share, and yet needed
        if not held[label]:
            free = [group for group in order if group not in taken and groups.labels[group][label]]
            best = min(free, key=change)
            if change(best) < math.inf:
                take(best)
    return {index for group in taken for index in groups.members[group]}


def video_key(video: VideoRecord) -> bytes:
    """What a video is recognised by: the names of its file and of the folder it is in, and its size in bytes.

    So a data set may be moved, or named by a list instead of a folder. The names alone would take ``val/left/0.mp4``
    for ``train/left/0.mp4``, the size alone one raw video for another. A folder of frames has no size; there the name
    of the data set counts as a whole.
    """
    if isinstance(video.path, ShardMember):
        what = f"{'/'.join(Path(video.path.name).parts[-2:])}\0{video.path.num_bytes}"
    elif isinstance(video.path, StoredFile):
        what = f"{'/'.join(video.path.address.split('/')[-2:])}\0{video.path.state()[0]}"
    elif video.path.is_file():
        what = f"{'/'.join(video.path.absolute().parts[-2:])}\0{video.path.stat().st_size}"
    else:
        what = video.name
    if video.start_seconds is not None or video.end_seconds is not None:
        what += f"\0{video.start_seconds}\0{video.end_seconds}"
    return hashlib.blake2b(what.encode("utf-8", "surrogateescape"), digest_size=_KEY_BYTES).digest()


@dataclass(frozen=True)
class KnownVideos:
    """A set of videos that fits into a checkpoint.

    Attributes:
        number: how many they were.
        digest: SHA-256 of their keys, sorted.
        keys: `video_key` of each; empty where they were more than `MAX_REMEMBERED`.
    """

    number: int
    digest: str
    keys: frozenset[bytes]

    @classmethod
    def of(cls, videos: Iterable[VideoRecord]) -> KnownVideos:
        """Remember videos; each file is looked at once, for its size."""
        keys = sorted(video_key(video) for video in videos)
        digest = hashlib.sha256(b"".join(keys)).hexdigest()
        return cls(len(keys), digest, frozenset(keys if len(keys) <= MAX_REMEMBERED else ()))

    def __contains__(self, video: VideoRecord) -> bool:
        return bool(self.keys) and video_key(video) in self.keys

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's header."""
        keys = base64.b64encode(b"".join(sorted(self.keys))).decode()
        return {"number": self.number, "digest": self.digest, "keys": keys}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KnownVideos:
        """Raises ValueError or KeyError where the values are not those of `to_dict`."""
        try:
            packed = base64.b64decode(str(values["keys"]), validate=True)
        except binascii.Error as error:
            raise ValueError(f"keys of videos are no base64 ({error})") from error
        if len(packed) % _KEY_BYTES or len(packed) > MAX_REMEMBERED * _KEY_BYTES:
            raise ValueError(f"keys of videos have {len(packed)} bytes; expected {_KEY_BYTES} for each")
        keys = (packed[start : start + _KEY_BYTES] for start in range(0, len(packed), _KEY_BYTES))
        return cls(int(values["number"]), str(values["digest"]), frozenset(keys))


@dataclass(frozen=True)
class Division:
    """Which videos a network was trained on, and which were held out to validate it.

    Attributes:
        training: also those of the network that it started from.
        validation: the held-out ones.
        fraction: by which `hold_out` divided them; None where the data set came divided.
    """

    training: KnownVideos
    validation: KnownVideos
    fraction: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's header."""
        return {
            "training": self.training.to_dict(),
            "validation": self.validation.to_dict(),
            "fraction": self.fraction,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Division:
        """Raises ValueError or KeyError where the values are not those of `to_dict`."""
        fraction = values.get("fraction")
        return cls(
            KnownVideos.from_dict(values["training"]),
            KnownVideos.from_dict(values["validation"]),
            None if fraction is None else float(fraction),
        )

    def after(self, former: Division | None) -> Division:
        """This one for a network that started from another, whose training videos it has seen as well."""
        if former is None:
            return self
        keys = self.training.keys | former.training.keys
        digest = hashlib.sha256(b"".join(sorted(keys))).hexdigest()
        number = self.training.number + former.training.number
        if self.training.keys and former.training.keys and len(keys) <= MAX_REMEMBERED:
            number = len(keys)
        known = KnownVideos(number, digest, keys if len(keys) <= MAX_REMEMBERED else frozenset())
        return Division(known, self.validation, self.fraction)

    def trained_on(self, videos: VideoList) -> list[int]:
        """Indices of the videos that the network was trained on."""
        return [index for index, video in enumerate(videos) if video in self.training]
