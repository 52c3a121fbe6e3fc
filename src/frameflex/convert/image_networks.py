"""Networks that were trained on single pictures: what torchvision's and timm's converters share."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch

from frameflex.convert.network import Network
from frameflex.convert.reading import Hints
from frameflex.data.transforms import Preprocessing
from frameflex.models import TSM


def as_image_network(network: Network, hints: Hints) -> None:
    """Frames one by one, as the weights were trained; or with a shift, as a start for training."""
    shift = hints.said["shift"] or "none"
    network.options["shift"] = shift
    network.frame_counts = (1,)
    if shift == "none":
        network.notes.append(
            "an image network: each frame is classified on its own, and the answers are averaged"
        )
    else:
        with torch.device("meta"):
            names = TSM(num_classes=1, **network.options).state_dict()
        shifted = {name.replace(".net.", "."): name for name in names if ".net." in name}
        network.tensors = {shifted.get(name, name): tensor for name, tensor in network.tensors.items()}
        network.origins = {shifted.get(name, name): key for name, key in network.origins.items()}
        network.notes.append(
            "image weights with a shift that they were not trained with: a start for training only"
        )
    if "torchvision" in network.source:
        network.preprocessing = Preprocessing()
        return
    network.preprocessing = timm_preprocessing(network.options["backbone"])


def timm_preprocessing(architecture: str) -> Preprocessing:
    """What timm's first set of weights of an architecture expects."""
    config: Any = timm.get_pretrained_cfg(architecture)
    height, width = config.input_size[-2:]
    return Preprocessing(
        short_side=max(height, width, math.floor(min(height, width) / config.crop_pct)),
        crop_size=(height, width),
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
    )
