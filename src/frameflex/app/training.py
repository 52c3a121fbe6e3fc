"""Fine-tuning on what was taught: ``frameflex train`` in a process of its own, which no tab's closing ends."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

_POINTS = 200  # of a curve
_LINES = 12
_STOP_SECONDS = 60.0  # to save what there is


class Training:
    """One run at a time.

    Args:
        lessons: the folder to train on.
        runs: the folder in which each run gets one.
    """

    def __init__(self, lessons: Path, runs: Path) -> None:
        self.lessons, self.runs = lessons, runs
        self.state: Literal["none", "running", "stopping", "stopped", "failed", "done"] = "none"
        self.output: Path | None = None
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        return self.state in ("running", "stopping")

    @property
    def best(self) -> Path | None:
        """The network of a run that has one."""
        path = self.output / "best.safetensors" if self.output else None
        return path if path and path.exists() else None

    def start(self, options: Sequence[str]) -> None:
        """Begin a run.

        Args:
            options: of ``frameflex train``, beside the folder and the output.

        Raises:
            ValueError: if one is running.
        """
        with self._lock:
            if self.running:
                raise ValueError("a training is running; stop it first")
            self.output = self.runs / time.strftime("taught-%Y%m%d-%H%M%S")
            self._begin([*options, "--output", str(self.output)])
            self._options = list(options)

    def go_on(self) -> None:
        """Go on with the run that was stopped. Raises ValueError if there is none."""
        with self._lock:
            if self.state not in ("stopped", "failed") or self.output is None:
                raise ValueError("no training was stopped; start one")
            self._begin([*self._options, "--output", str(self.output), "--resume"])

    def _begin(self, options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "frameflex", "train", str(self.lessons), *options]
        self._lines.clear()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the page; it stops the run itself, in order
        )
        self.state = "running"
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip():
                self._lines.append(line.strip())
        status = process.wait()
        if status == 0:
            self.state = "done"
        else:
            self.state = "stopped" if self.state == "stopping" else "failed"

    def stop(self) -> None:
        """Ask the run to save what there is, and end."""
        with self._lock:
            if self.state == "running" and self._process is not None:
                self.state = "stopping"
                if sys.platform == "win32":
                    self._process.terminate()  # there is no gentle way; the last checkpoint is whole
                else:
                    self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Stop, and wait for it."""
        self.stop()
        if self._process is None or self._reader is None:
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("the training did not end within %g s; it is killed", _STOP_SECONDS)
            self._process.kill()
        self._reader.join(5)

    def report(self) -> dict[str, Any]:
        """How it goes, for a tab."""
        steps, validations, total = self._log()
        every = max(1, len(steps) // _POINTS)
        return {
            "type": "training",
            "state": self.state,
            "output": str(self.output) if self.output else None,
            "steps": steps[::-1][::every][::-1],
            "validations": validations,
            "num_steps": total,
            "lines": list(self._lines),
            "usable": self.best is not None and not self.running,
        }

    def _log(self) -> tuple[list[tuple[int, float, float]], list[dict[str, float]], int]:
        """(step, loss, accuracy) of each step, and each validation."""
        steps: list[tuple[int, float, float]] = []
        validations: list[dict[str, float]] = []
        total = 0
        path = self.output / "log.jsonl" if self.output else None
        if path is None or not path.exists():
            return steps, validations, total
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # the last line is being written
                continue
            if event["event"] == "step":
                steps.append((event["step"], event["loss"], event["accuracy"]))
                total = event["num_steps"]
            elif event["event"] == "validation":
                best = max(result["top1"] for result in event["results"])
                validations.append({"step": steps[-1][0] if steps else 0, "top1": best})
        return steps, validations, total
