"""Memory and threads of a process that runs networks on a CPU: what the command line does, for any program."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from frameflex.allocator import keep_freed_memory, return_freed_memory
from frameflex.arguments import whole


def tune_process(
    *, num_threads: int | None = None, num_workers: int = 0, keep_memory: bool = True
) -> ProcessTuning:
    """Give this process the memory and threads that the command line gives itself.

    Freed memory is kept for its next use, which takes a fifth off the time of a network on a CPU under Linux; the
    process then stays as large as it has been. And PyTorch takes no thread of a core that a process which decodes
    needs: one that waits for its core keeps all others waiting, and two threads and a worker on two cores took twice
    as long as one and a worker.

    Call it once, before the first forward, for the rest of the process; or as a context manager, for a block, behind
    which threads and memory are given back. Importing frameflex does none of this.

    Args:
        num_threads: of PyTorch's networks; by default as many as it has, but no more than the cores of this process
            less ``num_workers``.
        num_workers: processes that decode beside this one, as in `Recognizer.recognize_many`.
        keep_memory: see `keep_freed_memory`, which says where it can be done.

    Returns:
        What was done; a context manager.

    Raises:
        ValueError: if a number is out of range.

    Examples:
        >>> import torch
        >>> before = torch.get_num_threads()
        >>> with tune_process(num_threads=1) as tuning:
        ...     tuning.num_threads, torch.get_num_threads()
        (1, 1)
        >>> torch.get_num_threads() == before
        True
    """
    if num_threads is not None:
        num_threads = whole(num_threads, "num_threads", least=1)
    num_workers = whole(num_workers, "num_workers")
    import torch

    before = torch.get_num_threads()
    chosen = num_threads or max(1, min(before, available_cores() - num_workers))
    torch.set_num_threads(chosen)
    return ProcessTuning(chosen, keep_memory and keep_freed_memory(), before)


class ProcessTuning:
    """What `tune_process` did. As a context manager it undoes that at the block's end.

    Attributes:
        num_threads: of PyTorch's networks.
        keeps_memory: whether freed memory is kept.
    """

    def __init__(self, num_threads: int, keeps_memory: bool, threads_before: int) -> None:
        self.num_threads = num_threads
        self.keeps_memory = keeps_memory
        self._threads_before = threads_before

    def __enter__(self) -> ProcessTuning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        torch.set_num_threads(self._threads_before)
        if self.keeps_memory:
            return_freed_memory()


@contextmanager
def objects_that_stay() -> Iterator[None]:
    """A block that makes hundreds of thousands of objects that stay, as importing PyTorch and timm does.

    Python would search them all for garbage each time that they have grown by a quarter, and again later; so here it
    doesn't, and leaves what was made out of its searches for good.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
