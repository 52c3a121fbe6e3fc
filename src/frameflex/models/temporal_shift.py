"""The temporal shift: 2D convolutions that see their neighbours in time (TSM, arXiv 1811.08383)."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frameflex.arguments import shown, whole
from frameflex.models.fused_shift import PlainShift, Shift, choose_form, shifted_conv

Module = TypeVar("Module", bound=nn.Module)


def temporal_shift(x: Tensor, num_frames: int, shift_div: int = 8, *, causal: bool = False) -> Tensor:
    """Move an eighth of the channels one frame back in time and an eighth one frame ahead (TSM, section 3).

    With ``fold = C // shift_div``, channels ``[0, fold)`` of frame t take the values of frame t+1,
    ``[fold, 2 * fold)`` those of frame t-1, the rest stay. Frames past either end of a clip are zero.
    The picture for 4 frames, 8 channels and ``shift_div=4`` (``fold = 2``), where ``2c`` is channel c of
    frame 2 and ``.`` is zero::

        channel        0   1   2   3   4   5   6   7
        frame 0       1a  1b   .   .  0e  0f  0g  0h
        frame 1       2a  2b  0c  0d  1e  1f  1g  1h
        frame 2       3a  3b  1c  1d  2e  2f  2g  2h
        frame 3        .   .  2c  2d  3e  3f  3g  3h
                     from t+1 from t-1     unmoved

    The causal shift has only the second half of that: ``[fold, 2 * fold)`` take frame t-1's values and
    ``[0, fold)`` stay, so that no frame depends on a later one. Channels that both shifts move, both move alike:
    weights trained with one are a start for the other.

    Args:
        x: features ``(B * num_frames, C, H, W)``, the frames of one clip adjacent; any memory format, which
            the result keeps.
        num_frames: T, frames of one clip, at least 1 (with one frame the moved channels are zero).
        shift_div: 2 to C; each direction moves ``C // shift_div`` channels.
        causal: only from the past.

    Returns:
        A new tensor of the shape of ``x``; ``x`` itself is never written to.

    Raises:
        ValueError: if ``x`` is not 4-D, if its first axis is no multiple of ``num_frames``, or if
            ``shift_div`` leaves no channel to move or would move more than there are.
    """
    return PlainShift.apply(x, _checked(x, num_frames, shift_div, causal), False)


def _checked(x: Tensor, num_frames: int, shift_div: int, causal: bool) -> Shift:
    if not isinstance(x, Tensor):
        raise ValueError(f"features are {shown(x)}; expected a tensor (B * num_frames, C, H, W)")
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # a traced T is no number of Python's
        num_frames, shift_div = whole(num_frames, "num_frames", least=1), checked_shift_div(shift_div)
    if x.ndim != 4:
        raise ValueError(f"features have shape {tuple(x.shape)}; expected (B * num_frames, C, H, W)")
    if x.shape[0] % num_frames:
        raise ValueError(
            f"features hold {x.shape[0]} frames, which is no multiple of num_frames = {num_frames}; "
            "expected (B * num_frames, C, H, W) with the frames of one clip adjacent"
        )
    return Shift(num_frames, shifted_channels(x.shape[1], shift_div), causal)


def checked_shift_div(shift_div: Any) -> int:
    """Raises ValueError where it is no whole number from 2."""
    return whole(shift_div, "shift_div", least=2)


def shifted_channels(num_channels: int, shift_div: int) -> int:
    """``fold``: how many of ``num_channels`` move in each direction. Raises ValueError where that can't be."""
    if shift_div > num_channels:
        raise ValueError(
            f"shift_div is {shift_div} but there are only {num_channels} channels, so none would move; "
            f"choose shift_div between 2 and {num_channels}"
        )
    return num_channels // shift_div


