"""Checkpoints into graphs for other runtimes, and running those as a checkpoint's model is run."""

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
