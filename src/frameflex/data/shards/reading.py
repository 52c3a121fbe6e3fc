"""The bytes of a shard, from here or from a server; what can't be read is a `ShardError`."""

from __future__ import annotations

import itertools
import os
import re
import time
from typing import Any, BinaryIO

from frameflex.addresses import without_secrets

_TRIES = 3  # of a read from a server
_FIRST_PAUSE_SECONDS = 0.5


class ShardError(Exception):
    """A shard or an index that can't be read as a whole; the message names it and says what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


def is_address(source: str) -> bool:
    """Whether a text is an address such as ``https://...`` or ``s3://...``."""
    return re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def join(home: str, file: str) -> str:
    """The path or address of a file in a folder."""
    return f"{home.rstrip('/')}/{file}" if is_address(home) else os.path.join(home, file)


def read_range(source: str, offset: int, num_bytes: int) -> bytes:
    """Return at most `num_bytes` bytes; fewer where the file ends."""
    if not is_address(source):
        try:
            with open(source, "rb") as file:
                file.seek(offset)
                return file.read(min(num_bytes, max(os.fstat(file.fileno()).st_size - offset, 0)))
        except OSError as error:
            raise ShardError(f"{source}: can't be read ({error.strerror or error}).") from error
    for attempt in itertools.count(1):
        try:
            # Anew for each read: a process that was forked must not use its parent's connections. fsspec keeps
            # the ones of this process.
            fs, path = _file_system(source)
            if source.startswith("http"):  # cat_file would read the whole file where a server ignores ranges
                with fs.open(
                    path, "rb", block_size=2**20, cache_type="none", size=offset + num_bytes
                ) as file:
                    file.seek(offset)
                    return file.read(num_bytes)
            return fs.cat_file(path, start=offset, end=min(offset + num_bytes, fs.size(path)))
        except (FileNotFoundError, PermissionError, ImportError) as error:
            raise ShardError(f"{source}: can't be read ({error}).") from error
        except Exception as error:  # every protocol has errors of its own
            if attempt == _TRIES:
                raise ShardError(
                    f"{source}: can't be read, tried {_TRIES} times ({type(error).__name__}: {error})."
                ) from error
            time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError


def _file_system(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ShardError(
            f"{address}: reading from an address needs fsspec. Install it with `pip install frameflex[shards]`."
        ) from error
    try:
        return url_to_fs(address)
    except ImportError as error:  # s3fs, gcsfs, ...: its message names the package
        raise ShardError(f"{address}: {error}") from error
    except ValueError as error:
        raise ShardError(
            f"{address}: {error}. Expected such as https://..., s3://... or a folder."
        ) from error


def open_stream(source: str) -> BinaryIO:
    """Open a shard for reading from its beginning to its end."""
    try:
        if not is_address(source):
            return open(source, "rb")
        fs, path = _file_system(source)
        if source.startswith("http"):
            return fs.open(path, "rb", block_size=0)
        return fs.open(path, "rb", block_size=2**23)
    except (OSError, ValueError) as error:
        raise ShardError(f"{source}: can't be read ({error}).") from error
