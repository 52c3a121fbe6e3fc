"""What the command line says while it works."""

import io
import logging
import os
import warnings

import pytest
from rich.table import Table
from torch.utils.data import DataLoader

from frameflex.console import PlainConsole, _Handler, make_console, progress, show_messages


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


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_colons_and_control_characters_of_names_are_shown_as_they_are(terminal, monkeypatch):
    name, seen = (
        "clip [abc123] [red] :smile: caf\udce9\x1b[2J\n.mp4",
        r"clip [abc123] [red] :smile: caf\xe9\x1b[2J\n.mp4",
    )
    written = io.StringIO()
    console = PlainConsole(
        file=written,
        force_terminal=terminal,
        markup=False,
        emoji=False,
        highlight=False,
        width=60,
        color_system=None,
    )
    console.print(f"left out: {name}: [no] reason", style="red")
    table = Table(title=name)
    table.add_column(name, overflow="fold")
    table.add_row(name)
    console.print(table)
    with progress(console, name) as on_progress:
        on_progress(1, 2)
        monkeypatch.setattr("frameflex.console.LINE_EVERY_SECONDS", 0.0)
        on_progress(2, 2)
    handler = _Handler(console)
    handler.emit(logging.LogRecord("frameflex.data", logging.INFO, "", 0, "video %s", (name,), None))
    text = written.getvalue()
    assert f"left out: {seen}: [no] reason\n" in text
    assert f"video {seen}\n" in text
    assert text.replace("\n", "").count(seen) >= 2
    assert "\x1b[2J" not in text
    assert "[abc123]" in text.partition("left out")[2]
    text.encode()
