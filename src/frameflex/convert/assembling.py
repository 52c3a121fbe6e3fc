"""From a network and a file's tensors to a checkpoint, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frameflex.checkpoint import Checkpoint
from frameflex.convert.class_names import check_class_names
from frameflex.convert.network import Network
from frameflex.convert.reading import ConversionError
from frameflex.models import TSM, TemporalShift, create_model


@dataclass
class Conversion:
    """What became of a file.

    Attributes:
        checkpoint: ready to be saved.
        source: which code base and network the tensors' names and shapes are of.
        notes: one line each: what was found, what was matched, and what the file doesn't say and was assumed.
    """

    checkpoint: Checkpoint
    source: str
    notes: list[str]


def assemble(
    path: Path,
    network: Network,
    *,
    class_names: Sequence[str] | None,
    frame_counts: Sequence[int] | None,
    sampling: Mapping[str, Any] | None,
    preprocessing: Mapping[str, Any] | None,
    license: str,
) -> Conversion:
    weight = network.tensors.get("head.weight")
    if weight is None:
        raise ConversionError(
            f"found {network.source}, but no classifier; weights of a backbone alone go into a recipe as "
            "model.pretrained"
        )
    num_classes = int(weight.shape[0])
    model = create_model(**network.options, num_classes=num_classes)
    num_counters = _load(path, network, model)
    notes = [
        f"found: {network.source}, {num_classes} classes, {_describe(model)}",
        f"matched: all {len(network.tensors)} tensors"
        + (
            f"; {num_counters} counters of batches, which only training reads, start at 0"
            if num_counters
            else ""
        ),
        *network.notes,
    ]
    counts = _frame_counts(network, model, frame_counts, notes)
    names = _class_names(network, class_names, num_classes, notes)
    checkpoint = Checkpoint(
        model=model.eval(),
        class_names=names,
        preprocessing=replace(network.preprocessing, **(preprocessing or {})),
        frame_counts=counts,
        sampling=dict(sampling or network.sampling),
        license=license,
        source=f"converted from {network.source} ({path.name})",
    )
    pixels = checkpoint.preprocessing
    notes.append(
        f"pixels: {pixels.describe_fit()}, "
        f"{pixels.channel_order.upper()}, mean {_few(pixels.mean)}, std {_few(pixels.std)}; frames: "
        f"{checkpoint.sampling['sampling']}, T {', '.join(map(str, counts))}"
    )
    if not license:
        notes.append(
            "the licence of the weights isn't in the file; ask their source, and give it with --license"
        )
    return Conversion(checkpoint, network.source, notes)


def _load(path: Path, network: Network, model: TSM) -> int:
    """Give the model the file's tensors, all of them; how many counters of batches it has none for."""
    own = model.state_dict()
    # torch before 0.4.1 kept no counters; evaluation doesn't read them.
    counters = {name for name in own if name.endswith("num_batches_tracked")} - network.tensors.keys()
    tensors = network.tensors | {name: torch.zeros_like(own[name]) for name in counters}
    _check_fit(path, network, own, tensors)
    model.load_state_dict(tensors)
    return len(counters)


def _check_fit(
    path: Path, network: Network, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse where a tensor is left over, missing or of another shape; all of them are told."""
    missing = sorted(own.keys() - tensors.keys())
    left_over = sorted([*network.unknown, *(network.origins[name] for name in tensors.keys() - own.keys())])
    misshapen = [
        f"{network.origins[name]} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if missing or left_over or misshapen:
        problems = [
            f"{len(keys)} {what}: {', '.join(keys)}"
            for what, keys in (
                ("left over", left_over),
                ("missing", missing),
                ("of another shape", misshapen),
            )
            if keys
        ]
        raise ConversionError(
            f"{path}: found {network.source}, but not every tensor fits; {'; '.join(problems)}"
        )


def _frame_counts(
    network: Network, model: TSM, frame_counts: Sequence[int] | None, notes: list[str]
) -> tuple[int, ...]:
    """The T's that it was trained at: asked for, told by the tensors, or assumed, which is noted."""
    counts = tuple(sorted(set(frame_counts or network.frame_counts or (8,))))
    if model.frame_counts:
        if frame_counts is not None and counts != model.frame_counts:
            raise ConversionError(f"the file has parts for {model.frame_counts} frames; leave --frames out")
    elif not frame_counts and not network.frame_counts:
        notes.append(
            "assumed: 8 frames; how many segments it was trained at isn't in the file, give --frames where it differs"
        )
    return counts


def _class_names(
    network: Network, given: Sequence[str] | None, num_classes: int, notes: list[str]
) -> list[str]:
    """Those given, those in the file, or numbers, which a note says."""
    names = list(given) if given is not None else network.class_names
    if names is None or (given is None and len(names) != num_classes):
        names = [f"class {i}" for i in range(num_classes)]
        notes.append("no class names in the file: classes are numbered; give --classes labels.txt")
    check_class_names(names, num_classes)
    return names


def _describe(model: TSM) -> str:
    number = sum(isinstance(module, TemporalShift) for module in model.modules())
    config = model.config
    where = "whole blocks" if config["shift_place"] == "block" else "residual branches"
    parts = [f"a shift of 1/{config['shift_div']} in {number} {where}" if number else "no shift"]
    if config["temporal_pool"]:
        parts.append("temporal pooling")
    if config["non_local"] != "none":
        parts.append(f"non-local blocks ({config['non_local']})")
    return ", ".join(parts)


def _few(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
