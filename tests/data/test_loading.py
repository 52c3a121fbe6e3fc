"""Reading ahead."""

import queue
import threading

import pytest
from torch.utils.data import DataLoader, Dataset

from frameflex.data.loading import read_ahead
from frameflex.video import VideoError


class Remembering(Dataset):
    """Says which item is read, and where."""

    def __init__(self, broken=None):
        self.broken, self.read = broken, queue.Queue()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == self.broken:
            raise VideoError("broken")
        self.read.put((index, threading.current_thread()))
        return index


def test_the_next_batch_is_read_in_a_thread_while_one_is_used():
    dataset = Remembering()
    batches = read_ahead(DataLoader(dataset, batch_size=1))
    for expected in range(4):
        assert next(batches).item() == expected
        for index in (0, 1) if expected == 0 else (expected + 1,) if expected < 3 else ():
            read, thread = dataset.read.get(timeout=60)  # though nobody asked for the next one yet
            assert read == index
            assert thread is not threading.main_thread()
    assert next(batches, None) is None


def test_an_error_of_the_reading_thread_arrives_where_its_batch_is_wanted():
    batches = read_ahead(DataLoader(Remembering(broken=2), batch_size=1))
    assert [next(batches).item(), next(batches).item()] == [0, 1]
    with pytest.raises(VideoError, match="broken"):
        next(batches)


def test_reading_ahead_ends_with_whoever_reads():
    before = threading.active_count()
    batches = read_ahead(DataLoader(Remembering(), batch_size=1))
    next(batches)
    batches.close()
    assert threading.active_count() == before
