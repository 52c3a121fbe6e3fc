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
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, TypeAlias

__all__ = ["Isolated", "Lost", "run_isolated"]

IDLE_SECONDS = 1.0  # how often an idle process looks whether the one that started it still lives
GRACE_SECONDS = 10  # after its deadline a process ends itself, should the one that started it be gone


_Task: TypeAlias = tuple[Any]  # a box: a task may be None, and two may be equal


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
    function: Callable[[Any], Any], tasks: Iterable[Any], *, num_workers: int, timeout_seconds: float
) -> Generator[tuple[Any, Any], None, None]:
    """Apply a function to every task, in processes; results come as they are ready.

    Who is free takes the next task, so that a long one holds up nobody; tasks are drawn from the iterable as they are
    taken. A crash of a process that had other tasks before is tried once more in a fresh one: what it did to the
    memory of its process may be the former task's fault.

    Args:
        function: at the top level of a module, so that another process finds it; with a result that can be pickled.
        tasks: its arguments.
        num_workers: processes at once, at least 1.
        timeout_seconds: for one task, above 0.

    Yields:
        (task, what the function returned, or `Lost`).

    Raises:
        RuntimeError: if the function raised; what it should survive it has to catch itself.
        ValueError: if a number is out of range.
    """
    if num_workers < 1 or not timeout_seconds > 0:
        raise ValueError(
            f"num_workers is {num_workers} and timeout_seconds {timeout_seconds}; expected at least 1 and more than 0"
        )
    return _run(function, ((task,) for task in tasks), num_workers, timeout_seconds)


def _run(
    function: Callable[[Any], Any], tasks: Iterator[_Task], num_workers: int, timeout_seconds: float
) -> Generator[tuple[Any, Any], None, None]:
    pending = deque(islice(tasks, num_workers))  # as many as could be started on at once
    retried: list[_Task] = []
    workers: list[_Worker] = []
    try:
        while pending or any(worker.task is not None for worker in workers):
            while len(workers) < num_workers and sum(worker.task is None for worker in workers) < len(
                pending
            ):
                workers.append(_Worker(function, timeout_seconds))
            for worker in workers:
                if worker.ready and worker.task is None and pending:
                    worker.give(pending.popleft())
                    pending.extend(islice(tasks, 1))
            done = []
            for worker in _heard(workers):
                task, result = worker.task, worker.receive()
                if isinstance(result, Lost):
                    workers.remove(worker)
                    assert task is not None
                    if (
                        result.kind == "crashed"
                        and worker.num_done
                        and not any(task is one for one in retried)
                    ):
                        retried.append(task)
                        pending.appendleft(task)
                        continue
                elif pending:  # before its result is used, which may take long
                    worker.give(pending.popleft())
                    pending.extend(islice(tasks, 1))
                if task is not None:
                    done.append((task[0], result))
            yield from done
    finally:
        for worker in workers:
            worker.end()


def _heard(workers: list[_Worker]) -> list[_Worker]:
    """Wait for workers that say something, die, or are past their deadline."""
    deadline = min((worker.deadline for worker in workers if worker.task is not None), default=math.inf)
    patience = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    heard = wait([worker.connection for worker in workers], patience)
    now = time.monotonic()
    return [w for w in workers if w.connection in heard or (w.task is not None and now >= w.deadline)]


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
        if not worker.ready:
            worker.receive()
        worker.give((task,))
        if not worker.connection.poll(self._timeout_seconds):
            worker.deadline = 0.0
        answer = worker.receive()
        if isinstance(answer, Lost):
            self._worker = None
            self.start()
        return answer

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
        self.task: _Task | None = None
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

    def give(self, task: _Task) -> None:
        self.task, self.deadline = task, time.monotonic() + self.timeout_seconds
        with contextlib.suppress(
            ConnectionError
        ):  # it died meanwhile: reading from it says so, for this task
            self.connection.send(task[0])

    def receive(self) -> Any:
        """What it made of its task, or `Lost`, with which it has ended; None where it says that it is ready.

        Raises:
            RuntimeError: if the function raised, or it died without a task.
        """
        if time.monotonic() >= self.deadline and not self.connection.poll():
            self.end()
            return Lost("timed-out", f"not done after {self.timeout_seconds:g} s; its process was ended")
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            status = self.end()
            if self.task is None:
                raise RuntimeError(f"a decoding process can't work: it ended idle ({status})") from None
            return Lost("crashed", f"the decoder's process died of it ({status})")
        if answer is None:
            self.ready = True
            return None
        good, value = answer
        task, self.task, self.deadline = self.task, None, math.inf
        if not good:
            raise RuntimeError(f"{task[0] if task else '?'}: {value}")
        self.num_done += 1
        return value

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
    import torch  # seconds, where this process is a new one and not a copy

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
