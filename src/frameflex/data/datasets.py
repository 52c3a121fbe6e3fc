"""Which videos: folders, lists, Kinetics and Something-Something as they are distributed; and clips from them.

`load_videos` reads any of these layouts into a `VideoList`, `ClipDataset` turns its videos into clips at several
frame counts, and `collate` makes batches of those.
"""

import csv
import glob
import hashlib
import json
import logging
import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from frameflex.data.quarantine import in_quarantine, read_quarantine
from frameflex.data.sampling import dense_indices, eval_indices, train_indices
from frameflex.data.shards import ShardMember, is_shards, pack_member, read_index, unpack_member
from frameflex.data.transforms import EvalTransform
from frameflex.video import Decoder, VideoError, VideoReader, open_video

__all__ = [
    "BadVideo",
    "BadVideos",
    "Batch",
    "ClipDataset",
    "NoSuchSplit",
    "Sample",
    "Survey",
    "VideoList",
    "VideoRecord",
    "collate",
    "find_video_files",
    "load_split",
    "load_videos",
    "survey",
]

logger = logging.getLogger(__name__)


# Which videos


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video, or one stretch of a video, to be classified.

    Attributes:
        path: a video file, a folder of one video's frames as images, or a member of a shard.
        label: index of its class; None when unknown.
        name: what the data set calls it, for reports and predictions.
        start_seconds: where the stretch begins; None for the video's start.
        end_seconds: where it ends; None for the video's end.
    """

    path: Path | ShardMember
    label: int | None
    name: str
    start_seconds: float | None = None
    end_seconds: float | None = None

    def open(self, *, decoder: Decoder = "auto") -> VideoReader:
        """Open the whole video; arguments and errors as in `open_video`, and those of `ShardMember.read`."""
        source = self.path.open() if isinstance(self.path, ShardMember) else self.path
        return open_video(source, decoder=decoder)


@dataclass(frozen=True, slots=True)
class BadVideo:
    """A video that could not be read, or that is left out, with the reason."""

    index: int
    name: str
    reason: str


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

    Attributes:
        classes: class names in the order of their indices.
        layout: how the videos lay on disk, in words.
        missing: names of listed videos that were left out because their files are not there.
        splits: into which the data set is divided, such as "train" and "validation"; empty if it isn't.
        left_out: further videos that belong to the data set and are not in the list, with the reasons.

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
    ) -> None:
        self.classes = tuple(classes)
        self.layout = layout
        self.splits = tuple(splits)
        self.missing = tuple(missing)
        self.left_out = tuple(left_out)
        repeated = [name for name, times in Counter(self.classes).items() if times > 1]
        if repeated:
            raise ValueError(f"class name {repeated[0]!r} is there twice; expected names that differ.")
        text = bytearray()
        self._text_ends = array("q")  # of path 0, name 0, path 1, name 1, ...
        self._labels = array("q")
        self._seconds = array("d")  # start 0, end 0, start 1, ...; NaN for None
        for record in records:
            if record.label is not None and not 0 <= record.label < len(self.classes):
                raise ValueError(
                    f"video {record.name}: label is {record.label}; expected None or an index of the "
                    f"{len(self.classes)} classes, from 0."
                )
            where = (
                pack_member(record.path).encode("utf-8", "surrogateescape")
                if isinstance(record.path, ShardMember)
                else os.fsencode(record.path)
            )
            for part in (where, record.name.encode("utf-8", "surrogateescape")):
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
            (self[index] for index in indices), self.classes, layout=self.layout, left_out=self.left_out
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> VideoRecord:  # type: ignore[override]  # slices: see subset
        if not -len(self) <= index < len(self):
            raise IndexError(f"video {index} of a list of {len(self)}")
        index %= len(self)
        begin = self._text_ends[2 * index - 1] if index else 0
        middle, end = self._text_ends[2 * index], self._text_ends[2 * index + 1]
        label = self._labels[index]
        start_seconds, end_seconds = self._seconds[2 * index : 2 * index + 2]
        return VideoRecord(
            path=_place(os.fsdecode(self._text[begin:middle])),
            label=None if label == -1 else label,
            name=self._text[middle:end].decode("utf-8", "surrogateescape"),
            start_seconds=None if start_seconds != start_seconds else start_seconds,
            end_seconds=None if end_seconds != end_seconds else end_seconds,
        )

    def __repr__(self) -> str:
        return f"VideoList({len(self)} videos, {len(self.classes)} classes, {self.layout})"


def _place(text: str) -> Path | ShardMember:
    return unpack_member(text) if text.startswith("\0") else Path(text)


def load_videos(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    video_dir: str | os.PathLike[str] | None = None,
    on_missing: Literal["error", "skip"] = "error",
    quarantine: str | os.PathLike[str] | None = None,
) -> VideoList:
    """Find the videos of a data set and their classes.

    The layout is recognised from what is there:

    - **Folder per class:** `source/CLASS/video.mp4`, or `source/train/CLASS/...` and `source/val/CLASS/...`.
      Classes are the folders' names, sorted. A folder of images inside a class's folder is one video, too.
    - **List:** a file of lines `path label` or `path label start_seconds end_seconds`, separated by commas, tabs,
      semicolons or spaces. With a header line the columns may be in any order and others may be among them (a
      column `split` is used). Labels are names or numbers. Paths are relative to `video_dir`, or to the list's
      folder. A folder that holds `train.csv` and `val.csv` is read by its `split`.
    - **Kinetics:** a list whose header names `youtube_id`, `time_start` and `time_end`; the files are
      `ID_START_END.mp4` anywhere under `video_dir`, or under the list's folder.
    - **Something-Something V2:** a folder with `labels.json`, `train.json`, `validation.json` and `test.json` (in
      it or in its `labels/`; names such as `something-something-v2-train.json` too) and the videos in
      `20bn-something-something-v2/`, `videos/` or `video_dir`.
    - **Something-Something V1:** a folder with `something-something-v1-labels.csv`, `...-train.csv` and so on, and a
      folder of JPEGs for each video in `20bn-something-something-v1/` or `video_dir`.
    - **Shards:** a folder that `frameflex data prepare` made, here or at `https://...`, `s3://...` and wherever else
      fsspec reads from.

    Where train and validation videos are given by two separate lists, pass the classes of the first for the
    second: the second alone may lack a class, and its indices would differ.

    Args:
        source: the data set's folder, a list, or the address of a folder of shards.
        split: "train", "validation" (or "val") or "test", where the data set has several.
        classes: class names in the order of a model's outputs; labels are mapped to them by name. Numbers in
            a list are taken as indices of them.
        video_dir: where the videos are, if not where the layout has them.
        on_missing: "skip" leaves out videos whose files are not there and names them in `VideoList.missing`.
        quarantine: a list of videos to leave out, as `read_quarantine` reads it; they are in `VideoList.left_out`.

    Raises:
        FileNotFoundError: if `source` is not there, or files of listed videos are not (all counted, ten named).
        ValueError: if the layout is not recognised, a line or an entry is wrong, or a class is not in `classes`.
    """
    if is_shards(source):
        return _load_shards(os.fspath(source), _canonical_split(split), classes, quarantine)
    root = Path(source)
    if on_missing not in ("error", "skip"):
        raise ValueError(f"on_missing is {on_missing!r}; expected 'error' or 'skip'.")
    if not root.exists():
        raise FileNotFoundError(f"{root}: there is no such file or folder. Check the path of the data set.")
    if video_dir is not None and not Path(video_dir).is_dir():
        raise FileNotFoundError(f"video_dir {video_dir}: there is no such folder. Check the path.")
    found = _read_layout(root, _canonical_split(split), None if video_dir is None else Path(video_dir))
    found.entries, left_out = _leave_out(found.entries, quarantine)
    names, to_index = _number_classes(found, classes)
    missing = _missing_files(entry.path for entry in found.entries)
    absent = [entry for entry in found.entries if entry.path in missing]
    if absent and on_missing == "error":
        listed = "\n".join(f"  {entry.path}" for entry in absent[:10])
        more = f"\n  ... and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise FileNotFoundError(
            f"{root}: {len(absent)} of {len(found.entries)} videos are not there:\n{listed}{more}\n"
            "Expected every listed video. Check video_dir, download them, or leave them out, counted, with "
            "on_missing='skip'."
        )
    if absent:
        logger.warning("%s: %d of %d videos are not there", root, len(absent), len(found.entries))
    present = [entry for entry in found.entries if entry.path not in missing] if absent else found.entries
    if not present:
        raise ValueError(f"{root}: no video is left ({found.layout}). Check the split and the folder.")
    videos = VideoList(
        (
            VideoRecord(Path(entry.path), to_index(entry), entry.name, entry.start_seconds, entry.end_seconds)
            for entry in present
        ),
        names,
        layout=found.layout,
        missing=[entry.name for entry in absent],
        splits=found.splits,
        left_out=left_out,
    )
    logger.info("%s: %d videos of %d classes (%s)", root, len(videos), len(names), found.layout)
    return videos


def _leave_out(
    entries: list["_Entry"], quarantine: str | os.PathLike[str] | None
) -> tuple[list["_Entry"], list[BadVideo]]:
    """Divide entries into those to use and those that a quarantine list names."""
    if quarantine is None:
        return entries, []
    reasons = read_quarantine(quarantine)
    kept, left_out = [], []
    for entry in entries:
        reason = in_quarantine(reasons, entry.path)
        if reason is None:
            kept.append(entry)
        else:
            left_out.append(BadVideo(-1, entry.name, f"in quarantine: {reason}".rstrip(": ")))
    if entries and not kept:
        raise ValueError(
            f"quarantine {quarantine}: names all {len(entries)} videos; expected some to be left."
        )
    if left_out:
        logger.warning("%d of %d videos are left out, as %s says", len(left_out), len(entries), quarantine)
    return kept, left_out


def _load_shards(
    source: str,
    split: str | None,
    classes: Sequence[str] | None,
    quarantine: str | os.PathLike[str] | None,
) -> VideoList:
    index = read_index(source)
    picked = _pick_split(source, dict.fromkeys(index.splits), split) if index.splits or split else ""
    names, to_index = _number_classes(_Found("", [], list(index.classes)), classes)
    members = {str(member): member for member, _, _ in index.videos(picked)}
    entries, left_out = _leave_out(
        [
            _Entry(str(member), None if label is None else index.classes[label], name, str(member))
            for member, label, name in index.videos(picked)
        ],
        quarantine,
    )
    if not entries:
        raise ValueError(f"{source}: no video is there. Check the split.")
    made_without = [BadVideo(-1, name, reason) for of, name, reason in index.left_out if of == picked]
    if made_without:
        logger.warning("%s: was made without %d bad videos", source, len(made_without))
    videos = VideoList(
        (VideoRecord(members[entry.path], to_index(entry), entry.name) for entry in entries),
        names,
        layout="shards" + (f", {picked}" if picked else ""),
        splits=index.splits,
        left_out=[*left_out, *made_without],
    )
    logger.info("%s: %d videos of %d classes (%s)", source, len(videos), len(names), videos.layout)
    return videos


class _Entry(NamedTuple):
    """A video as a data set names it."""

    path: str
    label: str | None  # a class's name, or with numbered labels its number
    name: str
    where: str  # for messages: the file and line
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass
class _Found:
    layout: str
    entries: list[_Entry]
    classes: list[str]
    numbered: bool = False  # labels are numbers without names
    labels: frozenset[str] = frozenset()  # all that occur, where they are numbered, in any split
    splits: Sequence[str] = ()
    classes_from: str = ""  # the file that lists the classes, where there is one of its own


_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate"),
    "test": ("test", "testing"),
}
# fmt: off
_VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".ts", ".webm", ".wmv",
})
# fmt: on
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_LIST_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".list"})

_LAYOUTS = """Layouts that are known:
  SOURCE/CLASS/video.mp4, or SOURCE/train/CLASS/video.mp4 and SOURCE/val/CLASS/video.mp4
  a list (.csv, .tsv, .txt) of lines: path,label or path,label,start_seconds,end_seconds
  a Kinetics list: label,youtube_id,time_start,time_end,split with files ID_START_END.mp4
  Something-Something V2: labels.json, train.json, validation.json, 20bn-something-something-v2/ID.webm
  Something-Something V1: something-something-v1-labels.csv, ...-train.csv, 20bn-something-something-v1/ID/00001.jpg
  shards: a folder or address with the index.json of `frameflex data prepare`
