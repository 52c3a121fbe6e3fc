"""What a file of weights holds: read without running code from it, unwrapped, with what was written beside."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frameflex.convert import unpickling
from frameflex.convert.unpickling import Record


class ConversionError(ValueError):
    """A file that can't be converted; the message says what was found and what to do."""


def read_file(path: Path, *, trust_pickle: bool = False) -> dict[str, Any]:
    """What a file of weights holds. Runs no code from it unless ``trust_pickle`` is set.

    Objects of classes that aren't plain data are a `Record` each.

    Raises:
        ConversionError: if it is no file of weights, or is damaged.
    """
    return read_content(path, trust_pickle=trust_pickle)[0]


def read_content(path: Path, *, trust_pickle: bool = False) -> tuple[dict[str, Any], list[str]]:
    """As `read_file`, and a note on what was left unread."""
    with open(path, "rb") as file:
        start = file.read(16)
    if len(start) == 16 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, []  # noqa: SIM118
        except SafetensorError as error:
            raise ConversionError(f"{path} is a damaged safetensors file ({error}). Get it again") from error
    if path.stat().st_size < 64:
        raise ConversionError(
            f"{path} has {path.stat().st_size} bytes; expected a file of weights. Get it again"
        )
    unread: Counter[str] = Counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about old files, of no interest where they work
            if trust_pickle:
                content = torch.load(path, map_location="cpu", weights_only=False)
            else:
                content, unread = unpickling.load(path)
    except Exception as error:  # a file that isn't one, or was damaged, can be wrong in any way
        if trust_pickle and not isinstance(error, _DAMAGED):
            raise  # of code in it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"{path} is no file of torch.save or safetensors, or is damaged ({reason}). Get it again"
        ) from error
    notes = []
    if unread:
        told = ", ".join(f"{name} ({number})" for name, number in unread.most_common(8))
        more = f" and {len(unread) - 8} more kinds" if len(unread) > 8 else ""
        notes.append(f"left unread, as code would be needed, and none was run: {told}{more}")
    if hostile := sorted(name for name in unread if _HOSTILE.match(name)):
        notes.append(
            f"BEWARE: the file asks to run {', '.join(hostile)}, which weights never need. It was not run here; "
            "don't open the file with anything else"
        )
    return content if isinstance(content, dict) else {"": content}, notes


def is_own(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "frameflex" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    OSError,
    KeyError,
    UnicodeDecodeError,
)
_HOSTILE = re.compile(
    r"(__builtin__|builtins)\.(exec|eval|execfile|compile|open|__import__|getattr|setattr)|"
    r"(os|posix|nt|subprocess|sys|shutil|socket|importlib|runpy|pty|ctypes|webbrowser|urllib)\."
)
_WRAPPERS = (
    *(
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net",
        "network",
        "weights",
        "module",
        "params",
    ),
)
_AVERAGED = (
    *(
        "state_dict_ema",
        "ema_state_dict",
        "model_ema",
        "ema_model",
        "model_ema_state_dict",
        "ema",
        "params_ema",
    ),
    *("averaged_model", "swa_model"),
)
_COUNTERS = ("n_averaged", "steps", "num_updates", "decay")  # of averaging, beside the weights
_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.", "model.", "net.")


def state_dict(
    path: Path, content: Mapping[str, Any], *, ema: bool = False, allow_nan: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights inside whatever they were saved with, as float32, without prefixes that wrappers leave.

    Args:
        path: for messages.
        content: of the file.
        ema: take averaged weights where there are others beside them.
        allow_nan: take weights with values that are no numbers.

    Returns:
        the weights, and a note where there was a choice.

    Raises:
        ConversionError: if there are no weights, none that are averaged, or some are NaN or infinite.
    """
    inner, notes, chosen = _entries(content), [], False
    for _ in range(4):
        raw = next((name for name in _WRAPPERS if _entries(inner.get(name))), None)
        averaged = next((name for name in _AVERAGED if _entries(inner.get(name))), None)
        name = averaged if averaged and (ema or raw is None) else raw
        if name is None:
            break
        if raw and averaged:
            other = "" if ema else f"; --ema takes {averaged}"
            swapped = averaged == "ema_state_dict" and "message_hub" in inner
            hint = " (mmengine keeps the averaged ones in state_dict)" if swapped else ""
            notes.append(f"weights are there twice, as {raw} and as {averaged}: took {name}{other}{hint}")
        chosen |= averaged is not None
        inner = _entries(inner[name])
    if ema and not chosen:
        raise ConversionError(
            f"{path} has no averaged weights under a name that is known ({', '.join(_AVERAGED)}); leave --ema out"
        )
    state = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in inner.items()}
    state = {key: v for key, v in state.items() if isinstance(v, Tensor) and key not in _COUNTERS}
    if not state or len(state) < len(inner) / 2:
        held = ", ".join(f"{key} ({_kind(value)})" for key, value in list(inner.items())[:8])
        raise ConversionError(
            f"{path} holds no weights under a name that is known; it holds {held or 'nothing'}"
        )
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    _check_values(path, state, allow_nan=allow_nan)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}, notes


def _entries(value: Any) -> dict[str, Any]:
    """What may be weights in it: entries of a mapping, parameters of a whole network, the first such of a list."""
    if isinstance(value, Record):
        value = value.entries or _parameters(value)
    if isinstance(value, Mapping):
        if list(value) == [""]:
            return _entries(value[""])
        return {str(key): item for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return next((found for item in value if (found := _entries(item))), {})
    return {}


def _parameters(record: Record, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Parameters and buffers of a network that was saved whole, under the names of its state_dict."""
    attributes = record.attributes()
    found: dict[str, Any] = {}
    for kind in ("_parameters", "_buffers"):
        named = attributes.get(kind)
        if isinstance(named, Mapping):
            found |= {f"{prefix}{key}": value for key, value in named.items() if isinstance(value, Tensor)}
    inside = attributes.get("_modules")
    if isinstance(inside, Mapping) and depth < 64:
        for key, module in inside.items():
            if isinstance(module, Record) and len(found) < 100_000:
                found |= _parameters(module, f"{prefix}{key}.", depth + 1)
    return found


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Record) else type(value).__name__


def _check_values(path: Path, state: Mapping[str, Tensor], *, allow_nan: bool) -> None:
    for key, value in state.items():
        if value.is_meta or value.is_sparse or value.is_quantized:
            raise ConversionError(
                f"{path}: {key} is quantised, sparse or without values; expected plain weights"
            )
        if allow_nan or not value.is_floating_point():
            continue
        wrong = int((~value.isfinite()).sum())
        if wrong:
            raise ConversionError(
                f"{path}: {key} has {wrong} of {value.numel()} values that are NaN or infinite; a network with them "
                "answers nothing. Take a checkpoint from before the training failed; --allow-nan goes on with it"
            )


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
