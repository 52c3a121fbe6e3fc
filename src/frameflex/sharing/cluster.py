"""Work shared by the machines of a Ray cluster: Ray Data feeds pools of processes that read, and of networks."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from frameflex.sharing.joining import ClusterError, Machine, check_machines, check_paths, joined, machine
from frameflex.sharing.work import Answering, Packed, Raised, Work, answered, checked
from frameflex.video.isolated import Isolated, Lost

__all__ = ["Cluster", "ClusterError", "on_cluster"]

_MOST_TASKS_A_BLOCK = 64  # that one process takes at once
_BLOCKS_A_PROCESS = 64  # at least, where there are tasks enough: so that all end at about the same time
_BLOCK_BYTES = 2**20  # of what was read, after which it goes on to the network


@contextmanager
def on_cluster(address: str) -> Iterator[Cluster]:
    """Join a Ray cluster for as long as the block lasts.

    Args:
        address: "auto" for the cluster that this machine belongs to, "local" for one of its own that ends with the
            block, or "host:port" of the head.

    Raises:
        ImportError: if Ray isn't installed.
        ClusterError: if there is no such cluster, or its machines have other versions than this one.
    """
    with joined(address):
        yield Cluster(check_machines())


class Cluster:
    """The machines of the cluster that this process has joined.

    Args:
        own: what is installed; processes on machines that join later, too, have to have the same.

    Attributes:
        num_gpus: of all machines together.
        num_cpus: likewise.
    """

    def __init__(self, own: Machine) -> None:
        import ray

        self.own = own
        there = ray.cluster_resources()
        self.num_gpus, self.num_cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))

    def run(self, work: Work, tasks: Iterable[Any]) -> Generator[tuple[Any, Any], None, None]:
        """As `Engine.run`. A machine that is lost, or a process, costs no task: others do what it was doing."""
        import ray

        stages = 2 if work.network and work.separate else 1
        if self.num_cpus < stages or self.num_gpus < work.num_gpus:
            raise ClusterError(
                f"the Ray cluster has {self.num_cpus} CPUs and {self.num_gpus} GPUs; expected at least {stages} and "
                f"{work.num_gpus}"
            )
        pending = [pickle.dumps(task) for task in tasks]
        if not pending:
            return
        with _quiet_context():
            data = ray.data.from_arrow(list(self._blocks(pending)))
            read = Packed(Answering(work))
            data = data.map_batches(
                _Reader,
                fn_constructor_args=(read, work.timeout_seconds, self.own),
                num_cpus=1,
                batch_size=1,
                # One block is fetched, or its answers are handed on, while another is read.
                **_pool(max_concurrent_calls_per_actor=2, enable_true_multi_threading=True),
            )
            if stages == 2:
                data = data.map_batches(
                    _Answerer,
                    fn_constructor_args=(pickle.dumps(work.network), self.own),
                    num_cpus=1,
                    num_gpus=work.num_gpus,
                    batch_size=work.batch_size,
                    **_pool(),
                )
            rows: Any = iter(data.iter_batches(batch_size=None, batch_format="pyarrow"))
            with closing(rows):
                for table in rows:
                    for task, answer in zip(table["task"], table["answer"], strict=True):
                        yield pickle.loads(task.as_py()), checked(pickle.loads(answer.as_py()))

    def check_paths(self, readable: Sequence[str], writable: str | None = None) -> None:
        """As `joining.check_paths`."""
        check_paths(readable, writable)

    def ask(self, function: Callable[[], Any], *, num_gpus: int = 0) -> Any:
        """What a function gives in a process as a network's: on any machine that has what it needs.

        Raises:
            Exception: what the function raised.
        """
        import ray

        def asked() -> Any:
            try:
                return function()
            except Exception as error:
                return Raised(error)

        return checked(ray.get(ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=3)(asked).remote()))

    def _blocks(self, tasks: Sequence[bytes]) -> Iterator[Any]:
        """The tasks in small tables, each of which one process takes at once."""
        import pyarrow as arrow

        size = max(1, min(_MOST_TASKS_A_BLOCK, len(tasks) // (self.num_cpus * _BLOCKS_A_PROCESS)))
        for start in range(0, len(tasks), size):
            yield arrow.table({"task": arrow.array(tasks[start : start + size], arrow.binary())})


def _pool(**options: Any) -> dict[str, Any]:
    import ray

    return {
        "compute": ray.data.ActorPoolStrategy(min_size=1, max_tasks_in_flight_per_actor=2, **options),
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
    }


@contextmanager
def _quiet_context() -> Iterator[None]:
    """Ray Data's settings for this work, without its bars and reports: ours say how far it is."""
    from ray.data import DataContext

    loggers = [logging.getLogger(name) for name in ("ray.data", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    context = DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": _BLOCK_BYTES,
        # A pool grows when all that its processes hold is in hand: more would wait behind a long video.
        "autoscaling_config": replace(context.autoscaling_config, actor_pool_util_upscaling_threshold=1.0),
    }
    before = {name: getattr(context, name) for name in settings}
    for name, value in settings.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Reader:
    """A process of the pool that reads; the videos themselves are read in another one, that may die of them."""

    def __init__(self, read: Packed, timeout_seconds: float, expected: Machine) -> None:
        expected.check(machine())
        self._isolated = Isolated(read, timeout_seconds=timeout_seconds)
        self._isolated.start()
        self._one_at_a_time = threading.Lock()

    def __call__(self, batch: Any) -> Iterator[Any]:
        for task in batch["task"]:
            with self._one_at_a_time:
                answer = self._isolated.call(task.as_py())
            yield _rows([task.as_py()], [pickle.dumps(answer) if isinstance(answer, Lost) else answer])


class _Answerer:
    """A process of the pool that has the network."""

    def __init__(self, load: bytes, expected: Machine) -> None:
        import torch

        expected.check(machine())
        torch.set_num_threads(1)
        try:
            self._network = pickle.loads(load)()
        except Exception as error:
            self._network = partial(_raise, error)

    def __call__(self, batch: Any) -> Any:
        found = [pickle.loads(one.as_py()) for one in batch["answer"]]
        sound = [place for place, one in enumerate(found) if not isinstance(one, (Lost, Raised))]
        if sound:
            answers = answered(self._network, [found[place] for place in sound])
            for place, answer in zip(sound, answers, strict=True):
                found[place] = answer
        return _rows(batch["task"].to_pylist(), [pickle.dumps(one) for one in found])


def _raise(error: Exception, _: Any) -> Any:
    raise error


def _rows(tasks: Sequence[bytes], answers: Sequence[bytes]) -> Any:
    import pyarrow as arrow

    binary = arrow.large_binary()
    return arrow.table({"task": arrow.array(tasks, binary), "answer": arrow.array(answers, binary)})
