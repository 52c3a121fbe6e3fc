"""Long work that can be stopped at any moment: what is done is a line in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from frameflex.data.locking import lock

__all__ = ["Journal", "difference", "write_whole"]


class Journal:
    """JSON lines behind a header, each on disk as soon as it is written.

    A last line that was torn by a kill is dropped. One process at a time may have a journal open.

    Args:
        path: the file; made where there is none.
        header: what the work is; a journal of other work is refused.

    Attributes:
        entries: the lines that were there.

    Raises:
        ValueError: if the file is no journal, or one of other work.
        RuntimeError: if another process has it open.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            if not lock(self._file):
                raise RuntimeError(
                    f"{self.path} is in use: the same work is running in another process. Wait for it, or stop it"
                )
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def _read(self, header: Mapping[str, Any]) -> None:
        self._file.seek(0)
        whole = 0  # bytes of complete lines
        lines = []
        for line in self._file:
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                value = None
            if not isinstance(value, dict):
                break
            lines.append(value)
            whole += len(line)
        self._file.truncate(whole)
        if lines and lines[0] != dict(header):
            raise ValueError(
                f"{self.path} belongs to other work ({difference(lines[0], header)}). Choose another place, or "
                "delete that file to begin again"
            )
        self.entries = lines[1:]
        if not lines:
            self.add(header)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line; after it returns, a kill of this process doesn't lose it."""
        self._file.write(json.dumps(dict(entry), ensure_ascii=True).encode() + b"\n")
        self._file.flush()

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Let go of the file and keep it."""
        self._file.close()

    def discard(self) -> None:
        """Let go of the file and delete it: the work is done."""
        self.path.unlink()
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def difference(former: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say where two headers differ first."""
    for key in [*former, *now]:
        if former.get(key) != now.get(key):
            return f"{key} is {str(former.get(key))[:80]!r} there and {str(now.get(key))[:80]!r} here"
    return "its header differs"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
