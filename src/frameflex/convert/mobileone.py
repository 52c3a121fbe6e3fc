"""MobileOne as mmaction2 has it, from mmpretrain, with every block behind the stem shifted, under timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from frameflex.convert.network import Network
from frameflex.convert.reading import ConversionError, Hints
from frameflex.models import TSM

_ARCHITECTURES = tuple(f"mobileone_s{i}" for i in range(5))
_BLOCK = re.compile(r"stage(\d)\.(?:(\d+)\.)?(net\.)?(branch_conv_list|branch_scale|branch_norm|se)\.(.+)")


def is_mobileone(names: Mapping[str, str]) -> bool:
    return any(".branch_conv_list." in name for name in names.values())


def mobileone_network(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    head: Mapping[str, str],
    hints: Hints,
    *,
    source: str,
    shift_div: int,
) -> Network:
    """The network whose tensors are ``names`` below the backbone."""
    origins = dict(head)
    unknown, shifted = [], False
    for key, name in names.items():
        found = _BLOCK.fullmatch(name)
        ours = _tensor(found[4], found[5]) if found else None
        if found is None or ours is None or (found[1] == "0") != (found[2] is None):
            unknown.append(key)
            continue
        if found[1] == "0":  # shifted by mmaction2, too: an eighth of three colours is none
            origins[key] = f"backbone.stem.{ours}"
            continue
        shifted |= found[3] is not None
        origins[key] = f"backbone.stages.{int(found[1]) - 1}.{found[2]}.{found[3] or ''}{ours}"
    tensors = {ours: state[key] for key, ours in origins.items()}
    architecture = hints.said["backbone"] or _architecture(tensors)
    if architecture is None:
        raise ConversionError(
            f"found {source}, but its convolutions are of none of {', '.join(_ARCHITECTURES)}. Name its architecture "
            "of timm with --backbone"
        )
    options = {"backbone": architecture, "shift_div": shift_div}
    options |= {"shift_place": "block"} if shifted else {"shift": "none"}
    named = {ours: key for key, ours in origins.items()}
    return Network(f"{source}, {architecture}", options, tensors, named, unknown, [])


def _tensor(part: str, rest: str) -> str | None:
    """timm's name inside a block."""
    if part == "branch_norm":
        return f"identity.{rest}"
    if part == "se":
        found = re.fullmatch(r"conv([12])\.conv\.(weight|bias)", rest)
        return f"attn.fc{found[1]}.{found[2]}" if found else None
    found = re.fullmatch(r"(\d+\.)?(conv|norm)\.(\w+)", rest)
    if not found or (found[1] is None) != (part == "branch_scale"):
        return None
    module = f"conv_kxk.{found[1]}" if part == "branch_conv_list" else "conv_scale."
    return f"{module}{'bn' if found[2] == 'norm' else 'conv'}.{found[3]}"


def _architecture(tensors: Mapping[str, Tensor]) -> str | None:
    given = {name.replace(".net.", "."): tuple(t.shape) for name, t in tensors.items() if t.ndim == 4}
    for architecture in _ARCHITECTURES:
        with torch.device("meta"):
            own = TSM(architecture, num_classes=1, shift="none").state_dict()
        if {name: tuple(tensor.shape) for name, tensor in own.items() if tensor.ndim == 4} == given:
            return architecture
    return None
