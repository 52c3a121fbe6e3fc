"""Image weights of torchvision: MobileNetV2, and families whose layers stand in timm's order under other names.

Its ResNets have timm's own names: see `frameflex.convert.timm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from frameflex.convert.fingerprints import close, known_fingerprints
from frameflex.convert.image_networks import as_image_network, timm_preprocessing
from frameflex.convert.mobilenetv2 import mobilenet_network
from frameflex.convert.network import Network, head_names
from frameflex.convert.reading import Hints
from frameflex.data.transforms import Preprocessing
from frameflex.models import TSM

# torchvision's networks, as timm has them; it gives the norms of some another epsilon than timm does.
_TORCHVISION: dict[str, tuple[tuple[str, ...], Mapping[str, float]]] = {
    "EfficientNet": (tuple(f"efficientnet_b{i}" for i in range(5)), {}),
    "EfficientNet, large": (tuple(f"efficientnet_b{i}" for i in (5, 6, 7)), {"bn_eps": 1e-3}),
    "EfficientNetV2": (("efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l"), {"bn_eps": 1e-3}),
    "MobileNetV3": (("mobilenetv3_large_100", "mobilenetv3_small_100"), {"bn_eps": 1e-3}),
    "ConvNeXt": (("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"), {}),
    "RegNet": (
        (
            *(
                "regnety_004",
                "regnety_008",
                "regnety_016",
                "regnety_032",
                "regnety_080_tv",
                "regnety_160",
                "regnety_320",
            ),
            *(
                "regnetx_004_tv",
                "regnetx_008",
                "regnetx_016",
                "regnetx_032",
                "regnetx_080",
                "regnetx_160",
                "regnetx_320",
            ),
        ),
        {},
    ),
}


def recognise(state: Mapping[str, Tensor], hints: Hints) -> Network | None:
    """torchvision's CNNs but for its ResNets."""
    return _mobilenet(state, hints) or _in_order(state, hints)


def _mobilenet(state: Mapping[str, Tensor], hints: Hints) -> Network | None:
    """torchvision's MobileNetV2, and the image weights that mit-han-lab starts from."""
    if (
        "features.0.0.weight" not in state
        or not {"features.1.conv.0.weight", "features.1.conv.0.0.weight"} & state.keys()
    ):
        return None
    if "classifier.1.weight" in state:
        head, source = (
            head_names(state, "classifier.1.weight", "classifier.1.bias"),
            "torchvision image weights, MobileNetV2",
        )
    else:
        head, source = head_names(state, "classifier.weight", "classifier.bias"), "image weights, MobileNetV2"
    names = {key: key for key in state if key not in head}
    network = mobilenet_network(state, names, head, hints, source=source)
    as_image_network(network, hints)
    return network


def _in_order(state: Mapping[str, Tensor], hints: Hints) -> Network | None:
    """torchvision's other CNNs: the layers of timm's, in the same order under other names."""
    if "features.0.0.weight" not in state and "trunk_output.block1.block1-0.f.a.0.weight" not in state:
        return None
    keys = sorted(state, key=_torchvision_order(list(state)))
    known = known_fingerprints()
    number = sum(not key.endswith("num_batches_tracked") for key in keys) - 2  # the classifier is not counted
    for family, (architectures, options) in _TORCHVISION.items():
        for architecture in architectures if hints.said["backbone"] is None else (hints.said["backbone"],):
            if not close(known.get(architecture, (number,))[:1], (number,)):
                continue
            with torch.device("meta"):
                backbone = TSM(architecture, num_classes=1, shift="none").backbone
            own = {f"backbone.{name}": tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
            shapes = [*own.values(), None, None]  # and the classifier
            if len(keys) != len(shapes):
                continue
            # 1 x 1 convolutions may be linear layers there, and scales may have axes of size 1.
            if any(
                _essential(state[key].shape) != _essential(s)
                for key, s in zip(keys, shapes, strict=True)
                if s
            ):
                continue
            names = [*own, "head.weight", "head.bias"]
            origins = dict(zip(names, keys, strict=True))
            tensors = {
                name: state[key].reshape(own.get(name, state[key].shape)) for name, key in origins.items()
            }
            network = Network(
                f"torchvision image weights, {family.split(',')[0]} ({architecture} in timm)",
                {
                    "backbone": architecture,
                    "backbone_options": dict(options),
                    "shift_div": hints.said["shift_div"] or 8,
                },
                tensors,
                origins,
                [],
                [],
            )
            as_image_network(network, hints)
            pixels = timm_preprocessing(architecture)
            network.preprocessing = replace(pixels, mean=Preprocessing.mean, std=Preprocessing.std)
            network.notes.append(
                "torchvision keeps resizing with each set of weights; the sizes here are timm's for them"
            )
            return network
    return None


def _essential(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _torchvision_order(keys: list[str]) -> Callable[[str], tuple[int, int, int]]:
    """torchvision's own order, but for RegNet, whose blocks have the shortcut first and in timm last."""
    blocks: dict[str, int] = {}
    for i, key in enumerate(keys):
        blocks.setdefault(key.split(".f.")[0].split(".proj.")[0], i)
    place = {key: i for i, key in enumerate(keys)}
    return lambda key: (blocks[key.split(".f.")[0].split(".proj.")[0]], int(".proj." in key), place[key])
