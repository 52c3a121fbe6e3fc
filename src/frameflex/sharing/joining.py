"""Joining a Ray cluster, and seeing before work starts that its machines are fit for it."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from frameflex import __version__

__all__ = ["ClusterError", "Machine", "check_machines", "check_paths", "joined", "machine"]

_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 120.0  # for a machine's first process


class ClusterError(ValueError):
    """There is no such cluster, or its machines are not fit for the work; the message says what to do."""


@dataclass(frozen=True)
class Machine:
    """What answers depend on, of one machine."""

    frameflex: str
    python: str
    torch: str
    torchvision: str
    timm: str
    av: str

    def check(self, other: Machine, where: str = "") -> None:
        """Refuse a machine of other versions. Raises ClusterError."""
        there = asdict(other)
        differing = [
            f"{name} {there[name]} there, {own} here"
            for name, own in asdict(self).items()
            if there[name] != own
        ]
        if differing:
            raise ClusterError(
                f"machine {where or platform.node()} of the Ray cluster has other versions ({', '.join(differing)}). "
                "Install the same everywhere"
            )


def machine() -> Machine:
    """Of this process."""
    from importlib.metadata import version

    others = {name: version(name) for name in ("torch", "torchvision", "timm", "av")}
    return Machine(__version__, ".".join(platform.python_version_tuple()[:2]), **others)


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Join a cluster, or the one that this process is in already, for as long as the block lasts."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "work on many machines is shared by Ray. Install it with `pip install frameflex[ray]`, on every machine"
        ) from error
    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    try:
        ray.init(  # ends the process where nobody listens: seen before
            address=None if address == "local" else address,
            **({"include_dashboard": False} if address == "local" else {}),
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(_no_cluster(address, str(error))) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if "/" in address or not (host and colon and port.isdecimal()):
        raise ClusterError(
            f"--ray {address!r}; expected auto for the cluster that this machine belongs to, local for one of its "
            "own, or host:port of the head. From outside of a cluster send the command in: ray job submit -- ..."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(_no_cluster(address, str(error))) from error


def _no_cluster(address: str, reason: str) -> str:
    why = " ".join(reason.split())[:300].rstrip(".")
    place = "this machine belongs to none" if "Could not find any running" in why else f"{address}: {why}"
    return (
        f"no Ray cluster can be joined ({place}). Start one with `ray "
        "start --head` here and `ray start --address HEAD:6379` on the others. One machine needs none: no --ray"
    )


def check_machines() -> Machine:
    """See that every machine of the cluster has this one's versions, which are returned.

    Raises:
        ClusterError: if one has others, or doesn't answer.
    """
    own = machine()

    def versions() -> Any:  # sent as it stands: a machine without frameflex can't find it by name
        from importlib.metadata import PackageNotFoundError, version

        try:
            from frameflex.sharing.joining import machine
        except ImportError as error:
            try:
                return f"has frameflex {version('frameflex')}, which can't do this ({error})"
            except PackageNotFoundError:
                return f"has no frameflex ({error})"
        return machine()

    for name, found in _on_each(versions):
        if isinstance(found, str):
            raise ClusterError(
                f"machine {name} of the Ray cluster {found}. Install frameflex {__version__} there"
            )
        own.check(found, name)
    return own


def check_paths(readable: Sequence[str], writable: str | None = None) -> None:
    """See that every machine of the cluster finds what this one does.

    Args:
        readable: files and folders; those that are not here either are passed over.
        writable: a folder in which machines write.

    Raises:
        ClusterError: at the first machine that doesn't.
    """
    here = [os.path.abspath(path) for path in readable if os.path.exists(path)]
    token = None
    if writable is not None:
        token = os.path.abspath(os.path.join(writable, f".{os.urandom(8).hex()}"))
        with open(token, "x", encoding="utf-8"):
            pass

    def missing() -> list[str]:
        from os.path import exists

        return [path for path in ([*here, token] if token else here) if not exists(path)]

    try:
        for name, paths in _on_each(missing):
            if paths:
                path = writable if paths[0] == token else paths[0]
                raise ClusterError(
                    f"machine {name} of the Ray cluster does not see {path}, which is here. Put it on a disk that "
                    "all machines have under the same name"
                )
    finally:
        if token:
            os.unlink(token)


def _on_each(function: Callable[[], Any]) -> Iterator[tuple[str, Any]]:
    """Each living machine's name, and what the function gives there."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        asked[node] = ray.remote(num_cpus=0, scheduling_strategy=place, max_retries=0)(function).remote()
    for node, answer in asked.items():
        try:
            yield nodes[node], ray.get(answer, timeout=_PATIENCE_SECONDS)
        except (GetTimeoutError, RayError) as error:
            reason = str(error).strip().splitlines()[-1][:300] or type(error).__name__
            raise ClusterError(
                f"machine {nodes[node]} of the Ray cluster doesn't answer: {reason}. Start it again, or end it"
            ) from error
