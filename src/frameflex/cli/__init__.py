"""The verbs of the command line."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from threading import current_thread, main_thread

from frameflex import __version__
from frameflex.allocator import keep_freed_memory
from frameflex.cli.options import fail, is_ours, one_line

VERBS = {  # each is a module of this package with run(argv, console) -> exit status
    "demo": "see the whole road on a rendered data set, in minutes, without a download",
    "train": "train a network on a folder of videos, or as a recipe says",
    "evaluate": "accuracy and cost of a checkpoint at every frame count",
    "predict": "recognise what happens in videos",
    "stream": "recognise what happens in live pictures: webcam, file, address, standard input",
    "app": "a page in the browser: try a network, see why, teach it, watch a camera",
    "serve": "answer over HTTP what happens in videos",
    "calibrate": "fit a checkpoint's statistics to frame counts that it was not trained at",
    "data": "render the bundled benchmark; check and prepare a data set; labels from and to labelling tools",
    "benchmark": "time a network on every back end, next to the same one without the shift",
    "export": "write a checkpoint as graphs for ONNX Runtime, OpenVINO or torch",
    "convert": "bring weights of other code bases, timm or torchvision",
    "push": "share a checkpoint, with a card, on the Hugging Face hub or in a folder",
    "models": "list the backbones that can be built, with their cost",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 only where it did what it said.

    1 means that the work could not be done (one line on standard error says why), 2 that the command line could
    not be understood, 130 that it was stopped by Ctrl-C, 143 by SIGTERM, 141 that nobody reads its output any more.
    """
    if sys.stderr is None:  # closed; print would take standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        return fail("standard output is closed; expected a place for results, such as >/dev/null", status=1)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb not in (*VERBS, "-h", "--help", "--version"):
        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(VERBS)}"
        return fail(f"unknown command {verb!r}; {hint}", status=2)
    try:
        with _terminated_in_order():
            status = _run(verb, rest, debug=debug)
            sys.stdout.flush()  # what can't be written is an error now, not a traceback at the interpreter's end
        return status
    except KeyboardInterrupt:
        return fail("stopped", status=130)
    except _Terminated:
        return fail("terminated", status=143)
    except SystemExit as stop:  # argparse after --help or a usage error
        if isinstance(stop.__context__, BrokenPipeError):  # rich's, of a table that nobody reads
            return 141
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        _leave_output()
        return 141
    except Exception as error:
        if is_ours(error, "Interrupted"):
            return fail(str(error), status=130)
        if debug:
            raise
        if isinstance(error, OSError) and not _can_write():
            _leave_output()
        return fail(one_line(error), status=1)


def _run(verb: str, arguments: list[str], *, debug: bool) -> int:
    if verb in ("-h", "--help", "--version"):
        print(f"frameflex {__version__}" if verb == "--version" else _overview())  # noqa: T201
        return 0
    from frameflex.console import make_console, show_messages

    keep_freed_memory()
    atexit.register(
        gc.freeze
    )  # or Python ends by searching all that PyTorch is made of for garbage: half a second
    console = make_console()
    show_messages(console, debug=debug)
    return import_module(f"frameflex.cli.{verb}").run(arguments, console)


class _Terminated(BaseException):
    """SIGTERM, on its way through every ``finally``."""


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """SIGTERM ends work as Ctrl-C does: unfinished files are removed, and the processes that decode ended."""

    def terminate(*_: object) -> None:
        raise _Terminated

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL or current_thread() is not main_thread():
        yield  # someone else's matter, as where SIGTERM is ignored
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _can_write() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _leave_output() -> None:
    """Python writes at its end what is left, and would fail once more: let it write nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in VERBS.items()]
    return "\n".join(
        [
            "usage: frameflex COMMAND ...",
            "",
            "Recognise actions in video with networks whose frame count is a dial at run time.",
            "",
            "commands:",
            *lines,
            "",
            "frameflex COMMAND --help explains one. --debug, anywhere, shows tracebacks.",
        ]
    )
