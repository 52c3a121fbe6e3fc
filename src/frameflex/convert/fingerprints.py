"""Number and size of the tensors of every architecture: which ones a file can be of, without building them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Number and total size of a network's tensors, its classifier's and counters left out as well as names tell."""
    counted = {
        name: math.prod(shape)
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
        and not name.startswith(("fc.", "classifier.", "head.fc."))
    }
    return len(counted), sum(counted.values())


def known_fingerprints() -> dict[str, list[int]]:
    """Of every architecture that can be built: made by benchmarks/fingerprints.py, so that few have to be built."""
    return json.loads(Path(__file__).with_name("fingerprints.json").read_text(encoding="utf-8"))


def close(known: Sequence[int] | None, given: tuple[int, ...]) -> bool:
    return known is None or tuple(known) == given
