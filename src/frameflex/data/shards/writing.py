"""Writing a shard: a plain tar file."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

TAR_BLOCK = 512


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> tuple[list[tuple[int, int, int]], str]:
    """Write a plain tar file, the same bytes for the same content.

    Args:
        path: the file, new.
        files: name and content, in order.

    Returns:
        (offset, size, CRC-32) of each content, and the SHA-256 of the whole.
    """
    places, whole = [], hashlib.sha256()
    with path.open("wb") as out:

        def put(data: bytes) -> None:
            out.write(data)
            whole.update(data)

        for name, content in files:
            info = tarfile.TarInfo(name)  # owner 0, time 0, mode 0644
            info.size = len(content)
            put(info.tobuf(tarfile.USTAR_FORMAT))
            places.append((out.tell(), len(content), zlib.crc32(content)))
            put(content)
            put(b"\0" * (-len(content) % TAR_BLOCK))
        put(b"\0" * 2 * TAR_BLOCK)
        out.flush()
        os.fsync(out.fileno())
    return places, whole.hexdigest()
