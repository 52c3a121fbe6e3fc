"""Lists as text: columns, separators, header or not; and folders that hold one for each split."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from frameflex.data.finding import is_video_file
from frameflex.data.layouts.layout import Found, check_capitals, pick_split, read_lines, split_files

LIST_SUFFIXES = (".csv", ".list", ".tsv", ".txt")
PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "file_name", "filepath")


def lists_at(source: str) -> dict[str, Path]:
    """The lists of a folder by their splits, or the list that the source is, by an empty name."""
    path = Path(source)
    if path.is_file():
        return {"": path} if path.suffix.lower() in LIST_SUFFIXES else {}
    return {split: file for suffix in LIST_SUFFIXES for split, file in split_files(path, suffix).items()}


def read_splits(
    source: str, split: str | None, video_dir: Path | None, read_list: Callable[..., Found]
) -> Found:
    """Read one of the lists at a source, with the classes of all.

    Args:
        source: the folder or list.
        split: as in `Layout.read`.
        video_dir: likewise.
        read_list: reads one list; with ``labels_only`` without looking for the videos.
    """
    root, lists = Path(source), lists_at(source)
    if "" in lists:
        return read_list(root, split, video_dir)
    picked = pick_split(root, lists, split)
    found = {
        name: read_list(file, None, video_dir, labels_only=name != picked) for name, file in lists.items()
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
    alike = check_capitals(root, {name: part.classes for name, part in found.items()})
    result.notes = list(dict.fromkeys([*result.notes, *alike]))
    names = [part.classes for part in found.values()]
    result.classes = (
        max(names, key=len) if result.numbered else sorted({name for part in names for name in part})
    )
    result.layout += f", {picked}"
    result.splits = list(lists)
    return result


class Table(NamedTuple):
    """The cells of a list."""

    header: list[str] | None  # in small letters
    rows: list[tuple[int, list[str]]]  # with line numbers

    def column(self, *names: str) -> int | None:
        """Where the first of some columns is, if one is there."""
        header = self.header or []
        return next((header.index(name) for name in names if name in header), None)


def read_table(path: Path) -> Table:
    """Read a list's cells; the header is recognised by the name of a column of paths.

    Raises:
        ValueError: if it is empty, no UTF-8, or has two columns of one name.
    """
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"{path}: the list is empty; expected lines of path,label.")
    separator = _separator([line for _, line in lines[:50]])
    first = [cell.lower() for cell in _cells(lines[0][1], separator)]
    header = first if set(first) & {*PATH_COLUMNS, "youtube_id"} else None
    if header is None:
        spaced = separator == " "
        return Table(
            None, [(number, _spaced(line) if spaced else _cells(line, separator)) for number, line in lines]
        )
    if len(lines) == 1:
        raise ValueError(f"{path}: the list has a header and no line; expected at least one video.")
    if len(set(header)) < len(header):
        raise ValueError(
            f"{path}: two columns have the same name ({', '.join(header)}); expected one of each."
        )
    return Table(header, [(number, _cells(line, separator)) for number, line in lines[1:]])


def _cells(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return [line]
    cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return [cell.strip() for cell in cells]


def _spaced(line: str) -> list[str]:
    """The cells of ``my clip.mp4 left`` or ``my clip.mp4 left 1.0 2.5``: a path may hold the separator."""
    cells = _cells(line, " ")
    ends = [index for index, cell in enumerate(cells) if is_video_file(cell)]
    if '"' in line or not ends or ends[-1] == 0:
        return cells
    rest = cells[ends[-1] + 1 :]
    return [line[: len(line) - len(line.split(cells[ends[-1]])[-1])], *rest]


def _separator(lines: Sequence[str]) -> str | None:
    """Return what separates the columns, or None where there is one column."""
    # Most lines decide, so that a line that lacks the separator is named as wrong later on.
    for candidate in ("\t", ";", ","):
        if sum(candidate in line for line in lines) > len(lines) / 2:
            return candidate
    ends_in_a_path = all(is_video_file(line) for line in lines)
    return " " if not ends_in_a_path and all(" " in line for line in lines) else None


def seconds_of(text: str, where: str) -> float | None:
    """A time of a list; None where the cell is empty."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{where}: time is {text!r}; expected seconds, 0 or more.")
    return seconds
