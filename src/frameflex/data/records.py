"""Videos and their classes: `VideoRecord`, `VideoList`, and what becomes of those that can't be read."""

import copy
import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from frameflex.data.shards.members import ShardMember, pack_member, unpack_member
from frameflex.storage import Place, StoredFile
from frameflex.video import Decoder, Limits, VideoError, VideoReader, open_video

__all__ = ["BadVideo", "BadVideos", "VideoList", "VideoRecord", "check_bad_share"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video, or one stretch of a video, to be classified.

    Attributes:
        path: a video file, a folder of one video's frames as images, a file in object storage, or a member of a
            shard.
        label: index of its class; None when unknown.
        name: what the data set calls it, for reports and predictions.
        start_seconds: where the stretch begins; None for the video's start.
        end_seconds: where it ends; None for the video's end.
        group: the person, place or recording that it is of, where that is known; a group's videos are alike,
            and stand on one side of a division.
    """

    path: Place | ShardMember
    label: int | None
    name: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    group: str = ""

    def open(self, *, decoder: Decoder = "auto", limits: Limits | None = None) -> VideoReader:
        """Open the whole video; arguments and errors as in `open_video`, and those of `ShardMember.read`."""
        source = self.path.open() if isinstance(self.path, (StoredFile, ShardMember)) else self.path
        return open_video(source, decoder=decoder, limits=limits)


@dataclass(frozen=True, slots=True)
class BadVideo:
    """A video that could not be read, or that is left out, with the reason."""

    index: int
    name: str
    reason: str


class VideoList(Sequence[VideoRecord]):
    """Videos and the names of their classes.

    Records are packed into a few flat buffers and made anew when asked for. A list of Python objects would be
    copied into every loader worker page by page, as the workers touch the objects' reference counts.

    Args:
        records: the videos.
        classes: class names in the order of their indices.
        layout: how the videos lay on disk, in words.
        missing: names of listed videos that were left out because their files are not there.
        splits: into which the data set is divided, such as "train" and "validation"; empty if it isn't.
        left_out: further videos that belong to the data set and are not in the list, with the reasons.
        notes: what is odd about the data set, a line each.
        limits: how much each video may ask for when it is read.

    Attributes:
        classes: class names in the order of their indices.
        layout: how the videos lay on disk, in words.
        missing: names of listed videos that were left out because their files are not there.
        splits: into which the data set is divided, such as "train" and "validation"; empty if it isn't.
        left_out: further videos that belong to the data set and are not in the list, with the reasons.
        notes: what is odd about the data set, a line each.
        limits: how much each video may ask for when it is read.

    Raises:
        ValueError: if a label is not an index of `classes`, or two classes share a name.
    """

    def __init__(
        self,
        records: Iterable[VideoRecord],
        classes: Sequence[str],
        *,
        layout: str = "records",
        missing: Sequence[str] = (),
        splits: Sequence[str] = (),
        left_out: Sequence[BadVideo] = (),
        notes: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.layout = layout
        self.splits = tuple(splits)
        self.missing = tuple(missing)
        self.left_out = tuple(left_out)
        self.notes = tuple(notes)
        self.limits = limits or Limits()
        repeated = [name for name, times in Counter(self.classes).items() if times > 1]
        if repeated:
            raise ValueError(f"class name {repeated[0]!r} is there twice; expected names that differ.")
        text = bytearray()
        self._text_ends = array("q")  # of path 0, name 0, group 0, path 1, ...
        self._labels = array("q")
        self._seconds = array("d")  # start 0, end 0, start 1, ...; NaN for None
        for record in records:
            if record.label is not None and not 0 <= record.label < len(self.classes):
                raise ValueError(
                    f"video {record.name}: label is {record.label}; expected None or an index of the "
                    f"{len(self.classes)} classes, from 0."
                )
            where = (
                _packed(record.path).encode("utf-8", "surrogateescape")
                if isinstance(record.path, (StoredFile, ShardMember))
                else os.fsencode(record.path)
            )
            names = [name.encode("utf-8", "surrogateescape") for name in (record.name, record.group)]
            for part in (where, *names):
                text += part
                self._text_ends.append(len(text))
            self._labels.append(-1 if record.label is None else record.label)
            for seconds in (record.start_seconds, record.end_seconds):
                self._seconds.append(float("nan") if seconds is None else seconds)
        self._text = bytes(text)

    @property
    def records(self) -> Sequence[VideoRecord]:
        """The videos: the list itself."""
        return self

    @property
    def labels(self) -> list[int]:
        """Class index of each video, -1 when unknown."""
        return self._labels.tolist()

    def subset(self, indices: Iterable[int]) -> "VideoList":
        """Make a list of some of the videos, with the same classes."""
        return VideoList(
            (self[index] for index in indices),
            self.classes,
            layout=self.layout,
            left_out=self.left_out,
            notes=self.notes,
            limits=self.limits,
        )

    def within(self, limits: Limits) -> "VideoList":
        """Return the same list, with other limits for each video."""
        limited = copy.copy(self)
        limited.limits = limits
        return limited

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> VideoRecord:  # type: ignore[override]  # slices: see subset
        if not -len(self) <= index < len(self):
            raise IndexError(f"video {index} of a list of {len(self)}")
        index %= len(self)
        begin = self._text_ends[3 * index - 1] if index else 0
        ends = self._text_ends[3 * index : 3 * index + 3]
        path, name, group = (
            self._text[first:end] for first, end in zip((begin, *ends[:2]), ends, strict=True)
        )
        label = self._labels[index]
        start_seconds, end_seconds = self._seconds[2 * index : 2 * index + 2]
        return VideoRecord(
            path=_place(os.fsdecode(path)),
            label=None if label == -1 else label,
            name=name.decode("utf-8", "surrogateescape"),
            start_seconds=None if start_seconds != start_seconds else start_seconds,
            end_seconds=None if end_seconds != end_seconds else end_seconds,
            group=group.decode("utf-8", "surrogateescape"),
        )

    def __repr__(self) -> str:
        return f"VideoList({len(self)} videos, {len(self.classes)} classes, {self.layout})"


def _packed(place: StoredFile | ShardMember) -> str:
    if isinstance(place, ShardMember):
        return pack_member(place)
    known = "" if place.num_bytes is None else str(place.num_bytes)
    return f"\0\0{known}\0{place.version}\0{place.address}"  # a member's begins with one NUL


def _place(text: str) -> Place | ShardMember:
    if not text.startswith("\0"):
        return Path(text)
    if not text.startswith("\0\0"):
        return unpack_member(text)
    known, version, address = text[2:].split("\0", 2)
    return StoredFile(address, int(known) if known else None, int(version))


FEW_BAD, MAX_BAD_SHARE = 3, 0.01


def check_bad_share(names: Sequence[str], num_videos: int, what: str = "videos") -> None:
    """Stop work that skips bad videos when more than 1 % of them, and more than 3, are bad: the one rule.

    Args:
        names: of the bad ones.
        num_videos: of the work.
        what: they are called.

    Raises:
        VideoError: that names the first ten.
    """
    if len(names) > max(FEW_BAD, MAX_BAD_SHARE * num_videos):
        listed = "; ".join(names[:10]) + ("; ..." if len(names) > 10 else "")
        raise VideoError(
            f"{len(names)} of {num_videos} {what} can't be decoded, more than {MAX_BAD_SHARE:.0%} and more than "
            f"{FEW_BAD}: {listed}. Mend them or leave them out: `frameflex data check` writes a quarantine list"
        )


class BadVideos:
    """The one policy for videos that can't be read: stop at the first, or leave out, count and name them.

    Args:
        num_videos: of the work.
        on_bad_video: "error" or "skip".

    Attributes:
        found: each once, in the order in which they came.
    """

    def __init__(self, num_videos: int, on_bad_video: Literal["error", "skip"]) -> None:
        if on_bad_video not in ("error", "skip"):
            raise ValueError(f"on_bad_video is {on_bad_video!r}; expected 'error' or 'skip'.")
        self.num_videos, self.on_bad_video = num_videos, on_bad_video
        self.found: list[BadVideo] = []

    def add(self, bad: Iterable[BadVideo]) -> None:
        """Count videos.

        Raises:
            VideoError: at the first with "error"; with "skip" as `check_bad_share` says.
        """
        for video in bad:
            if self.on_bad_video == "error":
                named = "" if video.reason.startswith("video ") else f"video {video.name}: "
                raise VideoError(
                    f"{named}{video.reason} Leave it out with a quarantine list of `frameflex data check`, or count "
                    "it with --on-bad-video skip."
                )
            self.found.append(video)
            logger.warning("left out: %s: %s", video.name, video.reason)
        check_bad_share([video.name for video in self.found], self.num_videos)
