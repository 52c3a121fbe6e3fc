"""Files in object storage, ``s3://bucket/key``: read whole or not at all, written whole or not at all.

fsspec does the work, with a package for each storage (s3fs for S3). Credentials, end points, time-outs and retries
are theirs: for S3 those of every AWS tool (``AWS_*`` in the environment, ``~/.aws``). We have no options of our own.

What goes wrong is told apart here, once. A file that is not there is a FileNotFoundError, as of a local path: a fault
of the one file. All else is a `StorageError`: a fault of the storage, of the network or of who asks. It would befall
the next file, too, so that nothing counts it as a bad video and goes on.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from frameflex.addresses import without_secrets
from frameflex.new_files import new_file

STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Schemes of addresses that are files here; memory is fsspec's own, of one process."""

FIRST_BYTES = 2**23
"""A file below this size is one request, so that it is one version of it."""

PIECE_BYTES = 2**26
"""Most that is asked for at once of a larger one."""

_STORED = re.compile(rf"({'|'.join(STORES)}):/{{1,2}}(?=[^/])")  # a Path makes "//" to "/"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")
_TRIES = 3  # of a read, where the storage's package does not try again by itself
_FIRST_PAUSE_SECONDS = 0.5


class StorageError(Exception):
    """Object storage that can't be read or written; the message names the address and says what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


def is_address(source: str) -> bool:
    """Whether a text is an address of any kind, such as ``https://...`` or ``s3://...``."""
    return _ADDRESS.match(source) is not None


def is_stored(source: object) -> bool:
    """Whether a text or path is the address of a file or folder in object storage."""
    return isinstance(source, (str, os.PathLike)) and _STORED.match(str(source)) is not None


def address_of(source: str | os.PathLike[str]) -> str:
    """The address, with the two slashes that a Path makes to one."""
    return _STORED.sub(r"\1://", str(source), count=1)


def join(home: str, file: str) -> str:
    """The path or address of a file in a folder."""
    return f"{home.rstrip('/')}/{file}" if is_address(home) else os.path.join(home, file)


def place_of(source: str | os.PathLike[str]) -> Place:
    """A local path as a Path, an address in object storage as a `StoredFile`."""
    if isinstance(source, StoredFile):
        return source
    return StoredFile(address_of(source)) if is_stored(source) else Path(source)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in object storage, with what a listing said of it.

    Attributes:
        address: such as ``s3://bucket/key``.
        num_bytes: its size; None where nobody has asked.
        version: tells one content of it from the next; 0 where nobody has asked.
    """

    address: str
    num_bytes: int | None = field(default=None, compare=False)
    version: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return self.address

    def __fspath__(self) -> str:  # what takes paths and addresses takes this, too
        return self.address

    @property
    def name(self) -> str:
        """Behind the last slash."""
        return self.address.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    def state(self) -> tuple[int, int]:
        """Size and version, as listed or else as they are now: (-1, -1) where there is no such file."""
        if self.num_bytes is not None:
            return self.num_bytes, self.version
        try:
            found = look(self.address)
        except FileNotFoundError:
            return -1, -1
        return found.num_bytes or 0, found.version

    def open(self) -> BinaryIO:
        """The whole file, in memory or, where it is large, in a temporary file; it knows its name.

        Raises:
            FileNotFoundError: if there is no such file.
            StorageError: if it can't be read, or changes while it is.
        """
        whole = _small(self)
        if whole is not None:
            return named_bytes(whole, self.address)
        file = _NamedFile(tempfile.TemporaryFile("w+b", buffering=0, prefix="frameflex-"))  # noqa: SIM115
        file.name = self.address
        try:
            for piece in _pieces(self.address):
                file.write(piece)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file


def open_whole(source: Any) -> Any:
    """Whatever a file may be given as; one in object storage as a file object, all else as it is."""
    return StoredFile(address_of(source)).open() if is_stored(source) else source


Place: TypeAlias = Path | StoredFile
"""Where a file is."""


class _NamedBytes(io.BytesIO):
    name = ""


class _NamedFile(io.BufferedRandom):
    name = ""


def named_bytes(content: bytes, name: str) -> BinaryIO:
    """A file object that messages can name."""
    file = _NamedBytes(content)
    file.name = name
    return file


# Reading


def read_range(address: str, offset: int, num_bytes: int) -> bytes:
    """Return at most `num_bytes` bytes of a file; fewer only where it ends.

    Raises:
        FileNotFoundError: if there is no such file.
        StorageError: if it can't be read.
    """
    with told(address):
        for attempt in itertools.count(1):
            try:
                # Anew for each read: a process that was forked must not use its parent's connections. fsspec keeps
                # the ones of this process.
                fs, path = _file_system(address)
                if address.startswith("http"):  # cat_file would read all of it where a server ignores ranges
                    with fs.open(
                        path, "rb", block_size=2**20, cache_type="none", size=offset + num_bytes
                    ) as file:
                        file.seek(offset)
                        return file.read(num_bytes)
                return fs.cat_file(path, start=offset, end=offset + num_bytes)
            except (FileNotFoundError, PermissionError, ImportError, StorageError):
                raise
            except Exception as error:  # every protocol has errors of its own
                if getattr(error, "errno", None) == errno.EINVAL and look(address).num_bytes in range(
                    offset + 1
                ):
                    return b""  # S3 refuses a range that begins where the file ends, as that of an empty one
                if attempt == _TRIES or address.startswith(
                    "s3"
                ):  # botocore and s3fs have, as AWS_MAX_ATTEMPTS says
                    raise
                time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError


def look(address: str) -> StoredFile:
    """What a file's size and version are now.

    Raises:
        FileNotFoundError: if there is no such file; a folder is none.
        StorageError: if that can't be asked.
    """
    with told(address):
        fs, path = _file_system(address)
        found = fs.info(path, refresh=True)
    if found["type"] != "file":
        raise FileNotFoundError(f"{address}: there is no such file; it is a folder.")
    return _listed(address, found)


def is_stored_folder(address: str) -> bool:
    """Whether files lie below an address. Raises StorageError if that can't be asked."""
    try:
        with told(address):
            fs, path = _file_system(address)
            return bool(fs.info(path, refresh=True)["type"] == "directory")
    except FileNotFoundError:
        return False