Videos without classes can be classified one by one, without a data set."""


class NoSuchSplit(ValueError):
    """A data set lacks the split that was asked for; ``available`` lists those that it has."""

    def __init__(self, message: str, available: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.available = tuple(available)


def load_split(
    source: str | os.PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    video_dir: str | os.PathLike[str] | None = None,
    quarantine: str | os.PathLike[str] | None = None,
) -> VideoList:
    """Find one split of a data set, or all of its videos where it is not divided into splits.

    Arguments and errors as in `load_videos`; `splits` of the result tells which of the two it was.
    """
    try:
        return load_videos(source, split=split, classes=classes, video_dir=video_dir, quarantine=quarantine)
    except NoSuchSplit as error:
        if error.available:
            raise
    return load_videos(source, classes=classes, video_dir=video_dir, quarantine=quarantine)


@dataclass
class Survey:
    """All that a data set lists, the wrong included.

    Attributes:
        videos: the videos of every split whose files are there; without a label where theirs is wrong.
        splits: to which split each belongs; empty where there are none.
        missing: (split, name, path) of listed videos whose files are not there.
        mislabelled: (split, name, path, reason) of videos whose labels are not among the classes.
        mislabelled_at: where in `videos` they are. A file may be listed again with a right label.
        unlisted: video files in the data set's folder that no list names.
        left_out: (split, name, reason) of videos that a quarantine list names.
    """

    videos: VideoList
    splits: list[str]
    missing: list[tuple[str, str, str]] = field(default_factory=list)
    mislabelled: list[tuple[str, str, str, str]] = field(default_factory=list)
    mislabelled_at: list[int] = field(default_factory=list)
    unlisted: list[Path] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)


def survey(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    video_dir: str | os.PathLike[str] | None = None,
    quarantine: str | os.PathLike[str] | None = None,
) -> Survey:
    """Find the videos of every split of a data set, or of one; or of a folder without any layout, unlabelled.

    Arguments as in `load_videos`, but wrong labels and missing files are collected instead of raised.

    Raises:
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if the layout is not recognised or a list can't be read.
    """
    if is_shards(source):
        return _survey_shards(source, split, classes, quarantine)
    root, folder = Path(source), None if video_dir is None else Path(video_dir)
    if not root.exists():
        raise FileNotFoundError(f"{root}: there is no such file or folder. Check the path of the data set.")
    try:
        parts = [_read_layout(root, _canonical_split(split), folder)]
    except NoSuchSplit as error:
        if split is not None or not error.available:
            raise
        parts = [_read_layout(root, name, folder) for name in error.available]
        names = list(error.available)
    except ValueError:
        if not root.is_dir() or split is not None or video_dir is not None:
            raise
        entries = [_Entry(str(path), None, path.name, str(path)) for path in find_video_files([source])]
        parts, names = [_Found("folder", entries, [])], [""]
    else:
        names = [_canonical_split(split) or ""]
    numbers = _number_classes(parts[0], classes)[0]
    found = Survey(VideoList([], numbers), [])
    records: list[VideoRecord] = []
    left_out: list[BadVideo] = []
    for name, part in zip(names, parts, strict=True):
        entries, quarantined = _leave_out(part.entries, quarantine)
        left_out += quarantined
        found.left_out += [(name, bad.name, bad.reason) for bad in quarantined]
        to_index = _number_classes(part, classes)[1]
        missing = _missing_files(entry.path for entry in entries)
        for entry in entries:
            if entry.path in missing:
                found.missing.append((name, entry.name, entry.path))
                continue
            try:
                label = to_index(entry)
            except ValueError as error:
                label = None
                found.mislabelled.append((name, entry.name, entry.path, str(error)))
                found.mislabelled_at.append(len(records))
            records.append(
                VideoRecord(Path(entry.path), label, entry.name, entry.start_seconds, entry.end_seconds)
            )
            found.splits.append(name)
    if root.is_dir() and split is None and not parts[0].layout.startswith("folder"):
        listed = {os.path.abspath(entry.path) for part in parts for entry in part.entries}
        files = (path for path in root.rglob("*") if path.suffix.lower() in _VIDEO_SUFFIXES)
        found.unlisted = sorted(path for path in files if os.path.abspath(path) not in listed)
    found.videos = VideoList(records, numbers, layout=parts[0].layout.split(",")[0], left_out=left_out)
    return found


def _survey_shards(
    source: str | os.PathLike[str],
    split: str | None,
    classes: Sequence[str] | None,
    quarantine: str | os.PathLike[str] | None,
) -> Survey:
    available: Sequence[str | None] = [split] if split else read_index(source).splits or [None]
    parts = [load_videos(source, split=name, classes=classes, quarantine=quarantine) for name in available]
    return Survey(
        VideoList(
            [record for part in parts for record in part],
            parts[0].classes,
            layout="shards",
            left_out=[bad for part in parts for bad in part.left_out],
        ),
        [name or "" for name, part in zip(available, parts, strict=True) for _ in part],
        left_out=[
            (name or "", bad.name, bad.reason)
            for name, part in zip(available, parts, strict=True)
            for bad in part.left_out
        ],
    )


def find_video_files(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files, folders (searched for videos, sub-folders too) and patterns such as ``clips/*.mp4`` into files.

    What is hidden in a folder (``.name``, ``__MACOSX``) is passed over, as where a data set is read.

    Raises:
        FileNotFoundError: naming the first source that matches nothing.
    """
    files: dict[Path, None] = {}  # each once, in the order given
    for source in [os.fspath(source) for source in sources]:
        if os.path.isdir(source):
            inside = (path for path in Path(source).rglob("*") if path.suffix.lower() in _VIDEO_SUFFIXES)
            found = sorted(p for p in inside if not any(map(_is_hidden, p.relative_to(source).parts)))
        elif os.path.lexists(source):  # a link that leads nowhere is a video that can't be opened
            found = [Path(source)]
        else:
            found = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if os.path.isfile(name)]
        if not found:
            raise FileNotFoundError(f"{source}: no video file there. Give files, folders or quoted patterns.")
        files.update(dict.fromkeys(found))
    return list(files)


