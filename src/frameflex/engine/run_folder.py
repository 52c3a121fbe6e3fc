"""The folder of a run: which checkpoint to go on from, how many are kept, and the log."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from frameflex.checkpoint import (
    Checkpoint,
    CheckpointError,
    NewerFormatError,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from frameflex.data.locking import lock
from frameflex.engine.recipe import RecipeError

logger = logging.getLogger(__name__)

_LOCK = ".lock"
_FORMER = re.compile(r"step-(\d+)\.safetensors")


class RunFolder:
    """Checkpoints of one run, the newest as ``last.safetensors``, those before it as ``step-00001234.safetensors``.

    At no moment is there none: a new checkpoint is complete on the disk before it takes the name of the former one,
    and that one has its second name before it loses the first.

    Args:
        path: of the folder; need not be there yet.
        keep: how many of the newest checkpoints stay, at least 1.

    Attributes:
        last: the newest checkpoint.
        best: the one with the highest validation accuracy.
        log: a line for each step and validation.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path, self.keep = path, keep
        self.last, self.best, self.log = (
            path / name for name in ("last.safetensors", "best.safetensors", "log.jsonl")
        )
        self.step_of_last: int | None = None

    def resumable(self) -> list[Path]:
        """The checkpoints that a run can go on from, newest first."""
        found = [
            (int(match[1]), file)
            for file in self.path.glob("step-*")
            if (match := _FORMER.fullmatch(file.name))
        ]
        former = [file for _, file in sorted(found, reverse=True)]
        return [self.last, *former] if self.last.exists() else former

    def newest_complete(self) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that can be read; None where there is none at all. What is passed over is said.

        Raises:
            CheckpointError: if there are checkpoints and none can be read, or one is of a newer frameflex.
        """
        damaged = []
        for path in self.resumable():
            try:
                checkpoint = load_checkpoint(path, training=True)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                damaged.append(path.name)
                logger.warning("%s. The checkpoint before it is tried", error)
                continue
            step = checkpoint.training.values.get("step") if checkpoint.training else None
            if damaged:
                logger.warning("going on from %s, at step %s; steps after it are done again", path, step)
            elif path == self.last:
                self.step_of_last = step
            return path, checkpoint
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints in {self.path} can be read ({', '.join(damaged)}); start anew with another "
                "--output, or copy a whole one back as last.safetensors"
            )
        return None

    def in_use(self) -> bool:
        """Whether files are there, of a run or of anything else."""
        return self.path.is_dir() and any(file.name != _LOCK for file in self.path.iterdir())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training into this folder; it is made where there is none.

        A run that ends before it wrote anything leaves nothing. What a lock promises: `frameflex.data.locking`.

        Raises:
            RecipeError: if another process holds it.
        """
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a+b") as file:
            if (
                not lock(file) or os.fstat(file.fileno()).st_nlink == 0
            ):  # deleted by a run that ended meanwhile
                file.seek(0)
                who = file.read(300).decode("utf-8", "replace").strip()
                raise RecipeError(
                    f"output {self.path} is in use: {who or 'another process'} is training there. Wait for it or "
                    "stop it, or choose another --output"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            try:
                yield
            finally:
                with suppress(PermissionError):  # Windows keeps a file that is open
                    (self.path / _LOCK).unlink(missing_ok=True)
                if not self.in_use():
                    with suppress(OSError):  # something else came to lie there
                        for path in made:
                            path.rmdir()

    def clean(self) -> None:
        """Remove what writers that were killed left half-written."""
        for path in (self.last, self.best):
            remove_leftovers(path)

    def save(self, checkpoint: Checkpoint, *, step: int) -> None:
        """Write the newest checkpoint, keep the former ones that there is room for, remove the others."""
        if self.keep > 1 and self.last.exists() and self.step_of_last not in (None, step):
            former = self.path / f"step-{self.step_of_last:08d}.safetensors"
            former.unlink(missing_ok=True)
            try:
                os.link(self.last, former)
            except OSError:  # a file system without links; resuming looks for both names
                os.replace(self.last, former)
        save_checkpoint(self.last, checkpoint)
        self.step_of_last = step
        for file in [file for file in self.resumable() if file != self.last][self.keep - 1 :]:
            file.unlink(missing_ok=True)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the best checkpoint so far."""
        save_checkpoint(self.best, checkpoint)


class RunLog:
    """``log.jsonl``: a line for each step and validation; TensorBoard beside it on request.

    Args:
        path: of the file; lines are added at its end.
        step: where the run stands. Later steps, of a run that was killed after its last checkpoint, are cut off:
            they come again.
        epoch: epochs that are done, validation included.
        make_board: TensorBoard's SummaryWriter, or None.
    """

    def __init__(
        self, path: Path, *, step: int, epoch: int, make_board: Callable[..., Any] | None = None
    ) -> None:
        cut_log(path, step=step, epoch=epoch)
        self.file = path.open("a", encoding="utf-8")
        self.board = (
            make_board(str(path.with_name("tensorboard")), purge_step=step + 1) if make_board else None
        )
        self.step = step

    def close(self) -> None:
        self.file.close()
        if self.board:
            self.board.close()

    def write(self, event: str, values: dict[str, Any]) -> None:
        """Add a line."""
        self.step = values.get("step", self.step)
        try:
            self.file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
            self.file.flush()
        except OSError as error:
            raise OSError(
                f"{self.file.name} could not be written: {error.strerror}. The checkpoints are whole: make room, "
                "and go on with --resume"
            ) from error
        if self.board and event == "step":
            for name in ("loss", "accuracy", "learning_rate", "clips_per_second", "waiting"):
                self.board.add_scalar(f"train/{name}", values[name], self.step)
        elif self.board and event == "validation":
            for result in values["results"]:
                self.board.add_scalar(f"validation/top1_{result['num_frames']}f", result["top1"], self.step)


def cut_log(path: Path, *, step: int, epoch: int) -> None:
    """Cut a log back to what a checkpoint has behind it: ``step`` steps, and the validations of ``epoch`` epochs.

    A last line that was being written when the run was killed goes, too.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                event = json.loads(line)
                kept = line.endswith(b"\n") and (
                    event["step"] <= step if "step" in event else event.get("epoch", -1) < epoch
                )
            except (ValueError, KeyError, TypeError):
                kept = False
            if not kept:
                break
            end += len(line)
    os.truncate(path, end)


def expect_nothing_in(folder: RunFolder) -> None:
    """Refuse a folder with files in it, of a run or of anything else, with a RecipeError."""
    if folder.in_use():
        raise RecipeError(
            f"output {folder.path} holds files already; expected an empty or new folder. "
            "Continue that run with --resume, or choose another --output"
        )
