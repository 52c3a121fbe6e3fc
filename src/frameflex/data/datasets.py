"""Which videos: a data set in any of the layouts in `layouts/`, read into a `VideoList`."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from frameflex.data.finding import Search, find_video_files, missing_files
from frameflex.data.layouts import read_layout
from frameflex.data.layouts.layout import Entry, Found, NoSuchSplit, canonical_split, one_form
from frameflex.data.outline import Outline, outlined
from frameflex.data.quarantine import in_quarantine, read_quarantine
from frameflex.data.records import BadVideo, VideoList, VideoRecord
from frameflex.data.shards.index import is_shards
from frameflex.storage import Place, address_of, is_stored, place_of

__all__ = ["NoSuchSplit", "Survey", "load_split", "load_to_measure", "load_videos", "survey"]

logger = logging.getLogger(__name__)


def load_videos(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    video_dir: str | os.PathLike[str] | None = None,
    on_missing: Literal["error", "skip"] = "error",
    quarantine: str | os.PathLike[str] | None = None,
    group: str | None = None,
) -> VideoList:
    """Find the videos of a data set and their classes.

    The layout is recognised from what is there:

    - **Folder per class:** `source/CLASS/video.mp4`, or `source/train/CLASS/...` and `source/val/CLASS/...`.
      Classes are the folders' names, sorted. A folder of images inside a class's folder is one video, too. Folders
      with videos inside a class's folder, `source/CLASS/GROUP/video.mp4`, are groups: `VideoRecord.group`.
    - **List:** a file of lines `path label` or `path label start_seconds end_seconds`, separated by commas, tabs,
      semicolons or spaces. With a header line the columns may be in any order and others may be among them (a
      column `split` is used, and `group`, `subject`, `person` or `scene`: `VideoRecord.group`). Labels are names or
      numbers. Paths are relative to `video_dir`, or to the list's folder. A folder that holds `train.csv` and
      `val.csv` is read by its `split`.
    - **Kinetics:** a list whose header names `youtube_id`, `time_start` and `time_end`; the files are
      `ID_START_END.mp4` anywhere under `video_dir`, or under the list's folder.
    - **Something-Something V2:** a folder with `labels.json`, `train.json`, `validation.json` and `test.json` (in
      it or in its `labels/`; names such as `something-something-v2-train.json` too) and the videos in
      `20bn-something-something-v2/`, `videos/` or `video_dir`.
    - **Something-Something V1:** a folder with `something-something-v1-labels.csv`, `...-train.csv` and so on, and a
      folder of JPEGs for each video in `20bn-something-something-v1/` or `video_dir`.
    - **Jester:** as Something-Something V1, with `jester-v1-...csv` and `20bn-jester-v1/`.
    - **UCF101:** `ucfTrainTestlist/` with `classInd.txt`, `trainlist01.txt` and `testlist01.txt`, and `UCF-101/`. The
      second and third division by the path of one of their lists.
    - **HMDB51:** `testTrainMulti_7030_splits/` with `CLASS_test_split1.txt`, and `hmdb51_org/`. The second and third
      division by the path of one of their files.
    - **Shards:** a folder that `frameflex data prepare` made, here or at `https://...`, `s3://...` and wherever else
      fsspec reads from.

    In object storage (`s3://...`) each of these is read where its videos are files.

    Where train and validation videos are given by two separate lists, pass the classes of the first for the
    second: the second alone may lack a class, and its indices would differ.

    Args:
        source: the data set's folder or a list, here or in object storage, or the address of a folder of shards.
        split: "train", "validation" (or "val") or "test", where the data set has several.
        classes: class names in the order of a model's outputs; labels are mapped to them by name. Numbers in
            a list are taken as indices of them.
        video_dir: where the videos are, if not where the layout has them.
        on_missing: "skip" leaves out videos whose files are not there and names them in `VideoList.missing`.
        quarantine: a list of videos to leave out, as `read_quarantine` reads it; they are in `VideoList.left_out`.
        group: the column of a list that names each video's group, where it has none of the usual names.

    Raises:
        FileNotFoundError: if `source` is not there, or files of listed videos are not (all counted, ten named).
        ValueError: if the layout is not recognised, a line or an entry is wrong, or a class is not in `classes`.
        StorageError: if object storage can't be read or listed.
    """
    if on_missing not in ("error", "skip"):
        raise ValueError(f"on_missing is {on_missing!r}; expected 'error' or 'skip'.")
    place = _checked_place(source, video_dir)
    with outlined(place, video_dir) as outline:
        found = outline.of_storage(
            read_layout(outline.place, canonical_split(split), outline.video_dir, group=group)
        )
    found.entries, left_out = _leave_out(found.entries, quarantine)
    names, to_index = _number_classes(found, classes)
    missing = _missing(found)
    absent = [entry for entry in found.entries if entry.path in missing]
    if absent and on_missing == "error":
        listed = "\n".join(f"  {entry.path}" for entry in absent[:10])
        more = f"\n  ... and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise FileNotFoundError(
            f"{place}: {len(absent)} of {len(found.entries)} videos are not there:\n{listed}{more}\n"
            "Expected every listed video. Check video_dir, download them, or leave them out, counted, with "
            "on_missing='skip'."
        )
    if absent:
        logger.warning("%s: %d of %d videos are not there", place, len(absent), len(found.entries))
    present = [entry for entry in found.entries if entry.path not in missing] if absent else found.entries
    if not present:
        raise ValueError(f"{place}: no video is left ({found.layout}). Check the split and the folder.")
    if found.left_out:
        logger.warning("%s: was made without %d bad videos", place, len(found.left_out))
    videos = VideoList(
        (_record(found, entry, to_index(entry)) for entry in present),
        names,
        layout=found.layout,
        missing=[entry.name for entry in absent],
        splits=found.splits,
        left_out=[*left_out, *found.left_out],
        notes=found.notes,
    )
    logger.info("%s: %d videos of %d classes (%s)", place, len(videos), len(names), found.layout)
    return videos


def load_split(
    source: str | os.PathLike[str],
    split: str,
    *,
    classes: Sequence[str] | None = None,
    video_dir: str | os.PathLike[str] | None = None,
    quarantine: str | os.PathLike[str] | None = None,
    group: str | None = None,
) -> VideoList:
    """Find one split of a data set, or all of its videos where it is not divided into splits.

    Arguments and errors as in `load_videos`; `splits` of the result tells which of the two it was.
    """
    options: dict[str, Any] = {
        "classes": classes,
        "video_dir": video_dir,
        "quarantine": quarantine,
        "group": group,
    }
    try:
        return load_videos(source, split=split, **options)
    except NoSuchSplit as error:
        if error.available:
            raise
    return load_videos(source, **options)


def load_to_measure(source: str | os.PathLike[str], **options: Any) -> VideoList:
    """Find the videos to measure on where no split was named: validation, or where there is none, test.

    Arguments and errors as in `load_split`.
    """
    try:
        return load_split(source, "validation", **options)
    except NoSuchSplit as error:
        if "test" not in error.available:
            raise
        logger.warning("%s has no validation split: its test split is measured", source)
        return load_split(source, "test", **options)


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
    unlisted: list[Place] = field(default_factory=list)
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
    place = _checked_place(source, video_dir)
    with outlined(place, video_dir) as outline:
        parts = {
            name: outline.of_storage(part)
            for name, part in _read_all_splits(outline.place, split, outline.video_dir).items()
        }
        unlisted = _unlisted(outline, split, parts)
    numbers = _number_classes(next(iter(parts.values())), classes)[0]
    found = Survey(VideoList([], numbers), [])
    records: list[VideoRecord] = []
    left_out: list[BadVideo] = []
    for name, part in parts.items():
        entries, quarantined = _leave_out(part.entries, quarantine)
        left_out += [*quarantined, *part.left_out]
        found.left_out += [(name, bad.name, bad.reason) for bad in (*quarantined, *part.left_out)]
        to_index = _number_classes(part, classes)[1]
        missing = _missing(part)
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
            records.append(_record(part, entry, label))
            found.splits.append(name)
    layout = next(iter(parts.values())).layout.split(",")[0]
    found.unlisted = unlisted
    found.videos = VideoList(
        records, numbers, layout=layout, left_out=left_out, notes=next(iter(parts.values())).notes
    )
    return found


def _unlisted(outline: Outline, split: str | None, parts: Mapping[str, Found]) -> list[Place]:
    """Video files in a data set's folder that its lists don't name."""
    layout = next(iter(parts.values())).layout.split(",")[0]
    if (
        not os.path.isdir(outline.place)
        or split is not None
        or layout in ("folder", "folder per class", "shards")
    ):
        return []
    listed = {_whole(entry.path) for part in parts.values() for entry in part.entries}
    there = (outline.said(str(path)) for path in Search(Path(outline.place)).video_files())
    return [place_of(path) for path in sorted(there) if _whole(path) not in listed]


def _whole(path: str) -> str:
    return path if is_stored(path) else os.path.abspath(path)


def _read_all_splits(place: str, split: str | None, video_dir: Path | None) -> dict[str, Found]:
    """What a survey is of: the splits by their names, or all by an empty one."""
    try:
        return {canonical_split(split) or "": read_layout(place, canonical_split(split), video_dir)}
    except NoSuchSplit as error:
        if split is not None or not error.available:
            raise
        return {name: read_layout(place, name, video_dir) for name in error.available}
    except ValueError:
        if not os.path.isdir(place) or split is not None or video_dir is not None:
            raise
        try:
            files = find_video_files([place])
        except FileNotFoundError:
            files = []
        if not files:
            raise
        return {"": Found("folder", [Entry(str(path), None, path.name, str(path)) for path in files], [])}


def _checked_place(source: str | os.PathLike[str], video_dir: str | os.PathLike[str] | None) -> str:
    """The place of a data set, if that and its videos' are there; addresses are asked when they are read."""
    place = os.fspath(source)
    if not is_stored(place) and not is_shards(place) and not os.path.exists(place):
        raise FileNotFoundError(f"{place}: there is no such file or folder. Check the path of the data set.")
    if video_dir is not None and not is_stored(video_dir) and not os.path.isdir(video_dir):
        raise FileNotFoundError(f"video_dir {video_dir}: there is no such folder. Check the path.")
    return address_of(place)


