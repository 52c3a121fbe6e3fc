"""The forms in which a shift and the convolution behind it are computed; `choose_form` says which one runs.

The shift moves memory and computes nothing, so what it costs is how it is written. docs/experiments/speed.md has the
forms that were tried, with their times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FORMS = ("plain", "copy")


class Shift(NamedTuple):
    """What moves.

    Attributes:
        num_frames: T of a clip.
        fold: channels that move in each direction.
        causal: only from the past.
    """

    num_frames: int
    fold: int
    causal: bool


class Geometry(NamedTuple):
    """A convolution without its weights."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def choose_form(x: Tensor, net: nn.Module) -> str:
    """Which form runs for features ``x`` before ``net``: one of `FORMS`.

    ``plain`` shifts a copy and calls ``net``: the reference, for all that is no ordinary convolution, where hooks
    want to see the shifted features, where only shapes are wanted, and where a graph is traced for other back ends or
    fused by a GPU's compiler.
    ``copy`` does the same arithmetic but keeps no shifted copy for the backward pass.
    """
    if type(net) is not nn.Conv2d or isinstance(net.padding, str) or net.padding_mode != "zeros":
        return "plain"
    if net._forward_hooks or net._forward_pre_hooks or net._backward_hooks or net._backward_pre_hooks:
        return "plain"
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or x.is_meta:
        return "plain"
    if torch.compiler.is_compiling() and x.device.type != "cpu":
        return "plain"
    return "copy"


def shifted_conv(x: Tensor, conv: nn.Conv2d, shift: Shift, gain: Tensor | None = None) -> Tensor:
    """``conv(gain * shifted(x))`` in the form "copy".

    Args:
        x: features ``(B * T, C, H, W)``, never written to.
        conv: the convolution that follows.
        shift: what moves.
        gain: factor ``(C,)`` of each channel between the two, multiplied into the weights.
    """
    weight, bias = conv.weight, conv.bias
    if gain is not None:
        by_group = weight.unflatten(0, (conv.groups, -1)) * gain.view(conv.groups, 1, -1, 1, 1)
        weight = by_group.flatten(0, 1)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    geometry = Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
    if (
        torch.compiler.is_compiling()
    ):  # one opaque operator, which the compiler neither breaks on nor rewrites
        return torch.ops.frameflex.shifted_conv(
            x, weight, bias, *shift, list(geometry.stride), list(geometry.padding), list(geometry.dilation),
            geometry.groups,
        )  # fmt: skip
    return _ShiftedConv.apply(x, weight, bias, shift, geometry)


# ------------------------------------------------------------------------------------------------ the shift


def shifted(x: Tensor, shift: Shift, *, reverse: bool = False) -> Tensor:
    """A shifted copy of features ``(B * T, C, H, W)``; ``reverse`` for time running backwards (the gradient)."""
    out = x.clone()  # a dense copy runs at twice the rate of one by channels, so copy all and then move
    num_frames = (-1, shift.num_frames)
    _move(x.unflatten(0, num_frames), out.unflatten(0, num_frames), shift, reverse)
    return out


def _shift_in_place(x: Tensor, shift: Shift, *, reverse: bool) -> Tensor:
    clips = x.unflatten(0, (-1, shift.num_frames))  # (B, T, C, H, W)
    _move(clips[:, :, : 2 * shift.fold].clone(), clips, shift, reverse)
    return x


def _move(source: Tensor, target: Tensor, shift: Shift, reverse: bool) -> None:
    """Write what moves into clips ``(B, T, C, H, W)``."""
    ahead = slice(0, 0 if shift.causal else shift.fold)
    behind = slice(shift.fold, 2 * shift.fold)
    if reverse:
        ahead, behind = behind, ahead
    if ahead.stop > ahead.start:
        target[:, :-1, ahead] = source[:, 1:, ahead]
        target[:, -1:, ahead] = 0
    if behind.stop > behind.start:
        target[:, 1:, behind] = source[:, :-1, behind]
        target[:, :1, behind] = 0


