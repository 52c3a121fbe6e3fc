"""The folder of a long list's predictions: its plan, its parts, its summary; everything that is written there.

The rows of the manifest are cut into parts of equal length, and a part is written when all its rows have an answer,
under a temporary name that becomes its own when it is whole: what is there is done. `_plan.json` says what the parts
are parts of; another checkpoint, manifest or options can't be mixed into the same folder. Readers of Parquet folders
ignore names that begin with `_` or `.`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from frameflex.data.part_folder import PartFolder, part_folder
from frameflex.printable import to_json, writable

__all__ = ["BatchReport", "PartFormat", "Parts", "read_parts"]

PLAN_NAME, SUMMARY_NAME, BAD_NAME = "_plan.json", "_summary.json", "_bad.jsonl"
MOST_ROWS_A_PART = 1000
PARTS_AT_LEAST = 8  # so that a restart of a short list keeps something, too
PartFormat = Literal["parquet", "jsonl"]


@dataclass
class BatchReport:
    """What became of a manifest.

    Attributes:
        num_rows: of the manifest.
        num_parts: of the manifest.
        num_recognised: rows with an answer.
        num_bad: rows with a reason instead.
        num_parts_kept: that were there before.
        reasons: of bad videos, shortened to their kind, with how often each occurs.
    """

    num_rows: int
    num_parts: int
    num_recognised: int = 0
    num_bad: int = 0
    num_parts_kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class Parts:
    """The parts of one manifest in a folder, whose length and format are as asked for, or as the folder was begun.

    Args:
        folder: path or address; made if it is not there.
        num_rows: of the manifest.
        part_format: "parquet" or "jsonl"; by default Parquet where pyarrow is installed.
        rows_a_part: by default at most 1,000, and less where that gives fewer than 8 parts.

    Attributes:
        num_rows_done: of those that were there and those that were added.

    Raises:
        ValueError: if the folder holds something else.
        ImportError: if parts in Parquet can't be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        num_rows: int,
        part_format: PartFormat | None,
        rows_a_part: int | None,
    ) -> None:
        self.folder = part_folder(folder)
        self.folder.make()
        begun = _read_plan(self.folder)
        if rows_a_part is None:
            short = -(-num_rows // PARTS_AT_LEAST)
            rows_a_part = begun["rows_a_part"] if begun else min(MOST_ROWS_A_PART, short)
        self.num_rows, self.rows_a_part = num_rows, int(rows_a_part)
        self.format = part_format or (begun["part_format"] if begun else _default_format())
        if self.format == "parquet":
            _import_pyarrow()
        self.number = -(-num_rows // self.rows_a_part)
        self.num_rows_done = 0
        self._kept: set[int] = set()
        self._waiting: dict[int, dict[int, dict[str, Any]]] = {}

    def begin(self, plan: dict[str, Any]) -> None:
        """Agree on what the parts are parts of, and keep the folder for this process until `close`.

        Raises:
            ValueError: if the folder holds parts of something else.
            RuntimeError: if another process works in it.
        """
        if not self.folder.hold():
            raise RuntimeError(
                f"{self.folder} is in use: another process writes predictions there. Wait for it, or stop it"
            )
        _agree_on_plan(self.folder, plan)
        there = self.folder.names()
        self._kept = {part for part in range(self.number) if self._name(part) in there}
        self.num_rows_done = sum(map(self._num_rows_of, self._kept))

    def lacks(self, row: int) -> bool:
        """Whether a row of the manifest is in none of the parts that were there."""
        return row // self.rows_a_part not in self._kept

    def close(self) -> None:
        """Let go of the folder."""
        self.folder.close()

    def _num_rows_of(self, part: int) -> int:
        return min(self.num_rows, (part + 1) * self.rows_a_part) - part * self.rows_a_part

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, in any order; its part is written when it is whole.

        Raises:
            OSError, StorageError: if the part can't be written.
        """
        part = row["row"] // self.rows_a_part
        rows = self._waiting.setdefault(part, {})
        assert row["row"] not in rows, f"row {row['row']} came twice"
        rows[row["row"]] = row
        self.num_rows_done += 1
        if len(rows) == self._num_rows_of(part):
            content = _content_of([rows[number] for number in sorted(rows)], self.format)
            self.folder.write(self._name(part), content)
            del self._waiting[part]

    def _name(self, part: int) -> str:
        return _part_name(part, self.format)

    def sum_up(self) -> BatchReport:
        """Count what the parts hold; write the summary and the list of bad videos.

        Raises:
            RuntimeError: if a part is not there.
        """
        report = BatchReport(self.num_rows, self.number, num_parts_kept=len(self._kept))
        there = self.folder.names()
        missing = [part for part in range(self.number) if self._name(part) not in there]
        if missing:
            raise RuntimeError(
                f"{self.folder}: {len(missing)} of {self.number} parts are not there, first {missing[0]}: answers "
                "were lost. The same command goes on with what is left"
            )
        with self.folder.making(BAD_NAME) as path, path.open("w", encoding="utf-8") as bad:
            for row in _rows_in(self.folder):
                if row["error"] is None:
                    report.num_recognised += 1
                    continue
                report.num_bad += 1
                kind = _kind(row["error"])
                if kind in report.reasons or len(report.reasons) < 100:  # no million in memory
                    report.reasons[kind] = report.reasons.get(kind, 0) + 1
                told = {"row": row["row"], "video": row["video"], "reason": row["error"]}
                bad.write(to_json(told) + "\n")
        summary = {
            **json.loads(self.folder.read(PLAN_NAME) or b"{}"),
            "num_recognised": report.num_recognised,
            "num_bad": report.num_bad,
            "reasons": report.reasons,
        }
        self.folder.write(SUMMARY_NAME, to_json(summary, indent=2).encode())
        return report


def read_parts(output: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of all parts that are there, in the manifest's order, a part in memory at a time.

    Args:
        output: path or address of the folder.

    Yields:
        `row`, `video`, `label`, `probability`, `predictions` (label, index and probability of each answer, best
        first) and `error`; of label to predictions and error, one side is None.

    Raises:
        ValueError: if the folder has no plan.
    """
    yield from _rows_in(part_folder(output))


def _rows_in(folder: PartFolder) -> Iterator[dict[str, Any]]:
    plan = _read_plan(folder)
    if plan is None:
        raise ValueError(
            f"{folder}: no {PLAN_NAME} in it; expected a folder of `frameflex predict --manifest`."
        )
    there = folder.names()
    for part in range(-(-plan["num_rows"] // plan["rows_a_part"])):
        name = _part_name(part, plan["part_format"])
        content = folder.read(name) if name in there else None
        if content is not None:
            yield from _rows_of(content, plan["part_format"])


def _read_plan(folder: PartFolder) -> dict[str, Any] | None:
    content = folder.read(PLAN_NAME)
    if content is None:
        return None
    try:
        plan = json.loads(content)
        if int(plan["rows_a_part"]) < 1 or plan["part_format"] not in ("parquet", "jsonl"):
            raise ValueError("rows_a_part or part_format is out of range")
        int(plan["num_rows"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder}/{PLAN_NAME}: not a plan of predictions ({error!r}). Choose another folder."
        ) from error
    return plan


def _agree_on_plan(folder: PartFolder, plan: dict[str, Any]) -> None:
    """Write the plan if there is none; refuse another one."""
    if folder.write_first(PLAN_NAME, to_json(plan, indent=2).encode()):
        return
    there = _read_plan(folder) or {}
    # Where the manifest lies may change, as long as it is the same one.
    there.setdefault("precision", "float32")  # plans of a time when there was no other
    differing = [name for name in plan if name != "manifest" and there.get(name) != plan[name]]
    if differing:
        what = ", ".join(f"{name} {there.get(name)!r} there, {plan[name]!r} now" for name in differing)
        raise ValueError(
            f"{folder}: holds predictions of something else ({what}). Choose another --out, or remove the folder."
        )


def _default_format() -> PartFormat:
    return "parquet" if importlib.util.find_spec("pyarrow") else "jsonl"


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "parts in Parquet are written by pyarrow. Install it with `pip install frameflex[parquet]`, or write "
            "them with --part-format jsonl."
        ) from error
    return pyarrow


def _part_name(part: int, part_format: str) -> str:
    return f"part-{part:07d}.{part_format}"


def _content_of(rows: list[dict[str, Any]], part_format: str) -> bytes:
    if part_format == "jsonl":
        return "".join(to_json(row) + "\n" for row in rows).encode()
    arrow = _import_pyarrow()
    text = arrow.string()
    prediction = arrow.struct([("label", text), ("index", arrow.int32()), ("probability", arrow.float64())])
    schema = arrow.schema(
        [
            arrow.field("row", arrow.int64(), nullable=False),
            arrow.field("video", text, nullable=False),
            ("label", text),
            ("probability", arrow.float64()),
            ("predictions", arrow.list_(prediction)),
            ("error", text),
        ]
    )
    sound = [{**row, "error": row["error"] and writable(row["error"])} for row in rows]
    sink = arrow.BufferOutputStream()
    arrow.parquet.write_table(arrow.Table.from_pylist(sound, schema=schema), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _rows_of(content: bytes, part_format: str) -> Iterable[dict[str, Any]]:
    if part_format == "parquet":
        arrow = _import_pyarrow()
        table: list[dict[str, Any]] = arrow.parquet.read_table(arrow.BufferReader(content)).to_pylist()
        return table
    return [json.loads(line) for line in content.decode().split("\n") if line]


def _kind(reason: str) -> str:
    """The reason without what differs from file to file."""
    return reason.split(": ", 1)[-1].split(" (")[0][:100]
