"""mmaction2's TSM and TSN, 0.x and 1.x, with the configuration that it writes into its files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from frameflex.convert.mobilenetv2 import mobilenet_network
from frameflex.convert.mobileone import is_mobileone, mobileone_network
from frameflex.convert.network import Network, head_names
from frameflex.convert.reading import ConversionError, Hints
from frameflex.convert.resnet import ResNetParts, resnet_network
from frameflex.data.transforms import Preprocessing


def recognise(state: Mapping[str, Tensor], hints: Hints) -> Network | None:
    """mmaction2's recognisers: ``backbone.`` and ``cls_head.fc_cls``, the same in 0.x and 1.x."""
    if "cls_head.fc_cls.weight" not in state or not any(key.startswith("backbone.") for key in state):
        return None
    head = head_names(state, "cls_head.fc_cls.weight", "cls_head.fc_cls.bias")
    names = {key: key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    pixels = [key for key in state if key.startswith("data_preprocessor.")]
    stray = [key for key in state if key not in names and key not in head and key not in pixels]
    shift_div = hints.said["shift_div"] or int(hints.setting(r"\bshift_div\s*=\s*(\d+)") or 8)
    kind = "mmaction2"
    if hints.setting(r"\bstyle\s*=\s*'(caffe)'"):
        raise ConversionError(
            f"found {kind} in caffe style, whose strides sit in other convolutions; expected pytorch style"
        )
    if any(re.fullmatch(r"layer\d\.\d+\.conv\.0\..+", name) for name in names.values()):
        network = mobilenet_network(state, names, head, hints, source=f"{kind}, MobileNetV2")
        network.options["shift_div"] = shift_div
    elif is_mobileone(names):
        network = mobileone_network(state, names, head, hints, source=kind, shift_div=shift_div)
    elif "conv1.conv.weight" in names.values() and state["backbone.conv1.conv.weight"].ndim == 4:
        parts = ResNetParts()
        for key, name in names.items():
            parts.add(key, name, _plain_name, "non_local_block")
        mode = hints.said["non_local"] or hints.setting(r"non_local_cfg\s*=\s*dict\(.*?\bmode\s*=\s*'(\w+)'")
        if parts.embeds and mode == "gaussian":
            raise ConversionError(
                "its non-local blocks have embeddings, so they aren't gaussian; leave non_local out"
            )
        network = resnet_network(parts, state, head, hints, source=kind, mode=mode, shift_div=shift_div)
        network.source = f"{kind}, {network.options['backbone']}"
        if parts.attending:
            _check_mm_non_local(network, state, hints, told=mode is not None)
    else:
        return None
    network.unknown += stray
    network.class_names = hints.class_names
    _apply_mm_config(network, state, hints)
    return network


def _plain_name(name: str) -> str | None:
    """mmaction2's ConvModules in torchvision's names: ``conv1.bn`` is ``bn1``."""
    if found := re.fullmatch(r"conv(\d)\.(conv|bn)\.(\w+)", name):
        return f"{found[2]}{found[1]}.{found[3]}"
    if found := re.fullmatch(r"downsample\.(conv|bn)\.(\w+)", name):
        return f"downsample.{0 if found[1] == 'conv' else 1}.{found[2]}"
    return None


def _check_mm_non_local(network: Network, state: Mapping[str, Tensor], hints: Hints, *, told: bool) -> None:
    mode = network.options["non_local"]
    if not told and mode == "embedded_gaussian":
        network.notes.append(
            "how its non-local blocks compare isn't in its weights: embedded_gaussian is assumed; if it was trained "
            "with dot_product, give --non-local dot_product"
        )
    if not any(".non_local_block.g.0." in key for key in state):
        raise ConversionError(
            "its non-local blocks don't pool keys and values (sub_sample=False); expected those published"
        )
    scaled = hints.setting(r"non_local_cfg\s*=\s*dict\(.*?\buse_scale\s*=\s*(True|False)") == "True"
    if scaled and mode == "embedded_gaussian":
        # softmax(θ·φ / sqrt(C')) without a scale of our own: into θ.
        for name, tensor in network.tensors.items():
            if ".query." in name:
                network.tensors[name] = tensor / math.sqrt(state[network.origins[name]].shape[0])
        network.notes.append("the scale of its non-local blocks is folded into their weights")


def _apply_mm_config(network: Network, state: Mapping[str, Tensor], hints: Hints) -> None:
    """Pixels and frames as mmaction2's configuration has them, where the file carries it."""
    mean: Sequence[float] = hints.numbers("mean") or [123.675, 116.28, 103.53]
    std: Sequence[float] = hints.numbers("std") or [58.395, 57.12, 57.375]
    if "data_preprocessor.mean" in state and "data_preprocessor.std" in state:
        mean = state["data_preprocessor.mean"].flatten().tolist()
        std = state["data_preprocessor.std"].flatten().tolist()
    bgr = hints.setting(r"\bto_bgr\s*=\s*(True|False)") == "True"
    if bgr:  # its numbers are in the order that the network sees
        mean, std = mean[::-1], std[::-1]
    network.preprocessing = Preprocessing(
        mean=tuple(round(value / 255, 9) for value in mean),
        std=tuple(round(value / 255, 9) for value in std),
        channel_order="bgr" if bgr else "rgb",
        geometry="mmaction2",
    )
    segments = hints.setting(r"\bnum_segments\s*=\s*(\d+)") or hints.setting(r"\bnum_clips\s*=\s*(\d+)")
    if segments:
        network.frame_counts = (int(segments),)
    if hints.setting(r"type\s*=\s*'(DenseSampleFrames)'"):
        network.sampling = {
            "sampling": "dense",
            "window": int(hints.setting(r"\bsample_range\s*=\s*(\d+)") or 64),
        }
