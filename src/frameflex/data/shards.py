"""Videos in a few large tar files with an index, here or on a server: what `frameflex data prepare` writes.

A folder of shards holds ``index.json`` and tar files in webdataset's format: ``000123.mp4`` (or ``.mkv``) is a video,
``000123.json`` says what it shows. The index knows where in its tar file each video begins, so that any of them is
read alone, in any order: by its place in a local file, by a range of bytes from a server. `ShardStream` reads whole
shards from their beginning instead, through webdataset.

Nothing in a shard or an index is trusted: names stay in the folder, and sizes are checked against the file before
memory is asked for.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import tarfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch.utils.data import IterableDataset, get_worker_info

from frameflex.addresses import without_secrets
from frameflex.video import VideoError, open_video

if TYPE_CHECKING:
    from frameflex.data.datasets import BadVideo, ClipDataset, Sample

__all__ = [
    "Shard",
    "ShardError",
    "ShardIndex",
    "ShardMember",
    "ShardStream",
    "ShardVideo",
    "is_shards",
    "read_index",
]

FORMAT = "frameflex shards"
VERSION = 1
INDEX_NAME = "index.json"

MAX_INDEX_BYTES = 2**30
"""Largest index that is read: some eight million videos."""

MAX_MEMBER_BYTES = 2**30
"""Largest video in a shard."""

_TRIES = 3  # of a read from a server
_FIRST_PAUSE_SECONDS = 0.5
_MEMBER = re.compile(r"\d{6,12}\.(mp4|mkv)")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,200}\.tar")
_TAR_BLOCK = 512


class ShardError(Exception):
    """A shard or an index that can't be read as a whole; the message names it and says what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


# One video


@dataclass(frozen=True, slots=True)
class ShardMember:
    """Where a video lies in a shard.

    Attributes:
        shard: path or address of the tar file.
        name: of the member in it.
        offset: bytes before its content.
        num_bytes: of its content.
        crc32: of its content.
    """

    shard: str
    name: str
    offset: int
    num_bytes: int
    crc32: int

    def __str__(self) -> str:
        return f"{self.shard}::{self.name}"

    def read(self) -> bytes:
        """Return the video's file.

        Raises:
            ShardError: if the shard can't be read, or is shorter than its index says.
            VideoError: if the content is not what was written.
        """
        content = _read_range(self.shard, self.offset, self.num_bytes)
        if len(content) != self.num_bytes:
            raise ShardError(
                f"shard {self.shard}: gave {len(content)} bytes at {self.offset}; expected {self.num_bytes} as in "
                "its index. Copy the shard again."
            )
        if zlib.crc32(content) != self.crc32:
            raise VideoError(
                f"video {self}: its checksum is not that of the index. Copy the shard again, or prepare it again."
            )
        return content

    def open(self) -> BinaryIO:
        """Return the video's file as a file object, with its name for messages; errors as `read`."""
        return named_bytes(self.read(), str(self))


class _NamedBytes(io.BytesIO):
    name = ""


def named_bytes(content: bytes, name: str) -> BinaryIO:
    """A file object that messages can name."""
    file = _NamedBytes(content)
    file.name = name
    return file


def pack_member(member: ShardMember) -> str:
    """A member as text that is no path: it begins with a NUL."""
    return f"\0{member.offset}\0{member.num_bytes}\0{member.crc32}\0{member.name}\0{member.shard}"


def unpack_member(text: str) -> ShardMember:
    """What `pack_member` made."""
    _, offset, num_bytes, crc32, name, shard = text.split("\0", 5)
    return ShardMember(shard, name, int(offset), int(num_bytes), int(crc32))


# The index


