"""Checkpoints into graphs for other runtimes, and running those as a checkpoint's model is run.

Each name is imported when it is first used: running an export needs nothing that writes one.
"""

from typing import TYPE_CHECKING

from frameflex.late import late_names

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


__getattr__ = late_names(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
