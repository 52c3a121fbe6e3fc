"""UCF101: class folders and the official split files, of which there are three pairs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from frameflex.data.layouts.layout import (
    Entry,
    Found,
    NoSuchSplit,
    folder_of_videos,
    inside,
    pick_split,
    read_lines,
)

_LIST = re.compile(r"(train|test)list0([1-3])\.txt")


class UCF101:
    """``trainlist01.txt`` and ``testlist01.txt`` beside ``classInd.txt``; other pairs by the path of a file."""

    looks_for = (
        "UCF101: ucfTrainTestlist/classInd.txt, trainlist01.txt and testlist01.txt, UCF-101/CLASS/v_*.avi"
    )

    def matches(self, source: str) -> bool:
        """Whether it is one of the lists, or a folder with them, in it or in its ucfTrainTestlist/."""
        path = Path(source)
        if path.is_file():
            return _LIST.fullmatch(path.name) is not None and (path.parent / "classInd.txt").is_file()
        return _lists_of(path) is not None

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read a split: the first pair's of a folder, that of the pair of a file."""
        path = Path(source)
        named = _LIST.fullmatch(path.name) if path.is_file() else None
        if named:
            if split not in (None, named[1]):
                raise NoSuchSplit(
                    f"{path}: split is {split!r}, but the file lists {named[1]}. Leave split out."
                )
            return self._read_list(path, video_dir)
        folder = _lists_of(path)
        assert folder is not None
        available = {name: folder / f"{name}list01.txt" for name in ("train", "test")}
        available = {name: file for name, file in available.items() if file.is_file()}
        found = self._read_list(available[pick_split(path, available, split)], video_dir)
        found.splits = list(available)
        return found

    def _read_list(self, path: Path, video_dir: Path | None) -> Found:
        folder = path.parent
        classes = _classes(folder / "classInd.txt")
        names = ("UCF-101", "UCF101", "videos")
        videos = folder_of_videos((folder, folder.parent), names, video_dir)
        entries = []
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            listed = re.fullmatch(r"(([^/]+)/.+\.\w+)(?: \d+)?", line)
            if listed is None:
                raise ValueError(
                    f"{where}: is {line[:80]!r}; expected CLASS/video.avi. Half a line is of a half-written file: "
                    "download it again."
                )
            name = Path(listed[1]).with_suffix("").as_posix()
            person = re.search(r"_(g\d+)_c\d+$", name)  # of 25 in each class, each cut into a few clips
            group = f"{listed[2]}/{person[1]}" if person else ""
            entries.append(Entry(inside(videos, listed[1], where), listed[2], name, where, group=group))
        layout = f"UCF101, {path.stem}"
        return Found(layout, entries, classes, classes_from="classInd.txt")


def _lists_of(root: Path) -> Path | None:
    for folder in (root, root / "ucfTrainTestlist"):
        if (folder / "classInd.txt").is_file() and any(map(_LIST.fullmatch, os.listdir(folder))):
            return folder
    return None


def _classes(path: Path) -> list[str]:
    """Class names by the numbers of classInd.txt, which begin at 1."""
    numbered: dict[int, str] = {}
    for number, line in read_lines(path):
        listed = re.fullmatch(r"(\d+)\s+(\S.*)", line)
        if listed is None:
            raise ValueError(f"{path}, line {number}: is {line[:80]!r}; expected NUMBER CLASS.")
        numbered[int(listed[1])] = listed[2]
    if sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise ValueError(f"{path}: expected classes with the numbers 1 to K, each once. Download it again.")
    return [numbered[index] for index in sorted(numbered)]