@dataclass(frozen=True, slots=True)
class ShardVideo:
    """A video as an index lists it.

    Attributes:
        position: in the data set that was prepared; the order of the list.
        name: what the data set called it.
        label: index of its class; None when unknown.
        member: name of the member in its tar file.
        offset: as in `ShardMember`.
        num_bytes: as in `ShardMember`.
        crc32: as in `ShardMember`.
    """

    position: int
    name: str
    label: int | None
    member: str
    offset: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar file of an index.

    Attributes:
        file: its name.
        split: to which its videos belong; empty where the data set isn't divided.
        num_bytes: of the file.
        sha256: of the file, hexadecimal.
        videos: in the order in which they lie in it.
    """

    file: str
    split: str
    num_bytes: int
    sha256: str
    videos: tuple[ShardVideo, ...]


@dataclass(frozen=True)
class ShardIndex:
    """What lies in a folder of shards.

    Attributes:
        home: the folder's path or address.
        classes: class names in the order of their indices.
        splits: into which the data set is divided; empty if it isn't.
        shards: the tar files.
        left_out: (split, name, reason) of the videos that were left out when it was made.
        encoding: how the videos were encoded.
    """

    home: str
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    shards: tuple[Shard, ...]
    left_out: tuple[tuple[str, str, str], ...] = ()
    encoding: Mapping[str, Any] = field(default_factory=dict)

    def videos(self, split: str) -> Iterator[tuple[ShardMember, int | None, str]]:
        """Yield where each video of a split lies, its label and its name, in the order of the former data set."""
        listed = [
            (video, shard.file) for shard in self.shards if shard.split == split for video in shard.videos
        ]
        for video, file in sorted(listed, key=lambda item: item[0].position):
            place = ShardMember(
                join(self.home, file), video.member, video.offset, video.num_bytes, video.crc32
            )
            yield place, video.label, video.name

    def to_json(self) -> bytes:
        """The content of ``index.json``, the same for the same shards."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "encoding": dict(self.encoding),
            "classes": list(self.classes),
            "splits": list(self.splits),
            "left_out": [list(item) for item in self.left_out],
            "columns": ["position", "name", "label", "member", "offset", "num_bytes", "crc32"],
            "shards": [
                {
                    "file": shard.file,
                    "split": shard.split,
                    "num_bytes": shard.num_bytes,
                    "sha256": shard.sha256,
                    "videos": [
                        [v.position, v.name, v.label, v.member, v.offset, v.num_bytes, v.crc32]
                        for v in shard.videos
                    ],
                }
                for shard in self.shards
            ],
        }
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def is_shards(source: str | os.PathLike[str]) -> bool:
    """Whether a data set is a folder of shards, or is at an address, where nothing else is read."""
    text = os.fspath(source)
    if is_address(text):
        return True
    path = os.path.join(text, INDEX_NAME) if os.path.isdir(text) else text
    if os.path.basename(path) != INDEX_NAME or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(100)


def is_address(source: str) -> bool:
    """Whether a text is an address such as ``https://...`` or ``s3://...``."""
    return re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def join(home: str, file: str) -> str:
    """The path or address of a file in a folder."""
    return f"{home.rstrip('/')}/{file}" if is_address(home) else os.path.join(home, file)


def read_index(source: str | os.PathLike[str]) -> ShardIndex:
    """Read the index of a folder of shards, and see that the local shards have the sizes that it says.

    Args:
        source: path or address of the folder, or of its ``index.json``.

    Raises:
        ShardError: if it can't be read, or says what can't be.
    """
    home = os.fspath(source)
    if home.endswith("/" + INDEX_NAME) or os.path.basename(home) == INDEX_NAME:
        home = home[: -len(INDEX_NAME)].rstrip("/") or "."
    address = join(home, INDEX_NAME)
    content = _read_range(address, 0, MAX_INDEX_BYTES + 1)
    if len(content) > MAX_INDEX_BYTES:
        raise ShardError(
            f"index {address}: larger than {MAX_INDEX_BYTES} bytes; expected less. Make smaller sets."
        )
    try:
        value = json.loads(content)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError("it is not an index of shards")
        if value.get("version") != VERSION:
            raise ValueError(f"version is {value.get('version')!r}, this program reads {VERSION}")
        index = _parse(home, value)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ShardError(
            f"index {address}: {reason}. Copy it again, or prepare the data again with `frameflex data prepare`."
        ) from error
    if not is_address(home):
        for shard in index.shards:
            path = os.path.join(home, shard.file)
            size = os.path.getsize(path) if os.path.isfile(path) else None
            if size != shard.num_bytes:
                found = "is not there" if size is None else f"has {size} bytes"
                raise ShardError(
                    f"shard {path}: {found}; expected {shard.num_bytes} bytes as in the index. Copy it again."
                )
    return index


