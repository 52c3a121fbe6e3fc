"""Files from the web: resumed where they broke off, checked, kept, and never half there under their own name."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frameflex.checkpoint.errors import CheckpointError

logger = logging.getLogger(__name__)

TRIES = 5  # in a row that bring nothing new
TIMEOUT_SECONDS = 60.0  # without a byte
_WAIT_SECONDS = 1.0  # before the second try; doubled before each further one
MAX_BYTES = 16 * 2**30
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: ``FRAMEFLEX_CACHE``, else ``frameflex`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("FRAMEFLEX_CACHE"):
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "frameflex"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``; the others wait, and find it.

    Raises:
        CheckpointError: if its folder can't be written to.
    """
    import filelock

    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(lock)
        if not _try_to_hold(held):
            logger.info("waiting for another process that is fetching %s", path.name)
            held.acquire()
    except OSError as error:
        raise CheckpointError(
            f"the cache folder {path.parent} can't be used ({first_line(error)}); set FRAMEFLEX_CACHE to another"
        ) from error
    try:
        yield
    finally:
        held.release()


def _try_to_hold(lock: Any) -> bool:
    import filelock

    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    return True


def download(url: str, path: Path, *, sha256: str, what: str = "") -> None:
    """Bring a file to ``path``, which other processes must be kept from with `locked`.

    What has arrived is kept beside ``path`` under a name of its own, and a later call goes on from there.

    Args:
        url: where it is.
        path: where it goes, once it is whole and its checksum is right.
        sha256: its SHA-256 in hexadecimal, or the first digits of it.
        what: what it is and under which terms, to be said with its size before it is fetched.

    Raises:
        CheckpointError: if it can't be reached, isn't that file, or there is no room for it.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What an earlier call left may be of a file that has since been replaced: then all of it is fetched again.
        for afresh in (False, True) if part.is_file() else (True,):
            if afresh:
                part.unlink(missing_ok=True)
            _receive(url, part, path, what or url)
            digest = checksum(part)
            if digest.startswith(sha256):
                os.replace(part, path)
                return
        part.unlink()
    except OSError as error:
        raise CheckpointError(
            f"{url} can't be kept in {path.parent} ({first_line(error)}). Make room there, or set FRAMEFLEX_CACHE to "
            "a folder on another disk"
        ) from error
    raise CheckpointError(
        f"{url}: the file has SHA-256 {digest}, expected {sha256}{'…' if len(sha256) < 64 else ''}. It was changed "
        "or arrived damaged; it is not used. Try again; if it stays so, the file there is another one"
    )


def _receive(url: str, part: Path, path: Path, what: str) -> None:
    """Fill ``part``, going on where a connection breaks; gives up after some tries that bring nothing."""
    failed = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _go_on(url, part, before, what)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing is left to send, or the file there has become shorter
                return
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise CheckpointError(f"{url} can't be downloaded: {reason}. {_by_hand(path)}") from error
        except urllib.error.URLError as error:
            reason = first_line(str(error.reason))
            if isinstance(
                error.reason, (socket.gaierror, ConnectionRefusedError)
            ):  # nobody there: waiting is no use
                raise CheckpointError(
                    f"{url} can't be downloaded ({reason}). Is this machine online? {_by_hand(path)}"
                ) from error
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = first_line(error)
        gained = (part.stat().st_size if part.is_file() else 0) > before
        failed = 1 if gained else failed + 1
        if failed >= TRIES:
            raise CheckpointError(f"{url} can't be downloaded ({reason}). {_by_hand(path)}")
        time.sleep(_WAIT_SECONDS * 2 ** (failed - 1))


def _by_hand(path: Path) -> str:
    return f"Try again later, which goes on from what has arrived; or fetch the file by hand and put it at {path}"


def _go_on(url: str, part: Path, before: int, what: str) -> None:
    """One request for what is missing behind ``before`` bytes.

    Raises:
        http.client.IncompleteRead: if less arrives than was promised.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "frameflex", "Accept-Encoding": "identity"})
    if before:
        request.add_header("Range", f"bytes={before}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise CheckpointError(
                f"{url} leads to {response.url}; what http:// gives can be changed on its way"
            )
        if response.headers.get_content_type() == "text/html":
            raise CheckpointError(
                f"{url} gives a web page (text/html), not a file: an error page or one that asks to log in. Open it "
                "in a browser to see"
            )
        resumed = response.status == 206
        if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {before}-"):
            part.unlink()  # it doesn't go on where we are
            raise http.client.IncompleteRead(b"")
        start = before if resumed else 0
        left = response.headers.get("Content-Length")
        total = start + int(left) if left and left.isdecimal() else None
        _check_room(part, total, start)
        kept = f", of which {megabytes(start)} are here" if start else ""
        logger.warning("fetching %s (%s%s)", what, megabytes(total), kept)
        with open(part, "r+b" if resumed else "wb") as file, _bar(total, start) as bar:
            file.seek(start)
            file.truncate()
            arrived = start
            while chunk := _read(response):
                file.write(chunk)
                arrived += len(chunk)
                if arrived > MAX_BYTES:
                    raise CheckpointError(
                        f"{url} gives more than {megabytes(MAX_BYTES)}; no checkpoint is that large"
                    )
                bar.update(len(chunk))
    if total is not None and arrived < total:  # http.client doesn't say so where a size is asked for
        raise http.client.IncompleteRead(b"", total - arrived)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except OSError as error:  # told apart from those of the disk
        raise ConnectionError(first_line(error)) from error


def _check_room(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - start:
        raise OSError(f"it needs {megabytes(total - start)}, {megabytes(free)} are free")


def _bar(total: int | None, start: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, initial=start, unit="B", unit_scale=True, leave=False, disable=None
    )  # on a terminal


def megabytes(size: int | None) -> str:
    return "of unknown size" if size is None else f"{size / 1e6:.0f} MB"


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    running = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            running.update(chunk)
    return running.hexdigest()


def first_line(error: BaseException | str) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