def _canonical_split(split: str | None) -> str | None:
    if split is None:
        return None
    for canonical, spellings in _SPLITS.items():
        if split.lower() in spellings:
            return canonical
    raise ValueError(f"split is {split!r}; expected train, validation (or val) or test.")


def _read_layout(root: Path, split: str | None, video_dir: Path | None) -> _Found:
    if root.is_file():
        if root.suffix.lower() == ".json":
            return _read_something_v2(root.parent, _json_split(root, split), video_dir)
        if root.suffix.lower() in _LIST_SUFFIXES:
            return _read_list(root, split, video_dir)
        raise ValueError(f"{root}: not a list or a folder of videos.\n{_LAYOUTS}")
    for folder in (root, root / "labels"):
        if _labels_file(folder, ".json") and _split_files(folder, ".json"):
            return _read_something_v2(folder, split, video_dir)
        if _labels_file(folder, ".csv") and any(
            ";" in line for file in _split_files(folder, ".csv").values() for line in _head(file)
        ):
            return _read_something_v1(folder, split, video_dir)
    lists = {name: file for suffix in _LIST_SUFFIXES for name, file in _split_files(root, suffix).items()}
    if lists:
        return _read_lists(root, lists, split, video_dir)
    return _read_folders(root, split, video_dir)


