"""FFN-pytorch: a set of norms and scales for each frame count, which becomes one of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frameflex.convert.network import Network
from frameflex.convert.reading import ConversionError, Hints
from frameflex.convert.resnet import resnet_architecture, with_shift

_FFN_NORM = re.compile(r"(.*?)(bn\d|downsample_bn)_(\d+)\.(\w+)")
_FFN_SCALE = re.compile(r"(.*?)adaconv_(\d+)\.weight")


def recognise(state: Mapping[str, Tensor], hints: Hints) -> Network | None:
    """FFN-pytorch's 2D networks: a norm ``bn1_16`` and a scale ``adaconv_16`` for each count."""
    if not any(_FFN_NORM.fullmatch(key) for key in state):
        return None
    counts: set[int] = set()
    plain: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        name = key.removeprefix("base_model.")
        if scale := _FFN_SCALE.fullmatch(name):
            counts.add(int(scale[2]))
            ours = f"backbone.{scale[1]}conv1.scale.scales.{scale[2]}"
            tensor = tensor.flatten()
        elif norm := _FFN_NORM.fullmatch(name):
            counts.add(int(norm[3]))
            module = "downsample.1" if norm[2] == "downsample_bn" else norm[2]
            ours = f"backbone.{norm[1]}{module}.norms.{norm[3]}.{norm[4]}"
        elif name in ("new_fc.weight", "new_fc.bias", "fc.weight", "fc.bias"):
            ours = f"head.{name.split('.')[1]}"
        elif re.fullmatch(r"(layer\d\.\d+\.(conv\d|downsample_conv)|conv1)\.weight", name):
            ours = f"backbone.{name.replace('downsample_conv', 'downsample.0')}"
            ours = with_shift(ours)
        else:
            unknown.append(key)
            continue
        plain[ours], origins[ours] = tensor, key
    shapes = {
        name.removeprefix("backbone.").replace(".net.", "."): tensor
        for name, tensor in plain.items()
        if name.startswith("backbone.") and tensor.ndim == 4
    }
    architecture = hints.said["backbone"] or resnet_architecture(shapes)
    if architecture is None:
        raise ConversionError(
            "found FFN-pytorch, but its convolutions are of no published ResNet: TEA and other variants are not TSM. "
            "Expected its 2D network with the backbone resnet_TSM_FFN"
        )
    options: dict[str, Any] = {
        "backbone": architecture,
        "shift_div": hints.said["shift_div"] or 8,
        "frame_counts": sorted(counts),
        "frame_scales": any("adaconv" in key for key in state),
    }
    if architecture in ("resnet101", "resnet152"):
        options["shift_every"] = 1  # unlike mit-han-lab's, this code shifts every block of deep networks too
    notes = [f"its parts for {', '.join(map(str, sorted(counts)))} frames become frame counts of their own"]
    return Network(
        f"FFN-pytorch, {architecture}",
        options,
        plain,
        origins,
        unknown,
        notes,
        frame_counts=tuple(sorted(counts)),
    )
