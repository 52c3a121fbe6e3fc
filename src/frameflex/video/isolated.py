"""Work on untrusted files in processes of their own: a hang is ended, and a crash takes nothing else along.

`concurrent.futures` gives up all of its work when one process dies. Here each process works on one file at a time, so
that its death is pinned to that file; another process takes its place and the others never notice.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch

__all__ = ["Isolated", "Lost", "run_isolated"]

IDLE_SECONDS = 1.0  # how often an idle process looks whether the one that started it still lives
GRACE_SECONDS = 10  # after its deadline a process ends itself, should the one that started it be gone


@dataclass(frozen=True)
class Lost:
    """A task whose process had to be ended, or died.

    Attributes:
        kind: "timed-out" or "crashed".
        reason: for people.
    """

    kind: Literal["timed-out", "crashed"]
    reason: str


def run_isolated(
    function: Callable[[Any], Any], tasks: Sequence[Any], *, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Any]]:
    """Apply a function to every task, in processes; results come as they are ready.

    A crash of a process that had other tasks before is tried once more in a fresh one: what it did to the memory of
    its process may be the former task's fault.

    Args:
        function: at the top level of a module, so that another process finds it; with a result that can be pickled.
        tasks: its arguments.
        num_workers: processes at once, at least 1.
        timeout_seconds: for one task, above 0.

    Yields:
        (index of the task, what the function returned, or `Lost`).

    Raises:
        RuntimeError: if the function raised; what it should survive it has to catch itself.
        ValueError: if a number is out of range.
    """
    if num_workers < 1 or not timeout_seconds > 0:
        raise ValueError(
            f"num_workers is {num_workers} and timeout_seconds {timeout_seconds}; expected at least 1 and more than 0"
        )
    pending = deque(range(len(tasks)))
    retried: set[int] = set()
    workers: list[_Worker] = []
    try:
        while pending or any(worker.task is not None for worker in workers):
            while len(workers) < num_workers and sum(worker.task is None for worker in workers) < len(
                pending
            ):
                workers.append(_Worker(function, timeout_seconds))
            for worker in workers:
                if worker.ready and worker.task is None and pending:
                    worker.give(pending.popleft(), tasks)
            deadlines = [worker.deadline for worker in workers if worker.task is not None]
            patience = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            heard = wait([worker.connection for worker in workers], patience)
            for worker in list(workers):
                task = worker.task
                if worker.connection in heard:
                    try:
                        answer = worker.connection.recv()
                    except (EOFError, ConnectionError):
                        workers.remove(worker)
                        status = worker.end()
                        if task is None:
                            raise RuntimeError(
                                f"a decoding process ended while it was idle ({status})"
                            ) from None
                        if worker.num_done and task not in retried:
                            retried.add(task)
                            pending.appendleft(task)
                        else:
                            yield task, Lost("crashed", f"the decoder's process died of it ({status})")
                        continue
                    if answer is None:
                        worker.ready = True
                        continue
                    good, value = answer
                    if not good:
                        raise RuntimeError(f"{tasks[task] if task is not None else '?'}: {value}")
                    worker.num_done += 1
                    worker.task = None
                    if task is not None:
                        yield task, value
                elif task is not None and time.monotonic() >= worker.deadline:
                    workers.remove(worker)
                    worker.end()
                    yield (
                        task,
                        Lost("timed-out", f"not done after {timeout_seconds:g} s; its process was ended"),
                    )
    finally:
        for worker in workers:
            worker.end()


class Isolated:
    """One process that works on task after task, for who has them one at a time, as a service does.

    It is no copy of this process, which may have threads: where the system can, it is forked off a small one that has
    imported the function's module alone.

    Args:
        function: as for `run_isolated`.
        timeout_seconds: for one task, above 0.
    """

    def __init__(self, function: Callable[[Any], Any], *, timeout_seconds: float) -> None:
        self._function, self._timeout_seconds = function, timeout_seconds
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload([__name__, function.__module__])
        self._worker: _Worker | None = None

    def start(self) -> None:
        """Begin to start the process; a call that comes before it is ready waits for it."""
        if self._worker is None:
            self._worker = _Worker(self._function, self._timeout_seconds, self._context)

    def call(self, task: Any) -> Any:
        """What the function returns, or `Lost`; after that another process stands ready. One call at a time.

        Raises:
            RuntimeError: if the function raised; what it should survive it has to catch itself.
        """
        self.start()
        worker = self._worker
        assert worker is not None
        try:
            if not worker.ready:
                worker.connection.recv()
                worker.ready = True
            worker.give(0, [task])
            if not worker.connection.poll(self._timeout_seconds):
                self.close()
                self.start()
                return Lost("timed-out", f"not done after {self._timeout_seconds:g} s; its process was ended")
            good, value = worker.connection.recv()
        except (EOFError, ConnectionError):
            status = worker.end()
            self._worker = None
            if not worker.ready:
                raise RuntimeError(f"a decoding process can't be started ({status})") from None
            self.start()
            return Lost("crashed", f"the decoder's process died of it ({status})")
        if not good:
            raise RuntimeError(f"{task}: {value}")
        return value

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class _Worker:
    def __init__(
        self, function: Callable[[Any], Any], timeout_seconds: float, context: Any = multiprocessing
    ) -> None:
        self.connection, theirs = context.Pipe()
        self.timeout_seconds = timeout_seconds
        self.task: int | None = None
        self.num_done = 0
        self.ready = False
        self.deadline = math.inf
        # A copy holds this end of the pipe, too, and would not hear of this process's death.
        parent = os.getpid() if context is multiprocessing else None
        self.process = context.Process(
            target=_work, args=(theirs, function, timeout_seconds, parent), daemon=True
        )
        # Ctrl-C goes to the whole group: blocked while one starts, so that none is hit before it ignores it.
        mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
        before = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else None
        try:
            self.process.start()
        finally:
            if mask:
                mask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the end of the process is the end of the connection

    def give(self, task: int, tasks: Sequence[Any]) -> None:
        self.task, self.deadline = task, time.monotonic() + self.timeout_seconds
        with contextlib.suppress(
            ConnectionError
        ):  # it died meanwhile: reading from it says so, for this task
            self.connection.send(tasks[task])

    def end(self) -> str:
        """End the process, and say of what it died where it was dead already."""
        self.process.join(0.2)  # a connection closes a moment before its process is gone
        status = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.connection.close()
        if status is None:
            return "it was ended"
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"


def _work(
    connection: Connection, function: Callable[[Any], Any], timeout_seconds: float, parent: int | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)  # its handlers belong to the process that was copied, and may be locked
    torch.set_num_threads(1)
    with contextlib.suppress(OSError):  # no Linux
        # A file that takes all memory should cost this process, not the one with the network.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    connection.send(None)
    while True:
        while not connection.poll(IDLE_SECONDS):
            if parent is not None and os.getppid() != parent:
                return
        try:
            task = connection.recv()
        except EOFError:
            return
        if hasattr(signal, "alarm"):
            signal.alarm(math.ceil(timeout_seconds) + GRACE_SECONDS)
        try:
            answer: tuple[bool, Any] = (True, function(task))
        except Exception:
            answer = (False, traceback.format_exc())
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        try:
            connection.send(answer)
        except ConnectionError:
            return
