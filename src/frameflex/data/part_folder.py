"""A folder of files that are there when they are whole: on a disk, or in object storage."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

from frameflex import storage
from frameflex.data.journal import write_whole
from frameflex.data.locking import lock
from frameflex.new_files import new_file
from frameflex.storage import StorageError, StoredFile, place_of

__all__ = ["PartFolder", "part_folder"]


class PartFolder(Protocol):
    """Files by their names; each is whole or not there."""

    def make(self) -> None:
        """Make the folder where it is not there."""

    def hold(self) -> bool:
        """Keep it for this process until `close`; False where another one has it."""

    def inner(self, name: str) -> PartFolder:
        """A folder in this one."""

    def names(self) -> set[str]:
        """Of the files that are there."""

    def num_bytes(self, name: str) -> int | None:
        """Size of a file; None where it is not there."""

    def read(self, name: str) -> bytes | None:
        """A file; None where it is not there."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""

    def write_first(self, name: str, content: bytes) -> bool:
        """Write a file that is not there; False where there is one."""

    def making(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Write a file of any length in a block, at a path of this machine; where that raises, nothing is there."""

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; one that is not there is none to delete."""

    def remove_all(self) -> None:
        """Delete the folder and what is in it."""

    def close(self) -> None:
        """Let go of it."""


def part_folder(where: str | os.PathLike[str]) -> PartFolder:
    """A folder by its path or address."""
    place = place_of(where)
    return _Stored(place) if isinstance(place, StoredFile) else _Local(place)


class _Local:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    def __str__(self) -> str:
        return str(self.path)

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def hold(self) -> bool:
        self._lock = (self.path / ".lock").open("ab")
        if not lock(self._lock):
            return False
        for left in self.path.glob(".part-*.partial"):  # of a process that was killed
            left.unlink(missing_ok=True)
        return True

    def inner(self, name: str) -> PartFolder:
        return _Local(self.path / name)

    def names(self) -> set[str]:
        return {entry.name for entry in os.scandir(self.path)} if self.path.is_dir() else set()

    def num_bytes(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        write_whole(self.path / name, content)

    def write_first(self, name: str, content: bytes) -> bool:
        if (self.path / name).exists():  # nobody else writes: the folder is held
            return False
        self.write(name, content)
        return True

    def making(self, name: str) -> contextlib.AbstractContextManager[Path]:
        return new_file(self.path / name)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove_all(self) -> None:
        shutil.rmtree(self.path)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class _Stored:
    """In object storage, where an object is there when it is whole.

    There are no locks: two processes that share a folder by mistake write the same answers twice.
    """

    def __init__(self, place: StoredFile) -> None:
        self.home = place.address.rstrip("/")

    def __str__(self) -> str:
        return self.home

    def make(self) -> None:
        """There are no folders; whether there is a bucket is seen when the plan is asked for."""

    def hold(self) -> bool:
        return True

    def inner(self, name: str) -> PartFolder:
        return _Stored(StoredFile(f"{self.home}/{name}"))

    def names(self) -> set[str]:
        return {file.name for file in storage.files_below(self.home, deep=False)}

    def num_bytes(self, name: str) -> int | None:
        try:
            return storage.look(f"{self.home}/{name}").num_bytes
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        try:
            with StoredFile(f"{self.home}/{name}").open() as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        storage.write(f"{self.home}/{name}", content)

    def write_first(self, name: str, content: bytes) -> bool:
        try:
            storage.write(f"{self.home}/{name}", content, new=True)
        except FileExistsError:
            return False
        return True

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
            path = Path(folder, name)
            yield path
            storage.move_to(path, f"{self.home}/{name}")

    def remove(self, names: Iterable[str]) -> None:
        storage.remove([f"{self.home}/{name}" for name in names])

    def remove_all(self) -> None:
        self.remove(self.names())
        if left := self.names():
            raise StorageError(
                f"{self.home}: {len(left)} files that are of no use any more are still there, such as {min(left)}. "
                "Delete them where that is allowed; all else is done."
            )

    def close(self) -> None:
        """Nothing is held."""
