"""Image weights of timm, and of torchvision's ResNets: found by building what they may be, and comparing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from frameflex.convert.fingerprints import close, fingerprint, known_fingerprints
from frameflex.convert.image_networks import as_image_network
from frameflex.convert.network import Network, head_names
from frameflex.convert.reading import ConversionError, Hints
from frameflex.convert.resnet import CANONICAL_RESNETS
from frameflex.models import TSM
from frameflex.models.backbones import architectures_by_family


def recognise(state: Mapping[str, Tensor], hints: Hints) -> Network | None:
    """torchvision's ResNets, and whatever timm builds: found by building and comparing."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    fitting = _fitting([hints.said["backbone"]] if hints.said["backbone"] else _candidates(state), shapes)
    if not fitting and not hints.said["backbone"]:
        # Where timm has changed an architecture since its fingerprint was taken, look at all of the family.
        fitting = _fitting(_candidates(state, fingerprints={}), shapes)
    if not fitting:
        return None
    architecture, classifier = _choose(fitting, state)
    head = head_names(state, f"{classifier}.weight", f"{classifier}.bias")
    origins = {f"backbone.{key}": key for key in state if key not in head} | {
        ours: key for key, ours in head.items()
    }
    common = "torchvision or timm" if architecture in CANONICAL_RESNETS else "timm"
    network = Network(
        f"{common} image weights, {architecture}",
        {"backbone": architecture, "shift": "none", "shift_div": hints.said["shift_div"] or 8},
        {ours: state[key] for ours, key in origins.items()},
        origins,
        [],
        [],
    )
    others = [name for name, _ in fitting if name != architecture]
    if others:
        network.notes.append(
            f"names and shapes fit {', '.join(others)} too; if it is one of them, give --backbone"
        )
    as_image_network(network, hints)
    return network


# A tensor that each family has, so that only its architectures are built to compare.
_SIGNS = {
    "resnet": ("layer4.0.conv1.weight",),
    "efficientnet": ("conv_stem.weight",),
    "mobilenetv3": ("conv_stem.weight",),
    "ghostnet": ("blocks.0.0.ghost1.primary_conv.0.weight",),
    "regnet": ("s1.b1.conv1.conv.weight", "s1.b1.conv1.weight"),
    "convnext": ("stages.0.blocks.0.conv_dw.weight",),
    "mambaout": ("stages.0.blocks.0.fc1.weight",),
    "nfnet": ("stages.0.0.conv3.gain", "stages.0.0.conv3.weight"),
    "byobnet": (
        "stem.conv.weight",
        "stem.conv1.conv.weight",
        "stem.conv_kxk.conv.weight",
        "stem.conv_kxk.0.conv.weight",
    ),
}


def _candidates(
    state: Mapping[str, Tensor], fingerprints: Mapping[str, Sequence[int]] | None = None
) -> list[str]:
    """Architectures that the tensors may be of: of a family with those names, and of that number and size."""
    fingerprints = known_fingerprints() if fingerprints is None else fingerprints
    given = fingerprint({key: tensor.shape for key, tensor in state.items()})
    names = [
        name
        for family, members in architectures_by_family().items()
        if any(sign in state for sign in _SIGNS.get(family.timm_module, ()))
        for name in members
        if not fingerprints or close(fingerprints.get(name), given)
    ]
    published = [name for name in CANONICAL_RESNETS if name in names]
    return published + [name for name in names if name not in published]


def _fitting(candidates: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Those candidates whose names and shapes are the same, each with the name of its classifier."""
    found = ((name, _fits(name, shapes)) for name in candidates)
    return [(name, classifier) for name, classifier in found if classifier is not None]


def _fits(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of the classifier, if names and shapes but for a linear one's are those of the architecture."""
    with torch.device("meta"):
        backbone = TSM(architecture, num_classes=1, shift="none").backbone
    classifier = backbone.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    if not isinstance(classifier, str):
        return None
    own = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    given = {name: shape for name, shape in shapes.items() if not name.startswith(f"{classifier}.")}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    linear = len(shapes.get(f"{classifier}.weight", (1, 1))) == 2
    same = all(given.get(name) == shape for name, shape in own.items() if name not in counters)
    return classifier if linear and same and set(given) <= set(own) else None


def _choose(fitting: Sequence[tuple[str, str]], state: Mapping[str, Tensor]) -> tuple[str, str]:
    """One of the architectures that fit: torchvision's own, or any if all of them compute the same."""
    if fitting[0][0] in CANONICAL_RESNETS or len(fitting) == 1:
        return fitting[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 65, 65, generator=generator)  # odd: padding on one side shows
    outputs = []
    for architecture, classifier in fitting:
        backbone = TSM(architecture, num_classes=1, shift="none").backbone.eval()
        backbone.load_state_dict(
            {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}, strict=False
        )
        with torch.no_grad():
            outputs.append(backbone(images))
    if all(torch.allclose(outputs[0], output, rtol=1e-4, atol=1e-5) for output in outputs[1:]):
        return fitting[0]
    raise ConversionError(
        f"its names and shapes fit {', '.join(name for name, _ in fitting)}, which compute different things "
        "(padding, activation or the epsilon of norms). Say which it is with --backbone"
    )
