"""The packages that exports need, each named with its extra where it is missing."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

from frameflex.checkpoint import CheckpointError


class ExportError(CheckpointError):
    """A graph that can't be made, doesn't do what its model does, or can't be run; the message says what to do."""


def needed(name: str, what: str) -> ModuleType:
    """Import a package of an extra. Raises ExportError, which names the extra, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        extra = "int8" if package == "nncf" else "export"
        raise ExportError(
            f"{what} needs the package {package} ({error}). Install it: pip install 'frameflex[{extra}]'"
        ) from error


@cache
def openvino_core() -> Any:
    """The one `openvino.Core` of this process, which is never let go.

    OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack, and takes the memory away when its
    core goes. Of two cores that live at once the first one's memory stays in use after it is gone, and so it is where
    another thread drops the last reference: the next signal with a handler (Ctrl-C, a worker of torch's loader that
    ends) then kills the process. A core that stays, and is there before others, keeps its stack.
    """
    core = needed("openvino", "running an OpenVINO file").Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin now
    return core


def first_line(error: Exception) -> str:
    """What a runtime's error says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
