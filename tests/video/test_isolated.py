"""One process for task after task: it dies for its task alone, and another takes its place."""

import sys

import pytest
from dying_tasks import double, oom_score

from frameflex.video.isolated import Isolated, Lost


def test_a_process_is_kept_for_many_tasks_and_replaced_when_it_dies_or_hangs():
    isolated = Isolated(double, timeout_seconds=3.0)
    try:
        (four, first), (six, second) = isolated.call(2), isolated.call(3)
        assert (four, six, first) == (4, 6, second)
        died = isolated.call(13)
        assert isinstance(died, Lost)
        assert (died.kind, "exit status 7" in died.reason) == ("crashed", True)
        ten, third = isolated.call(5)
        assert ten == 10
        assert third != first
        assert isolated.call(60).kind == "timed-out"
        with pytest.raises(RuntimeError, match="zero"):
            isolated.call(0)
        fourteen, fourth = isolated.call(7)
        assert fourteen == 14
        assert fourth not in (first, third)
    finally:
        isolated.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux chooses by this number")
def test_where_memory_is_short_the_decoder_goes_first():
    isolated = Isolated(oom_score, timeout_seconds=10.0)
    try:
        assert isolated.call(None) == 1000
    finally:
        isolated.close()