def _number_classes(
    found: _Found, classes: Sequence[str] | None
) -> tuple[Sequence[str], Callable[[_Entry], int | None]]:
    names = found.classes if classes is None else list(classes)
    index_of = {name: index for index, name in enumerate(names)}
    defined = set(found.classes)
    by_index = found.numbered and (classes is None or _are_indices(found, index_of))

    def to_index(entry: _Entry) -> int | None:
        if entry.label is None:
            return None
        if found.classes_from and entry.label not in defined:
            raise ValueError(
                f"{entry.where}: class {entry.label!r} is not in {found.classes_from}. Both files have to be of one "
                "release."
            )
        if by_index and int(entry.label) < len(names):
            return int(entry.label)
        if not by_index and entry.label in index_of:
            return index_of[entry.label]
        known = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(
            f"{entry.where}: class {entry.label!r} is not among the {len(names)} that are expected ({known}). "
            "Correct the label, or use a model of these classes."
        )

    return names, to_index


def _are_indices(found: _Found, names: Collection[str]) -> bool:
    """Whether numbers as labels are indices of classes and not names; decided once, for all of them.

    Raises:
        ValueError: if some can only be the one and some look like the other.
    """
    named = {label for label in found.labels if label in names}
    indices = {label for label in found.labels - named if int(label) < len(names)}
    if named and indices:
        first, second = (", ".join(sorted(some, key=int)[:3]) for some in (named, indices))
        raise ValueError(
            f"labels are numbers, and {len(named)} of them are names of classes ({first}) while {len(indices)} are "
            f"not ({second}); expected all to be names or all to be indices from 0. Write the names of the classes"
        )
    return not named


def _missing_files(paths: Iterable[str]) -> set[str]:
    """Return the paths without a file, by listing each folder once: asking for 169k files takes minutes on NFS."""
    folders: dict[str, set[str]] = {}
    missing = set()
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder or "."))
            except (FileNotFoundError, NotADirectoryError):
                folders[folder] = set()
        # A second look: a file system may know a name by another spelling (capitals, Unicode normal forms).
        if name not in folders[folder] and not os.path.exists(path):
            missing.add(path)
    return missing


# Folder per class


def _read_folders(root: Path, split: str | None, video_dir: Path | None) -> _Found:
    if video_dir is not None:
        raise ValueError(
            f"{root}: recognised no list in it, so that video_dir has no meaning. Pass the list itself."
        )
    splits = {
        canonical: folder
        for canonical, spellings in _SPLITS.items()
        for folder in _subfolders(root)
        if folder.name.lower() in spellings and _class_folders(folder)
    }
    parts = splits or {"": root}
    found = {part: _class_folders(folder) for part, folder in parts.items()}
    if not any(found.values()):
        raise ValueError(f"{root}: no known layout of videos; it holds {_listing(root)}.\n{_LAYOUTS}")
    part = _pick_split(root, dict.fromkeys(splits), split) if splits or split else ""
    entries = [
        _Entry(str(path), folder.name, path.relative_to(parts[part]).as_posix(), str(path))
        for folder, paths in found[part].items()
        for path in paths
    ]
    # Over all splits: a class that one split lacks must not move the indices of the others.
    names = sorted({folder.name for folders in found.values() for folder in folders})
    if len(names) == 1 and (names[0] == "videos" or names[0].startswith("20bn-something-something")):
        raise ValueError(
            f"{root}: there is {names[0]}/, but no list or annotations that name classes.\n{_LAYOUTS}"
        )
    return _Found("folder per class" + (f", {part}" if part else ""), entries, names, splits=list(splits))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    """What programs put beside videos: ``._clip.mp4``, ``.ipynb_checkpoints``, ``__MACOSX`` of a Mac's archives."""
    return name.startswith(".") or name == "__MACOSX"


def _class_folders(root: Path) -> dict[Path, list[Path]]:
    found = {}
    for folder in _subfolders(root):
        if videos := list(_videos_below(folder)):
            found[folder] = videos
    return found


def _videos_below(folder: Path, *, is_class: bool = True) -> Iterator[Path]:
    with os.scandir(folder) as scan:
        inside = sorted((entry.name, entry.is_dir()) for entry in scan if not _is_hidden(entry.name))
    suffixes = {os.path.splitext(name)[1].lower() for name, is_folder in inside if not is_folder}
    if not is_class and suffixes & _IMAGE_SUFFIXES and not suffixes & _VIDEO_SUFFIXES:
        yield folder  # one video as a folder of its frames
        return
    for name, is_folder in inside:
        if is_folder:
            yield from _videos_below(folder / name, is_class=False)
        elif os.path.splitext(name)[1].lower() in _VIDEO_SUFFIXES:
            yield folder / name


def _listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _pick_split(where: Path | str, available: Mapping[str, Any], split: str | None) -> str:
    if split in available:
        return split  # type: ignore[return-value]
    if not available:
        raise NoSuchSplit(
            f"{where}: split is {split!r}, but the videos are not divided into splits. Leave split out, or "
            f"divide them, for instance into {Path(where).name}/train and {Path(where).name}/val."
        )
    raise NoSuchSplit(
        f"{where}: split is {split!r}; expected one of those that are there: {', '.join(available)}.",
        list(available),
    )


# Lists

_PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "file_name", "filepath")
_LABEL_COLUMNS = ("label", "class", "class_name", "action")


class _Table(NamedTuple):
    header: list[str] | None
    rows: list[tuple[int, list[str]]]  # with line numbers