class PlainShift(torch.autograd.Function):
    """The shift as one copy each way; its gradient is the same shift with time running backwards."""

    @staticmethod
    def forward(x: Tensor, shift: Shift, reverse: bool) -> Tensor:
        return shifted(x, shift, reverse=reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Shift, bool], output: Tensor) -> None:
        _, ctx.shift, ctx.reverse = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return PlainShift.apply(grad, ctx.shift, not ctx.reverse), None, None


# ---------------------------------------------------------------------------- the shift and its convolution


class _ShiftedConv(torch.autograd.Function):
    """Keeps the unshifted features, which the identity path keeps anyway, instead of a shifted copy."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift, geometry: Geometry) -> Tensor:
        return _forward(x, weight, bias, shift, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, bias, ctx.shift, ctx.geometry = inputs
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():  # gradients of gradients: operations that autograd can follow
            moved = PlainShift.apply(x, ctx.shift, False)
            grads = list(_conv_gradients(grad, moved, weight, ctx.bias_sizes, ctx.geometry, wanted))
            if wanted[0]:
                grads[0] = PlainShift.apply(grads[0], ctx.shift, True)
        else:
            grads = list(_backward(grad, x, weight, ctx.bias_sizes, ctx.shift, ctx.geometry, wanted))
        return (*grads, None, None)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift, geometry: Geometry) -> Tensor:
    return F.conv2d(shifted(x, shift), weight, bias, *geometry)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    shift: Shift,
    geometry: Geometry,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients that are wanted of x, weight and bias."""
    moved = shifted(x, shift) if wanted[1] else x  # for the gradient of x only its shape counts
    of_x, of_weight, of_bias = _conv_gradients(grad, moved, weight, bias_sizes, geometry, wanted)
    if of_x is not None:
        of_x = _shift_in_place(of_x, shift, reverse=True)
    return of_x, of_weight, of_bias


def _conv_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    geometry: Geometry,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, bias_sizes, stride, padding, dilation, False, [0] * len(stride), groups, wanted
    )


# ------------------------------------------------------------------------- the same, opaque to a compiler

_ARGUMENTS = "int num_frames, int fold, bool causal, int[] stride, int[] padding, int[] dilation, int groups"


@torch.library.custom_op(
    "frameflex::shifted_conv",
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor? bias, {_ARGUMENTS}) -> Tensor",
)
def _shifted_conv_op(x, weight, bias, num_frames, fold, causal, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    shift, geometry = Shift(num_frames, fold, causal), Geometry(stride, padding, dilation, groups)
    return _forward(x, weight, bias, shift, geometry)


@_shifted_conv_op.register_fake
def _(x, weight, bias, num_frames, fold, causal, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@torch.library.custom_op(
    "frameflex::shifted_conv_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor weight, int[]? bias_sizes, {_ARGUMENTS}, bool[] wanted) -> Tensor[]",
)
def _shifted_conv_backward_op(  # type: ignore[no-untyped-def]
    grad, x, weight, bias_sizes, num_frames, fold, causal, stride, padding, dilation, groups, wanted
):
    shift, geometry = Shift(num_frames, fold, causal), Geometry(stride, padding, dilation, groups)
    grads = _backward(grad, x, weight, bias_sizes, shift, geometry, list(wanted))
    return [value for value, asked in zip(grads, wanted, strict=True) if asked]


@_shifted_conv_backward_op.register_fake
def _(  # type: ignore[no-untyped-def]
    grad, x, weight, bias_sizes, num_frames, fold, causal, stride, padding, dilation, groups, wanted
):
    like = (x, weight, grad.new_empty(bias_sizes or [0]))
    return [torch.empty_like(value) for value, asked in zip(like, wanted, strict=True) if asked]


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, *ctx.arguments = inputs
    ctx.bias_sizes = None if bias is None else list(bias.shape)
    ctx.save_for_backward(x, weight)


def _gradients(ctx, grad):  # type: ignore[no-untyped-def]
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.frameflex.shifted_conv_backward(
        grad, *ctx.saved_tensors, ctx.bias_sizes, *ctx.arguments, wanted
    )
    found = iter(grads)
    return (*(next(found) if asked else None for asked in wanted), *[None] * len(ctx.arguments))


_shifted_conv_op.register_autograd(_gradients, setup_context=_keep)
