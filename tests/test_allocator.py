"""Memory that is kept for its next use."""

import os
import subprocess
import sys

import pytest

from frameflex.allocator import _is_glibc, keep_freed_memory

# Page faults of a block of 64 MiB that is taken, written to and freed, for the second time.
COUNT = """
import ctypes, resource, sys
from frameflex.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not _is_glibc(), reason="only glibc has the setting")
def test_a_block_that_was_kept_does_not_fault_its_pages_again():
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    faults = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", COUNT, way],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for way in ("keep", "default")
    }
    assert faults["keep"] < 100 < faults["default"]


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_stands(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("frameflex.allocator._is_glibc", lambda: False)
    assert not keep_freed_memory()
