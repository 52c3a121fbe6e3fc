"""The packages that exports need, each named with its extra where it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

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


def first_line(error: Exception) -> str:
    """What a runtime's error says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
