"""What the command line says while it works."""

import logging
import os
import warnings

import pytest
from torch.utils.data import DataLoader

from frameflex.console import make_console, show_messages


@pytest.fixture
def messages_restored():
    root, ours = logging.getLogger(), logging.getLogger("frameflex")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="torch counts this process's cores so on Linux"
)
def test_more_loader_workers_than_cores_are_no_warning(monkeypatch, messages_restored):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        DataLoader([0], num_workers=2)
    assert "suggested max number of worker" in str(before[0].message)  # else this test tests nothing
    with warnings.catch_warnings(record=True) as after:
        warnings.simplefilter("always")
        show_messages(make_console(), debug=False)
        DataLoader([0], num_workers=2)
    assert after == []
