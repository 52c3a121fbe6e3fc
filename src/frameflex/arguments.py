"""What an argument has to be, said in one line where it isn't."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from typing import Any

MAX_FRAMES = 1024  # of a clip, when asked for by a person: more is a slip of the hand, and memory for nothing


def whole(value: Any, name: str, *, least: int = 0, most: int | None = None) -> int:
    """A whole number, numpy's too.

    Raises:
        ValueError: if it is none (``True`` and ``8.0`` are none), or out of range.
    """
    number = whole_or_none(value)
    if number is None or number < least or (most is not None and number > most):
        up_to = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {shown(value)}; expected a whole number {up_to}")
    return number


def finite_number(
    value: Any, name: str, expected: str, *, least: float = -math.inf, most: float = math.inf
) -> float:
    """A finite number within bounds.

    Raises:
        ValueError: if it is none (text and ``True`` are none), or out of range.
    """
    try:
        found = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor of several numbers
        found = math.nan
    if not (math.isfinite(found) and least <= found <= most):
        raise ValueError(f"{name} is {shown(value)}; expected {expected}")
    return found


def checked_num_frames(num_frames: Any, name: str = "num_frames") -> int:
    """A frame count that someone asked for. Raises ValueError where it is no whole number from 1 to `MAX_FRAMES`."""
    count = whole_or_none(num_frames)
    if count is None or not 1 <= count <= MAX_FRAMES:
        raise ValueError(
            f"{name} is {shown(num_frames)}; expected a whole number of frames from 1 to {MAX_FRAMES}"
        )
    return count


def frame_counts_of(values: Any, name: str) -> tuple[int, ...]:
    """Different frame counts, ascending.

    Raises:
        ValueError: if they are none, such as one number or a text, or repeat themselves.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {shown(values)}; expected several, such as (4, 8)")
    counts = [checked_num_frames(value, name) for value in values]
    if not counts or len(set(counts)) != len(counts):
        raise ValueError(f"{name} is {tuple(counts)}; expected different T's of at least 1 each")
    return tuple(sorted(counts))


def check_path(value: Any, name: str, expected: str) -> None:
    """Raises TypeError where it is no path, and ValueError where it is an empty one."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name} is {shown(value)}; expected {expected}")
    if not os.fspath(value):
        raise ValueError(f"{name} is empty; expected {expected}")


def shown(value: Any) -> str:
    """What was got, in a few words: small values as they are, others by their kind."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:79]}…"
    if isinstance(value, (tuple, list)) and len(repr(value)) <= 80:
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return type(value).__name__ if whole_or_none(value) is None else str(value)


def whole_or_none(value: Any) -> int | None:
    """A whole number; None for anything else."""
    kind = str(getattr(value, "dtype", ""))  # numpy's and torch's truth values are no numbers either
    if isinstance(value, bool) or kind in ("bool", "torch.bool") or int(getattr(value, "ndim", 0)) > 0:
        return None
    try:
        return operator.index(value)
    except TypeError:  # torch's tensors of floats, too
        return None
