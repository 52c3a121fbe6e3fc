"""Lists of paths and labels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from frameflex.data.layouts.layout import Entry, Found, NoSuchSplit, check_capitals, inside, row_split
from frameflex.data.layouts.tables import (
    PATH_COLUMNS,
    Table,
    lists_at,
    read_splits,
    read_table,
    seconds_of,
)

LABEL_COLUMNS = ("label", "class", "class_name", "action", "class_id", "label_id", "category", "target")
GROUP_COLUMNS = ("group", "subject", "person", "scene")


class Lists:
    """A list of ``path,label`` or ``path,label,start_seconds,end_seconds``, or a folder with one for each split.

    Args:
        group_columns: names of the column of groups, the first that is there counts; the only one has to be there.
    """

    looks_for = (
        "a list (.csv, .tsv, .txt) of lines path,label or path,label,start_seconds,end_seconds; or a folder of "
        "train.csv and val.csv"
    )

    def __init__(self, group_columns: Sequence[str] = GROUP_COLUMNS) -> None:
        self.group_columns = tuple(group_columns)

    def matches(self, source: str) -> bool:
        """Whether there is a list."""
        return bool(lists_at(source))

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read a split of the lists."""
        return read_splits(source, split, video_dir, partial(_read_list, self.group_columns))


def _read_list(
    group_columns: Sequence[str],
    path: Path,
    split: str | None,
    video_dir: Path | None,
    *,
    labels_only: bool = False,
) -> Found:
    """Read a list; `labels_only` leaves out where the videos are."""
    table = _named(path, read_table(path))
    if len(group_columns) == 1 and table.column(*group_columns) is None:
        there = f"has {', '.join(table.header)}" if table.header else "has none"
        raise ValueError(
            f"{path}: data.group is {group_columns[0]!r}; expected a column of that name in its first line, which "
            f"{there}"
        )
    at_split = table.column("split")
    if split is not None and at_split is None:
        raise NoSuchSplit(
            f"{path}: split is {split!r}, but the list has no column split. Leave split out, or pass the "
            "list of that split."
        )
    folder = video_dir if video_dir is not None else path.parent
    entries: list[Entry] = []
    labels: dict[str, set[str]] = {}  # by split
    for line, row in table.rows:
        entry = _entry(table, row, folder, f"{path}, line {line}", group_columns, labels_only=labels_only)
        of_row = "" if at_split is None else row_split(row[at_split], entry.where)
        of_split = labels.setdefault(of_row, set())
        if entry.label is not None:
            of_split.add(entry.label)
        if not labels_only and split in (None, of_row):
            entries.append(entry)
    splits = [] if at_split is None else sorted(labels)
    if len(splits) > 1 and split is None:
        raise NoSuchSplit(
            f"{path}: split is None; expected one of those that are there: {', '.join(splits)}.", splits
        )
    every = frozenset().union(*labels.values())
    numbered = bool(every) and all(re.fullmatch(r"\d{1,6}", label) for label in every)
    names = [str(i) for i in range(1 + max(map(int, every)))] if numbered else sorted(every)
    notes = [*check_capitals(path, labels), *_repeated(path, entries)]
    if table.column(*LABEL_COLUMNS) is None and len(table.header or []) > 1:
        notes.append(
            f"{path}: no label is read: no column is called {', '.join(LABEL_COLUMNS[:-1])} or {LABEL_COLUMNS[-1]}"
        )
    layout = "list" + (f", {split}" if split else "")
    seen = every if numbered else frozenset()
    return Found(layout, entries, names, numbered, seen, splits, notes=notes)


def _repeated(path: Path, entries: Sequence[Entry]) -> list[str]:
    """Lines for videos that are listed twice."""
    labels: dict[tuple[Any, ...], list[str | None]] = {}
    for entry in entries:
        labels.setdefault((entry.path, entry.start_seconds, entry.end_seconds), []).append(entry.label)
    unlike = [(key[0], named) for key, named in labels.items() if len(set(named)) > 1]
    alike = [key[0] for key, named in labels.items() if len(named) > 1 and len(set(named)) == 1]
    notes = []
    if unlike:
        first, named = unlike[0]
        notes.append(
            f"{path}: {len(unlike)} videos are listed with several labels ({os.path.basename(first)}: "
            f"{', '.join(map(repr, dict.fromkeys(named)))})"
        )
    if alike:
        notes.append(f"{path}: {len(alike)} videos are listed twice ({os.path.basename(alike[0])})")
    return notes


def _named(path: Path, table: Table) -> Table:
    """The table with names of its columns; errors about those that nobody knows."""
    if table.header is None:
        num_columns = Counter(len(row) for _, row in table.rows).most_common(1)[0][0]
        timed = num_columns != 4 or any(_is_number(row[-1]) for _, row in table.rows)
        if num_columns not in (1, 2, 4) or not timed:
            raise ValueError(
                f"{path}: lines have {num_columns} columns; expected path,label or "
                'path,label,start_seconds,end_seconds. Put names that hold the separator into "quotes", or '
                "name other columns in a first line, for example: path,num_frames,label"
            )
        return Table(["path", "label", "start_seconds", "end_seconds"][:num_columns], table.rows)
    for name in table.header:
        if re.match(r"(start|end|time|begin|stop|from|to)([_ ]|$)", name) and name not in (
            "start_seconds",
            "end_seconds",
        ):
            raise ValueError(
                f"{path}: column {name!r} is not known; expected start_seconds and end_seconds. "
                "Rename it, with times in seconds, or remove it."
            )
    return table


def _entry(
    table: Table, row: list[str], folder: Path, where: str, group_columns: Sequence[str], *, labels_only: bool
) -> Entry:
    header = table.header or []
    if len(row) != len(header):
        raise ValueError(
            f"{where}: {len(row)} columns; expected {len(header)} ({', '.join(header)}). Put a field that "
            'contains the separator into "quotes".'
        )

    def cell(*names: str) -> str:
        at = table.column(*names)
        return "" if at is None else row[at]

    label = cell(*LABEL_COLUMNS)
    start, end = seconds_of(cell("start_seconds"), where), seconds_of(cell("end_seconds"), where)
    if end is not None and end <= (start or 0):
        raise ValueError(f"{where}: ends at {end} s; expected an end after the start at {start or 0} s.")
    name = cell(*PATH_COLUMNS)
    path = "" if labels_only else inside(folder, name, where)
    return Entry(path, None if label in ("", "-1") else label, name, where, start, end, cell(*group_columns))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\d*\.?\d+", cell) is not None
