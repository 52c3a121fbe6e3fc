"""The bytes of a shard, from here or from a server; what can't be read is a `ShardError`."""

from __future__ import annotations

import os
from typing import BinaryIO

from frameflex import storage
from frameflex.addresses import without_secrets
from frameflex.storage import is_address, join

__all__ = ["ShardError", "is_address", "join", "open_stream", "read_range"]


class ShardError(Exception):
    """A shard or an index that can't be read as a whole; the message names it and says what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


def read_range(source: str, offset: int, num_bytes: int) -> bytes:
    """Return at most `num_bytes` bytes; fewer where the file ends.

    Raises:
        ShardError: if there is no such file, or a local one can't be read.
        StorageError: if a server or storage can't be read.
    """
    try:
        if is_address(source):
            return storage.read_range(source, offset, num_bytes)
        with open(source, "rb") as file:
            file.seek(offset)
            return file.read(min(num_bytes, max(os.fstat(file.fileno()).st_size - offset, 0)))
    except OSError as error:
        raise ShardError(f"{source}: can't be read ({error.strerror or error}).") from error


def open_stream(source: str) -> BinaryIO:
    """Open a shard for reading from its beginning to its end; errors as `read_range`."""
    try:
        return storage.open_stream(source) if is_address(source) else open(source, "rb")
    except OSError as error:
        raise ShardError(f"{source}: can't be read ({error}).") from error
