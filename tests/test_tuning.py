"""Memory and threads of a program that uses the library."""

import doctest
import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

import frameflex
from frameflex import tuning
from frameflex.allocator import _is_glibc

# Page faults of a block of 64 MiB that is taken, written to and freed once before, and then once in each state.
COUNT = """
import ctypes, resource
import frameflex
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(ctypes.c_size_t(64 << 20))
        ctypes.memset(block, 1, 64 << 20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
imported = faults()
with frameflex.tune_process() as done:
    assert done.keeps_memory
    inside = faults()
print(imported, inside, faults())
"""


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not _is_glibc(), reason="only glibc has the setting")
def test_memory_is_kept_inside_a_block_and_neither_by_importing_nor_behind_it():
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    ran = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, check=True, capture_output=True, text=True
    )
    imported, inside, behind = map(int, ran.stdout.split())
    assert inside < 100 < min(imported, behind)


@pytest.mark.parametrize(
    ("cores", "had", "workers", "expected"), [(4, 4, 1, 3), (4, 2, 1, 2), (2, 2, 5, 1), (8, 8, 0, 8)]
)
def test_threads_leave_a_core_to_each_worker_and_are_never_more_than_before(
    monkeypatch, cores, had, workers, expected
):
    monkeypatch.setattr(tuning, "available_cores", lambda: cores)
    torch.set_num_threads(had)
    with frameflex.tune_process(num_workers=workers, keep_memory=False) as done:
        assert (torch.get_num_threads(), done.num_threads, done.keeps_memory) == (expected, expected, False)
    assert torch.get_num_threads() == had


def test_threads_come_back_after_an_error():
    torch.set_num_threads(2)
    with pytest.raises(KeyError), frameflex.tune_process(num_threads=1, keep_memory=False):
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("wrong", [{"num_threads": 0}, {"num_workers": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected a whole number of at least"):
        frameflex.tune_process(**wrong)


def test_the_example_gives_what_it_shows():
    assert doctest.testmod(tuning).failed == 0


def test_objects_that_stay_are_out_of_the_collector_and_later_garbage_is_not():
    class Cycle:
        pass

    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        with tuning.objects_that_stay():
            assert not gc.isenabled()
        assert gc.isenabled()
        with pytest.raises(ValueError, match="invalid literal"), tuning.objects_that_stay():
            int("wrong")
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        garbage = Cycle()
        garbage.self, seen = garbage, weakref.ref(garbage)
        del garbage
        gc.collect()
        assert seen() is None
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with tuning.objects_that_stay():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
