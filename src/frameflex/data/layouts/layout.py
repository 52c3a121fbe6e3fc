"""What a layout is, and what layouts share: splits, and the videos as a data set names them."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from frameflex.data.records import BadVideo
from frameflex.data.shards.members import ShardMember
from frameflex.storage import StoredFile, is_stored


class Layout(Protocol):
    """How a data set's videos and labels lie on disk.

    Attributes:
        looks_for: one line: what it is recognised by. The error about an unreadable folder shows it.
    """

    looks_for: str

    def matches(self, source: str) -> bool:
        """Whether the folder, file or address holds this layout; looks at names and first lines only."""

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read what matched.

        Args:
            source: the folder, file or address.
            split: "train", "validation", "test", or None where the caller named none.
            video_dir: where the videos are, if not where the layout has them.

        Raises:
            NoSuchSplit: if there is no such split, or several and none was named.
            ValueError: naming the file and line that is wrong.
        """


class Entry(NamedTuple):
    """A video as a data set names it."""

    path: str
    label: str | None  # a class's name, or with numbered labels its number
    name: str
    where: str  # for messages: the file and line
    start_seconds: float | None = None
    end_seconds: float | None = None
    group: str = ""  # whose videos must not stand on both sides of a division


@dataclass
class Found:
    """What a layout holds: the videos of one split, and the classes of all."""

    layout: str
    entries: list[Entry]
    classes: list[str]
    numbered: bool = False  # labels are numbers without names
    labels: frozenset[str] = frozenset()  # all that occur, where they are numbered, in any split
    splits: Sequence[str] = ()
    classes_from: str = ""  # the file that lists the classes, where there is one of its own
    # By an entry's path: where it is, if that is no local file.
    members: Mapping[str, ShardMember | StoredFile] = field(default_factory=dict)
    left_out: Sequence[BadVideo] = ()  # before, when the data set was made
    notes: Sequence[str] = ()  # what is odd about it, a line each

    def __post_init__(self) -> None:
        # One name has several forms in Unicode: a Mac's "é" is two characters, and a class of its own without this.
        labels = {entry.label for entry in self.entries if entry.label is not None}
        if any(one_form(name) != name for name in {*self.classes, *labels}):
            self.classes = list(dict.fromkeys(map(one_form, self.classes)))
            self.entries = [
                entry if entry.label is None else entry._replace(label=one_form(entry.label))
                for entry in self.entries
            ]


def one_form(name: str) -> str:
    """A name in Unicode's composed form (NFC), without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def check_capitals(where: Path, classes: Mapping[str, Collection[str]]) -> list[str]:
    """Refuse a class that is called "Left" in one split and "left" in another: it would never be right.

    Args:
        where: the data set.
        classes: names in each split. Where one split has both, they are two classes.

    Returns:
        A line for each such two classes.

    Raises:
        ValueError: naming both.
    """
    spellings: dict[str, dict[str, str]] = {}
    for split, names in classes.items():
        for name in sorted(names):  # of a set too, whose order changes from process to process
            spellings.setdefault(one_form(name).casefold(), {}).setdefault(one_form(name), split)
    notes = []
    for forms in spellings.values():
        together = any(len(set(forms) & set(map(one_form, names))) > 1 for names in classes.values())
        if len(forms) > 1 and not together:
            first, second = list(forms.items())[:2]
            raise ValueError(
                f"{where}: class {first[0]!r} of {first[1]} and {second[0]!r} of {second[1]} differ in capitals "
                "alone; expected one spelling. Rename one of them."
            )
        if len(forms) > 1:
            notes.append(f"{where}: classes {' and '.join(map(repr, forms))} differ in capitals alone")
    return notes


# Splits

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate", "dev"),
    "test": ("test", "testing"),
}
_CANONICAL = {spelling: split for split, spellings in SPLITS.items() for spelling in spellings}
_NAMES_A_SPLIT = re.compile(
    rf"(?:(.*)[-_. ])?({'|'.join(_CANONICAL)})(?:[-_. ]?(?:set|data|list|videos|clips|split))*", re.IGNORECASE
)


class NoSuchSplit(ValueError):
    """A data set lacks the split that was asked for; ``available`` lists those that it has."""

    def __init__(self, message: str, available: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.available = tuple(available)


def canonical_split(split: str | None) -> str | None:
    """One name for each split: "val" is "validation".

    Raises:
        ValueError: if it is none.
    """
    if split is None or split.lower() in _CANONICAL:
        return None if split is None else _CANONICAL[split.lower()]
    raise ValueError(f"split is {split!r}; expected train, validation (or val) or test.")


def row_split(text: str, where: str) -> str:
    """The split that a line of a list names; errors say where."""
    try:
        return canonical_split(text) or ""
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def split_of_folder(name: str) -> str | None:
    """The split that a folder's name stands for: ``train``, ``Testing``, ``val_set``, ``train-data``; else None."""
    named = _NAMES_A_SPLIT.fullmatch(name)
    return _CANONICAL[named[2].lower()] if named and not named[1] else None


