"""mit-han-lab's temporal-shift-module, and the plain TSM of FFN-pytorch, which has the same names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from frameflex.convert.mobilenetv2 import mobilenet_network
from frameflex.convert.network import Network, head_names
from frameflex.convert.reading import ConversionError, Hints
from frameflex.convert.resnet import ResNetParts, resnet_network, with_shift


def recognise(state: Mapping[str, Tensor], hints: Hints) -> Network | None:
    """mit-han-lab's temporal-shift-module: ``base_model.`` and ``new_fc`` (or ``base_model.fc`` without dropout)."""
    if not any(key.startswith("base_model.") for key in state):
        return None
    names = {key: key.removeprefix("base_model.") for key in state if key.startswith("base_model.")}
    kind = "mit-han-lab temporal-shift-module"
    head = head_names(state, "new_fc.weight", "new_fc.bias")
    for last in ("fc", "classifier"):
        head |= head_names(state, f"base_model.{last}.weight", f"base_model.{last}.bias")
    stray = [key for key in state if key not in names and key not in head]
    names = {key: name for key, name in names.items() if key not in head}
    if any(name.startswith("features.") for name in names.values()):
        network = mobilenet_network(state, names, head, hints, source=f"{kind}, MobileNetV2")
    elif "conv1.weight" in names.values():
        colours = state["base_model.conv1.weight"].shape[1]
        if colours != 3:
            raise ConversionError(
                f"found {kind}, but its first convolution takes {colours} channels: a network for optical flow or "
                "differences of frames; frameflex takes RGB"
            )
        parts = ResNetParts()
        for key, name in names.items():
            parts.add(key, name, _plain_name, "nl")
        network = resnet_network(
            parts, state, head, hints, source=kind, shift_div=hints.said["shift_div"] or 8
        )
        network.source = f"{kind}, {network.options['backbone']}"
    elif "conv1_7x7_s2.weight" in names.values():
        raise ConversionError(
            f"found {kind} with BNInception, which timm doesn't have; expected ResNet or MobileNetV2"
        )
    else:
        return None
    network.unknown += stray
    if network.options.get("shift") == "none":
        _resolve_unshifted(network, hints)
    return network


def _resolve_unshifted(network: Network, hints: Hints) -> None:
    shift = hints.said["shift"]
    if shift is None:
        raise ConversionError(
            f"found names of {network.source} without the mark of a shift. TSN (no shift) of mit-han-lab and a plain "
            "TSM of FFN-pytorch (a shift in every block) both save these; say which: --shift none or "
            "--shift bidirectional"
        )
    if shift != "none":
        deep = network.options["backbone"] in (
            "resnet101",
            "resnet152",
            "resnext101_32x8d",
            "wide_resnet101_2",
        )
        network.options |= {"shift": shift, **({"shift_every": 1} if deep else {})}
        network.tensors = {with_shift(name): tensor for name, tensor in network.tensors.items()}
        network.origins = {with_shift(name): key for name, key in network.origins.items()}
        network.source = f"FFN-pytorch plain TSM, {network.options['backbone']}"


def _plain_name(name: str) -> str | None:
    """torchvision's names are timm's."""
    return name
