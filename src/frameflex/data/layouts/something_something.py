"""Something-Something V2 and V1, and Jester, as 20BN and Qualcomm distribute them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from frameflex.data.finding import VIDEO_SUFFIXES
from frameflex.data.layouts.layout import (
    Entry,
    Found,
    folder_of_videos,
    labels_file,
    pick_split,
    read_json,
    read_lines,
    split_files,
)


class SomethingSomethingV2:
    """JSON annotations, and a video file for each identity."""

    looks_for = "Something-Something V2: labels.json, train.json, …, 20bn-something-something-v2/ID.webm"

    def matches(self, source: str) -> bool:
        """Whether it is a JSON file, or a folder with labels.json and that of a split, in it or in its labels/."""
        path = Path(source)
        if path.is_file():
            return path.suffix.lower() == ".json"
        return _annotations(path, ".json") is not None

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read the entries of a split: identity and template (the label, without its brackets)."""
        path = Path(source)
        if path.is_file():
            return _read_v2(path.parent, _split_of(path, split), video_dir)
        folder = _annotations(path, ".json")
        assert folder is not None
        return _read_v2(folder, split, video_dir)


class FramesOf20BN:
    """Lines ``ID;LABEL``, and a folder of JPEGs for each identity: Something-Something V1 and Jester.

    Args:
        name: of the data set.
        prefix: of the annotations' files, where they have one.
        folder: where the videos are, beside the annotations.
    """

    def __init__(self, name: str, prefix: str, folder: str) -> None:
        self.name, self.prefix, self.folder = name, prefix, folder
        self.looks_for = f"{name}: {prefix}-labels.csv, {prefix}-train.csv, {folder}/ID/00001.jpg"

    def matches(self, source: str) -> bool:
        """Whether it is a folder with a labels.csv and lines with a semicolon in that of a split."""
        folder = _annotations(Path(source), ".csv")
        if folder is None or not any(
            ";" in line for file in split_files(folder, ".csv").values() for line in _head(file)
        ):
            return False
        labels_path = labels_file(folder, ".csv")
        jester = (labels_path is not None and "jester" in labels_path.name.lower()) or any(
            "jester" in path.name.lower() for home in _homes(folder) for path in home.iterdir()
        )
        return jester == ("jester" in self.prefix)

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read the lines of a split; those of the test split have no label."""
        folder = _annotations(Path(source), ".csv")
        assert folder is not None
        labels_path = labels_file(folder, ".csv")
        assert labels_path is not None
        lists = split_files(folder, ".csv")
        picked = pick_split(folder, lists, split)
        videos = folder_of_videos(_homes(folder), (self.folder, "videos"), video_dir)
        entries = []
        for number, line in read_lines(lists[picked]):
            where = f"{lists[picked]}, line {number}"
            identity, _, text = (part.strip() for part in line.partition(";"))
            if not re.fullmatch(r"[\w-]+", identity):
                raise ValueError(f"{where}: is {line[:80]!r}; expected id;label.")
            entries.append(Entry(os.path.join(videos, identity), text or None, identity, where))
        return Found(
            f"{self.name}, {picked}",
            entries,
            [line for _, line in read_lines(labels_path)],
            splits=list(lists),
            classes_from=labels_path.name,
        )


def _annotations(root: Path, suffix: str) -> Path | None:
    """The folder of a data set with the labels' file and one of a split: itself, or its ``labels/``."""
    for folder in (root, root / "labels"):
        if labels_file(folder, suffix) and split_files(folder, suffix):
            return folder
    return None


def _homes(folder: Path) -> Sequence[Path]:
    """Where the videos of these annotations may be."""
    return (folder, folder.parent) if folder.name == "labels" else (folder,)


def _split_of(path: Path, split: str | None) -> str:
    named = next((name for name, file in split_files(path.parent, ".json").items() if file == path), None)
    if named is None or labels_file(path.parent, ".json") is None:
        raise ValueError(f"{path}: expected train.json, validation.json or test.json beside labels.json.")
    if split not in (None, named):
        raise ValueError(f"{path}: split is {split!r}, but the file lists {named}. Leave split out.")
    return named


def _read_v2(folder: Path, split: str | None, video_dir: Path | None) -> Found:
    labels_path = labels_file(folder, ".json")
    assert labels_path is not None
    classes = _something_classes(labels_path)
    annotations = split_files(folder, ".json")
    path = annotations[pick_split(folder, annotations, split)]
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a list of entries with an id.")
    videos = folder_of_videos(_homes(folder), ("20bn-something-something-v2", "videos"), video_dir)
    with os.scandir(videos) as scan:
        files = {
            stem: entry.name
            for entry in sorted(scan, key=lambda entry: entry.name)
            for stem, suffix in (os.path.splitext(entry.name),)
            if suffix.lower() in VIDEO_SUFFIXES
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
        entries.append(Entry(os.path.join(videos, file), label, identity, where))
    return Found(
        f"Something-Something V2, {split}",
        entries,
        classes,
        splits=list(annotations),
        classes_from=labels_path.name,
    )


def _something_classes(path: Path) -> list[str]:
    content = read_json(path)
    indices = []
    if isinstance(content, Mapping):
        indices = [int(value) for value in content.values() if re.fullmatch(r"\d{1,6}", str(value))]
    if not content or not isinstance(content, Mapping) or sorted(indices) != list(range(len(content))):
        raise ValueError(
            f"{path}: expected an object of class names and the indices 0 to K - 1, each once. Download it again."
        )
    return sorted(content, key=lambda name: int(content[name]))


def _head(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [line for _, line in zip(range(3), file, strict=False)]


SOMETHING_SOMETHING_V1 = FramesOf20BN(
    "Something-Something V1", "something-something-v1", "20bn-something-something-v1"
)
