"""Checkpoints into graphs for other runtimes, and running those as a checkpoint's model is run.

Each name is imported when it is first used: running an export needs nothing that writes one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frameflex.export.exporting import FORMATS, export
    from frameflex.export.manifest import is_export, read_manifest, write_manifest
    from frameflex.export.network import export_network
    from frameflex.export.packages import ExportError
    from frameflex.export.running import ExportedModel, load_exported
    from frameflex.export.step import STEP_FORMATS, export_step, open_step

__all__ = [
    "FORMATS",
    "STEP_FORMATS",
    "ExportError",
    "ExportedModel",
    "export",
    "export_network",
    "export_step",
    "is_export",
    "load_exported",
    "open_step",
    "read_manifest",
    "write_manifest",
]

_HOMES = {
    "FORMATS": "exporting",
    "STEP_FORMATS": "step",
    "ExportError": "packages",
    "ExportedModel": "running",
    "export": "exporting",
    "export_network": "network",
    "export_step": "step",
    "is_export": "manifest",
    "load_exported": "running",
    "open_step": "step",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
