"""Events that `frameflex predict --window` found, to be corrected in a tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frameflex.data.annotations.annotation import Mark, Marks, Segment, label_of, number_of
from frameflex.data.annotations.files import AnnotationFile
from frameflex.data.annotations.timeline import Timelines
from frameflex.printable import printable

_COLUMNS = ["start_seconds", "end_seconds", "label", "index", "probability"]


class Events:
    """JSON, which names its video, and CSV, which doesn't: its own name is the video's."""

    name = "events"
    looks_for = "events of frameflex predict --window, as JSON or CSV"
    suffix = ".csv"
    one_video = True

    def matches(self, file: AnnotationFile) -> bool:
        if file.table is not None:
            rows = file.table.rows
            return file.table.header is None and [cell.lower() for cell in rows[0][1]] == _COLUMNS
        return isinstance(file.json, dict) and isinstance(file.json.get("events"), list)

    def read(self, file: AnnotationFile) -> Marks:
        rows: list[tuple[str, dict[str, Any]]] = []
        video = ""
        if file.table is not None:
            for line, cells in file.table.rows[1:]:
                where = f"{file.path}, line {line}"
                if len(cells) != len(_COLUMNS):
                    raise ValueError(f"{where}: {len(cells)} columns; expected {', '.join(_COLUMNS)}")
                rows.append((where, dict(zip(_COLUMNS, cells, strict=True))))
        else:
            video = file.json.get("video") or ""
            if not isinstance(video, str):
                raise ValueError(f"{file.path}: its video is no text; expected a path")
            for number, event in enumerate(file.json["events"], start=1):
                where = f"{file.path}, event {number}"
                if not isinstance(event, dict):
                    raise ValueError(f"{where}: expected an object with label, start_seconds and end_seconds")
                rows.append((where, event))
        return Marks(
            [
                Mark(
                    video,
                    label_of(row.get("label"), where),
                    number_of(row.get("start_seconds"), where, "start_seconds"),
                    number_of(row.get("end_seconds"), where, "end_seconds"),
                    where,
                )
                for where, row in rows
            ]
        )

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        """Refuses: events have probabilities, and segments have none."""
        del segments, timelines
        raise ValueError(f"{printable(path)}: events are written by frameflex predict --window alone")