def files_below(folder: str, *, deep: bool = True) -> list[StoredFile]:
    """The files in a folder, and with `deep` those in its folders, as they are now, sorted by address.

    Raises:
        StorageError: if they can't be listed to the last.
    """
    with told(folder, "list"):
        fs, path = _file_system(folder)
        fs.invalidate_cache()  # a listing of a while ago lacks what has come since
        try:
            found = fs.find(path, detail=True).values() if deep else fs.ls(path, detail=True)
        except FileNotFoundError as error:
            if _names_a_bucket(error):
                raise
            found = []
    scheme = folder.partition("://")[0]
    files = [
        _listed(f"{scheme}://{entry['name'].lstrip('/')}", entry)
        for entry in found
        if entry["type"] == "file" and not entry["name"].endswith("/")
    ]
    return sorted(files, key=str)


def copy_to(address: str, path: Path) -> None:
    """Copy a file to a local path, which gets its name when it is whole; errors as `StoredFile.open`."""
    small = _small(StoredFile(address))
    with new_file(path) as temporary, temporary.open("wb") as file:
        for piece in _pieces(address) if small is None else [small]:
            file.write(piece)


def open_stream(address: str) -> BinaryIO:
    """Open a file for reading from its beginning to its end, a block ahead; errors as `read_range`."""
    with told(address):
        fs, path = _file_system(address)
        return fs.open(path, "rb", block_size=0 if address.startswith("http") else 2**23)


def _small(file: StoredFile) -> bytes | None:
    """All of a file by one request; None of a large one."""
    content = read_range(file.address, 0, FIRST_BYTES)
    if len(content) == FIRST_BYTES:
        return None
    if file.num_bytes not in (None, len(content)):  # another than was listed, or not all of it
        now = look(file.address).num_bytes
        if now != len(content):
            raise StorageError(
                f"{file}: gave {len(content)} bytes of {now}. Nothing half-read is used; try again."
            )
    return content


