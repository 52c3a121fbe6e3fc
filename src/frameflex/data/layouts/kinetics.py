"""Kinetics: the CSV files as distributed, and files ``ID_START_END.mp4`` anywhere below a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from frameflex.data.finding import is_video_file
from frameflex.data.layouts.layout import Entry, Found, row_split
from frameflex.data.layouts.tables import lists_at, read_splits, read_table, seconds_of


class Kinetics:
    """A list whose header names ``youtube_id``, or a folder with one for each split."""

    looks_for = "a Kinetics list: label,youtube_id,time_start,time_end,split with files ID_START_END.mp4"

    def matches(self, source: str) -> bool:
        """Whether a list's first line names ``youtube_id``."""
        return any("youtube_id" in _first_line(path).lower() for path in lists_at(source).values())

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read a split of the lists."""
        return read_splits(source, split, video_dir, _read_list)


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return next((line for line in file if line.strip()), "")


def _read_list(path: Path, split: str | None, video_dir: Path | None, *, labels_only: bool = False) -> Found:
    table = read_table(path)
    header = table.header or []
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
            if is_video_file(name):
                files.setdefault(os.path.splitext(name)[0], []).append(os.path.join(parent, name))
    entries, labels = [], set()
    for line, row in table.rows:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} columns; expected {len(header)} ({', '.join(header)}).")
        label = row[columns["label"]] or None if "label" in columns else None
        if label is not None:
            labels.add(label)
        if split is not None and "split" in columns and row_split(row[columns["split"]], where) != split:
            continue
        start, end = (seconds_of(row[columns[name]], where) for name in ("time_start", "time_end"))
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
            entries.append(Entry(paths[0] if paths else str(folder / f"{stem}.mp4"), label, stem, where))
    splits = (
        sorted({row_split(row[columns["split"]], "") for _, row in table.rows}) if "split" in columns else []
    )
    return Found("Kinetics" + (f", {split}" if split else ""), entries, sorted(labels), splits=splits)
