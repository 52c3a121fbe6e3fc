"""What happens to one video, whoever does it."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Engine", "Raised", "Work"]


@dataclass(frozen=True)
class Work:
    """What happens to one video.

    Attributes:
        read: from a task to what is read of its video; done in a process of its own, so that a file that hangs or
            crashes the decoder costs its own task and no other. It catches what the work should survive.
        network: loads what turns a list of what was read into as many answers; called once in each process that
            answers. None where what is read is the answer.
        separate: the network has processes of its own, since it needs a GPU, or threads. Else whoever reads a video
            answers it, in one thread.
        num_gpus: that each process of a separate network has.
        batch_size: how many videos a separate network is given at once, at most. Its answers must not depend on that.
        timeout_seconds: for one video.
    """

    read: Callable[[Any], Any]
    network: Callable[[], Callable[[Sequence[Any]], list[Any]]] | None = None
    separate: bool = False
    num_gpus: int = 0
    batch_size: int = 1
    timeout_seconds: float = 600.0


class Engine(Protocol):
    """Shares work."""

    def run(self, work: Work, tasks: Iterable[Any]) -> Generator[tuple[Any, Any], None, None]:
        """Do the work for every task; close the generator to stop.

        Yields:
            (task, its answer, or `Lost`), as they are ready: in any order, each once.

        Raises:
            Exception: what reading, or a network, raised; it ends the work.
        """
        ...


@dataclass(frozen=True)
class Raised:
    """An error on its way from the process where it was raised to the one that waits for answers."""

    error: Exception


class Answering:
    """Read a video and, where the network is not separate, answer it, in one process."""

    def __init__(self, work: Work) -> None:
        self._read, self._load = work.read, None if work.separate else work.network
        self._network: Callable[[Sequence[Any]], list[Any]] | None = None

    def __call__(self, task: Any) -> Any:
        try:
            found = self._read(task)
            if self._load is None:
                return found
            if self._network is None:
                self._network = self._load()
        except Exception as error:
            return Raised(error)
        return answered(self._network, [found])[0]


class Packed:
    """A function of pickled tasks with pickled answers, for who hands them on and need not know what they are.

    Args:
        function: that unpickled tasks have; itself unpickled where it is first called, in the folder of this process,
            so that relative paths mean the same.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._packed, self._folder = pickle.dumps(function), os.getcwd()
        self._function: Callable[[Any], Any] | None = None

    def __call__(self, task: bytes) -> bytes:
        if self._function is None:
            with contextlib.suppress(
                OSError
            ):  # not there: then no path is relative to it, or a probe has said it
                os.chdir(self._folder)
            self._function = pickle.loads(self._packed)
        return pickle.dumps(self._function(pickle.loads(task)), protocol=5)


def answered(network: Callable[[Sequence[Any]], list[Any]], found: Sequence[Any]) -> list[Any]:
    """The network's answers, or for each the error that it raised."""
    try:
        return network(found)
    except Exception as error:
        return [Raised(error)] * len(found)


def checked(answer: Any) -> Any:
    """An answer; raises what was raised instead of it."""
    if isinstance(answer, Raised):
        raise answer.error
    return answer
