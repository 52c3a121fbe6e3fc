"""The index of a folder of shards, ``index.json``: which videos lie where. Nothing in it is trusted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from frameflex import storage
from frameflex.data.shards.members import ShardMember
from frameflex.data.shards.reading import ShardError, is_address, join, read_range
from frameflex.storage import address_of, is_stored

FORMAT = "frameflex shards"
VERSION = 1
INDEX_NAME = "index.json"

MAX_INDEX_BYTES = 2**30
"""Largest index that is read: some eight million videos."""

MAX_MEMBER_BYTES = 2**30
"""Largest video in a shard."""

_MEMBER = re.compile(r"\d{6,12}\.(mp4|mkv)")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,200}\.tar")


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
    """Whether a data set is a folder of shards, or is at an address of the web, where nothing else is read.

    Raises:
        StorageError: if it is in object storage, and that can't be asked.
    """
    text = os.fspath(source)
    if is_stored(text):
        home = address_of(text).removesuffix("/" + INDEX_NAME)
        try:
            return FORMAT.encode() in storage.read_range(join(home, INDEX_NAME), 0, 100)
        except FileNotFoundError:
            return False
    if is_address(text):
        return True
    path = os.path.join(text, INDEX_NAME) if os.path.isdir(text) else text
    if os.path.basename(path) != INDEX_NAME or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(100)


def read_index(source: str | os.PathLike[str]) -> ShardIndex:
    """Read the index of a folder of shards, and see that the local shards have the sizes that it says.

    Args:
        source: path or address of the folder, or of its ``index.json``.

    Raises:
        ShardError: if it can't be read, or says what can't be.
    """
    home = address_of(source)
    if home.endswith("/" + INDEX_NAME) or os.path.basename(home) == INDEX_NAME:
        home = home[: -len(INDEX_NAME)].rstrip("/") or "."
    address = join(home, INDEX_NAME)
    content = read_range(address, 0, MAX_INDEX_BYTES + 1)
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
