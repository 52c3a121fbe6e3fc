"""Lists of ``path,label,start_seconds,end_seconds``: what `frameflex train` takes."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from frameflex.data.annotations.annotation import Mark, Marks, Segment, by_video
from frameflex.data.annotations.files import AnnotationFile
from frameflex.data.annotations.timeline import Timelines
from frameflex.data.finding import is_video_file
from frameflex.data.layouts.layout import Entry, NoSuchSplit
from frameflex.data.layouts.lists import Lists
from frameflex.data.layouts.tables import LIST_SUFFIXES, PATH_COLUMNS
from frameflex.new_files import new_file
from frameflex.printable import writable


class Segments:
    """A list of ours. Paths are relative to the list's folder where the videos lie in it."""

    name = "segments"
    looks_for = "a list (.csv, .tsv, .txt) of path,label,start_seconds,end_seconds"
    suffix = ".csv"
    one_video = False

    def matches(self, file: AnnotationFile) -> bool:
        if file.table is None or file.path.suffix.lower() not in LIST_SUFFIXES:
            return False
        if file.table.header is not None:
            return bool({*file.table.header} & {*PATH_COLUMNS})
        return any(is_video_file(cell) for _, cells in file.table.rows[:1] for cell in cells)

    def read(self, file: AnnotationFile) -> Marks:
        return Marks(
            [
                Mark(
                    entry.name, entry.label or "", entry.start_seconds or 0.0, entry.end_seconds, entry.where
                )
                for entry in _entries(file.path)
            ]
        )

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        del timelines
        ordered = [segment for of_one in by_video(segments).values() for segment in of_one]
        rows = [
            (
                _path_in(path, segment.path),
                segment.label,
                _earlier(segment.start_seconds),
                _earlier(segment.end_seconds),
            )
            for segment in ordered
        ]
        with new_file(path) as temporary:
            with temporary.open("w", encoding="utf-8", newline="") as text:
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow(["path", "label", "start_seconds", "end_seconds"])
                writer.writerows([[writable(cell) for cell in row] for row in rows])
            try:
                read = [(e.name, e.label, e.start_seconds, e.end_seconds) for e in _entries(temporary)]
                wrong = next((f"{a!r} as {b!r}" for a, b in zip(rows, read, strict=False) if a != b), "")
            except ValueError as error:
                wrong = str(error).removeprefix(f"{temporary}, ")
            if wrong:
                raise ValueError(
                    f"{path}: a list can't hold these names of files and labels, they are read otherwise: {wrong}. "
                    "Rename those that hold a semicolon, a tab or a line end"
                )


def _entries(path: Path) -> list[Entry]:
    """The entries of a list, of all its splits."""
    lists = Lists()
    try:
        return lists.read(str(path), None, None).entries
    except NoSuchSplit as error:
        return [entry for split in error.available for entry in lists.read(str(path), split, None).entries]


def _path_in(path: Path, video: Path) -> str:
    """A video's path as a list names it: from its folder, or from the root where it lies elsewhere."""
    folder, file = os.path.abspath(path.parent), os.path.abspath(video)
    relative = os.path.relpath(file, folder)
    return file if relative.split(os.sep)[0] == os.pardir else relative


def _earlier(seconds: float) -> float:
    """Microseconds, rounded down: rounded up, a frame that starts at this time would not belong to the stretch."""
    rounded = round(seconds, 6)
    return rounded if rounded <= seconds else round(rounded - 1e-6, 6)
