"""A folder for each class: what people have who made their own data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from frameflex.data.finding import Search
from frameflex.data.layouts.layout import (
    Entry,
    Found,
    check_capitals,
    looks_like_a_split,
    one_form,
    pick_split,
    split_of_folder,
)


class Folders:
    """``SOURCE/CLASS/video.mp4`` or ``SOURCE/CLASS/GROUP/video.mp4``, or the same in a folder for each split."""

    looks_for = "a folder for each class: CLASS/video.mp4, or train/CLASS/video.mp4 and val/CLASS/video.mp4"

    def matches(self, source: str) -> bool:
        """Whether a folder holds folders with videos, other than the one of a data set without its annotations."""
        root = Path(source)
        if not root.is_dir():
            return False
        search = Search(root)
        names = [folder.name for folder in search.subfolders(root) if search.has_videos(folder)]
        return bool(names) and not (
            len(names) == 1 and (names[0] == "videos" or names[0].startswith("20bn-something-something"))
        )

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read a split, or all where there are none; the classes are the folders' names, over all splits."""
        root = Path(source)
        if video_dir is not None:
            raise ValueError(
                f"{root}: recognised no list in it, so that video_dir has no meaning. Pass the list itself."
            )
        search = Search(root)
        splits = _split_folders(search)
        found = {part: _class_folders(search, folder) for part, folder in (splits or {"": root}).items()}
        part = pick_split(root, dict.fromkeys(splits), split) if splits or split else ""
        if not splits:
            _question_splits(root, [folder.name for folder in found[""]])
        names_of = {part: [folder.name for folder in folders] for part, folders in found.items()}
        alike = check_capitals(root, names_of)
        home = splits.get(part, root)
        groups, lone = _groups(found[part])
        entries = [
            Entry(
                str(path),
                folder.name,
                path.relative_to(home).as_posix(),
                str(path),
                group=groups.get(path, ""),
            )
            for folder, paths in found[part].items()
            for path in paths
        ]
        # Over all splits: a class that one split lacks must not move the indices of the others.
        names = sorted(
            {one_form(folder.name) for folders in found.values() for folder in folders if folders[folder]}
        )
        notes = [
            f"{folder}: holds no video; it is no class"
            for folders in found.values()
            for folder, paths in folders.items()
            if not paths and one_form(folder.name) not in names
        ]
        if splits:
            others = [folder.name for folder in search.subfolders(root) if folder not in splits.values()]
            if others:
                notes.append(
                    f"{root}: beside {', '.join(f.name for f in splits.values())}, left out: {', '.join(others)}"
                )
        else:
            notes += _question_depth(root, found[""]) + lone
        notes += alike + search.circles + _loose(search, splits.values() or [root])
        layout = "folder per class" + (f", {part}" if part else "")
        return Found(layout, entries, names, splits=list(splits), notes=notes)


def _split_folders(search: Search) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for folder in search.subfolders(search.root):
        split = split_of_folder(folder.name)
        if split is None or not any(map(search.has_videos, search.subfolders(folder))):
            continue
        if split in splits:
            raise ValueError(
                f"{search.root}: both {splits[split].name}/ and {folder.name}/ hold {split} videos; expected one. "
                "Rename the other, or move it out of the folder."
            )
        splits[split] = folder
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}


def _class_folders(search: Search, root: Path) -> dict[Path, list[Path]]:
    return {folder: list(search.videos(folder)) for folder in search.subfolders(root)}


def _groups(found: dict[Path, list[Path]]) -> tuple[dict[Path, str], list[str]]:
    """Whose video each is, by the folder inside its class's, and what to note about it.

    Folders of which one alone holds all of a class can't be meant so: that class could not be divided.
    """
    groups = {
        path: inside.parts[0]
        for folder, paths in found.items()
        for path in paths
        if len((inside := path.relative_to(folder)).parts) > 1
    }
    lone = [
        folder
        for folder, paths in found.items()
        if len(paths) > 1 and len({groups.get(path, path) for path in paths}) == 1
    ]
    if not lone:
        return groups, []
    name = groups[found[lone[0]][0]]
    return {}, [
        f"{lone[0]}: all its videos are in one folder, {name}; folders inside the classes' are not taken as groups "
        "to hold out together"
    ]


def _question_splits(root: Path, names: Sequence[str]) -> None:
    if names and all(map(looks_like_a_split, names)):
        raise ValueError(
            f"{root}: its folders are called {', '.join(names)}, as splits are and not classes; expected train/, "
            "val/ and test/ with a folder for each class. Rename them, or pass the one to read."
        )


def _question_depth(root: Path, found: dict[Path, list[Path]]) -> list[str]:
    """Ask whether the classes are one folder further down: where all videos are, under names that repeat."""
    below: list[set[str]] = []
    for folder, paths in found.items():
        if any(path.parent == folder for path in paths):
            return []
        if paths:
            below.append({path.relative_to(folder).parts[0] for path in paths})
    common = set.intersection(*below) if below else set()
    if len(below) < 2 or len(common) < 2:
        return []
    names = ", ".join(sorted(common)[:4])
    return [
        f"{root}: the classes are {', '.join(folder.name for folder in list(found)[:4])}, …; in each of them are "
        f"folders {names}, groups to hold out together. If those are the classes, make folders {root.name}/CLASS/…"
    ]


def _loose(search: Search, homes: Iterable[Path]) -> list[str]:
    """Videos that lie beside the class folders, where nothing says their class."""
    notes = []
    for home in homes:
        names = search.files(home)
        if names:
            more = ", …" if len(names) > 3 else ""
            notes.append(
                f"{home}: left out: {len(names)} beside the class folders ({', '.join(names[:3])}{more})"
            )
    return notes
