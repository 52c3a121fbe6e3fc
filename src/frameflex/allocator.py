"""Memory that networks on a CPU use again and again."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep the large blocks that it frees, for the next use.

    glibc gives every block of more than 32 MiB back to the system at once, and the pages of the next one are mapped
    and zeroed anew as they are touched. Features of clips are such blocks: a forward or training step of ResNet-50 on
    a CPU spends a fifth of its time on that (docs/experiments/speed.md). Afterwards blocks of up to 256 MiB are kept,
    and the process stays as large as it has been. The command line does this at its start; programs call
    `tune_process`.

    Returns:
        Whether it was done: on Linux with glibc, unless the environment sets one of glibc's own variables for it,
        which then stands.
    """
    if any(name in os.environ for name in _OWN_SETTINGS) or not _is_glibc():
        return False
    return _set_thresholds(mmap=256 << 20, trim=2**31 - 1)


def return_freed_memory() -> None:
    """Undo `keep_freed_memory` where it was done, and give what is free back to the system now.

    Blocks of more than 32 MiB are again given back as they are freed, as glibc does by itself after the first one.
    """
    if _set_thresholds(mmap=32 << 20, trim=64 << 20):
        ctypes.CDLL(None).malloc_trim(0)


def _set_thresholds(*, mmap: int, trim: int) -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, mmap) and mallopt(_M_TRIM_THRESHOLD, trim))


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):  # not a Unix, or another C library
        return False
