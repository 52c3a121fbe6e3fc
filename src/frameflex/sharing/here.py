"""Work shared by the processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any

from frameflex.sharing.work import Answering, Raised, Work, answered, checked
from frameflex.video.isolated import Lost, run_isolated

__all__ = ["Here"]


class Here:
    """The processes of this machine.

    Args:
        num_workers: how many read, at least 1. A network that is separate computes in this process.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    def run(self, work: Work, tasks: Iterable[Any]) -> Generator[tuple[Any, Any], None, None]:
        """As `Engine.run`."""
        network = work.network() if work.network and work.separate else None  # in this process
        answers = run_isolated(
            Answering(work), tasks, num_workers=self.num_workers, timeout_seconds=work.timeout_seconds
        )
        with closing(answers):  # with the processes
            if network is None:
                for task, answer in answers:
                    yield task, checked(answer)
            else:
                yield from _in_batches(network, answers, work.batch_size)


def _in_batches(
    network: Callable[[Sequence[Any]], list[Any]], found: Iterable[tuple[Any, Any]], batch_size: int
) -> Generator[tuple[Any, Any], None, None]:
    waiting: list[tuple[Any, Any]] = []
    for task, one in found:
        if isinstance(one, (Lost, Raised)):
            yield task, checked(one)
            continue
        waiting.append((task, one))
        if len(waiting) == batch_size:
            yield from _answers(network, waiting)
            waiting = []
    yield from _answers(network, waiting)


def _answers(
    network: Callable[[Sequence[Any]], list[Any]], waiting: list[tuple[Any, Any]]
) -> Generator[tuple[Any, Any], None, None]:
    if waiting:
        answers = answered(network, [one for _, one in waiting])
        for (task, _), answer in zip(waiting, answers, strict=True):
            yield task, checked(answer)
