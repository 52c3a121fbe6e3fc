"""For each timm family, which convolutions take the temporal shift. A new family is one more row in FAMILIES."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import is_model_in_modules
from torch import nn


@dataclass(frozen=True)
class Family:
    """One of timm's model files and where its networks take the shift.

    Attributes:
        timm_module: the file in ``timm.models``; every architecture registered there belongs to the family.
        shifted: given the network, yields ``(block, name)``: ``block.name`` is the first convolution inside a
            residual branch, so that the identity path never sees the shift.
        options: arguments of ``timm.create_model`` that the family needs; a caller's own win.
    """

    timm_module: str
    shifted: Callable[[nn.Module], Iterator[tuple[nn.Module, str]]]
    options: Mapping[str, Any] = field(default_factory=dict)


def _resnet(backbone: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """``conv1`` of every block; of every second one where layer3 has 23 or more (ResNet-101, as published)."""
    stages: list[nn.Sequential] = [backbone.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)]  # type: ignore[misc]
    step = 2 if len(stages[2]) >= 23 else 1
    for stage in stages:
        for block in list(stage)[::step]:
            yield block, "conv1"


FAMILIES = (
    # timm starts the last norm of each block at zero, which hides the branches, shift included, from the first
    # gradients; the published network does not.
    Family("resnet", _resnet, {"zero_init_last": False}),
)


def family_of(architecture: str) -> Family:
    """The family that an architecture of timm belongs to.

    Raises:
        ValueError: if timm has no such architecture or if its family has no row here; names close matches and
            the families that have one.
    """
    name = architecture.split(".")[0]  # "resnet50.a1_in1k" names weights of "resnet50"
    for family in FAMILIES:
        if is_model_in_modules(name, [family.timm_module]):
            return family
    known = supported_architectures()
    close = get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    reason = "has no row in frameflex's table of backbones" if timm.is_model(name) else "is unknown to timm"
    rows = "; ".join(f"{family.timm_module}: {', '.join(_members(family))}" for family in FAMILIES)
    raise ValueError(f"backbone {architecture!r} {reason}. {hint}Architectures with a row are {rows}")


def supported_architectures() -> list[str]:
    """Every architecture name that `TSM` accepts, sorted."""
    return sorted(name for family in FAMILIES for name in _members(family))


def _members(family: Family) -> list[str]:
    return timm.list_models(module=family.timm_module)
