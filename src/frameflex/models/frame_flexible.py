"""Frame-flexible networks: one set of convolutions, small parts of its own for every frame count (FFN).

Frame Flexible Network, CVPR 2023, arXiv 2303.14817: a network trained at one frame count collapses at another,
because the statistics of its features change with it (section 3.2). So each trained count gets its own
normalisation (section 3.4) and its own scale after each shift (section 3.5, "weight alteration").
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from copy import copy, deepcopy
from difflib import get_close_matches
from typing import Any

import timm.layers
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from frameflex.arguments import frame_counts_of, shown
from frameflex.models.counts import blend_weight, nearest_count
from frameflex.models.temporal_shift import TemporalShift
from frameflex.models.tsm import TSM

# Norms of timm that don't derive from torch's as its others do; which there are depends on its version.
_TIMM_NORMS = [
    *("EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2", "EvoNorm2dS0", "EvoNorm2dS1", "EvoNorm2dS2"),
    *("FilterResponseNormTlu2d", "FilterResponseNormAct2d", "InplaceAbn"),
    *("RmsNorm", "RmsNormFp32", "RmsNorm2d", "RmsNorm2dFp32"),
    *("SimpleNorm", "SimpleNormFp32", "SimpleNorm2d", "SimpleNorm2dFp32"),
]
NORMS = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    GlobalResponseNorm,
    *(getattr(timm.layers, name) for name in _TIMM_NORMS if hasattr(timm.layers, name)),
)


UNTRAINED = ("nearest", "blend")


class _PerCount(nn.Module):
    """What `FrameNorm` and `FrameScale` share: which count's part serves a T.

    Attributes:
        untrained: "nearest", or "blend" to interpolate, in log T and in evaluation only, between the parts of
            the two counts around a T that has none of its own.
        num_frames: T when the module is used on its own; inside a `TSM` the model sets it.
    """

    def __init__(self, frame_counts: Iterable[int], untrained: str) -> None:
        super().__init__()
        if untrained not in UNTRAINED:
            raise ValueError(f"untrained is {untrained!r}; expected one of {', '.join(UNTRAINED)}")
        self.untrained = untrained
        self.num_frames = max(frame_counts)

    def serving(self, counts: Iterable[str], num_frames: int) -> tuple[str, str, float]:
        """The names of the two parts that serve a T, and the weight of the second."""
        numbers = [int(count) for count in counts]
        if self.untrained == "blend" and not self.training:
            below, above, weight = blend_weight(numbers, num_frames)
            return str(below), str(above), weight
        nearest = str(nearest_count(numbers, num_frames))
        return nearest, nearest, 0.0

    def at_num_frames(self, num_frames: int) -> nn.Module:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, C, H, W)`` of clips of ``self.num_frames``."""
        return self.at_num_frames(self.num_frames)(x)


class FrameNorm(_PerCount):
    """A copy of a norm for each trained frame count; convolutions around it stay shared (FFN, section 3.4).

    Args:
        norm: any normalisation layer, fused activation included; every copy starts from it.
        frame_counts: T's that get a copy.
        untrained: which copy serves another T, "nearest" or "blend".

    Attributes:
        norms: the copies, under their counts as strings: ``bn1.norms.16.weight`` in a state dict.
    """

    def __init__(self, norm: nn.Module, frame_counts: Iterable[int], untrained: str = "nearest") -> None:
        counts = sorted(frame_counts)
        super().__init__(counts, untrained)
        self.norms = nn.ModuleDict({str(count): deepcopy(norm) for count in counts})

    def at_num_frames(self, num_frames: int) -> nn.Module:
        """The norm that serves clips of ``num_frames``: a count's own, no copy, or a blend of two."""
        first, second, weight = self.serving(self.norms.keys(), num_frames)
        norm = self.norms[first]
        if weight == 0.0:
            return norm
        blend = copy(norm)
        for slot in ("_parameters", "_buffers"):
            others = getattr(self.norms[second], slot)
            setattr(
                blend,
                slot,
                {
                    name: torch.lerp(value, others[name], weight)
                    if value is not None and value.is_floating_point()
                    else value
                    for name, value in getattr(norm, slot).items()
                },
            )
        return blend

    def add_count(self, num_frames: int) -> None:
        """Give ``num_frames`` a norm of its own, which starts from the one that serves it now."""
        first, second, weight = self.serving(self.norms.keys(), num_frames)
        own = deepcopy(self.norms[first])
        with torch.no_grad():
            others = self.norms[second].state_dict()
            for name, value in own.state_dict().items():
                if weight and value.is_floating_point():
                    value.lerp_(others[name], weight)
        self.norms[str(num_frames)] = own