def split_of_file(stem: str) -> str | None:
    """The split that a file's name ends in: ``train``, ``something-v1-validation``, ``my_train_list``; else None."""
    named = _NAMES_A_SPLIT.fullmatch(stem)
    return _CANONICAL[named[2].lower()] if named else None


def looks_like_a_split(name: str) -> bool:
    """Whether a word of a name is that of a split: ``train_2``, ``old test``."""
    return any(word in _CANONICAL for word in re.split(r"[-_. \d]+", name.lower()))


def pick_split(where: Path | str, available: Mapping[str, Any], split: str | None) -> str:
    """The split that was asked for, if it is there.

    Raises:
        NoSuchSplit: if it isn't.
    """
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


# Files


def split_files(folder: Path, suffix: str) -> dict[str, Path]:
    """Find `train.csv`, `something-v1-train.csv` and the like, by split."""
    found: dict[str, Path] = {}
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            split = split_of_file(file.stem)
            if split and file.suffix.lower() == suffix and file.is_file():
                if split in found:
                    raise ValueError(
                        f"{folder}: both {found[split].name} and {file.name} list the {split} videos; expected "
                        "one. Pass the one that is meant instead of its folder."
                    )
                found[split] = file
    return found


def labels_file(folder: Path, suffix: str) -> Path | None:
    """Find `labels.csv`, `something-v1-labels.csv` and the like."""
    if not folder.is_dir():
        return None
    files = sorted(file for file in folder.iterdir() if re.fullmatch(r"(.*[-_])?labels", file.stem.lower()))
    return next((file for file in files if file.suffix.lower() == suffix and file.is_file()), None)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: with the line, if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}). Download it again."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}). Download it again.") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text that hold something, with their numbers from 1.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}). Save the list as UTF-8.") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def folder_of_videos(folders: Sequence[Path], names: Sequence[str], video_dir: Path | None) -> Path:
    """Where a layout has its videos: `video_dir`, or the first of the names that is in one of the folders.

    Raises:
        FileNotFoundError: if none is.
    """
    if video_dir is not None:
        return video_dir
    for candidate in (folder / name for folder in folders for name in names):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"{folders[0]}: there are annotations but no folder {'/, '.join(names[:-1])}/ or {names[-1]}/ of videos. "
        "Pass video_dir."
    )


def inside(folder: Path, text: str, where: str) -> str:
    """Return the path of a list's entry; a relative one has to stay in the folder, an address is one as it is."""
    if is_stored(text):
        return text
    if not text or "\0" in text:
        raise ValueError(f"{where}: path is {text!r}; expected the path of a video.")
    if os.path.isabs(text):
        return os.path.normpath(text)
    path = os.path.normpath(text)
    if path.split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"{where}: path {text!r} leaves the folder {folder}; expected one inside of it. "
            "Pass a video_dir that holds all videos, or use an absolute path."
        )
    return os.path.join(folder, path)
