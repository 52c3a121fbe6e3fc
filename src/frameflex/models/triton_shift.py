"""The shift inside the matrix products of the 1 x 1 convolution behind it, for NVIDIA GPUs, written in Triton.

Channels-last features are a matrix of one row for each pixel of each frame, so "the same pixel one frame later" is a
row that lies ``pixels`` rows further on. The products read moved channels from there: no feature is copied. Tested
in Triton's interpreter, compiled for compute capabilities 8.0 and 9.0; not run on a GPU (docs/experiments/speed.md).
Only `fused_shift` imports this, where it is asked for: Triton comes with CUDA builds of torch alone.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from frameflex.models.fused_shift import Shift

_SHARED_BYTES = (
    99 << 10
)  # of a block: what capabilities 8.6 and 8.9 have, the least of all that have bfloat16
_VECTOR_BYTES = 16  # of the widest load; frames meet at channels, so a fold must be a multiple of it
_PROGRAMS = (
    512  # that the gradient of the weight is divided among; not the GPU's own number, so that sums repeat
)
_LEAST_ROWS = 1024  # of such a program
_LAUNCH = (
    threading.Lock()
)  # Triton's tuner keeps the arguments of a call in itself, and threads may share a model


def supports(weight: Tensor, fold: int) -> bool:
    """Whether the kernels take features of ``weight``'s type before a plain 1 x 1 convolution.

    Every 16 bytes of a row must come from one frame, and tensor cores take 16 channels at a time.

    Args:
        weight: ``(C_out, C, 1, 1)``.
        fold: channels that move each way.
    """
    return fold % (_VECTOR_BYTES // weight.element_size()) == 0 and not any(n % 16 for n in weight.shape[:2])


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift) -> Tensor:
    """The convolution of shifted features.

    Args:
        x: ``(B * T, C, H, W)``, channels-last, float16, bfloat16 or float32 (multiplied as TF32).
        weight: ``(C_out, C, 1, 1)`` of the same type.
        bias: ``(C_out,)`` or None.
        shift: what moves.

    Returns:
        ``(B * T, C_out, H, W)``, channels-last.
    """
    num_out, num_rows = weight.shape[0], x.shape[0] * x.shape[2] * x.shape[3]
    out = torch.empty(
        (x.shape[0], num_out, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    unit = _unit(shift.fold)
    sizes = _sizes(x, weight, shift, unit)
    _launch(
        _forward_kernel, lambda meta: (_tiles(num_rows, num_out, meta),),
        _rows(x), weight.flatten(1).contiguous(), bias, out, *sizes, UNIT=unit, CAUSAL=shift.causal,
    )  # fmt: skip
    return out


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, shift: Shift, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients that are wanted of x, weight and bias.

    Sums are of float32 and in an order that is the same at every run, as long as the same tiles are chosen:
    `torch.use_deterministic_algorithms` chooses them without timing.
    """
    num_out, num_in = weight.shape[:2]
    num_rows = x.shape[0] * x.shape[2] * x.shape[3]
    grad_rows = _rows(grad.contiguous(memory_format=torch.channels_last))
    of_x = of_weight = None
    if wanted[0]:
        of_x = torch.empty_like(x)
        unit = _VECTOR_BYTES // x.element_size()
        sizes = _sizes(x, weight, shift, unit)
        _launch(
            _input_gradient_kernel, lambda meta: (_tiles(num_rows, num_in, meta),),
            grad_rows, weight.flatten(1).contiguous(), of_x, *sizes, UNIT=unit, CAUSAL=shift.causal,
        )  # fmt: skip
    if wanted[1]:
        num_parts = max(1, min(_PROGRAMS // _cdiv(num_out, 64) // _cdiv(num_in, 64), num_rows // _LEAST_ROWS))
        part = max(1, _cdiv(num_rows, num_parts * 128)) * 128  # rows, whole tiles
        sums = x.new_empty((_cdiv(num_rows, part), num_out, num_in), dtype=torch.float32)
        unit = _unit(shift.fold)
        sizes = _sizes(x, weight, shift, unit)
        _launch(
            _weight_gradient_kernel, lambda meta: (_tiles(num_out, num_in, meta) * len(sums),),
            grad_rows, _rows(x), sums, *sizes, part, UNIT=unit, CAUSAL=shift.causal,
        )  # fmt: skip
        of_weight = sums.sum(0).to(weight.dtype).view_as(weight)
    return of_x, of_weight, grad_rows.sum(0) if wanted[2] else None


def _rows(x: Tensor) -> Tensor:
    """The matrix ``(N * H * W, C)`` that channels-last features are in memory; no copy."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _sizes(x: Tensor, weight: Tensor, shift: Shift, unit: int) -> tuple[int, ...]:
    """What every kernel is told: rows, widths, pixels of a frame, T, fold in units, magnitude of the rows."""
    num_out, num_in = weight.shape[:2]
    pixels = x.shape[2] * x.shape[3]
    num_rows = x.shape[0] * pixels
    return num_rows, num_in, num_out, pixels, shift.num_frames, shift.fold // unit, num_rows.bit_length()


def _unit(fold: int) -> int:
    """The largest power of two, at most 64, that divides ``fold``: tiles of that many channels are of one frame."""
    return min(64, fold & -fold)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _tiles(height: int, width: int, meta: dict[str, Any]) -> int:
    return _cdiv(height, meta["BLOCK_M"]) * _cdiv(width, meta["BLOCK_N"])


def _launch(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
    """Run a kernel with the tiles that are fastest for its sizes, timed once; the first where that is unwanted."""
    with _LAUNCH, torch.cuda.device_of(args[0]):
        if args[0].is_cuda and not torch.are_deterministic_algorithms_enabled():
            kernel[grid](*args, **constants)
        else:
            first = _fitting(kernel.configs, {"first": args[0]})[0]
            kernel.fn[grid](*args, **constants, **first.all_kwargs())


# ----------------------------------------------------------------------------------------------- tiles


def _fitting(configs: list[Any], named_args: dict[str, Any], **_: Any) -> list[Any]:
    """Those whose tiles fit in the memory of a block; the first always does."""
    size = next(iter(named_args.values())).element_size()
    return [config for config in configs if shared_bytes(config, size) <= _SHARED_BYTES]


def shared_bytes(config: Any, element_size: int) -> int:
    """Of both factors in all stages of the pipeline."""
    tile = config.kwargs
    return (tile["BLOCK_M"] + tile["BLOCK_N"]) * tile["BLOCK_K"] * config.num_stages * element_size


def _tuned(*tiles: tuple[int, int, int, int, int]) -> Any:
    """Tuned over (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages), for each width and (within a factor of 2) height."""
    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for m, n, k, warps, stages in tiles
    ]
    return triton.autotune(
        configs, key=["num_in", "num_out", "size"], prune_configs_by={"early_config_prune": _fitting}
    )


_PLAIN_INTEGERS = [
    "num_rows",
    "pixels",
    "num_frames",
    "num_units",
    "part",
    "size",
]  # one binary for all values


# --------------------------------------------------------------------------------------------- kernels
# x rows (num_rows, num_in), weight (num_out, num_in), out and grad (num_rows, num_out), all dense. A frame has
# `pixels` rows; fold = num_units * UNIT. Of a result, tiles beside each other run one after the other, so that the
# rows they share are read from memory once and then from the L2 cache, where the weights always are (2 MiB at most
# in ResNet-50).


@triton.jit
def _step(channels, fold, CAUSAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """From how many frames later channels come."""
    return tl.where(channels < fold, 0 if CAUSAL else 1, tl.where(channels < 2 * fold, -1, 0))


@_tuned(
    (64, 64, 32, 4, 3),
    (64, 64, 64, 4, 4),
    (32, 64, 64, 4, 4),
    (128, 64, 32, 4, 4),
    (128, 64, 64, 4, 4),
    (128, 128, 32, 8, 3),
    (128, 128, 64, 8, 3),
)
@triton.jit(do_not_specialize=_PLAIN_INTEGERS)
def _forward_kernel(  # type: ignore[no-untyped-def]
    x, weight, bias, out, num_rows, num_in, num_out, pixels, num_frames, num_units, size,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile, width = tl.program_id(0), tl.cdiv(num_out, BLOCK_N)
    rows = (tile // width * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    columns = (tile % width * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    frame = rows // pixels % num_frames
    step_size = pixels.to(tl.int64) * num_in
    x_rows = x + rows.to(tl.int64) * num_in
    weight_columns = weight + columns * num_in
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, num_in, BLOCK_K):
        channels = start + tl.arange(0, BLOCK_K)
        if UNIT % BLOCK_K == 0:  # the tile is of one frame
            step = _step(start, num_units * UNIT, CAUSAL)
        else:
            step = _step(channels[None, :], num_units * UNIT, CAUSAL)
        source = frame + step
        there = (rows < num_rows) & (source >= 0) & (source < num_frames) & (channels[None, :] < num_in)
        a = tl.load(x_rows + (step * step_size + channels[None, :]), mask=there, other=0.0)
        inside = (columns < num_out) & (channels[:, None] < num_in)
        b = tl.load(weight_columns + channels[:, None], mask=inside, other=0.0)
        total = tl.dot(a, b, total, input_precision="tf32")
    if bias is not None:
        total += tl.load(bias + columns, mask=columns < num_out, other=0.0).to(tl.float32)
    place = out + rows.to(tl.int64) * num_out + columns
    tl.store(place, total.to(out.dtype.element_ty), mask=(rows < num_rows) & (columns < num_out))


@_tuned(
    (64, 64, 32, 4, 3),
    (64, 64, 64, 4, 4),
    (32, 64, 64, 4, 4),
    (64, 128, 32, 4, 4),
    (64, 128, 64, 4, 4),
    (128, 128, 32, 8, 3),
    (128, 128, 64, 8, 3),
)
@triton.jit(do_not_specialize=_PLAIN_INTEGERS)
def _input_gradient_kernel(  # type: ignore[no-untyped-def]
    grad, weight, of_x, num_rows, num_in, num_out, pixels, num_frames, num_units, size,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile, width = tl.program_id(0), tl.cdiv(num_in, BLOCK_N)
    rows = (tile // width * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    channels = (tile % width * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    grad_rows = grad + rows.to(tl.int64) * num_out
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, num_out, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        inside = (rows < num_rows) & (columns[None, :] < num_out)
        a = tl.load(grad_rows + columns[None, :], mask=inside, other=0.0)
        inside = (columns[:, None] < num_out) & (channels < num_in)
        b = tl.load(weight + columns[:, None] * num_in + channels, mask=inside, other=0.0)
        total = tl.dot(a, b, total, input_precision="tf32")
    # The forward read channels of frame t + step, so there they go. What it never read, at one end of the clip, gets
    # the zeros in place of what it read past the other end: frames move in a circle, and each is written once.
    step = _step(channels, num_units * UNIT, CAUSAL)
    source = rows // pixels % num_frames + step
    past = (source < 0) | (source >= num_frames)
    step = tl.where(past, step - step * num_frames, step)
    place = of_x + rows.to(tl.int64) * num_in + (step * (pixels.to(tl.int64) * num_in) + channels)
    value = tl.where(past, 0.0, total).to(of_x.dtype.element_ty)
    tl.store(place, value, mask=(rows < num_rows) & (channels < num_in))


@_tuned(
    (64, 64, 32, 4, 3),
    (64, 64, 64, 4, 3),
    (64, 128, 32, 4, 4),
    (64, 128, 64, 8, 3),
    (128, 128, 32, 8, 3),
)
@triton.jit(do_not_specialize=_PLAIN_INTEGERS)
def _weight_gradient_kernel(  # type: ignore[no-untyped-def]
    grad, x, sums, num_rows, num_in, num_out, pixels, num_frames, num_units, size, part,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    width = tl.cdiv(num_in, BLOCK_N)
    num_tiles = tl.cdiv(num_out, BLOCK_M) * width
    which, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    columns = (tile // width * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    first = tile % width * BLOCK_N
    channels = (first + tl.arange(0, BLOCK_N))[None, :]
    step_size = pixels.to(tl.int64) * num_in
    if UNIT % BLOCK_N == 0:  # the tile is of one frame
        step = _step(first, num_units * UNIT, CAUSAL)
    else:
        step = _step(channels, num_units * UNIT, CAUSAL)
    offset = step * step_size + channels
    stop = tl.minimum((which + 1) * part, num_rows)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(which * part, stop, BLOCK_K):
        rows = start + tl.arange(0, BLOCK_K)
        inside = (rows[None, :] < stop) & (columns < num_out)
        a = tl.load(grad + (rows.to(tl.int64)[None, :] * num_out + columns), mask=inside, other=0.0)
        rows = rows[:, None]
        source = rows // pixels % num_frames + step
        there = (rows < stop) & (source >= 0) & (source < num_frames) & (channels < num_in)
        b = tl.load(x + (rows.to(tl.int64) * num_in + offset), mask=there, other=0.0)
        total = tl.dot(a, b, total, input_precision="tf32")
    place = sums + (which.to(tl.int64) * num_out + columns) * num_in + channels
    tl.store(place, total, mask=(columns < num_out) & (channels < num_in))