class FrameScale(_PerCount):
    """A residual scale per channel for each trained frame count: ``x + w_T · x`` (FFN, section 3.5).

    Args:
        num_channels: C.
        frame_counts: T's that get a scale, each drawn from N(0, 0.001).
        untrained: which scale serves another T, "nearest" or "blend".

    Attributes:
        scales: under their counts as strings, each ``(C,)``: ``conv1.scale.scales.16`` in a state dict.
    """

    def __init__(self, num_channels: int, frame_counts: Iterable[int], untrained: str = "nearest") -> None:
        counts = sorted(frame_counts)
        super().__init__(counts, untrained)
        self.scales = nn.ParameterDict({str(count): torch.randn(num_channels) * 1e-3 for count in counts})

    def at_num_frames(self, num_frames: int) -> nn.Module:
        """The scale that serves clips of ``num_frames``."""
        first, second, weight = self.serving(self.scales.keys(), num_frames)
        scale = self.scales[first]
        return _Scale(scale if weight == 0.0 else torch.lerp(scale, self.scales[second], weight))

    def gain(self) -> Tensor:
        """The factor of each channel, ``(C,)``, for clips of ``self.num_frames``."""
        return self.at_num_frames(self.num_frames).gain()  # type: ignore[operator]


class _Scale(nn.Module):
    """``x + w · x``."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.__dict__["weight"] = (
            weight  # belongs to the FrameScale, or is made of two: no parameter of its own
        )

    def gain(self) -> Tensor:
        return 1 + self.weight

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain().view(-1, 1, 1)


def make_frame_flexible(
    model: TSM,
    frame_counts: Sequence[int],
    *,
    norms: bool = True,
    scales: bool = True,
    untrained: str = "nearest",
) -> TSM:
    """Give a network, in place, its own norms and scales for each frame count.

    Every normalisation layer, stem and downsample included, becomes a `FrameNorm` whose copies start from it;
    every `TemporalShift` gets a `FrameScale`. Convolutions and the classifier stay shared. A T that is not in
    ``frame_counts`` uses the nearest count's parts, ties to the larger, or a blend of the two around it.

    Args:
        model: a plain `TSM`, pretrained or not.
        frame_counts: the T's, each at least 1, for example ``(4, 8, 16)``.
        norms: give each count its own norms.
        scales: give each count its own scales.
        untrained: what serves another T, "nearest" or "blend".

    Returns:
        ``model`` itself.

    Raises:
        ValueError: if ``frame_counts`` is empty, repeats itself or has a T below 1, or if the model is
            frame-flexible already.
    """
    if not isinstance(model, TSM):
        raise ValueError(f"model is {shown(model)}; expected a TSM, as create_model makes it")
    counts = frame_counts_of(frame_counts, "frame_counts")
    if model.frame_counts:
        raise ValueError(
            f"the model is frame-flexible already, at {model.frame_counts}; start from a plain TSM instead"
        )
    if scales:
        for shift in [module for module in model.backbone.modules() if isinstance(module, TemporalShift)]:
            shift.scale = FrameScale(_in_channels(shift.net), counts, untrained)
    if norms:
        for parent, name, norm in list(_norms(model.backbone)):
            setattr(parent, name, FrameNorm(norm, counts, untrained))
    model.frame_counts = counts
    model.config |= {
        "frame_counts": list(counts),
        "frame_norms": norms,
        "frame_scales": scales,
        "untrained": untrained,
    }
    return model


def spread_parts(model: TSM, num_frames: int) -> None:
    """Set every count's norms and scales to those of one of them: the network is then a plain TSM at every T."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FrameNorm):
                source = module.norms[str(num_frames)].state_dict()
                for norm in module.norms.values():
                    norm.load_state_dict(source)
            elif isinstance(module, FrameScale):
                for scale in module.scales.values():
                    scale.copy_(module.scales[str(num_frames)])


