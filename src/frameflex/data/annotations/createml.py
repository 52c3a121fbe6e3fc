"""Create ML: annotation files of an action classifier, as CSV and as JSON."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frameflex.data.annotations.annotation import Mark, Marks, Segment, by_video, label_of, number_of
from frameflex.data.annotations.files import AnnotationFile, write_json
from frameflex.data.annotations.timeline import Timelines
from frameflex.new_files import new_file
from frameflex.printable import writable

_COLUMNS = ("video", "label", "start", "end")


class CreateML:
    """`video,label,start,end` in seconds or as `[hours:]minutes:seconds`; without times it is the whole video."""

    name = "createml"
    looks_for = "Create ML: CSV with columns video,label,start,end, or JSON of a list of such objects"
    suffix = ".json"
    one_video = False

    def matches(self, file: AnnotationFile) -> bool:
        if file.table is not None:
            header = file.table.header or []
            return {"video", "label"} <= {*header} <= {*_COLUMNS} and len(header) > 2
        first = file.json[0] if isinstance(file.json, list) and file.json else None
        return isinstance(first, dict) and {"video", "label"} <= {*first} <= {*_COLUMNS}

    def read(self, file: AnnotationFile) -> Marks:
        if file.table is None:
            rows = [(f"{file.path}, entry {number}", row) for number, row in enumerate(file.json, start=1)]
        else:
            header = file.table.header or []
            rows = []
            for line, cells in file.table.rows:
                where = f"{file.path}, line {line}"
                if len(cells) != len(header):
                    raise ValueError(f"{where}: {len(cells)} columns; expected {', '.join(header)}")
                rows.append((where, dict(zip(header, cells, strict=True))))
        return Marks([_mark(row, where) for where, row in rows])

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        del timelines
        rows = [
            {
                "video": segment.name,
                "label": segment.label,
                "start": round(segment.start_seconds, 6),
                "end": round(segment.end_seconds, 6),
            }
            for of_one in by_video(segments).values()
            for segment in of_one
        ]
        if path.suffix.lower() != ".csv":
            write_json(path, rows)
            return
        with new_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows([[writable(row[key]) for key in _COLUMNS] for row in rows])


def _mark(row: Any, where: str) -> Mark:
    if not isinstance(row, dict) or not isinstance(row.get("video"), str) or not row["video"]:
        raise ValueError(f"{where}: names no video; expected video, label, start and end")
    start, end = (_seconds(row.get(key), where, key) for key in ("start", "end"))
    return Mark(row["video"], label_of(row.get("label"), where), start or 0.0, end, where)


def _seconds(value: Any, where: str, what: str) -> float | None:
    """A time as Create ML takes it: 3, 3.14, "01:03", "01:03.14" or "05:01:03"; None for none."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"(\d+:)?\d+:\d+(\.\d+)?", value.strip()):
        seconds = 0.0
        for part in value.strip().split(":"):
            seconds = 60 * seconds + float(part)
        return seconds
    return number_of(value, where, what)
