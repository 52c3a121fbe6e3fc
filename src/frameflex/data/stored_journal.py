"""A journal wherever the work's folder is: on a disk, or in object storage, where no file grows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from frameflex.data.journal import Journal, difference
from frameflex.data.part_folder import PartFolder, part_folder
from frameflex.storage import StorageError, is_stored

__all__ = ["StoredJournal", "is_begun", "open_journal"]

_SECONDS_A_PIECE = 20.0
_FILE, _PIECE = "journal.jsonl", re.compile(r"journal-\d{7}\.jsonl")


def open_journal(folder: str | os.PathLike[str], header: Mapping[str, Any]) -> Journal | StoredJournal:
    """The journal in a folder, which is made; errors as `Journal` and `StoredJournal`."""
    if is_stored(folder):
        return StoredJournal(part_folder(folder), header)
    return Journal(Path(folder, _FILE), header)


def is_begun(folder: PartFolder) -> bool:
    """Whether a journal is in a folder."""
    return any(name == _FILE or _PIECE.fullmatch(name) for name in folder.names())


class StoredJournal:
    """A `Journal` in object storage, where no file grows: in pieces, each of the lines of some seconds.

    A kill loses the last of them, and the work that they tell of is done again. There are no locks.

    Args:
        folder: holds the pieces.
        header: as of a `Journal`.

    Attributes:
        entries: the lines that were there.

    Raises:
        ValueError: if it is a journal of other work.
        StorageError: if it can't be read or begun.
    """

    def __init__(self, folder: PartFolder, header: Mapping[str, Any]) -> None:
        self.entries: list[dict[str, Any]] = []
        self._folder, self._waiting = folder, [dict(header)]
        pieces = sorted(name for name in folder.names() if _PIECE.fullmatch(name))
        self._number = len(pieces)
        for name in pieces:
            self.entries += map(json.loads, (folder.read(name) or b"").splitlines())
        if self.entries and self.entries[0] != dict(header):
            raise ValueError(
                f"{folder} belongs to other work ({difference(self.entries[0], header)}). Choose another place, or "
                "delete it to begin again"
            )
        if self.entries:
            del self.entries[0], self._waiting[0]
        self.flush()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line, with those of the next seconds."""
        self._waiting.append(dict(entry))
        if time.monotonic() - self._written_at >= _SECONDS_A_PIECE:
            self.flush()

    def flush(self) -> None:
        """Write what is held back; a kill doesn't lose it then."""
        if self._waiting:
            lines = [json.dumps(entry, ensure_ascii=True).encode() + b"\n" for entry in self._waiting]
            self._folder.write(f"journal-{self._number:07d}.jsonl", b"".join(lines))
            self._number += 1
            self._waiting.clear()
        self._written_at = time.monotonic()

    def __enter__(self) -> StoredJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, StorageError):  # which would befall this, too
            self.flush()
