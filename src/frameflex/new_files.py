"""Files and folders that appear whole or not at all, with the rights that the user's umask leaves them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes it when the block ends well, and goes away when not.

    The temporary name keeps the ending, from which libraries tell a file's kind. Folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:200]}.{secrets.token_hex(6)}{path.suffix}")
    temporary.touch(exist_ok=False)  # not mkstemp, whose files are for their owner alone
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that becomes it when the block ends well, and goes away when not.

    Raises:
        OSError: if something that holds files came to lie at ``path`` meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.partial")
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir() and not path.is_symlink():
            path.rmdir()  # it is empty, or this fails
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def give_usual_rights(path: Path) -> None:
    """Give a file that a library made for its owner alone the rights of any new file in its folder."""
    probe = path.with_name(f".{secrets.token_hex(6)}.rights")
    probe.touch(exist_ok=False)
    try:
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink()