def frames_left(num_frames: int, time_stride: int) -> int:
    """How many frames of a clip are left behind temporal pooling: ``ceil(num_frames / time_stride)``."""
    return -(-num_frames // time_stride)


class TemporalShift(nn.Module):
    """Shift in time, then apply ``net``, usually the first convolution of a residual branch.

    Args:
        net: the module that sees the shifted features, ``(N, C, H, W)``.
        num_frames: T when the module is used on its own; inside a `TSM` the model sets it from its input at
            every forward.
        shift_div: see `temporal_shift`.
        time_stride: 2 behind temporal pooling, where features of only ``ceil(T / 2)`` frames are left of a clip.
        causal: see `temporal_shift`.
    """

    def __init__(
        self,
        net: nn.Module,
        num_frames: int = 16,
        shift_div: int = 8,
        time_stride: int = 1,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise ValueError(f"net is {shown(net)}; expected a module, such as a block's first convolution")
        if isinstance(net, (nn.Conv1d, nn.Conv3d)):
            raise ValueError(
                f"net is {type(net).__name__}; expected a module of (N, C, H, W), such as nn.Conv2d"
            )
        num_frames = whole(num_frames, "num_frames", least=1)
        shift_div = checked_shift_div(shift_div)
        in_channels = getattr(net, "in_channels", None)
        if isinstance(in_channels, int):
            shifted_channels(in_channels, shift_div)
        self.net = net
        self.scale: nn.Module | None = None  # a frame-flexible network's FrameScale
        self.num_frames = num_frames
        self.shift_div = shift_div
        self.time_stride = time_stride
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B * num_frames, C, H, W)`` through the shift and ``net``."""
        num_frames = frames_left(self.num_frames, self.time_stride)
        if not isinstance(x, Tensor):
            raise ValueError(f"features are {shown(x)}; expected a tensor (B * num_frames, C, H, W)")
        in_channels = getattr(self.net, "in_channels", None)
        if isinstance(in_channels, int) and x.ndim == 4 and x.shape[1] != in_channels:
            raise ValueError(
                f"features have shape {tuple(x.shape)}, so {x.shape[1]} channels; the module behind the shift takes "
                f"{in_channels}. Expected (B * num_frames, C, H, W)"
            )
        if choose_form(x, self.net) == "plain":
            x = temporal_shift(x, num_frames, self.shift_div, causal=self.causal)
            return self.net(x if self.scale is None else self.scale(x))
        shift = _checked(x, num_frames, self.shift_div, self.causal)
        gain = None if self.scale is None else self.scale.gain()  # type: ignore[operator]
        return shifted_conv(x, self.net, shift, gain)  # type: ignore[arg-type]

    def at_num_frames(self, num_frames: int) -> TemporalShift:
        """This module for clips of ``num_frames``, sharing its weights."""
        children = {name: at_num_frames(child, num_frames) for name, child in self.named_children()}
        view = shallow_copy(self, children)
        view.num_frames = num_frames
        return view

    def extra_repr(self) -> str:
        return f"num_frames={self.num_frames}, shift_div={self.shift_div}, causal={self.causal}"


def at_num_frames(module: Module, num_frames: int) -> Module:
    """A view of ``module`` in which T is a constant: same parameters, buffers and hooks, no state of its own.

    A model calls a fresh view at every forward. So nothing that depends on T is ever written into the model:
    threads can run it at different T at once, and a forward that is recomputed in the backward pass
    (activation checkpointing) still has the T of its first run. A module that depends on T takes part by a
    method ``at_num_frames(num_frames) -> Module``; modules without such a descendant are returned as they are.
    Costs about 1 µs a module.
    """
    own = getattr(module, "at_num_frames", None)
    if own is not None:
        return own(num_frames)
    changed = {}
    for name, child in module._modules.items():
        if child is not None:
            view = at_num_frames(child, num_frames)
            if view is not child:
                changed[name] = view
    return shallow_copy(module, changed) if changed else module


def shallow_copy(module: Module, replaced: dict[str, nn.Module]) -> Module:
    """A copy of ``module`` that shares everything with it but has other children under the names given."""
    view = copy.copy(module)
    view._modules = {**module._modules, **replaced}
    return view


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``network.get_submodule(name)`` was."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)