def _parse(home: str, value: Mapping[str, Any]) -> ShardIndex:
    classes = tuple(_text(name) for name in _list(value["classes"]))
    splits = tuple(_text(name) for name in _list(value["splits"]))
    if len(set(splits)) < len(splits) or set(splits) - {"train", "validation", "test"}:
        raise ValueError(f"splits are {list(splits)}; expected some of train, validation and test")
    shards = []
    for item in _list(value["shards"]):
        file, split, num_bytes = _text(item["file"]), _text(item["split"]), _count(item["num_bytes"])
        if not _SHARD.fullmatch(file):
            raise ValueError(f"shard is called {file[:80]!r}; expected a plain name such as train-00000.tar")
        if split not in (splits or ("",)):
            raise ValueError(f"shard {file} is of the split {split!r}, which is not listed")
        videos = []
        for row in _list(item["videos"]):
            position, name, label, member, offset, size, crc32 = _list(row)
            if not _MEMBER.fullmatch(_text(member)):
                raise ValueError(f"{file}: a member is called {member[:80]!r}; expected such as 000123.mp4")
            if label is not None and _count(label) >= len(classes):
                raise ValueError(
                    f"{file}, {member}: label is {label}; expected one of {len(classes)} classes"
                )
            if _count(size) > MAX_MEMBER_BYTES or _count(offset) + size > num_bytes:
                raise ValueError(
                    f"{file}, {member}: {size} bytes at {offset}; expected at most {MAX_MEMBER_BYTES}, inside of the "
                    f"{num_bytes} of the shard"
                )
            videos.append(
                ShardVideo(_count(position), _text(name), label, member, offset, size, _count(crc32))
            )
        shards.append(Shard(file, split, num_bytes, _text(item["sha256"]), tuple(videos)))
    if len({shard.file for shard in shards}) < len(shards):
        raise ValueError("two shards have the same name")
    left_out = []
    for row in _list(value["left_out"]):
        split, name, reason = _list(row)
        left_out.append((_text(split), _text(name), _text(reason)))
    encoding = value["encoding"]
    if not isinstance(encoding, dict):
        raise ValueError("encoding is not an object")
    return ShardIndex(home, classes, splits, tuple(shards), tuple(left_out), encoding)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"found {str(value)[:40]!r} where a list is expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"found {str(value)[:40]!r} where a text is expected")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise ValueError(f"found {str(value)[:40]!r} where a number from 0 is expected")
    return value


# Bytes, from here or from afar


def _read_range(source: str, offset: int, num_bytes: int) -> bytes:
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


def _open_stream(source: str) -> BinaryIO:
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