def _pieces(address: str) -> Iterator[bytes]:
    """A large file in pieces, all of the same version of it."""
    before = look(address)
    start, num_bytes = 0, before.num_bytes or 0
    while start < num_bytes:
        piece = read_range(address, start, min(PIECE_BYTES, num_bytes - start))
        if not piece:
            break
        yield piece
        start += len(piece)
    if start != num_bytes or look(address).state() != before.state():
        raise StorageError(f"{address}: it changed while it was read. Try again when it is written.")


# Writing


def write(address: str, content: bytes, *, new: bool = False) -> None:
    """Write a file, which is there when it is whole.

    Args:
        address: in object storage.
        content: all of it.
        new: refuse to write over another.

    Raises:
        FileExistsError: with `new`, if there is one.
        StorageError: if it can't be written.
    """
    with told(address, "write"):
        fs, path = _file_system(address)
        fs.pipe_file(path, content, mode="create" if new else "overwrite")


def move_to(path: Path, address: str) -> None:
    """Write a file of any length that is here; it is taken away, and there when it is whole.

    Raises:
        StorageError: if it can't be written.
    """
    with told(address, "write"):
        fs, remote = _file_system(address)
        fs.put_file(str(path), remote)
    path.unlink()


def remove(addresses: Sequence[str]) -> None:
    """Delete files of one bucket; one that is not there is none to delete, and S3 says nothing of one that it keeps.

    Raises:
        StorageError: if that can't be asked.
    """
    if not addresses:
        return
    with told(addresses[0], "delete"), suppress(FileNotFoundError):
        fs = _file_system(addresses[0])[0]
        fs.rm([_file_system(address)[1] for address in addresses])


# What goes wrong


_ALIVE: dict[int, Any] = {}
_DONE = {"read": "read", "list": "listed", "write": "written", "delete": "deleted"}


def _file_system(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise StorageError(
            f"{address}: reading from an address needs fsspec. Install it with `pip install frameflex[s3]`, or "
            "frameflex[shards] for https://."
        ) from error
    try:
        fs, path = url_to_fs(address)
        # Never let go of: a forked process would close the connections of the one that it was forked from.
        _ALIVE[id(fs)] = fs
        return fs, path
    except ImportError as error:  # s3fs, gcsfs, ...: its message names the package
        hint = " (`pip install frameflex[s3]`)" if address.startswith("s3") else ""
        raise StorageError(f"{address}: {error}{hint}") from error
    except ValueError as error:
        raise StorageError(
            f"{address}: {error}. Expected such as https://..., s3://... or a folder."
        ) from error


def _listed(address: str, found: Any) -> StoredFile:
    mark = found.get("ETag") or found.get("etag") or found.get("mtime") or found.get("created") or ""
    return StoredFile(address, int(found["size"] or 0), zlib.crc32(str(mark).encode()))


@contextmanager
def told(address: str, doing: str = "read") -> Iterator[None]:
    """What the storage's package raises within, in our words; other errors are not caught anywhere."""
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except FileNotFoundError as error:
        if not address.startswith("http") and _names_a_bucket(error):
            bucket = address.partition("://")[2].partition("/")[0]
            raise StorageError(
                f"{address}: there is no bucket {bucket!r}. Check its name, and AWS_ENDPOINT_URL where the storage "
                "is not Amazon's."
            ) from error
        raise FileNotFoundError(f"{address}: there is no such file.") from error
    except PermissionError as error:
        raise StorageError(
            f"{address}: no permission to {doing} it ({error}). Check the credentials, and what they may do."
        ) from error
    except Exception as error:  # every protocol has errors of its own
        name = type(error).__name__
        if getattr(error, "status", None) in (404, 410):  # aiohttp's, of a web server
            raise FileNotFoundError(f"{address}: there is no such file.") from error
        if name in (
            "NoCredentialsError",
            "PartialCredentialsError",
            "ProfileNotFound",
            "TokenRetrievalError",
        ):
            raise StorageError(
                f"{address}: no credentials ({error}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE of ~/.aws; for a public bucket FSSPEC_S3_ANON=true."
            ) from error
        raise StorageError(
            f"{address}: it can't be {_DONE[doing]} ({name}: {error}), after several tries. Is the network up, and "
            "the end point right? Nothing half-read is used; try again later."
        ) from error


def _names_a_bucket(error: BaseException) -> bool:
    return type(error.__cause__).__name__ == "NoSuchBucket"
