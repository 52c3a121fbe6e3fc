"""Which videos are trained on and which are held out, and how one recognises them later."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.shards import ShardMember

MAX_REMEMBERED = 200_000  # videos one by one, 8 characters each; of more only how many they were
_KEY_BYTES = 6


def hold_out(videos: VideoList, fraction: float, *, by_class: bool = True) -> tuple[VideoList, VideoList]:
    """Divide videos into training and validation, the same share of each class, at least one of each on both sides.

    Which ones are held out depends on their names alone, so that it is the same in every run.

    Args:
        videos: to divide.
        fraction: of those held out, above 0 and below 1.
        by_class: False takes the share of all videos together.

    Raises:
        ValueError: if a class has less than two videos.
    """
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(videos.labels):
        groups.setdefault(label if by_class else 0, []).append(index)
    held_out: set[int] = set()
    for label, members in groups.items():
        if len(members) < 2:
            raise ValueError(
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


def video_key(video: VideoRecord) -> bytes:
    """What a video is recognised by: the names of its file and of the folder it is in, and its size in bytes.

    So a data set may be moved, or named by a list instead of a folder. The names alone would take ``val/left/0.mp4``
    for ``train/left/0.mp4``, the size alone one raw video for another. A folder of frames has no size; there the name
    of the data set counts as a whole.
    """
    if isinstance(video.path, ShardMember):
        what = f"{'/'.join(Path(video.path.name).parts[-2:])}\0{video.path.num_bytes}"
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