class _Bounded:
    """No more than what the index promises is read of a shard, whatever is sent."""

    def __init__(self, file: BinaryIO, source: str, num_bytes: int) -> None:
        self.file, self.source, self.left = file, source, num_bytes
        self.started = False

    def read(self, num_bytes: int) -> bytes:
        data = self.file.read(min(num_bytes, self.left))
        self.left -= len(data)
        if not self.started and data:
            self.started = True
            # tarfile would unpack what is compressed: a few bytes can become terabytes.
            if data[257:262] != b"ustar" or data[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
                raise ShardError(f"shard {self.source}: is no plain tar file. Copy it again.")
        return data

    def close(self) -> None:
        self.file.close()

    def __str__(self) -> str:
        return self.source


class ShardStream(IterableDataset["Sample | BadVideo"]):
    """Every clip of a data set of shards once an epoch, reading whole shards in sequence through webdataset.

    For storage where each request takes long. The samples are those of the `ClipDataset`, bit for bit; only their
    order is another: shards in an order of their own each epoch, dealt to processes and to loader workers, the
    videos of a shard in the order in which they lie there (which `frameflex data prepare` has mixed).

    Shards are dealt whole: with few of them, or sizes that differ, some processes get more videos than others. Where
    all processes must make the same number of steps, or a run is to be resumed exactly, use the `ClipDataset` itself.

    Args:
        dataset: clips of videos of shards.
        rank: this process.
        world: number of processes.

    Raises:
        ValueError: if a video of the data set is in no shard.
    """

    def __init__(self, dataset: ClipDataset, *, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of {world} processes; expected 0 to {world - 1}.")
        self.dataset, self.rank, self.world, self.epoch = dataset, rank, world, 0
        self.shards: dict[
            str, dict[str, tuple[int, int, int]]
        ] = {}  # shard -> member -> index, bytes, checksum
        for index, record in enumerate(dataset.videos):
            place = record.path
            if not isinstance(place, ShardMember):
                raise ValueError(
                    f"video {record.name} is a file of its own; expected videos of shards. "
                    "Make some with `frameflex data prepare`."
                )
            self.shards.setdefault(place.shard, {})[place.name] = (index, place.num_bytes, place.crc32)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, before iterating: its order of shards, frames and augmentation."""
        self.epoch = epoch

    def mine(self) -> list[str]:
        """The shards of this process and this loader worker in this epoch, in their order."""
        names = sorted(self.shards)
        seed = hashlib.blake2b(f"{self.dataset.seed} {self.epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
        order = (
            torch.randperm(len(names), generator=generator).tolist()
            if self.dataset.training
            else range(len(names))
        )
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        dealt = [names[i] for i in order][self.rank :: self.world]
        return dealt[worker::workers]

    def __iter__(self) -> Iterator[Sample | BadVideo]:
        """Yield the samples of `mine`.

        Raises:
            ShardError: if a shard can't be read, holds what its index doesn't say, or ends early.
        """
        try:
            from webdataset.tariterators import tar_file_iterator
        except ImportError as error:
            raise ShardError(
                "reading shards in sequence needs webdataset. Install it with `pip install frameflex[shards]`."
            ) from error
        for shard in self.mine():
            for index, content, num_bytes, crc32 in self._contents(shard, tar_file_iterator):
                yield self._sample(index, content, num_bytes, crc32)

    def _contents(self, shard: str, tar_file_iterator: Any) -> Iterator[tuple[int, bytes, int, int]]:
        wanted = dict(self.shards[shard])
        end = max(place.offset + place.num_bytes for place in self._places(shard)) + 2 * _TAR_BLOCK
        stream = _Bounded(_open_stream(shard), shard, end)

        def select(name: str) -> bool:
            check_member_name(name, shard)
            return name in wanted

        try:
            for item in tar_file_iterator(stream, select_files=select):
                index, num_bytes, crc32 = wanted.pop(item["fname"])
                yield index, item["data"], num_bytes, crc32
                if not wanted:
                    return
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            raise ShardError(f"shard {shard}: can't be read to its end ({error}). Copy it again.") from error
        finally:
            stream.close()
        raise ShardError(
            f"shard {shard}: lacks {len(wanted)} of its videos, {next(iter(wanted))} among them. Copy it again."
        )

    def _places(self, shard: str) -> list[ShardMember]:
        records = (self.dataset.videos[index].path for index, _, _ in self.shards[shard].values())
        return [place for place in records if isinstance(place, ShardMember)]

    def _sample(self, index: int, content: bytes, num_bytes: int, crc32: int) -> Sample | BadVideo:
        name = str(self.dataset.videos[index].path)

        def open_reader() -> Any:
            if len(content) != num_bytes or zlib.crc32(content) != crc32:
                raise VideoError(
                    f"video {name}: its checksum is not that of the index. Copy the shard again."
                )
            return open_video(named_bytes(content, name), decoder=self.dataset.decoder)

        return self.dataset.sample(open_reader, index, self.epoch)


def check_member_name(name: str, shard: str) -> None:
    """Refuse a member's name that leads out of a folder.

    Raises:
        ShardError: if it is absolute or has a part ``..``.
    """
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name[:1] in ("/", "\\") or re.match(r"[A-Za-z]:", name):
        raise ShardError(
            f"shard {shard}: a member is called {name[:80]!r}; expected a name inside of the shard. Don't unpack it."
        )


# Writing


def write_tar(
    path: Path, files: Sequence[tuple[str, bytes | Path]]
) -> tuple[list[tuple[int, int, int]], str]:
    """Write a plain tar file, the same bytes for the same content.

    Args:
        path: the file, new.
        files: name and content, or the file that holds it, in order.

    Returns:
        (offset, size, CRC-32) of each content, and the SHA-256 of the whole.
    """
    places, whole = [], hashlib.sha256()
    with path.open("wb") as out:

        def put(data: bytes) -> None:
            out.write(data)
            whole.update(data)

        for name, source in files:
            content = source.read_bytes() if isinstance(source, Path) else source
            info = tarfile.TarInfo(name)  # owner 0, time 0, mode 0644
            info.size = len(content)
            put(info.tobuf(tarfile.USTAR_FORMAT))
            places.append((out.tell(), len(content), zlib.crc32(content)))
            put(content)
            put(b"\0" * (-len(content) % _TAR_BLOCK))
        put(b"\0" * 2 * _TAR_BLOCK)
        out.flush()
        os.fsync(out.fileno())
    return places, whole.hexdigest()
