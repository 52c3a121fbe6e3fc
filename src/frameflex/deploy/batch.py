"""Recognise the videos of a long manifest, in parts that several processes share and that a restart keeps.

The rows of a manifest are cut into parts of equal size, whatever the number of processes, and part i belongs to the
process of rank `i % world_size`. A part is one file, written under a temporary name and renamed when it is whole, so
that what is there is done. `_plan.json` beside the parts says what they are parts of; another checkpoint, manifest
or options can't be mixed into the same folder. Readers of Parquet folders ignore names that begin with `_` or `.`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from frameflex.checkpoint import fetch
from frameflex.data.journal import write_whole
from frameflex.data.manifest import ManifestRow, read_manifest
from frameflex.data.quarantine import in_quarantine
from frameflex.deploy.recognizer import Prediction, Recognizer
from frameflex.printable import to_json, writable
from frameflex.video import VideoError

__all__ = ["BatchOptions", "BatchReport", "digest_of", "predict_manifest", "read_parts"]

PLAN_NAME, SUMMARY_NAME, BAD_NAME = "_plan.json", "_summary.json", "_bad.jsonl"
MOST_ROWS_A_PART = 1000
PARTS_A_PROCESS = 8  # at least, so that processes finish at about the same time
PartFormat = Literal["parquet", "jsonl"]


@dataclass(frozen=True)
class BatchOptions:
    """What decides the answers; the fields as in `Recognizer.recognize_many`."""

    num_frames: int | None = None
    budget: str | tuple[int, ...] | None = None
    confidence: float = 0.8
    top: int = 5
    views: str = "1x1"


@dataclass
class BatchReport:
    """What became of a manifest.

    Attributes:
        num_rows: of the manifest.
        num_recognised: rows with an answer, in the parts that are there.
        num_bad: rows with a reason instead.
        num_parts: of the manifest.
        num_parts_left: that other processes have not finished yet, or a later start will.
        num_parts_kept: of this process that were there before.
        reasons: of bad videos, shortened to their kind, with how often each occurs.
    """

    num_rows: int
    num_parts: int
    num_recognised: int = 0
    num_bad: int = 0
    num_parts_left: int = 0
    num_parts_kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def predict_manifest(
    recognizer: Recognizer,
    manifest: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    checkpoint_digest: str,
    options: BatchOptions | None = None,
    video_dir: str | os.PathLike[str] | None = None,
    quarantine: Mapping[str, str] | None = None,
    on_bad_video: Literal["error", "skip"] = "skip",
    part_format: PartFormat | None = None,
    rows_a_part: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 8,
    num_workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> BatchReport:
    """Recognise this process's share of a manifest, and sum up when all shares are there.

    Answers are those of `Recognizer.recognize_many`. The manifest is read through once before anything is
    recognised, so that a wrong row is told at once; memory doesn't grow with its length.

    Args:
        recognizer: with the checkpoint.
        manifest: as for `read_manifest`.
        output: a folder for the parts; made if it is not there.
        checkpoint_digest: tells this checkpoint from others: `digest_of` its file.
        options: what decides the answers.
        video_dir: where relative paths start; by default at the manifest's folder.
        quarantine: path -> reason of videos to leave out, as `read_quarantine` gives them.
        on_bad_video: "skip" writes the reason into the video's row and counts it, "error" stops at the first.
        part_format: "parquet" or "jsonl"; by default Parquet where pyarrow is installed.
        rows_a_part: by default at most 1,000, and less where that gives each process fewer than 8 parts; in a
            folder that was begun, as it was begun.
        rank: of this process.
        world_size: number of processes; another number may continue what one began.
        batch_size: videos through the network at once.
        num_workers: processes that decode.
        on_progress: called with (rows done, rows in all) of this process's share.

    Returns:
        What is there now. `_summary.json` and `_bad.jsonl` are written when no part is left.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ValueError: if the manifest is wrong, an option is out of range, or the folder holds parts of something else.
        VideoError: at the first bad video, with `on_bad_video="error"`.
        OSError: if a part can't be written; the parts before it stay.
    """
    options = options or BatchOptions()
    _check_arguments(on_bad_video, part_format, rows_a_part, rank, world_size)
    num_rows = sum(1 for _ in read_manifest(manifest, video_dir=video_dir))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    parts = _division(folder, num_rows, world_size, part_format, rows_a_part)
    plan = _plan_of(recognizer, manifest, options, checkpoint_digest, parts, video_dir, quarantine)
    _agree_on_plan(folder, plan)
    report = BatchReport(num_rows=num_rows, num_parts=parts.number)
    own_rows = sum(parts.num_rows_of(part) for part in range(rank, parts.number, world_size))
    done = 0
    rows = read_manifest(manifest, video_dir=video_dir)
    for part, group in groupby(rows, key=lambda row: row.number // parts.rows_a_part):
        if part % world_size != rank:
            continue
        target = _part_path(folder, part, parts.format)
        if target.is_file():
            report.num_parts_kept += 1
            done += parts.num_rows_of(part)
            if on_progress is not None:
                on_progress(done, own_rows)
            continue
        answers = []
        recognised = _recognise(
            recognizer, list(group), options, quarantine or {}, on_bad_video, batch_size, num_workers
        )
        with closing(recognised):
            for answer in recognised:
                answers.append(answer)
                done += 1
                if on_progress is not None:
                    on_progress(done, own_rows)
        _write_part(target, answers, parts.format)
    return _sum_up(folder, report, parts.format)


def _check_arguments(
    on_bad_video: str, part_format: str | None, rows_a_part: int | None, rank: int, world_size: int
) -> None:
    if on_bad_video not in ("error", "skip"):
        raise ValueError(f"on_bad_video is {on_bad_video!r}; expected 'error' or 'skip'.")
    if part_format not in (None, "parquet", "jsonl"):
        raise ValueError(f"part_format is {part_format!r}; expected 'parquet' or 'jsonl'.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of {world_size} processes; expected 0 to {world_size - 1}.")
    if rows_a_part is not None and rows_a_part < 1:
        raise ValueError(f"rows_a_part is {rows_a_part}; expected at least 1.")


@dataclass(frozen=True)
class _Division:
    """How a manifest's rows are divided into parts."""

    num_rows: int
    rows_a_part: int
    format: PartFormat

    @property
    def number(self) -> int:
        return -(-self.num_rows // self.rows_a_part)

    def num_rows_of(self, part: int) -> int:
        return min(self.num_rows, (part + 1) * self.rows_a_part) - part * self.rows_a_part


def _division(
    folder: Path,
    num_rows: int,
    world_size: int,
    part_format: PartFormat | None,
    rows_a_part: int | None,
) -> _Division:
    """The parts' format and length as asked for, as the folder was begun, or as suits the rows and processes."""
    begun = _read_plan(folder)
    if rows_a_part is None:
        fair = -(-num_rows // (world_size * PARTS_A_PROCESS))
        rows_a_part = begun["rows_a_part"] if begun else min(MOST_ROWS_A_PART, fair)
    part_format = part_format or (begun["part_format"] if begun else _default_format())
    if part_format == "parquet":
        _import_pyarrow()
    return _Division(num_rows, rows_a_part, part_format)


def _plan_of(
    recognizer: Recognizer,
    manifest: str | os.PathLike[str],
    options: BatchOptions,
    checkpoint_digest: str,
    parts: _Division,
    video_dir: str | os.PathLike[str] | None,
    quarantine: Mapping[str, str] | None,
) -> dict[str, Any]:
    """All that the parts of one folder have in common."""
    return {
        "format_version": 1,
        "manifest": os.fspath(manifest),
        "manifest_sha256": digest_of(manifest),
        "video_dir": None if video_dir is None else os.fspath(video_dir),
        "num_rows": parts.num_rows,
        "rows_a_part": parts.rows_a_part,
        "part_format": parts.format,
        "checkpoint_sha256": checkpoint_digest,
        "quarantine_sha256": _digest_of_text(json.dumps(sorted((quarantine or {}).items()))),
        "precision": recognizer.precision,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(options).items()},
    }


def read_parts(output: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of all parts that are there, in the manifest's order, a part in memory at a time.

    Yields:
        `row`, `video`, `label`, `probability`, `predictions` (label, index and probability of each answer, best
        first) and `error`; of label to predictions and error, one side is None.

    Raises:
        ValueError: if the folder has no plan.
    """
    folder = Path(output)
    plan = _read_plan(folder)
    if plan is None:
        raise ValueError(
            f"{folder}: no {PLAN_NAME} in it; expected a folder of `frameflex predict --manifest`."
        )
    for part in range(-(-plan["num_rows"] // plan["rows_a_part"])):
        path = _part_path(folder, part, plan["part_format"])
        if path.is_file():
            yield from _read_part(path, plan["part_format"])


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files; addresses as for `fetch`."""
    local = fetch(os.fspath(path))
    running = hashlib.sha256()
    files = sorted(file for file in local.rglob("*") if file.is_file()) if local.is_dir() else [local]
    for file in files:
        if local.is_dir():
            running.update(f"{file.relative_to(local).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                running.update(chunk)
    return running.hexdigest()


def _digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


# The plan


def _read_plan(folder: Path) -> dict[str, Any] | None:
    path = folder / PLAN_NAME
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if int(plan["rows_a_part"]) < 1 or plan["part_format"] not in ("parquet", "jsonl"):
            raise ValueError("rows_a_part or part_format is out of range")
        int(plan["num_rows"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a plan of predictions ({error!r}). Choose another folder.") from error
    return plan


def _agree_on_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan if there is none; processes that start together write the same, and the first one counts."""
    temporary = folder / f".{PLAN_NAME}.{os.getpid()}"
    try:
        write_whole(temporary, to_json(plan, indent=2).encode())
        try:
            os.link(temporary, folder / PLAN_NAME)  # fails where there is one, unlike a rename
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not (folder / PLAN_NAME).exists():
                os.replace(temporary, folder / PLAN_NAME)
    finally:
        temporary.unlink(missing_ok=True)
    there = _read_plan(folder) or {}
    # Where the manifest lies may change, as long as it is the same one.
    there.setdefault("precision", "float32")  # plans of a time when there was no other
    differing = [name for name in plan if name != "manifest" and there.get(name) != plan[name]]
    if differing:
        what = ", ".join(f"{name} {there.get(name)!r} there, {plan[name]!r} now" for name in differing)
        raise ValueError(
            f"{folder}: holds predictions of something else ({what}). Choose another --out, or remove the folder."
        )


# Parts


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


def _part_path(folder: Path, part: int, part_format: str) -> Path:
    return folder / f"part-{part:07d}.{part_format}"


def _recognise(
    recognizer: Recognizer,
    rows: list[ManifestRow],
    options: BatchOptions,
    quarantine: Mapping[str, str],
    on_bad_video: str,
    batch_size: int,
    num_workers: int,
) -> Generator[dict[str, Any], None, None]:
    reasons = {row.number: in_quarantine(quarantine, row.path) for row in rows}
    wanted = [row for row in rows if reasons[row.number] is None]
    answers = recognizer.recognize_many(
        [row.path for row in wanted],
        num_frames=options.num_frames,
        budget=options.budget,
        confidence=options.confidence,
        top=options.top,
        views=options.views,
        batch_size=batch_size,
        num_workers=min(num_workers, len(wanted)),
    )
    with closing(answers):  # with the processes that decode
        for row in rows:
            if (reason := reasons[row.number]) is not None:
                yield _row(row, VideoError(f"left out by the quarantine list: {reason}"))
                continue
            _, answer = next(answers)
            if isinstance(answer, VideoError) and on_bad_video == "error":
                raise VideoError(f"row {row.number} of the manifest: {answer}") from answer
            yield _row(row, answer)


def _row(row: ManifestRow, answer: list[Prediction] | VideoError) -> dict[str, Any]:
    told: dict[str, Any] = {"row": row.number, "video": row.video}
    if isinstance(answer, VideoError):
        return told | {"label": None, "probability": None, "predictions": None, "error": str(answer)}
    return told | {
        "label": answer[0].label,
        "probability": answer[0].probability,
        "predictions": [asdict(prediction) for prediction in answer],
        "error": None,
    }


def _write_part(target: Path, rows: list[dict[str, Any]], part_format: str) -> None:
    if part_format == "jsonl":
        content = "".join(to_json(row) + "\n" for row in rows).encode()
    else:
        arrow = _import_pyarrow()
        text = arrow.string()
        prediction = arrow.struct(
            [("label", text), ("index", arrow.int32()), ("probability", arrow.float64())]
        )
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
        content = sink.getvalue().to_pybytes()
    write_whole(target, content)


def _read_part(path: Path, part_format: str) -> Iterable[dict[str, Any]]:
    if part_format == "parquet":
        table: list[dict[str, Any]] = _import_pyarrow().parquet.read_table(path).to_pylist()
        return table
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# The end


def _sum_up(folder: Path, report: BatchReport, part_format: str) -> BatchReport:
    """Count what the parts hold; write the summary and the list of bad videos where all of them are there."""
    report.num_parts_left = sum(
        not _part_path(folder, part, part_format).is_file() for part in range(report.num_parts)
    )
    bad_path = folder / f".{BAD_NAME}.{os.getpid()}"
    try:
        with bad_path.open("w", encoding="utf-8") as bad:
            for row in read_parts(folder):
                if row["error"] is None:
                    report.num_recognised += 1
                    continue
                report.num_bad += 1
                kind = _kind(row["error"])
                if kind in report.reasons or len(report.reasons) < 100:  # of a million, no million in memory
                    report.reasons[kind] = report.reasons.get(kind, 0) + 1
                told = {"row": row["row"], "video": row["video"], "reason": row["error"]}
                bad.write(to_json(told) + "\n")
        if report.num_parts_left == 0:
            for left in folder.glob(
                ".part-*.partial"
            ):  # of processes that were killed; none writes parts now
                left.unlink(missing_ok=True)
            os.replace(bad_path, folder / BAD_NAME)
            summary = {
                **json.loads((folder / PLAN_NAME).read_text(encoding="utf-8")),
                "num_recognised": report.num_recognised,
                "num_bad": report.num_bad,
                "reasons": report.reasons,
            }
            write_whole(folder / SUMMARY_NAME, to_json(summary, indent=2).encode())
    finally:
        bad_path.unlink(missing_ok=True)
    return report


def _kind(reason: str) -> str:
    """The reason without what differs from file to file."""
    return reason.split(": ", 1)[-1].split(" (")[0][:100]
