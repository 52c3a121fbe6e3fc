"""Batches from processes that decode: read ahead, and no process left when the work ends, however it ends."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from frameflex.data.clips import Batch, ClipDataset, collate

PATIENCE_SECONDS = 2.0  # for workers that are asked to end; one in the middle of a long video doesn't hear it


@contextmanager
def read_batches(
    dataset: ClipDataset, *, batch_size: int, num_workers: int, sampler: Iterable[int] | None = None
) -> Iterator[Iterator[Batch]]:
    """The batches of a data set, the next one being read while one is used; for work that isn't training.

    By processes, or without any by a thread: decoders let other threads run, and a thread needs no time to start,
    where a process needs seconds. Whatever ends the block, none of them is left behind it. A data set that *raises*
    does so in a worker, where the traceback is all that is left of the error: let it return its bad videos.

    Args:
        dataset: gives samples, and what can't be read as `BadVideo`.
        batch_size: videos at once.
        num_workers: processes that decode.
        sampler: indices of the videos; by default all, in their order.
    """
    loader: DataLoader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=end_with_parent,
    )
    if not num_workers:
        with contextlib.closing(read_ahead(loader)) as ahead:
            yield ahead
        return
    batches = shielded(loader)
    try:
        yield batches
    finally:
        end_workers(batches)


def shielded(loader: DataLoader[Any]) -> Iterator[Any]:
    """Iterate over a loader whose workers leave Ctrl-C and SIGTERM to the main process, which calls `end_workers`.

    Both often go to the whole group of processes. A worker that died of them would take the main process along
    before that has saved its state; so it is the main process that ends its workers. The signals are blocked while
    the workers start, who inherit that, and not later: a worker that has just started is safe, too.
    """
    if loader.num_workers == 0:
        return iter(loader)
    if not _started:
        # Before multiprocessing's own, which sends daemons SIGTERM and waits for them without a limit.
        atexit.register(_end_all)
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    before = mask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if mask else None
    try:
        batches = iter(loader)
        _started.add(batches)
        return batches
    finally:
        if mask:
            mask(signal.SIG_SETMASK, before)


def end_workers(batches: Any) -> None:
    """End the workers of a loader's iterator: those that don't hear in time, hard.

    Args:
        batches: what `shielded` gave; without workers nothing happens.
    """
    workers = list(getattr(batches, "_workers", ()))
    if not workers:
        return
    _started.discard(batches)

    def end_hard() -> None:
        if batches._worker_pids_set:  # or torch takes their end for an accident, and raises
            batches._worker_pids_set = False
            _remove_worker_pids(id(batches))
        for worker in workers:
            if worker.is_alive():
                worker.kill()  # SIGTERM is blocked in them

    later = threading.Timer(PATIENCE_SECONDS, end_hard)
    later.daemon = True
    later.start()
    try:
        batches._shutdown_workers()
    finally:
        later.cancel()
        end_hard()
        for worker in workers:
            worker.join(PATIENCE_SECONDS)


_started: weakref.WeakSet[Any] = weakref.WeakSet()  # iterators with workers


def _end_all() -> None:
    for batches in list(_started):
        end_workers(batches)


def read_ahead(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """The batches of a loader without workers, the next one read by a thread while one is used."""
    batches, end = iter(loader), object()
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as pool:
        coming = pool.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = pool.submit(next, batches, end)
            yield batch


def end_with_parent(worker: int) -> None:
    """A loader's ``worker_init_fn``: its worker ends when the process that it decodes for is gone, however it went.

    PyTorch's own watch asks who started the worker. Under "forkserver", Python 3.14's default, that is a server which
    lives as long as its workers do, so that those of a killed process would wait, and keep their memory, forever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
