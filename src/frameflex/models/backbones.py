"""For each timm family, which convolutions take the temporal shift. A new family is one more row in FAMILIES."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

import timm
from timm.models import is_model_in_modules
from torch import nn

Site = tuple[nn.Module, str]
"""A residual block and the dotted name, inside it, of the convolution that its residual branch begins with."""


@dataclass(frozen=True, eq=False)
class Family:
    """One of timm's model files and where its networks take the shift.

    Attributes:
        timm_module: the file in ``timm.models``; every architecture registered there belongs to the family.
        title: what the architectures of that file are, for people.
        placed: where the shift sits, for people.
        stages: given the network, yields the sites of each stage, in order. ``block.name`` is inside a residual
            branch, so that the identity path never sees the shift.
        options: arguments of ``timm.create_model`` that the family needs; a caller's own win.
        excluded: patterns of architectures that can't take the shift, with the reason.
    """

    timm_module: str
    title: str
    placed: str
    stages: Callable[[nn.Module], Iterator[list[Site]]]
    options: Mapping[str, Any] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)


def _resnet(backbone: nn.Module) -> Iterator[list[Site]]:
    for i in (1, 2, 3, 4):
        yield [(block, "conv1") for block in backbone.get_submodule(f"layer{i}").children()]


# The first convolution of each kind of block in timm's EfficientNet builder, the first that is there. Attention
# blocks of hybrid MobileNetV4 (MobileAttention) stay as they are.
_MOBILE = {
    "InvertedResidual": ("conv_pw",),
    "EdgeResidual": ("conv_exp",),
    "DepthwiseSeparableConv": ("conv_dw",),
    "ConvBnAct": ("conv",),
    "UniversalInvertedResidual": ("dw_start.conv", "pw_exp.conv"),
}


def _mobile(backbone: nn.Module) -> Iterator[list[Site]]:
    stages = [
        [(block, names) for block in stage.children() if (names := _MOBILE.get(type(block).__name__))]
        for stage in backbone.get_submodule("blocks").children()
    ]
    # MobileNetV1, LCNet and timm's test_efficientnet have no identity path at all, hence none to keep clear of.
    plain = not any(block.has_skip for stage in stages for block, _ in stage)
    for stage in stages:
        yield [
            (block, next(name for name in names if _has(block, name)))
            for block, names in stage
            if block.has_skip or plain
        ]


def _regnet(backbone: nn.Module) -> Iterator[list[Site]]:
    for stage in (backbone.get_submodule(f"s{i}") for i in (1, 2, 3, 4)):
        yield [
            (block, "conv1.conv" if _has(block, "conv1.conv") else "conv1")
            for block in stage.children()
            if block.downsample
            is not None  # timm keeps the shortcut there, an Identity where nothing changes
        ]


def _convnext(backbone: nn.Module) -> Iterator[list[Site]]:
    for stage in backbone.get_submodule("stages").children():
        yield [(block, "conv_dw") for block in stage.get_submodule("blocks").children()]


def _ghostnet(backbone: nn.Module) -> Iterator[list[Site]]:
    for stage in backbone.get_submodule("blocks").children():
        yield [(block, "ghost1") for block in stage.children() if _has(block, "ghost1")]


def _byobnet(backbone: nn.Module) -> Iterator[list[Site]]:
    for stage in backbone.get_submodule("stages").children():
        sites: list[Site] = []
        for block in stage.children():
            if type(block).__name__ == "RepVggBlock":
                sites += [(block, "conv_kxk.conv")] if block.identity is not None else []
            elif type(block).__name__ == "MobileOneBlock":
                if block.identity is not None:
                    sites += [(block, f"conv_kxk.{i}.conv") for i in range(block.num_conv_branches)]  # type: ignore[arg-type]
            elif getattr(block, "shortcut", None) is not None:
                sites.append((block, next(n for n in ("conv1_1x1.conv", "conv1_kxk.conv") if _has(block, n))))
        yield sites


def _nfnet(backbone: nn.Module) -> Iterator[list[Site]]:
    for stage in backbone.get_submodule("stages").children():
        yield [(block, "conv1") for block in stage.children()]


def _mambaout(backbone: nn.Module) -> Iterator[list[Site]]:
    for stage in backbone.get_submodule("stages").children():
        yield [(block, "conv") for block in stage.get_submodule("blocks").children()]


def _has(block: nn.Module, name: str) -> bool:
    """Whether ``block.name`` is a layer that is there and does something."""
    try:
        return not isinstance(block.get_submodule(name), nn.Identity)
    except AttributeError:
        return False


FAMILIES = (
    # timm starts the last norm of each block at zero, which hides the branches, shift included, from the first
    # gradients; the published network does not.
    Family(
        "resnet",
        "ResNet, ResNet-D, ResNeXt, SE-ResNet, ECA-ResNet",
        "before conv1 of every block (of every second one where layer3 has 23 or more)",
        _resnet,
        {"zero_init_last": False},
    ),
    Family(
        "efficientnet",
        "MobileNetV2, EfficientNet, EfficientNet-Lite, EfficientNetV2, MNASNet, FBNet, MixNet",
        "before the first convolution (conv_pw, conv_exp or conv_dw) of the blocks that have a skip; of all blocks "
        "where none has one",
        _mobile,
        excluded={
            "tf_efficientnet_cc_*": "its convolutions take a second input, which the shift doesn't pass on"
        },
    ),
    Family(
        "mobilenetv3",
        "MobileNetV3, MobileNetV4, FBNetV3, HardCoRe-NAS",
        "before the first convolution of the blocks that have a skip (LCNet: of all blocks); attention blocks stay "
        "as they are",
        _mobile,
    ),
    Family("regnet", "RegNet X, Y, Z, V", "before conv1 of every block", _regnet),
    Family("convnext", "ConvNeXt, ConvNeXt V2", "before the depthwise convolution of every block", _convnext),
    Family(
        "ghostnet",
        "GhostNet, GhostNetV2",
        "before the first ghost module of every block",
        _ghostnet,
        excluded={
            "ghostnetv3_*": "its blocks are merged for inference, which needs every branch to see the same input"
        },
    ),
    Family(
        "byobnet",
        "RepVGG, MobileOne, GCResNet and other ResNets of timm's own",
        "before the k x k branches of blocks with an identity (RepVGG, MobileOne), before the first convolution "
        "of the residual branch (others)",
        _byobnet,
    ),
    Family("nfnet", "NFNet, NF-ResNet, NF-RegNet", "before conv1 of every block", _nfnet),
    Family("mambaout", "MambaOut", "before the depthwise convolution of every block", _mambaout),
)


def shift_sites(family: Family, backbone: nn.Module, *, every: int | None = None) -> list[Site]:
    """Where the shift goes in a network.

    Args:
        family: of the network.
        backbone: timm's network.
        every: shift every so many blocks of a stage, counted from its first; by default all, and every second
            one of a ResNet whose layer3 has 23 or more blocks (ResNet-101, as published).
    """
    stages = list(family.stages(backbone))
    if every is None:
        every = 2 if family.timm_module == "resnet" and len(stages[2]) >= 23 else 1
    return [site for stage in stages for site in stage[::every]]


def whole_blocks(family: Family, backbone: nn.Module, *, every: int | None = None) -> list[nn.Module]:
    """Which blocks are shifted where the shift takes whole blocks, their identity path included.

    MobileOne has no residual path of its own to spare, so that mmaction2 shifts the input of every block behind the
    stem; elsewhere they are those that `shift_sites` has a site in.
    """
    stages = getattr(backbone, "stages", None)
    blocks = [block for stage in stages or () for block in stage if type(block).__name__ == "MobileOneBlock"]
    if blocks:
        return blocks[:: every or 1]
    return list(dict.fromkeys(block for block, _ in shift_sites(family, backbone, every=every)))


def family_of(architecture: str) -> Family:
    """The family that an architecture of timm belongs to.

    Raises:
        ValueError: if timm has no such architecture or if its family has no row here; names close matches and
            the families that have one.
    """
    name = architecture.split(".")[0]  # "resnet50.a1_in1k" names weights of "resnet50"
    for family in FAMILIES:
        if is_model_in_modules(name, [family.timm_module]):
            for pattern, reason in family.excluded.items():
                if fnmatch(name, pattern):
                    raise ValueError(f"backbone {architecture!r} can't take the shift: {reason}")
            return family
    known = supported_architectures()
    close = get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    reason = "has no row in frameflex's table of backbones" if timm.is_model(name) else "is unknown to timm"
    rows = "; ".join(
        f"{family.title} ({_example(family)}, …, {len(_members(family))} in all)" for family in FAMILIES
    )
    raise ValueError(
        f"backbone {architecture!r} {reason}. {hint}Families with a row are {rows}. List all with frameflex models"
    )


def supported_architectures() -> list[str]:
    """Every architecture name that `TSM` accepts, sorted."""
    return sorted(name for family in FAMILIES for name in _members(family))


def architectures_by_family() -> dict[Family, list[str]]:
    """The architecture names that `TSM` accepts, for each family."""
    return {family: _members(family) for family in FAMILIES}


def pretrained_tags(architecture: str) -> list[str]:
    """Names of the weights that timm can download for an architecture; empty where there are none."""
    names = timm.list_models(architecture, pretrained=True)
    return [name.partition(".")[2] or "default" for name in names if name.split(".")[0] == architecture]


def _members(family: Family) -> list[str]:
    names = timm.list_models(module=family.timm_module)
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in family.excluded)]


def _example(family: Family) -> str:
    examples = {
        "resnet": "resnet50",
        "efficientnet": "mobilenetv2_100",
        "mobilenetv3": "mobilenetv3_large_100",
    }
    return examples.get(family.timm_module, _members(family)[0])
