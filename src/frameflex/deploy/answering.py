"""What happens to one video of a long list, from its file to its row: the same on one machine and on many."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from frameflex.checkpoint import fetch
from frameflex.data.clips import ClipDataset, Crops
from frameflex.data.manifest import ManifestRow
from frameflex.data.records import BadVideo, VideoRecord
from frameflex.data.transforms import EvalTransform
from frameflex.deploy.recognizer import Prediction, Recognizer
from frameflex.export.running import ExportedModel
from frameflex.sharing import Work
from frameflex.video import Limits

__all__ = ["BatchOptions", "Elsewhere", "bad_row", "digest_of", "load_same", "precision_of_same", "work_of"]

PATIENCE_SECONDS = 600.0  # for one video, beside what its limits allow


@dataclass(frozen=True)
class BatchOptions:
    """What decides the answers; the fields as in `Recognizer.recognize_many`."""

    num_frames: int | None = None
    budget: str | tuple[int, ...] | None = None
    confidence: float = 0.8
    top: int = 5
    views: str = "1x1"


@dataclass(frozen=True)
class Elsewhere:
    """The recognizers of other machines.

    Attributes:
        load: gives one, in a process there; can be pickled.
        precision: what they compute in.
        num_gpus: that each has.
    """

    load: Callable[[], Recognizer]
    precision: str
    num_gpus: int = 0


def work_of(
    recognizer: Recognizer, options: BatchOptions, batch_size: int, elsewhere: Elsewhere | None = None
) -> Work:
    """The work of `ManifestRow`s, whose answers are rows of a part.

    Args:
        recognizer: of this process.
        options: what decides the answers.
        batch_size: videos through a GPU at once.
        elsewhere: those that answer in its place.

    Raises:
        ValueError: if an option is out of range.
    """
    rule = recognizer.clip_rule(options.num_frames, options.views, budget=options.budget)
    load = elsewhere.load if elsewhere else partial(_same, recognizer)
    gpu = elsewhere.num_gpus > 0 if elsewhere else recognizer.device.type != "cpu"
    return Work(
        read=partial(_read, rule),
        network=partial(_network, load, options, batch_size),
        separate=gpu or isinstance(recognizer.model, ExportedModel),
        num_gpus=elsewhere.num_gpus if elsewhere else 0,
        batch_size=batch_size if gpu else 1,
        timeout_seconds=PATIENCE_SECONDS + (recognizer.limits.max_seconds or 0.0),
    )


def load_same(
    checkpoint: str, digest: str, *, device: str, limits: Limits, precision: str | None = None
) -> Recognizer:
    """A checkpoint's recognizer, in a process of another machine.

    Raises:
        ValueError: if what has its name there has another content, or it can't compute as asked.
    """
    if digest_of(checkpoint) != digest:
        raise ValueError(
            f"{checkpoint} on the machine {platform.node()} is not the checkpoint that it is here. Copy it there"
        )
    return Recognizer.from_checkpoint(checkpoint, device=device, precision=precision, limits=limits)


def precision_of_same(load: Callable[..., Recognizer]) -> str:
    """What "auto" is to a recognizer of `load_same` on its machine."""
    return load(precision="auto").precision


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


def bad_row(row: ManifestRow, reason: str) -> dict[str, Any]:
    """The row of a video that has no answer."""
    return {**_named(row), "label": None, "probability": None, "predictions": None, "error": reason}


def _named(row: ManifestRow) -> dict[str, Any]:
    return {"row": row.number, "video": row.video}


def _read(rule: ClipDataset, row: ManifestRow) -> tuple[ManifestRow, Crops | BadVideo]:
    return row, rule.decode(VideoRecord(row.path, None, str(row.path)))


def _same(recognizer: Recognizer) -> Recognizer:
    return recognizer


def _network(
    load: Callable[[], Recognizer], options: BatchOptions, batch_size: int
) -> Callable[[Sequence[Any]], list[Any]]:
    recognizer = load()
    # On a CPU each video alone: its frames are enough to fill a core, and no library chooses by its neighbours.
    return partial(_rows, recognizer, options, batch_size if recognizer.device.type != "cpu" else 1)


def _rows(
    recognizer: Recognizer,
    options: BatchOptions,
    batch_size: int,
    found: Sequence[tuple[ManifestRow, Crops | BadVideo]],
) -> list[dict[str, Any]]:
    """Answer what was read, always as many videos at once, so that no answer depends on its neighbours."""
    rule = recognizer.clip_rule(options.num_frames, options.views, budget=options.budget)
    assert isinstance(rule.transform, EvalTransform)
    rows = {row.number: bad_row(row, one.reason) for row, one in found if isinstance(one, BadVideo)}
    good = [(row, one) for row, one in found if isinstance(one, Crops)]
    for start in range(0, len(good), batch_size):
        few = good[start : start + batch_size]
        each = [one.clips(rule.transform) for _, one in few]
        clips = {count: torch.stack([clips[count] for clips in each]) for count in rule.frame_counts}
        names = [str(row.path) for row, _ in few]
        logits = recognizer.look(clips, options.confidence, names, batch_size=batch_size)
        for (row, _), of_one in zip(few, logits, strict=True):
            rows[row.number] = _row(row, recognizer.ranked(of_one, options.top))
    return [rows[row.number] for row, _ in found]


def _row(row: ManifestRow, answers: Sequence[Prediction]) -> dict[str, Any]:
    return {
        **_named(row),
        "label": answers[0].label,
        "probability": answers[0].probability,
        "predictions": [asdict(prediction) for prediction in answers],
        "error": None,
    }