def _read_lists(root: Path, lists: dict[str, Path], split: str | None, video_dir: Path | None) -> _Found:
    picked = _pick_split(root, lists, split)
    found = {
        name: _read_list(file, None, video_dir, labels_only=name != picked) for name, file in lists.items()
    }
    result = found[picked]
    labelled = [part for part in found.values() if part.classes]  # others say nothing about what labels are
    result.numbered = bool(labelled) and all(part.numbered for part in labelled)
    result.labels = frozenset().union(*(part.labels for part in labelled))
    if len({part.numbered for part in labelled}) > 1:
        raise ValueError(
            f"{root}: labels are numbers in one of {', '.join(file.name for file in lists.values())} and names in "
            "another; expected one kind."
        )
    names = [part.classes for part in found.values()]
    result.classes = (
        max(names, key=len) if result.numbered else sorted({name for part in names for name in part})
    )
    result.layout += f", {picked}"
    result.splits = list(lists)
    return result


def _read_list(path: Path, split: str | None, video_dir: Path | None, *, labels_only: bool = False) -> _Found:
    """Read a list of any kind; `labels_only` leaves out where the videos are."""
    table = _read_table(path)
    header = table.header
    if header is not None and "youtube_id" in header:
        return _read_kinetics(path, table, header, split, video_dir, labels_only=labels_only)
    num_columns = Counter(len(row) for _, row in table.rows).most_common(1)[0][0]
    if header is None:
        if num_columns not in (1, 2, 4):
            raise ValueError(
                f"{path}: lines have {num_columns} columns; expected path,label or "
                "path,label,start_seconds,end_seconds. Name other columns in a first line, for example: "
                "path,num_frames,label"
            )
        header = ["path", "label", "start_seconds", "end_seconds"][:num_columns]
    columns = {name: index for index, name in enumerate(header)}
    at_path = next(columns[name] for name in _PATH_COLUMNS if name in columns)
    at_label = next((columns[name] for name in _LABEL_COLUMNS if name in columns), None)
    at_start, at_end, at_split = (columns.get(name) for name in ("start_seconds", "end_seconds", "split"))
    for name in header:
        if re.match(r"(start|end|time|begin|stop|from|to)([_ ]|$)", name) and columns[name] not in (
            at_start,
            at_end,
        ):
            raise ValueError(
                f"{path}: column {name!r} is not known; expected start_seconds and end_seconds. "
                "Rename it, with times in seconds, or remove it."
            )
    if split is not None and at_split is None:
        raise NoSuchSplit(
            f"{path}: split is {split!r}, but the list has no column split. Leave split out, or pass the "
            "list of that split."
        )
    folder = video_dir if video_dir is not None else path.parent
    entries, labels, splits = [], set(), set()
    for line, row in table.rows:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise ValueError(
                f"{where}: {len(row)} columns; expected {len(header)} ({', '.join(header)}). Put a field that "
                'contains the separator into "quotes".'
            )
        label = row[at_label] if at_label is not None and row[at_label] not in ("", "-1") else None
        if label is not None:
            labels.add(label)
        if at_split is not None:
            splits.add(_row_split(row[at_split], where))
            if split is not None and _row_split(row[at_split], where) != split:
                continue
        start = _seconds(row[at_start], where) if at_start is not None else None
        end = _seconds(row[at_end], where) if at_end is not None else None
        if end is not None and end <= (start or 0):
            raise ValueError(f"{where}: ends at {end} s; expected an end after the start at {start or 0} s.")
        if not labels_only:
            entries.append(
                _Entry(_inside(folder, row[at_path], where), label, row[at_path], where, start, end)
            )
    if len(splits) > 1 and split is None:
        raise NoSuchSplit(
            f"{path}: split is None; expected one of those that are there: {', '.join(sorted(splits))}.",
            sorted(splits),
        )
    numbered = bool(labels) and all(re.fullmatch(r"\d{1,6}", label) for label in labels)
    names = [str(i) for i in range(1 + max(map(int, labels)))] if numbered else sorted(labels)
    seen = frozenset(labels) if numbered else frozenset()
    return _Found("list" + (f", {split}" if split else ""), entries, names, numbered, seen, sorted(splits))


def _read_table(path: Path) -> _Table:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}). Save the list as UTF-8.") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path}: the list is empty; expected lines of path,label.")
    separator = _separator([line for _, line in numbered[:50]])
    rows: list[tuple[int, list[str]]] = []
    for number, line in numbered:
        if separator is None:
            cells = [line.strip()]
        else:
            cells = next(csv.reader([line.strip(" ")], delimiter=separator, skipinitialspace=True))
        rows.append((number, [cell.strip() for cell in cells]))
    header = [cell.lower() for cell in rows[0][1]]
    if not set(header) & {*_PATH_COLUMNS, "youtube_id"}:
        return _Table(None, rows)
    if len(rows) == 1:
        raise ValueError(f"{path}: the list has a header and no line; expected at least one video.")
    if len(set(header)) < len(header):
        raise ValueError(
            f"{path}: two columns have the same name ({', '.join(header)}); expected one of each."
        )
    return _Table(header, rows[1:])


def _separator(lines: Sequence[str]) -> str | None:
    """Return what separates the columns, or None where there is one column."""
    # Most lines decide, so that a line that lacks the separator is named as wrong later on.
    for candidate in ("\t", ";", ","):
        if sum(candidate in line for line in lines) > len(lines) / 2:
            return candidate
    ends_in_a_path = all(os.path.splitext(line.strip())[1].lower() in _VIDEO_SUFFIXES for line in lines)
    return " " if not ends_in_a_path and all(" " in line.strip() for line in lines) else None


def _row_split(text: str, where: str) -> str:
    try:
        return _canonical_split(text) or ""
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _seconds(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{where}: time is {text!r}; expected seconds, 0 or more.")
    return seconds


def _inside(folder: Path, text: str, where: str) -> str:
    """Return the path of a list's entry; a relative one has to stay in the folder."""
    if not text or "\0" in text:
        raise ValueError(f"{where}: path is {text!r}; expected the path of a video.")
    if os.path.isabs(text):
        return os.path.normpath(text)
    inside = os.path.normpath(text)
    if inside.split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"{where}: path {text!r} leaves the folder {folder}; expected one inside of it. "
            "Pass a video_dir that holds all videos, or use an absolute path."
        )
    return os.path.join(folder, inside)


