"""MobileNetV2 as mit-han-lab, mmaction2 and torchvision count its layers, under timm's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from frameflex.convert.network import Network
from frameflex.convert.reading import ConversionError, Hints
from frameflex.models import TSM

_WIDTHS = ("100", "050", "035", "075", "140", "110d", "120d")
_REPEATS = (1, 2, 3, 4, 3, 3, 1)


def mobilenet_network(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    head: Mapping[str, str],
    hints: Hints,
    *,
    source: str,
) -> Network:
    blocks: dict[tuple[int, int], dict[str, tuple[str, bool]]] = {}
    origins: dict[str, str] = {}
    unknown: list[str] = []
    for key, name in names.items():
        placed = _mobilenet_place(name)
        if placed is None:
            unknown.append(key)
        elif isinstance(placed, str):
            origins[placed] = key
        else:
            place, inside, shifted = placed
            blocks.setdefault(place, {})[key] = (inside, shifted)
    shifted_any = any(shifted for tensors in blocks.values() for _, shifted in tensors.values())
    counting = _mobilenet_counting(inside for tensors in blocks.values() for inside, _ in tensors.values())
    for (stage, index), tensors in blocks.items():
        for key, (inside, shifted) in tensors.items():
            ours = _mobilenet_tensor(inside, expands=stage > 0, counting=counting)
            if ours is None:
                unknown.append(key)
            else:
                if shifted:
                    ours = ours.replace("conv_pw.", "conv_pw.net.")
                origins[f"backbone.blocks.{stage}.{index}.{ours}"] = key
    tensors_by_name = {ours: state[key] for ours, key in origins.items()}
    origins |= {ours: key for key, ours in head.items()}
    tensors_by_name |= {ours: state[key] for key, ours in head.items()}
    stem = tensors_by_name.get("backbone.blocks.1.0.conv_pwl.weight")
    architecture = hints.said["backbone"]
    for width in _WIDTHS:
        if architecture or stem is None:
            break
        with torch.device("meta"):
            backbone = TSM(f"mobilenetv2_{width}", num_classes=1, shift="none").backbone.state_dict()
        own = {f"backbone.{name}": tensor.shape for name, tensor in backbone.items() if tensor.ndim == 4}
        given = {name.replace(".net.", "."): t.shape for name, t in tensors_by_name.items() if t.ndim == 4}
        if own == given:
            architecture = f"mobilenetv2_{width}"
    if architecture is None:
        raise ConversionError(
            f"found {source}, but no MobileNetV2 of timm has its shapes (widths {', '.join(_WIDTHS)}). Name one with "
            "--backbone"
        )
    options: dict[str, Any] = {"backbone": architecture, "shift_div": hints.said["shift_div"] or 8}
    if not shifted_any:
        options["shift"] = "none"
    return Network(source, options, tensors_by_name, origins, unknown, [])


def _mobilenet_place(name: str) -> str | tuple[tuple[int, int], str, bool] | None:
    """Where a tensor of MobileNetV2 belongs: our name of it, or its block, its name inside, and if it is shifted."""
    if found := re.fullmatch(r"features\.(\d+)\.(\d)\.(\w+)", name):  # stem and last convolution
        which = {"0": ("conv_stem", "bn1"), str(sum(_REPEATS) + 1): ("conv_head", "bn2")}.get(found[1])
        return f"backbone.{which[int(found[2])]}.{found[3]}" if which and int(found[2]) < 2 else None
    if found := re.fullmatch(r"conv([12])\.(conv|bn)\.(\w+)", name):  # the same in mmaction2
        module = f"bn{found[1]}" if found[2] == "bn" else ("conv_stem" if found[1] == "1" else "conv_head")
        return f"backbone.{module}.{found[3]}"
    if found := re.fullmatch(r"features\.(\d+)\.conv\.(.+)", name):
        index, stage = int(found[1]) - 1, 0
        while stage < len(_REPEATS) and index >= _REPEATS[stage]:
            index, stage = index - _REPEATS[stage], stage + 1
        place = (stage, index)
    elif found := re.fullmatch(r"layer(\d)\.(\d+)\.conv\.(.+)", name):
        place = (int(found[1]) - 1, int(found[2]))
    else:
        return None
    inside = found[found.lastindex or 1]
    shifted = re.match(r"0\.net\.", inside) is not None
    return place, inside.replace("0.net.", "0.", 1) if shifted else inside, shifted


def _mobilenet_tensor(inside: str, *, expands: bool, counting: str) -> str | None:
    """The name inside one of timm's blocks."""
    layers = ["conv_dw", "bn1", "conv_pw", "bn2"]
    if expands:
        layers = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
    pairs = len(layers) // 2
    counts = {
        "flat": [
            str(3 * i + j) for i in range(pairs) for j in (0, 1)
        ],  # 0 1 3 4 6 7: between them activations
        # Pairs are modules of their own, but the last convolution and its norm stand alone.
        "torchvision": [f"{i}.{j}" for i in range(pairs - 1) for j in (0, 1)] + [str(pairs - 1), str(pairs)],
        "mmaction2": [f"{i}.{kind}" for i in range(pairs) for kind in ("conv", "bn")],
    }[counting]
    module, _, tensor = inside.rpartition(".")
    return f"{layers[counts.index(module)]}.{tensor}" if module in counts else None


def _mobilenet_counting(inside: Iterable[str]) -> str:
    """How a code base counts the layers of a block: flat, or as torchvision or mmaction2 do."""
    modules = [name.rpartition(".")[0] for name in inside]
    if any(module.endswith((".conv", ".bn")) for module in modules):
        return "mmaction2"
    return "torchvision" if any("." in module for module in modules) else "flat"
