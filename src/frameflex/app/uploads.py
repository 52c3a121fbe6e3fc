"""Uploaded files: written as they come, within limits, and deleted when nobody needs them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path


class Refused(Exception):
    """A request that isn't answered, with its HTTP status and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def bytes_text(number: int) -> str:
    """A limit as people read it."""
    return f"{number / 2**20:.4g} MiB"


class Upload:
    """A file that arrives in pieces, under a name of our own.

    Args:
        folder: where it is written.
        max_bytes: it may have.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.path = folder / f"upload-{secrets.token_hex(8)}"
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._file = open(self.path, "xb")  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Take a piece.

        Raises:
            Refused: if the file gets too large.
        """
        self.num_bytes += len(data)
        if self.num_bytes > self.max_bytes:
            raise too_large(self.max_bytes)
        self._file.write(data)

    def close(self) -> None:
        """The file is complete."""
        self._file.close()

    def delete(self) -> None:
        """Let go of the file; any number of times."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def too_large(max_bytes: int) -> Refused:
    return Refused(
        413, f"the file has more than {bytes_text(max_bytes)}, which is the limit; cut or shrink it"
    )


@contextlib.contextmanager
def deleted(upload: Upload) -> Iterator[Upload]:
    """Delete it at the end, whatever happens."""
    try:
        yield upload
    finally:
        upload.delete()


async def receive(pieces: AsyncIterator[bytes], upload: Upload) -> None:
    """Write a request's body.

    Raises:
        Refused: if there is none, or too much of it.
    """
    async for piece in pieces:
        upload.write(piece)
    upload.close()
    if not upload.num_bytes:
        raise Refused(
            400, "the request has no body; expected the bytes of a video: curl --data-binary @clip.mp4 …"
        )
