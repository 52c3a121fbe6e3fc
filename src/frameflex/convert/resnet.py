"""ResNets as TSM's code bases name their tensors: shifts, pooling and non-local blocks show in the names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frameflex.convert.network import Network
from frameflex.convert.reading import ConversionError, Hints
from frameflex.models import TSM

CANONICAL_RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
_BLOCK = re.compile(r"layer(\d)\.(net\.)?(\d+)\.(.+)")
_MIT_NON_LOCAL = {"g": "value", "theta": "query", "phi": "key", "W.0": "out", "W.1": "norm"}
_MM_NON_LOCAL = {"g": "value", "theta": "query", "phi": "key", "conv_out.conv": "out", "conv_out.bn": "norm"}


@dataclass
class ResNetParts:
    """What the names of a ResNet's tensors tell about it."""

    plain: dict[str, str] = field(
        default_factory=dict
    )  # source name -> name in a plain ResNet, or "nl:" + ours
    attending: set[tuple[int, int]] = field(default_factory=set)
    shifted: set[tuple[int, int]] = field(default_factory=set)
    shifted_blocks: set[tuple[int, int]] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    pooled: bool = False
    embeds: bool = False
    unknown: list[str] = field(default_factory=list)

    def add(self, key: str, name: str, inside: Callable[[str], str | None], non_local: str) -> None:
        """Sort in the tensor ``key`` whose name below the backbone is ``name``."""
        found = _BLOCK.fullmatch(name)
        if not found:
            plain = inside(name)
            if plain is None:
                self.unknown.append(key)
            else:
                self.plain[key] = plain
            return
        stage, index, rest = int(found[1]), int(found[3]), found[4]
        place = (stage, index)
        self.blocks.add(place)
        self.pooled |= found[2] is not None
        if rest.startswith(f"{non_local}."):
            self.attending.add(place)
            ours = _non_local_name(
                rest.removeprefix(f"{non_local}."), _MIT_NON_LOCAL if non_local == "nl" else _MM_NON_LOCAL
            )
            if ours is None:
                self.unknown.append(key)
            else:
                self.embeds |= ours.startswith("query.")
                self.plain[key] = f"layer{stage}.{index}.nl:{ours}"
            return
        if rest.startswith("block."):
            self.attending.add(place)
            rest = rest.removeprefix("block.")
        if rest.startswith("net."):
            self.shifted_blocks.add(place)
            rest = rest.removeprefix("net.")
        if ".net." in f".{rest}" and rest.startswith("conv1."):
            self.shifted.add(place)
            rest = rest.replace("net.", "", 1)
        plain = inside(rest)
        if plain is None:
            self.unknown.append(key)
        else:
            self.plain[key] = f"layer{stage}.{index}.{plain}"

    def options(self, architecture: str, *, shift_div: int, mode: str | None) -> dict[str, Any]:
        """Arguments of `create_model` for a network with these parts."""
        options: dict[str, Any] = {"backbone": architecture, "shift_div": shift_div}
        if self.pooled:
            options["temporal_pool"] = True
        if self.attending:
            options["non_local"] = mode or ("embedded_gaussian" if self.embeds else "gaussian")
        moved = self.shifted_blocks or self.shifted
        if not moved:
            return options | {"shift": "none"}
        if self.shifted_blocks:
            options["shift_place"] = "block"
        every = 2 if any(index == 1 for _, index in self.blocks - moved) else 1
        published = 2 if sum(stage == 3 for stage, _ in self.blocks) >= 23 else 1
        return options if every == published else options | {"shift_every": every}

    def ours(self, plain: str) -> str:
        """Our name of a tensor by its name in a plain ResNet."""
        found = _BLOCK.fullmatch(plain)
        if not found:
            return f"backbone.{plain}"
        place, rest = (int(found[1]), int(found[3])), found[4]
        prefix = f"backbone.layer{place[0]}.{place[1]}."
        if self.pooled and place == (2, 0):
            prefix += "net."
        if rest.startswith("nl:"):
            return prefix + rest.removeprefix("nl:")
        if place in self.attending:
            prefix += "block."
        if place in self.shifted_blocks:
            prefix += "net."
        elif place in self.shifted and rest.startswith("conv1."):
            rest = rest.replace("conv1.", "conv1.net.", 1)
        return prefix + rest


def _non_local_name(name: str, table: Mapping[str, str]) -> str | None:
    module, _, tensor = name.rpartition(".")
    if module in table:
        return f"{table[module]}.{tensor}"
    # The pooled embeddings are a Sequential (".0"), and mmaction2's convolutions sit inside a ConvModule (".conv").
    module = module.removesuffix(".conv").removesuffix(".0")
    return f"{table[module]}.{tensor}" if module in table and module in ("g", "theta", "phi") else None


def resnet_network(
    parts: ResNetParts,
    state: Mapping[str, Tensor],
    head: Mapping[str, str],
    hints: Hints,
    *,
    source: str,
    mode: str | None = None,
    shift_div: int = 8,
) -> Network:
    named = {plain: state[key] for key, plain in parts.plain.items() if "nl:" not in plain}
    architecture = hints.said["backbone"] or resnet_architecture(named)
    if architecture is None:
        depth = [len({index for stage, index in parts.blocks if stage == i}) for i in (1, 2, 3, 4)]
        raise ConversionError(
            f"found {source}, but its ResNet with {depth} blocks has shapes of none of "
            f"{', '.join(CANONICAL_RESNETS)}. Name its architecture of timm with --backbone"
        )
    options = parts.options(architecture, shift_div=shift_div, mode=mode)
    origins = {key: parts.ours(plain) for key, plain in parts.plain.items()} | dict(head)
    tensors = {
        ours: state[key].flatten(2)[..., None]
        if ours.split(".")[-2:][0] in ("value", "query", "key", "out") and state[key].ndim == 5
        else state[key]
        for key, ours in origins.items()
    }
    return Network(source, options, tensors, {v: k for k, v in origins.items()}, parts.unknown, [])


def resnet_architecture(named: Mapping[str, Tensor]) -> str | None:
    """The published ResNet that has the same blocks and filters."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in named.items()
        if name.endswith(".weight") and tensor.ndim == 4
    }
    for architecture in CANONICAL_RESNETS:
        with torch.device("meta"):
            backbone = TSM(architecture, num_classes=1, shift="none").backbone
        own = {
            name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items() if tensor.ndim == 4
        }
        if own == shapes:
            return architecture
    return None


def with_shift(name: str) -> str:
    return re.sub(r"(backbone\.layer\d\.\d+\.conv1\.)(?!net\.|scale\.)", r"\1net.", name)
