"""Frame-flexible networks: one set of convolutions, small parts of its own for every frame count (FFN).

Frame Flexible Network, CVPR 2023, arXiv 2303.14817: a network trained at one frame count collapses at another,
because the statistics of its features change with it (section 3.2). So each trained count gets its own
normalisation (section 3.4) and its own scale after each shift (section 3.5, "weight alteration").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from frameflex.models.temporal_shift import TemporalShift
from frameflex.models.tsm import TSM

NORMS = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)  # timm's own norms and norm + activation layers derive from them


def nearest_count(frame_counts: Iterable[int], num_frames: int) -> int:
    """The trained count whose parts serve ``num_frames``; ties go to the larger count: FFN's rule."""
    return min(frame_counts, key=lambda count: (abs(count - num_frames), -count))


class FrameNorm(nn.Module):
    """A copy of a norm for each trained frame count; convolutions around it stay shared (FFN, section 3.4).

    Args:
        norm: any normalisation layer, fused activation included; every copy starts from it.
        frame_counts: T's that get a copy.

    Attributes:
        norms: the copies, under their counts as strings: ``bn1.norms.16.weight`` in a state dict.
        num_frames: T when the module is used on its own; inside a `TSM` the model sets it.
    """

    def __init__(self, norm: nn.Module, frame_counts: Iterable[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({str(count): deepcopy(norm) for count in sorted(frame_counts)})
        self.num_frames = max(int(count) for count in self.norms)

    def at_num_frames(self, num_frames: int) -> nn.Module:
        """The norm that serves clips of ``num_frames``: the nearest count's own, no copy."""
        return self.norms[str(nearest_count(map(int, self.norms), num_frames))]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features ``(N, C, H, W)`` of clips of ``self.num_frames``."""
        return self.at_num_frames(self.num_frames)(x)


class FrameScale(nn.Module):
    """A residual scale per channel for each trained frame count: ``x + w_T · x`` (FFN, section 3.5).

    Args:
        num_channels: C.
        frame_counts: T's that get a scale, each drawn from N(0, 0.001).

    Attributes:
        scales: under their counts as strings, each ``(C,)``: ``conv1.scale.scales.16`` in a state dict.
        num_frames: T when the module is used on its own; inside a `TSM` the model sets it.
    """

    def __init__(self, num_channels: int, frame_counts: Iterable[int]) -> None:
        super().__init__()
        self.scales = nn.ParameterDict(
            {str(count): torch.randn(num_channels) * 1e-3 for count in sorted(frame_counts)}
        )
        self.num_frames = max(int(count) for count in self.scales)

    def at_num_frames(self, num_frames: int) -> nn.Module:
        """The scale that serves clips of ``num_frames``."""
        return _Scale(self.scales[str(nearest_count(map(int, self.scales), num_frames))])

    def forward(self, x: Tensor) -> Tensor:
        """Scale features ``(N, C, H, W)`` of clips of ``self.num_frames``."""
        return self.at_num_frames(self.num_frames)(x)


class _Scale(nn.Module):
    """``x + w · x`` for a weight that belongs to a `FrameScale`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_parameter("weight", weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.weight.view(-1, 1, 1))  # type: ignore[operator]


def make_frame_flexible(
    model: TSM, frame_counts: Sequence[int], *, norms: bool = True, scales: bool = True
) -> TSM:
    """Give a network, in place, its own norms and scales for each frame count.

    Every normalisation layer, stem and downsample included, becomes a `FrameNorm` whose copies start from it;
    every `TemporalShift` gets a `FrameScale`. Convolutions and the classifier stay shared. A T that is not in
    ``frame_counts`` uses the nearest count's parts, ties to the larger.

    Args:
        model: a plain `TSM`, pretrained or not.
        frame_counts: the T's, each at least 1, for example ``(4, 8, 16)``.
        norms: give each count its own norms.
        scales: give each count its own scales.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: if ``frame_counts`` is empty, repeats itself or has a T below 1, or if the model is
            frame-flexible already.
    """
    counts = tuple(sorted(frame_counts))
    if not counts or counts[0] < 1 or len(set(counts)) != len(counts):
        raise ValueError(f"frame_counts is {tuple(frame_counts)}; expected different T's of at least 1 each")
    if model.frame_counts:
        raise ValueError(
            f"the model is frame-flexible already, at {model.frame_counts}; start from a plain TSM instead"
        )
    if scales:
        for shift in [module for module in model.backbone.modules() if isinstance(module, TemporalShift)]:
            shift.scale = FrameScale(_in_channels(shift.net), counts)
    if norms:
        for parent, name, norm in list(_norms(model.backbone)):
            setattr(parent, name, FrameNorm(norm, counts))
    model.frame_counts = counts
    model.config |= {"frame_counts": list(counts), "frame_norms": norms, "frame_scales": scales}
    return model


def create_model(
    backbone: str,
    *,
    num_classes: int,
    frame_counts: Sequence[int] = (),
    frame_norms: bool = True,
    frame_scales: bool = True,
    **options: Any,
) -> TSM:
    """Build a network by name: ``create_model("resnet50", num_classes=174, frame_counts=(4, 8, 16))``.

    Args:
        backbone: architecture of timm.
        num_classes: K.
        frame_counts: the T's of a frame-flexible network; none for a plain TSM.
        frame_norms: see `make_frame_flexible`.
        frame_scales: see `make_frame_flexible`.
        options: of `TSM`, for example ``pretrained=True``.

    Returns:
        A `TSM` in training mode, as torch makes modules. ``create_model(**model.config)`` builds it again.

    Raises:
        ValueError: as `TSM` and `make_frame_flexible`.
    """
    model = TSM(backbone, num_classes=num_classes, **options)
    if frame_counts:
        make_frame_flexible(model, frame_counts, norms=frame_norms, scales=frame_scales)
    return model


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
