"""One network, many who ask: clips that wait at the same time go through it together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frameflex.deploy.recognizer import Recognizer


@dataclass(frozen=True)
class Looked:
    """What the network said of one clip.

    Attributes:
        probabilities: of each class, ``(K,)``.
        seconds: that the forward took, of the whole batch.
        batch_size: clips that went through together.
    """

    probabilities: Tensor
    seconds: float
    batch_size: int


@dataclass
class _Waiting:
    clip: Tensor | None
    work: Callable[[], Any] | None
    answer: Future[Any]


class Batcher:
    """A thread in which the network runs, and nowhere else.

    Nothing waits so that a batch gets larger: what comes while the network is busy makes the next batch.

    Args:
        recognizer: whose network.
        batch_size: most clips at once, at least 1.
    """

    def __init__(self, recognizer: Recognizer, *, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.recognizer, self.batch_size = recognizer, batch_size
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._closed = False
        self._thread.start()

    def look(self, clip: Tensor) -> Future[Looked]:
        """Ask for the probabilities of a clip ``(V, 3, T, h, w)``."""
        return self._put(_Waiting(clip, None, Future()))

    def do(self, work: Callable[[], Any]) -> Future[Any]:
        """Do something else with the network, between two batches."""
        return self._put(_Waiting(None, work, Future()))

    def close(self) -> None:
        """End the thread after what it is doing; who still waits is told."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _put(self, waiting: _Waiting) -> Future[Any]:
        if self._closed:
            raise RuntimeError("the network's thread has ended")
        self._queue.put(waiting)
        return waiting.answer

    def _run(self) -> None:
        waiting: list[_Waiting] = []
        while not self._closed:
            if not waiting:
                waiting = self._taken(block=True)
            waiting += self._taken(block=False)
            if not waiting or self._closed:
                continue
            first = waiting[0]
            if first.clip is None:
                del waiting[0]
                self._answer(first)
                continue
            same = [one for one in waiting if one.clip is not None and one.clip.shape == first.clip.shape]
            batch = same[: self.batch_size]
            chosen = set(map(id, batch))
            waiting = [one for one in waiting if id(one) not in chosen]
            self._look(batch)
        for one in [*waiting, *self._taken(block=False)]:
            one.answer.cancel()

    def _taken(self, *, block: bool) -> list[_Waiting]:
        taken: list[_Waiting] = []
        try:
            while True:
                one = self._queue.get(block=block)
                block = False
                if one is None:
                    return taken
                taken.append(one)
        except queue.Empty:
            return taken

    def _answer(self, one: _Waiting) -> None:
        assert one.work is not None
        if not one.answer.set_running_or_notify_cancel():
            return
        try:
            one.answer.set_result(one.work())
        except BaseException as error:  # it belongs to who asked
            one.answer.set_exception(error)

    def _look(self, batch: list[_Waiting]) -> None:
        batch = [one for one in batch if one.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            answers = self._forward(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for one in batch:  # a clip of which the network makes no numbers takes no other one along
                try:
                    [answer] = self._forward([one])
                except Exception as own:
                    one.answer.set_exception(own)
                else:
                    one.answer.set_result(answer)
            return
        for one, answer in zip(batch, answers, strict=True):
            one.answer.set_result(answer)

    def _forward(self, batch: list[_Waiting]) -> list[Looked]:
        start = time.perf_counter()
        clips = torch.stack([one.clip for one in batch if one.clip is not None])  # (B, V, 3, T, h, w)
        probabilities = self.recognizer.probabilities(clips)
        seconds = time.perf_counter() - start
        return [Looked(row, seconds, len(batch)) for row in probabilities]