def serve_untrained(model: TSM, rule: str) -> None:
    """Choose what serves a T that has no parts of its own: "nearest" or "blend". Weights stay as they are."""
    if rule not in UNTRAINED:
        raise ValueError(f"untrained is {rule!r}; expected one of {', '.join(UNTRAINED)}")
    for module in model.modules():
        if isinstance(module, _PerCount):
            module.untrained = rule
    model.config["untrained"] = rule


def add_norms(model: TSM, frame_counts: Sequence[int]) -> None:
    """Give a network norms of their own for further counts, whose statistics can then be re-estimated.

    They start from what serves each count now.

    Raises:
        ValueError: if the model is a plain `TSM`: make it frame-flexible at its trained count first.
    """
    if not model.frame_counts:
        raise ValueError("the model is a plain TSM; call make_frame_flexible with its trained count first")
    counts = frame_counts_of(frame_counts, "frame_counts")
    for count in counts:
        for module in model.modules():
            if isinstance(module, FrameNorm):
                module.add_count(count)
    calibrated = {*model.config.get("calibrated_counts", []), *counts}
    model.config["calibrated_counts"] = sorted(calibrated)


def create_model(
    backbone: str,
    *,
    num_classes: int,
    frame_counts: Sequence[int] = (),
    frame_norms: bool = True,
    frame_scales: bool = True,
    untrained: str = "nearest",
    calibrated_counts: Sequence[int] = (),
    **options: Any,
) -> TSM:
    """Build a network by name: ``create_model("resnet50", num_classes=174, frame_counts=(4, 8, 16))``.

    Args:
        backbone: architecture of timm.
        num_classes: K.
        frame_counts: the T's of a frame-flexible network; none for a plain TSM.
        frame_norms: see `make_frame_flexible`.
        frame_scales: see `make_frame_flexible`.
        untrained: see `make_frame_flexible`.
        calibrated_counts: further T's with norms of their own, see `add_norms`.
        options: of `TSM`, for example ``pretrained=True``.

    Returns:
        A `TSM` in training mode, as torch makes modules. ``create_model(**model.config)`` builds it again.

    Raises:
        ValueError: as `TSM` and `make_frame_flexible`.
    """
    known = set(inspect.signature(TSM).parameters)
    if unknown := sorted(set(options) - known):
        told = "T comes from the clip" if unknown[0] in ("num_frames", "n_segment", "num_segments") else ""
        close = get_close_matches(unknown[0], known | {"frame_counts"}, n=1)
        told = told or (
            f"did you mean {close[0]}?" if close else "backbone_options takes arguments of timm's"
        )
        raise TypeError(f"create_model has no argument {unknown[0]!r}; {told}")
    frame_counts = frame_counts_of(frame_counts, "frame_counts") if not _is_none(frame_counts) else ()
    calibrated = (
        frame_counts_of(calibrated_counts, "calibrated_counts") if not _is_none(calibrated_counts) else ()
    )
    model = TSM(backbone, num_classes=num_classes, **options)
    if frame_counts:
        make_frame_flexible(model, frame_counts, norms=frame_norms, scales=frame_scales, untrained=untrained)
    if calibrated:
        add_norms(model, calibrated)
    return model


def _is_none(frame_counts: Any) -> bool:
    return frame_counts is None or (isinstance(frame_counts, (tuple, list)) and not frame_counts)


def _norms(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, NORMS):
            yield module, name, child
        else:
            yield from _norms(child)


def _in_channels(net: nn.Module) -> int:
    in_channels = next((m.in_channels for m in net.modules() if hasattr(m, "in_channels")), None)
    if not isinstance(in_channels, int):
        raise ValueError(f"cannot tell how many channels {type(net).__name__} takes; expected a convolution")
    return in_channels
