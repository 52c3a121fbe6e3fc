"""The manifest of an export: all that an answer needs besides the graphs, and a checksum of every file.

docs/reference/exports.md describes it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from frameflex.checkpoint import Checkpoint
from frameflex.export.packages import ExportError
from frameflex.printable import to_json

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "timm")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a manifest says of the checkpoint behind the graphs: all that an answer needs besides the network."""
    return {
        "class_names": list(checkpoint.class_names),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "sampling": dict(checkpoint.sampling),
        "multi_label": checkpoint.multi_label,
        "temperatures": {str(count): value for count, value in sorted(checkpoint.temperatures.items())},
        "trained_frame_counts": sorted(checkpoint.frame_counts),
        "architecture": checkpoint.model.config,
        "license": checkpoint.license,
        "source": checkpoint.source,
    }


def write_manifest(folder: str | Path, values: Mapping[str, Any]) -> Path:
    """Write ``manifest.json`` for the files that are in ``folder``.

    Args:
        folder: holds the finished graphs, and nothing else.
        values: what the manifest says, for JSON. The format's version, the SHA-256 checksum of every file and the
            versions of the packages that were there are added.

    Returns:
        The manifest's path.
    """
    folder = Path(folder)
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST_NAME)
    manifest = {
        "frameflex_export": MANIFEST_VERSION,
        **values,
        "files": {file.name: checksum(file) for file in files},
        "versions": {"frameflex": _version("frameflex"), "python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES if _version(name)},
    }
    path = folder / MANIFEST_NAME
    path.write_text(to_json(manifest, indent=1) + "\n", encoding="utf-8")
    return path


def read_manifest(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Read and check a manifest: its version, that its files lie beside it, and their checksums.

    Args:
        path: a folder with ``manifest.json``, that file, or a graph beside it.

    Returns:
        The folder, and the manifest.

    Raises:
        FileNotFoundError: if there is no manifest, or a file that it names is missing.
        ExportError: if the manifest is damaged, of a newer version, names a file outside its folder, or if a file
            isn't the one that was exported.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    manifest_path = folder / MANIFEST_NAME
    if not path.exists() or not manifest_path.is_file():
        raise FileNotFoundError(
            f"export {path}: no {MANIFEST_NAME} there; expected a folder written by frameflex export"
        )
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        number = int(manifest["frameflex_export"])
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"export {manifest_path} is no manifest of frameflex: {error!r}") from error
    if number > MANIFEST_VERSION:
        raise ExportError(
            f"export {manifest_path} has format {number}; this frameflex reads up to {MANIFEST_VERSION}. "
            "Update it: pip install -U frameflex"
        )
    for name, digest in files.items():
        if not _is_plain_name(name):
            raise ExportError(
                f"export {manifest_path} names the file {name!r}; expected plain names of files beside it"
            )
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise FileNotFoundError(f"export {folder}: {name} is missing; copy the whole folder again")
        if checksum(file) != digest:
            raise ExportError(
                f"export {file}: its SHA-256 checksum isn't the manifest's. The file was changed or arrived damaged; "
                "it is not used. Copy it again, or export again"
            )
    if path.is_file() and path != manifest_path and path.name not in files:
        raise ExportError(f"export {path}: {MANIFEST_NAME} beside it doesn't name this file")
    return folder, manifest


def is_export(path: str | Path) -> bool:
    """Whether a path looks like an export (its folder, manifest or a graph in it) rather than a checkpoint."""
    path = Path(path)
    if path.is_dir():
        return (path / MANIFEST_NAME).is_file()
    return path.name == MANIFEST_NAME or path.suffix in {".onnx", ".xml", ".bin", ".pt2", ".pt"}


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    running = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            running.update(chunk)
    return running.hexdigest()


def _is_plain_name(name: str) -> bool:
    return re.fullmatch(r"[\w][\w.-]*", name) is not None and name != MANIFEST_NAME


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
