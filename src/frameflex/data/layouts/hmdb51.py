"""HMDB51: class folders, and for each class and each of three divisions a file of the official splits."""

from __future__ import annotations

import os
import re
from pathlib import Path

from frameflex.data.layouts.layout import Entry, Found, NoSuchSplit, folder_of_videos, inside, read_lines

_FILE = re.compile(r"(.+)_test_split([1-3])\.txt")
_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits", "splits")
_SPLITS = {"1": "train", "2": "test", "0": None}  # a file's numbers; 0 is in neither


class HMDB51:
    """``CLASS_test_split1.txt`` of lines ``video.avi 1``; the other divisions by the path of one of their files."""

    looks_for = "HMDB51: testTrainMulti_7030_splits/CLASS_test_split1.txt, hmdb51_org/CLASS/video.avi"

    def matches(self, source: str) -> bool:
        """Whether it is one of the files, or a folder with them, in it or in one of the usual names."""
        path = Path(source)
        if path.is_file():
            return _FILE.fullmatch(path.name) is not None
        return _splits_of(path) is not None

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read a split: the first division's of a folder, that of a file's division."""
        path = Path(source)
        named = _FILE.fullmatch(path.name) if path.is_file() else None
        folder, division = (path.parent, named[2]) if named else (_splits_of(path), "1")
        assert folder is not None
        files = {
            found[1]: folder / name
            for name in sorted(os.listdir(folder))
            for found in (_FILE.fullmatch(name),)
            if found and found[2] == division
        }
        if split not in ("train", "test"):
            raise NoSuchSplit(
                f"{path}: split is {split!r}; expected one of those that are there: train, test.",
                ("train", "test"),
            )
        videos = folder_of_videos((folder, folder.parent), ("hmdb51_org", "hmdb51", "videos"), video_dir)
        entries = []
        for label, file in files.items():
            for number, line in read_lines(file):
                where = f"{file}, line {number}"
                listed = re.fullmatch(r"(.+\.\w+)\s+([012])", line)
                if listed is None:
                    raise ValueError(
                        f"{where}: is {line[:80]!r}; expected video.avi and 0, 1 (train) or 2 (test). Half a line is "
                        "of a half-written file: unpack the splits again."
                    )
                if _SPLITS[listed[2]] == split:
                    name = f"{label}/{listed[1]}"
                    film, of_class, _ = listed[1].partition(f"_{label}_")  # FILM_CLASS_…_0.avi, …_1.avi
                    group = film if of_class else ""
                    entries.append(Entry(inside(videos, name, where), label, name, where, group=group))
        layout = f"HMDB51, split {division}, {split}"
        return Found(layout, entries, sorted(files), splits=["train", "test"])


def _splits_of(root: Path) -> Path | None:
    for folder in (root, *(root / name for name in _FOLDERS)):
        if folder.is_dir() and any(
            found and found[2] == "1" for found in map(_FILE.fullmatch, os.listdir(folder))
        ):
            return folder
    return None
