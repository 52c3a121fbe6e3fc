"""Uploaded files: written as they come, within limits, and deleted when nobody needs them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
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


class Receiver:
    """The files of one tab, one after the other.

    Args:
        folder: where they are written.
        max_bytes: one may have.
    """

    def __init__(self, folder: Path, *, max_bytes: Callable[[], int]) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._upload: Upload | None = None
        self._refused: Refused | None = None

    def begin(self) -> None:
        """The bytes that follow are those of a file; one that was not finished is forgotten."""
        self.close()
        self._upload = Upload(self._folder, max_bytes=self._max_bytes())

    def add(self, data: bytes) -> None:
        """A piece; what comes after one too many is thrown away."""
        if self._upload is None or self._refused is not None:
            return
        try:
            self._upload.write(data)
        except Refused as refused:
            self._refused = refused

    def end(self) -> Upload:
        """The file, whole; who asks for it deletes it.

        Raises:
            Refused: if it is too large, empty, or there is none.
        """
        upload, self._upload = self._upload, None
        refused, self._refused = self._refused, None
        if upload is None:
            raise Refused(400, "no file was sent")
        upload.close()
        if refused is None and not upload.num_bytes:
            refused = Refused(400, "the file is empty")
        if refused is not None:
            upload.delete()
            raise refused
        return upload

    def close(self) -> None:
        """Forget what was not finished."""
        if self._upload is not None:
            self._upload.delete()
        self._upload = self._refused = None


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
