"""What a file of weights holds: read without running code from it, unwrapped, with what was written beside."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class ConversionError(ValueError):
    """A file that can't be converted; the message says what was found and what to do."""


def read_file(path: Path, *, trust_pickle: bool = False) -> dict[str, Any]:
    """What a file of weights holds. Runs no code from it unless ``trust_pickle`` is set.

    Raises:
        ConversionError: if it is no file of weights, is damaged, or needs code to be read.
    """
    with open(path, "rb") as file:
        start = file.read(16)
    if len(start) == 16 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ConversionError(f"{path} is a damaged safetensors file ({error}). Get it again") from error
    if path.stat().st_size < 64:
        raise ConversionError(
            f"{path} has {path.stat().st_size} bytes; expected a file of weights. Get it again"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # of no interest where it works
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ConversionError(_needs_code(path, error)) from error
    except (EOFError, RuntimeError, zipfile.BadZipFile, OSError, KeyError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"{path} is no file of torch.save or safetensors, or is damaged ({reason}). Get it again"
        ) from error
    return content if isinstance(content, dict) else {"": content}


def _needs_code(path: Path, error: Exception) -> str:
    text = str(error)
    asked = re.findall(r"(?:GLOBAL|global) ([\w.]+)", text)
    if zipfile.is_zipfile(path):
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path) or asked
    asked = sorted({name for name in asked if "." in name})
    if not asked:
        return f"{path} is no file of torch.save or safetensors, or is damaged. Get it again"
    return (
        f"{path} can't be read as plain weights: it asks for {', '.join(asked)}, and reading such objects runs "
        "code that the file chooses. Ask its author for a file with the state_dict alone. If you trust that author "
        "as you trust a program that you start, --trust-pickle reads it; a malicious file can then do anything that "
        "you can do on this machine"
    )


def is_own(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "frameflex" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")


def state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights inside whatever they were saved with, as float32, without prefixes that wrappers leave."""
    inner: Any = content
    for _ in range(3):
        name = next((name for name in _WRAPPERS if isinstance(inner.get(name), Mapping)), None)
        if name is None:
            break
        inner = inner[name]
    state = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if not state or len(state) < len(inner) / 2:
        held = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(inner.items())[:8])
        raise ConversionError(
            f"{path} holds no weights under a name that is known; it holds {held or 'nothing'}"
        )
    for prefix in ("_orig_mod.", "module.", "_orig_mod.", "model."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


class Hints:
    """What the caller said, and what a training code wrote beside the weights."""

    def __init__(self, content: Mapping[str, Any], **said: Any) -> None:
        self.said = said
        meta = content.get("meta")
        meta = meta if isinstance(meta, Mapping) else {}
        config = meta.get("config") or meta.get("cfg")
        self.config = config if isinstance(config, str) else ""
        dataset = meta.get("dataset_meta")
        classes = meta.get("CLASSES") or (dataset.get("classes") if isinstance(dataset, Mapping) else None)
        listed = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
        self.class_names: list[str] | None = list(classes) if listed else None  # type: ignore[arg-type]

    def setting(self, pattern: str) -> str | None:
        """The first group of ``pattern`` in mmaction2's configuration."""
        found = re.search(pattern, self.config, re.DOTALL)
        return found[1] if found else None

    def numbers(self, name: str) -> list[float] | None:
        found = self.setting(rf"\b{name}\s*=\s*[\[(]([^\])]*)[\])]")
        try:
            values = [float(value) for value in found.split(",") if value.strip()] if found else []
        except ValueError:
            return None
        return values if len(values) == 3 else None