def _record(found: Found, entry: Entry, label: int | None) -> VideoRecord:
    path = found.members.get(entry.path) or place_of(entry.path)
    return VideoRecord(path, label, entry.name, entry.start_seconds, entry.end_seconds, entry.group)


def _missing(found: Found) -> set[str]:
    """The entries' paths at which there is no file; what lies elsewhere is in `members`."""
    rest = [entry.path for entry in found.entries if entry.path not in found.members]
    stored = {path for path in rest if is_stored(path)}
    return stored | missing_files(path for path in rest if path not in stored)


def _leave_out(
    entries: list[Entry], quarantine: str | os.PathLike[str] | None
) -> tuple[list[Entry], list[BadVideo]]:
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


def _number_classes(
    found: Found, classes: Sequence[str] | None
) -> tuple[Sequence[str], Callable[[Entry], int | None]]:
    names = found.classes if classes is None else list(classes)
    index_of = {one_form(name): index for index, name in enumerate(names)}
    defined = set(found.classes)
    by_index = found.numbered and (classes is None or _are_indices(found, index_of))

    def to_index(entry: Entry) -> int | None:
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
        alike = [name for name in names if one_form(name).casefold() == (entry.label or "").casefold()]
        advice = f"Only capitals differ from {alike[0]!r}: rename one" if alike else "Correct the label"
        raise ValueError(
            f"{entry.where}: class {entry.label!r} is not among the {len(names)} that are expected ({known}). "
            f"{advice}, or use a model of these classes."
        )

    return names, to_index


def _are_indices(found: Found, names: Collection[str]) -> bool:
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
