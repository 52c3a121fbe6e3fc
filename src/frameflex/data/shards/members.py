"""A video in a shard: where its bytes lie."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import BinaryIO

from frameflex.data.shards.reading import ShardError, read_range
from frameflex.storage import named_bytes
from frameflex.video import VideoError


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
        content = read_range(self.shard, self.offset, self.num_bytes)
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


def pack_member(member: ShardMember) -> str:
    """A member as text that is no path: it begins with a NUL."""
    return f"\0{member.offset}\0{member.num_bytes}\0{member.crc32}\0{member.name}\0{member.shard}"


def unpack_member(text: str) -> ShardMember:
    """What `pack_member` made."""
    _, offset, num_bytes, crc32, name, shard = text.split("\0", 5)
    return ShardMember(shard, name, int(offset), int(num_bytes), int(crc32))
