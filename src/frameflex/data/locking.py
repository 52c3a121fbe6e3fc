"""One process at a time: a lock on a file that its process takes with it, however it ends."""

from __future__ import annotations

from typing import IO, Any

__all__ = ["lock"]


def lock(file: IO[Any]) -> bool:
    """Lock an open file for this process until it is closed; False where another process holds it.

    A record lock (POSIX `fcntl`), because of what a kill leaves: the system lets go of it with the process, also of
    another machine on a shared disk that has locks (NFS 4, Lustre with `flock`; there once the server has noticed).
    Not `flock`, which processes that were forked from a killed one, such as a loader's workers, would hold on. It
    keeps other processes out, not other threads of this one. On Windows the first byte is locked.
    """
    try:
        import fcntl
    except ImportError:
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
