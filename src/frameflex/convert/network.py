"""What a code base's converter gives back: a network of ours, and a file's tensors under our names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from frameflex.data.transforms import Preprocessing


@dataclass
class Network:
    """A network of ours, and the tensors of a file under our names."""

    source: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    origins: dict[str, str]
    unknown: list[str]
    notes: list[str]
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(geometry="tsm"))
    frame_counts: tuple[int, ...] = ()
    sampling: dict[str, Any] = field(default_factory=lambda: {"sampling": "segments"})
    class_names: list[str] | None = None


def head_names(state: Iterable[str], weight: str, bias: str) -> dict[str, str]:
    return {key: ours for key, ours in ((weight, "head.weight"), (bias, "head.bias")) if key in state}
