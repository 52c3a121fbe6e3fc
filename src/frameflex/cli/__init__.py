"""The verbs of the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from frameflex import __version__
from frameflex.allocator import keep_freed_memory
from frameflex.cli.options import fail, one_line

VERBS = {  # each is a module of this package with run(argv, console) -> exit status
    "demo": "see the whole road on a rendered data set, in minutes, without a download",
    "train": "train a network as a recipe says",
    "evaluate": "accuracy and cost of a checkpoint at every frame count",
    "predict": "recognise what happens in videos",
    "stream": "recognise what happens in live pictures: webcam, file, address, standard input",
    "calibrate": "fit a checkpoint's statistics to frame counts that it was not trained at",
    "data": "render the bundled benchmark; check and prepare the files of a data set",
    "benchmark": "time a network on every back end, next to the same one without the shift",
    "export": "write a checkpoint as graphs for ONNX Runtime, OpenVINO or torch",
    "convert": "bring weights of other code bases, timm or torchvision",
    "models": "list the backbones that can be built, with their cost",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 only where it did what it said.

    1 means that the work could not be done (one line on standard error says why), 2 that the command line could
    not be understood, 130 that it was stopped by Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print(_overview())  # noqa: T201
        return 0
    if verb == "--version":
        print(f"frameflex {__version__}")  # noqa: T201
        return 0
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(VERBS)}"
        return fail(f"unknown command {verb!r}; {hint}", status=2)
    try:
        from frameflex.console import make_console, show_messages

        keep_freed_memory()
        console = make_console()
        show_messages(console, debug=debug)
        return import_module(f"frameflex.cli.{verb}").run(rest, console)
    except KeyboardInterrupt:
        return fail("stopped", status=130)
    except SystemExit as stop:  # argparse after --help or a usage error
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away, as `head` does
        return 141
    except Exception as error:
        from frameflex.engine.watching import Interrupted

        if isinstance(error, Interrupted):
            return fail(str(error), status=130)
        if debug:
            raise
        return fail(one_line(error), status=1)


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
