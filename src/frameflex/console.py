"""What the command line shows while it works: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from frameflex.addresses import without_secrets
from frameflex.printable import printable

if TYPE_CHECKING:  # what training needs weighs 100 MB, which who watches a long video can do without
    from frameflex.engine.evaluation import Evaluation
    from frameflex.engine.watching import StepReport, Watcher

LINE_EVERY_SECONDS = 10.0  # where there is no terminal to draw a bar on


class PlainConsole(Console):
    """Shows every text as it is: brackets and colons are no markup, and names can't move the cursor.

    A line is left as long as it is; a table has the console's width.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(one, str) for one in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def make_console() -> PlainConsole:
    """Standard error: results alone go to standard output."""
    console = _plain_console(stderr=True)
    return console if console.is_terminal else _plain_console(stderr=True, width=200)


def results_console(file: IO[str] | None = None, *, width: int | None = None) -> PlainConsole:
    """For tables: standard output, or a file."""
    return _plain_console(file=file, width=width)


def _plain_console(**options: Any) -> PlainConsole:
    return PlainConsole(markup=False, emoji=False, highlight=False, **options)


def show_messages(console: Console, *, debug: bool) -> None:
    """Print the library's log messages; those of other libraries from warnings on.

    Torch's warning about more loader workers than cores is left out: it names no option of ours, and the progress
    line says whether the network waits for data.
    """
    warnings.filterwarnings("ignore", message="This DataLoader will create", module="torch")
    layout = "%(levelname)s %(name)s: %(message)s" if debug else "%(message)s"
    logging.basicConfig(level=logging.WARNING, format=layout, handlers=[_Handler(console)], force=True)
    logging.getLogger("frameflex").setLevel(logging.DEBUG if debug else logging.INFO)


@contextlib.contextmanager
def only_warnings(*names: str) -> Iterator[None]:
    """Leave out what these loggers say below warnings, inside the block; under --debug nothing is left out."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        if logger.getEffectiveLevel() > logging.DEBUG:
            logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class _Handler(logging.Handler):
    """Prints above a progress bar, and leaves lines as long as they are."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = without_secrets(self.format(record))
        own = (
            record.name.partition(".")[0] == "frameflex" and not record.exc_info
        )  # on one line, but for names
        for line in [text] if own else text.splitlines():
            self.console.print(line)


@contextlib.contextmanager
def progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback ``(done, total)`` that shows how far work has come."""
    with _bar(console, "") as update:
        yield lambda done, total: update(what, done, total, "")


@contextlib.contextmanager
def training_progress(console: Console, num_epochs: int) -> Iterator[Watcher]:
    """A `Watcher` that shows loss, accuracy, clips a second, how busy the loader keeps the network, and time left."""
    from frameflex.engine.watching import Watcher

    with _bar(console, " ") as update:

        def on_step(report: StepReport) -> None:
            minutes, seconds = divmod(int(report.seconds_left), 60)
            hours, minutes = divmod(minutes, 60)
            left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
            update(
                f"epoch {report.epoch + 1}/{num_epochs}",
                report.step,
                report.num_steps,
                f"loss {report.loss:.3f}  top-1 {report.accuracy:.1%}  "
                f"{report.clips_per_second:.1f} videos/s  network busy {1 - report.waiting:.0%}  {left} left",
            )

        def on_validation(epoch: int, measured: Evaluation, best: bool) -> None:
            accuracies = ", ".join(f"{r.top1:.1%} at {r.num_frames}" for r in measured.results)
            console.print(
                f"epoch {epoch + 1}: validation top-1 {accuracies} frames{'  (best so far)' if best else ''}"
            )

        yield Watcher(on_step=on_step, on_validation=on_validation)


@contextlib.contextmanager
def _bar(console: Console, padding: str) -> Iterator[Callable[[str, int, int, str], None]]:
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn() if padding else TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None, note="")
            yield lambda what, done, total, note: bar.update(
                task, description=printable(what), completed=done, total=total, note=note
            )
        return
    shown = time.monotonic()

    def line(what: str, done: int, total: int, note: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= LINE_EVERY_SECONDS:
            shown = time.monotonic()
            console.print(f"{what}: {done}/{total}  {note}".rstrip())

    yield line