def _read_kinetics(
    path: Path,
    table: _Table,
    header: list[str],
    split: str | None,
    video_dir: Path | None,
    *,
    labels_only: bool,
) -> _Found:
    columns = {name: index for index, name in enumerate(header)}
    lacking = [name for name in ("youtube_id", "time_start", "time_end") if name not in columns]
    if lacking:
        raise ValueError(
            f"{path}: looks like a Kinetics list but lacks {', '.join(lacking)}; expected "
            "label,youtube_id,time_start,time_end,split."
        )
    folder = video_dir if video_dir is not None else path.parent
    files: dict[str, list[str]] = {}
    for parent, _, names in () if labels_only else os.walk(folder):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _VIDEO_SUFFIXES:
                files.setdefault(stem, []).append(os.path.join(parent, name))
    entries, labels = [], set()
    for line, row in table.rows:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} columns; expected {len(header)} ({', '.join(header)}).")
        label = row[columns["label"]] or None if "label" in columns else None
        if label is not None:
            labels.add(label)
        if split is not None and "split" in columns and _row_split(row[columns["split"]], where) != split:
            continue
        start, end = (_seconds(row[columns[name]], where) for name in ("time_start", "time_end"))
        identity = row[columns["youtube_id"]]
        if start is None or end is None or not re.fullmatch(r"[\w-]+", identity):
            raise ValueError(f"{where}: expected a youtube_id, time_start and time_end.")
        stem = f"{identity}_{int(start):06d}_{int(end):06d}"
        paths = files.get(stem, [])
        if len(paths) > 1:  # the same stretch can be in two classes, with a copy in each class's folder
            homes = {label, (label or "").replace(" ", "_")}
            paths = [file for file in paths if os.path.basename(os.path.dirname(file)) in homes]
            if len(paths) != 1:
                raise ValueError(
                    f"{where}: {stem} is in {len(files[stem])} folders ({', '.join(files[stem][:3])}); "
                    "expected one file, or one in its class's folder."
                )
        if not labels_only:
            entries.append(_Entry(paths[0] if paths else str(folder / f"{stem}.mp4"), label, stem, where))
    splits = (
        sorted({_row_split(row[columns["split"]], "") for _, row in table.rows}) if "split" in columns else []
    )
    return _Found("Kinetics" + (f", {split}" if split else ""), entries, sorted(labels), splits=splits)


# Something-Something


