"""Recognise the videos of a long manifest, whoever shares the work, in parts that a restart keeps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from frameflex.checkpoint import fetch
from frameflex.data.manifest import ManifestRow, read_manifest
from frameflex.data.quarantine import in_quarantine
from frameflex.deploy.answering import BatchOptions, Elsewhere, bad_row, digest_of, work_of
from frameflex.deploy.parts import BatchReport, PartFormat, Parts, read_parts
from frameflex.deploy.recognizer import Recognizer
from frameflex.sharing import Engine, Here
from frameflex.storage import Place, place_of
from frameflex.video import VideoError
from frameflex.video.isolated import Lost

__all__ = [
    "BatchOptions",
    "BatchReport",
    "Elsewhere",
    "Listed",
    "digest_of",
    "predict_manifest",
    "read_parts",
]


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
    engine: Engine | None = None,
    elsewhere: Elsewhere | None = None,
    batch_size: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> BatchReport:
    """Recognise the videos of a manifest.

    Answers are those of `Recognizer.recognize_many`, and on hardware of one kind the same to the last bit, whichever
    videos are looked at together. The manifest is read through once before anything is recognised, so that a wrong
    row is told at once; memory doesn't grow with its length. A video that crashes or hangs its decoder is a bad one.

    Args:
        recognizer: with the checkpoint.
        manifest: as for `read_manifest`, here or in object storage.
        output: a folder for the parts, here or in object storage; made if it is not there.
        checkpoint_digest: tells this checkpoint from others: `digest_of` its file.
        options: what decides the answers.
        video_dir: where relative paths start; by default at the manifest's folder.
        quarantine: path -> reason of videos to leave out, as `read_quarantine` gives them.
        on_bad_video: "skip" writes the reason into the video's row and counts it, "error" stops at the first.
        part_format: "parquet" or "jsonl"; by default Parquet where pyarrow is installed.
        rows_a_part: by default at most 1,000, and less where that gives fewer than 8 parts; in a folder that was
            begun, as it was begun.
        engine: shares the work; by default one process of this machine. Another may continue what one began.
        elsewhere: what answers where the engine is of other machines; by default the recognizer.
        batch_size: videos through a GPU at once; a CPU has one after another.
        on_progress: called with (rows done, rows in all).

    Returns:
        What is there now; `_summary.json` and `_bad.jsonl` say it, too.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ValueError: if the manifest is wrong, an option is out of range, or the folder holds parts of something else.
        VideoError: at the first bad video, with `on_bad_video="error"`.
        RuntimeError: if another process works in the folder.
        OSError, StorageError: if a part can't be written, or storage be read; the parts before it stay.
    """
    options = options or BatchOptions()
    _check_arguments(on_bad_video, part_format, rows_a_part)
    listed = Listed.of(manifest, video_dir)
    num_rows = sum(1 for _ in listed.rows())
    parts = Parts(output, num_rows, part_format, rows_a_part)
    with closing(parts):
        precision = elsewhere.precision if elsewhere else recognizer.precision
        parts.begin(_plan_of(precision, listed, options, checkpoint_digest, parts, video_dir, quarantine))
        work = work_of(recognizer, options, batch_size, elsewhere)
        left = (row for row in listed.rows() if parts.lacks(row.number))
        tasks = _without(quarantine or {}, left, parts)
        with closing((engine or Here(1)).run(work, tasks)) as answers:
            for row, answer in answers:
                if isinstance(answer, Lost):
                    answer = bad_row(row, f"video {row.path}: {answer.reason}")
                if answer["error"] is not None and on_bad_video == "error":
                    raise VideoError(f"row {row.number} of the manifest: {answer['error']}")
                parts.add(answer)
                if on_progress is not None:
                    on_progress(parts.num_rows_done, num_rows)
        return parts.sum_up()


@dataclass(frozen=True)
class Listed:
    """A manifest as a file here.

    Attributes:
        name: its path or address.
        file: where it is.
        start: where its relative paths start.
    """

    name: str
    file: Path
    start: Place

    @classmethod
    def of(cls, manifest: str | os.PathLike[str], video_dir: str | os.PathLike[str] | None) -> Listed:
        """Bring it here where it is in object storage."""
        place = place_of(manifest)
        if isinstance(place, Path):
            return cls(str(place), place, place_of(video_dir or place.parent))
        home = place.address.rpartition("/")[0]
        return cls(place.address, fetch(place.address), place_of(video_dir or home))

    def rows(self) -> Iterator[ManifestRow]:
        """As `read_manifest` gives them; its errors say the manifest's own name."""
        try:
            yield from read_manifest(self.file, video_dir=self.start)
        except (ValueError, FileNotFoundError) as error:
            error.args = (str(error).replace(str(self.file), self.name),)
            raise


def _without(
    quarantine: Mapping[str, str], rows: Iterator[ManifestRow], parts: Parts
) -> Iterator[ManifestRow]:
    """The rows that the list doesn't name; those that it does have their reason at once."""
    for row in rows:
        reason = in_quarantine(quarantine, row.path)
        if reason is None:
            yield row
        else:
            parts.add(bad_row(row, f"left out by the quarantine list: {reason}"))


def _check_arguments(on_bad_video: str, part_format: str | None, rows_a_part: int | None) -> None:
    if on_bad_video not in ("error", "skip"):
        raise ValueError(f"on_bad_video is {on_bad_video!r}; expected 'error' or 'skip'.")
    if part_format not in (None, "parquet", "jsonl"):
        raise ValueError(f"part_format is {part_format!r}; expected 'parquet' or 'jsonl'.")
    if rows_a_part is not None and rows_a_part < 1:
        raise ValueError(f"rows_a_part is {rows_a_part}; expected at least 1.")


def _plan_of(
    precision: str,
    listed: Listed,
    options: BatchOptions,
    checkpoint_digest: str,
    parts: Parts,
    video_dir: str | os.PathLike[str] | None,
    quarantine: Mapping[str, str] | None,
) -> dict[str, Any]:
    """All that the parts of one folder have in common."""
    return {
        "format_version": 1,
        "manifest": listed.name,
        "manifest_sha256": digest_of(listed.file),
        "video_dir": None if video_dir is None else os.fspath(video_dir),
        "num_rows": parts.num_rows,
        "rows_a_part": parts.rows_a_part,
        "part_format": parts.format,
        "checkpoint_sha256": checkpoint_digest,
        "quarantine_sha256": _digest_of_text(json.dumps(sorted((quarantine or {}).items()))),
        "precision": precision,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in asdict(options).items()},
    }


def _digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