def _split_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Find `train.csv`, `something-v1-train.csv` and the like, by split."""
    found: dict[str, Path] = {}
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            word = re.split(r"[-_.]", file.stem.lower())[-1]
            for split, spellings in _SPLITS.items():
                if file.suffix.lower() == suffix and word in spellings and file.is_file():
                    if split in found:
                        raise ValueError(
                            f"{folder}: both {found[split].name} and {file.name} list the {split} videos; expected "
                            "one. Pass the one that is meant instead of its folder."
                        )
                    found[split] = file
    return found


def _labels_file(folder: Path, suffix: str) -> Path | None:
    if not folder.is_dir():
        return None
    files = sorted(file for file in folder.iterdir() if re.fullmatch(r"(.*[-_])?labels", file.stem.lower()))
    return next((file for file in files if file.suffix.lower() == suffix and file.is_file()), None)


def _json_split(path: Path, split: str | None) -> str:
    named = next((name for name, file in _split_files(path.parent, ".json").items() if file == path), None)
    if named is None or _labels_file(path.parent, ".json") is None:
        raise ValueError(
            f"{path}: expected train.json, validation.json or test.json beside labels.json.\n{_LAYOUTS}"
        )
    if split not in (None, named):
        raise ValueError(f"{path}: split is {split!r}, but the file lists {named}. Leave split out.")
    return named


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}). Download it again."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}). Download it again.") from error


def _read_something_v2(folder: Path, split: str | None, video_dir: Path | None) -> _Found:
    labels_path = _labels_file(folder, ".json")
    assert labels_path is not None
    classes = _something_classes(labels_path)
    annotations = _split_files(folder, ".json")
    path = annotations[_pick_split(folder, annotations, split)]
    content = _read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a list of entries with an id.")
    videos = _something_videos(folder, video_dir, version=2)
    with os.scandir(videos) as scan:
        files = {
            stem: entry.name
            for entry in sorted(scan, key=lambda entry: entry.name)
            for stem, suffix in (os.path.splitext(entry.name),)
            if suffix.lower() in _VIDEO_SUFFIXES
        }
    entries = []
    for number, item in enumerate(content, 1):
        where = f"{path}, entry {number}"
        if not isinstance(item, Mapping) or not re.fullmatch(r"[\w-]+", str(item.get("id", ""))):
            raise ValueError(f'{where}: is {str(item)[:80]}; expected {{"id": ..., "template": ...}}.')
        identity = str(item["id"])
        label = item.get("template", item.get("label"))
        if label is not None:
            label = str(label).replace("[", "").replace("]", "")
        file = files.get(identity, f"{identity}.webm")
        entries.append(_Entry(os.path.join(videos, file), label, identity, where))
    return _Found(
        f"Something-Something V2, {split}",
        entries,
        classes,
        splits=list(annotations),
        classes_from=labels_path.name,
    )


def _something_classes(path: Path) -> list[str]:
    content = _read_json(path)
    indices = []
    if isinstance(content, Mapping):
        indices = [int(value) for value in content.values() if re.fullmatch(r"\d{1,6}", str(value))]
    if not content or not isinstance(content, Mapping) or sorted(indices) != list(range(len(content))):
        raise ValueError(
            f"{path}: expected an object of class names and the indices 0 to K - 1, each once. Download it again."
        )
    return sorted(content, key=lambda name: int(content[name]))


def _something_videos(folder: Path, video_dir: Path | None, *, version: int) -> Path:
    if video_dir is not None:
        return video_dir
    names = (f"20bn-something-something-v{version}", "videos")
    roots = (folder, folder.parent) if folder.name == "labels" else (folder,)
    for candidate in (root / name for root in roots for name in names):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"{folder}: there are annotations but no folder {names[0]}/ or {names[1]}/ of videos. Pass video_dir."
    )


def _read_something_v1(folder: Path, split: str | None, video_dir: Path | None) -> _Found:
    labels_path = _labels_file(folder, ".csv")
    assert labels_path is not None
    classes = [
        line.strip() for line in labels_path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    ]
    lists = _split_files(folder, ".csv")
    picked = _pick_split(folder, lists, split)
    videos = _something_videos(folder, video_dir, version=1)
    entries = []
    for number, line in enumerate(lists[picked].read_text(encoding="utf-8-sig").splitlines(), 1):
        where = f"{lists[picked]}, line {number}"
        identity, _, text = (part.strip() for part in line.partition(";"))
        label = text or None
        if not identity:
            continue
        if not re.fullmatch(r"[\w-]+", identity):
            raise ValueError(f"{where}: is {line[:80]!r}; expected id;label.")
        entries.append(_Entry(os.path.join(videos, identity), label, identity, where))
    return _Found(
        f"Something-Something V1, {picked}",
        entries,
        classes,
        splits=list(lists),
        classes_from=labels_path.name,
    )


def _head(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [line for _, line in zip(range(3), file, strict=False)]


# From videos to clips


@dataclass(frozen=True, slots=True)
class Sample:
    """The clips of one video.

    Attributes:
        clips: for each T the clip: in training float `(3, T, H, W)`; in evaluation `(V, 3, T, H, W)`, the V
            views being temporal views times crops, crops adjacent.
        label: class index, -1 when unknown.
        index: the video's index in its list.
    """

    clips: dict[int, Tensor]
    label: int
    index: int


class ClipDataset(Dataset[Sample | BadVideo]):
    """Clips of a list of videos at several frame counts; each video is opened and decoded once.

    `dataset[index, epoch]`, or `dataset[index, epoch, frame_counts]` for other counts than the data set's own,
    is a pure function of `(seed, epoch, index)`: it does not depend on the number of
    workers, on the order of the calls or on random numbers drawn elsewhere, and it draws none of theirs. A sampler
    that yields such pairs gives every epoch its own crops and frames. With a plain `dataset[index]` each epoch is
    the first one over again.

    Args:
        videos: which videos.
        frame_counts: the T's of the clips, each at least 1.
        transform: in training `TrainTransform`, in evaluation `EvalTransform`, or a callable like it.
        training: random frames and `transform(frames, label)`; else fixed frames and `transform(frames)`.
        sampling: "segments" over the whole video, or "dense" in a window of it.
        num_views: temporal views of a video in evaluation; with segments 1 or 2.
        window: frames that a dense clip spans, at any T.
        seed: start of all randomness.
        decoder: as for `open_video`.
        on_bad_video: "error" raises where a video can't be read; "skip" gives a `BadVideo` in its place.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        videos: VideoList,
        *,
        frame_counts: Sequence[int],
        transform: Callable[..., Any],
        training: bool,
        sampling: Literal["segments", "dense"] = "segments",
        num_views: int = 1,
        window: int = 64,
        seed: int = 0,
        decoder: Decoder = "auto",
        on_bad_video: Literal["error", "skip"] = "error",
    ) -> None:
        if not frame_counts or min(frame_counts) < 1 or len(set(frame_counts)) < len(frame_counts):
            raise ValueError(f"frame_counts is {list(frame_counts)}; expected different counts of 1 or more.")
        if sampling not in ("segments", "dense"):
            raise ValueError(f"sampling is {sampling!r}; expected 'segments' or 'dense'.")
        if on_bad_video not in ("error", "skip"):
            raise ValueError(f"on_bad_video is {on_bad_video!r}; expected 'error' or 'skip'.")
        most_views = 1 if training else 2 if sampling == "segments" else window
        if not 1 <= num_views <= most_views:
            mode = "training" if training else f"evaluation with {sampling}"
            raise ValueError(f"num_views is {num_views}; expected 1 to {most_views} in {mode}.")
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1 frame.")
        if training and -1 in videos.labels:
            unknown = videos.labels.count(-1)
            raise ValueError(
                f"{unknown} of {len(videos)} videos have no label; training needs one for each. Pass another split."
            )
        self.videos = videos
        self.frame_counts = tuple(frame_counts)
        self.transform = transform
        self.training = training
        self.sampling = sampling
        self.num_views = num_views
        self.window = window
        self.seed = seed
        self.decoder = decoder
        self.on_bad_video = on_bad_video

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | tuple[int, int] | tuple[int, int, tuple[int, ...]]) -> Sample | BadVideo:
        """Decode one video and make its clips.

        Args:
            key: the video's index, `(index, epoch)` or `(index, epoch, frame_counts)`.

        Raises:
            IndexError: if there is no such video.
            VideoError: if it can't be read and `on_bad_video` is "error".
            OSError: if its file can't be opened and `on_bad_video` is "error".
        """
        index, epoch, *counts = key if isinstance(key, tuple) else (key, 0)
        record = self.videos[index]
        return self.sample(lambda: record.open(decoder=self.decoder), index % len(self), epoch, *counts)

    def sample(
        self,
        open_reader: Callable[[], VideoReader],
        index: int,
        epoch: int,
        frame_counts: Sequence[int] | None = None,
    ) -> Sample | BadVideo:
        """Make the clips of a video of the list from a reader that is opened by other means.

        Args:
            open_reader: opens it.
            index: of the video in the list.
            epoch: as in the key of an item.
            frame_counts: likewise.

        Raises:
            VideoError: as for an item.
            OSError: as for an item.
        """
        record = self.videos[index]
        try:
            with open_reader() as reader:
                decode = self._decode if self.training else self._crops
                frames, slots = decode(reader, record, index, epoch, frame_counts)
        except (VideoError, OSError) as error:
            if self.on_bad_video == "error":
                raise
            return BadVideo(index, record.name, str(error))
        label = -1 if record.label is None else record.label
        if not self.training:
            return Sample({t: select_views(frames, views) for t, views in slots.items()}, label, index)
        # CPU generator alone: torch.manual_seed would also reseed the GPU's, under a model in the same process.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed(index, epoch, "transform"))
            clip, label = self.transform(frames, label)  # (3, N, h, w)
        return Sample({t: clip[:, views[0]] for t, views in slots.items()}, label, index)

    def clips(self, reader: VideoReader) -> dict[int, Tensor]:
        """Make the evaluation clips `{T: (V, 3, T, h, w)}` of a video that is in no list.

        Raises:
            VideoError: if it can't be read.
        """
        record = VideoRecord(Path(reader.name), None, reader.name)
        crops, slots = self._crops(reader, record, 0, 0, None)
        return {t: select_views(crops, views) for t, views in slots.items()}

    def choose(self, num_available: int) -> dict[int, list[list[int]]]:
        """Which of a video's frames make its evaluation clips `{T: V views of T frame numbers}`."""
        return {t: self._pick(num_available, t, 0, 0) for t in self.frame_counts}

    def _crops(
        self,
        reader: VideoReader,
        record: VideoRecord,
        index: int,
        epoch: int,
        frame_counts: Sequence[int] | None,
    ) -> tuple[Tensor, dict[int, list[list[int]]]]:
        """Evaluation's crops `(num_crops, 3, N, h, w)` of all frames that any clip needs, and where each clip's are.

        Frames are made small as they are decoded: those of a long video of 4K don't fit into memory together.
        """
        transform = self.transform
        if not isinstance(transform, EvalTransform):
            frames, slots = self._decode(reader, record, index, epoch, frame_counts)
            return transform(frames), slots
        crops, slots = self._decode(
            reader, record, index, epoch, frame_counts, each=lambda few: transform.crops(few).transpose(0, 1)
        )  # (N, num_crops, 3, h, w)
        return transform.normalise(crops.transpose(0, 1)), slots

    def _decode(
        self,
        reader: VideoReader,
        record: VideoRecord,
        index: int,
        epoch: int,
        frame_counts: Sequence[int] | None,
        each: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[int, list[list[int]]]]:
        """Return all frames that any clip needs, each once, and where among them each clip's views are."""
        picked: dict[int, list[list[int]]] = {}
        place: dict[int, int] = {}

        def choose(num_frames: int) -> list[int]:
            # Called again where the count turns out wrong: nothing is kept of the first answer.
            first, end = stretch_of(record, reader, num_frames)
            picked.clear()
            for t in frame_counts or self.frame_counts:
                views = self._pick(end - first, t, index, epoch)
                picked[t] = [[first + i for i in view] for view in views]
            union = sorted({i for views in picked.values() for view in views for i in view})
            place.clear()
            place.update({i: slot for slot, i in enumerate(union)})
            return union

        frames = reader.sample(choose, each=each)  # (N, 3, H, W), or what `each` makes of them
        return frames, {t: [[place[i] for i in view] for view in views] for t, views in picked.items()}

    def _pick(self, num_available: int, num_frames: int, index: int, epoch: int) -> list[list[int]]:
        generator = None
        if self.training:
            # Of its own for each count: clips at one T don't depend on which others are asked for.
            generator = torch.Generator().manual_seed(self._seed(index, epoch, num_frames))
        if self.sampling == "dense":
            stride = max(1, self.window // num_frames)
            return [
                dense_indices(
                    num_available,
                    num_frames,
                    stride=stride,
                    generator=generator,
                    view=view,
                    num_views=self.num_views,
                )
                for view in range(self.num_views)
            ]
        if self.training:
            return [train_indices(num_available, num_frames, generator)]
        return [eval_indices(num_available, num_frames, view=view) for view in range(self.num_views)]

    def _seed(self, index: int, epoch: int, purpose: object) -> int:
        # A hash, because generators with neighbouring seeds start alike; Python's own differs between processes.
        text = f"{self.seed} {epoch} {index} {purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def select_views(crops: Tensor, views: Sequence[Sequence[int]]) -> Tensor:
    """Clips `(V, 3, T, h, w)` of the crops `(num_crops, 3, N, h, w)` of N frames; a view is T numbers below N."""
    stacked = torch.stack([crops[:, :, list(view)] for view in views])  # (num_views, num_crops, 3, T, h, w)
    return stacked.flatten(0, 1)  # (V, 3, T, h, w)


def stretch_of(record: VideoRecord, reader: VideoReader, num_frames: int) -> tuple[int, int]:
    """Return the first frame of the record's stretch and the one after its last, of a video of `num_frames`.

    Raises:
        VideoError: if the stretch starts after the video's end.
    """
    if record.start_seconds is None and record.end_seconds is None:
        return 0, num_frames
    timestamps = reader.timestamps[:num_frames]
    start = record.start_seconds or 0.0
    if start >= timestamps[-1] + 1 / reader.fps:
        raise VideoError(
            f"video {reader.name}: has {timestamps[-1] + 1 / reader.fps:.3f} s, but the list's stretch starts at "
            f"{start:.3f} s. Correct start_seconds in the list."
        )
    first = bisect_left(timestamps, start)
    end = num_frames if record.end_seconds is None else bisect_left(timestamps, record.end_seconds)
    if first < end:
        return first, end
    shown = max(0, bisect_right(timestamps, start) - 1)  # shorter than a frame: the one shown at its start
    return shown, shown + 1


@dataclass(slots=True)
class Batch:
    """Clips of B videos.

    Attributes:
        clips: for each T float `(B, 3, T, H, W)` in training, `(B, V, 3, T, H, W)` in evaluation; empty when B = 0.
        labels: class indices, int64 `(B,)`, -1 when unknown.
        indices: the videos' indices in their list, int64 `(B,)`.
        bad: videos that could not be read. They are not among the B.
    """

    clips: dict[int, Tensor]
    labels: Tensor
    indices: Tensor
    bad: list[BadVideo] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Batch":
        """Copy to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; a DataLoader with `pin_memory=True` calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, apply: Callable[[Tensor], Tensor]) -> "Batch":
        clips = {t: apply(clip) for t, clip in self.clips.items()}
        return Batch(clips, apply(self.labels), apply(self.indices), self.bad)


def collate(samples: Sequence[Sample | BadVideo]) -> Batch:
    """Make a batch of samples; videos that could not be read stay listed in `Batch.bad`.

    Raises:
        ValueError: if samples have different frame counts, or clips of different shapes.
    """
    good = [sample for sample in samples if isinstance(sample, Sample)]
    counts = list(good[0].clips) if good else []
    clips = {}
    for sample in good:
        if list(sample.clips) != counts:
            raise ValueError(
                f"samples have clips of {counts} and of {list(sample.clips)} frames; expected the same counts. "
                "Make a batch from one ClipDataset."
            )
    for t in counts:
        shapes = {tuple(sample.clips[t].shape) for sample in good}
        if len(shapes) > 1:
            raise ValueError(
                f"clips of {t} frames have shapes {', '.join(map(str, sorted(shapes)))}; expected one shape. "
                "Use a transform that gives every video the same size."
            )
        clips[t] = torch.stack([sample.clips[t] for sample in good])
    return Batch(
        clips,
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        torch.tensor([sample.index for sample in good], dtype=torch.int64),
        [sample for sample in samples if isinstance(sample, BadVideo)],
    )
