"""A network in the shape that graphs are traced from: one T, norms folded, shifts flat.

The temporal shift is rewritten for the target, because how it is written decides what it costs there
(docs/experiments/speed.md): with the frames of all clips in one flat batch, moving a channel by one frame is a slice
and a concatenation of whole frames, which no runtime has to change its memory layout for.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from frameflex.data.transforms import Preprocessing
from frameflex.export.divided import Divided, DividedConv, divide_features
from frameflex.export.running import to_pixels
from frameflex.models import TSM
from frameflex.models.folding import fold_batch_norms
from frameflex.models.temporal_shift import (
    TemporalShift,
    at_num_frames,
    frames_left,
    replace_module,
    shifted_channels,
)

_BLOCK = 16  # channels that runtimes keep together with AVX-512


def export_network(
    model: TSM,
    num_frames: int | None,
    *,
    batch: int | str = "dynamic",
    pixels: Preprocessing | None = None,
    crop_size: int | tuple[int, int] = 224,
    cut: bool = False,
    divide: bool = False,
    quantised: bool = False,
) -> ExportNetwork:
    """A copy of a model's network in the form that graphs are traced from; arguments as in `export`.

    Args:
        model: left as it is.
        num_frames: the T of the graph; None for a graph that takes any.
        batch: clips at once, or "dynamic".
        pixels: to normalise inside the graph.
        crop_size: pixels ``(height, width)`` of the example that is traced, or the side of a square.
        cut: move channels by one padding, negative where it cuts, instead of slicing and concatenating; fastest in
            ONNX Runtime and OpenVINO. A graph for any T doesn't.
        divide: 1 x 1 convolutions behind a shift as the sum of two, of what moves and what stays, in front of which
            features are two tensors where that can be; fastest in ONNX Runtime and OpenVINO, but for int8.
        quantised: write the shift so that its input is quantised once.
    """
    return ExportNetwork(
        model,
        num_frames,
        batch=batch,
        pixels=pixels,
        crop_size=crop_size,
        cut=cut,
        divide=divide,
        quantised=quantised,
    ).eval()


class ExportNetwork(nn.Module):
    """A `TSM` rewritten to be traced: one T (or, from a graph's own input, any), norms folded, shifts flat.

    Attributes:
        example: a clip of the shape that the graph takes.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        model: TSM,
        num_frames: int | None,
        *,
        batch: int | str,
        pixels: Preprocessing | None,
        crop_size: int | tuple[int, int],
        cut: bool,
        divide: bool,
        quantised: bool,
    ) -> None:
        super().__init__()
        counted = num_frames or max(model.frame_counts, default=4)
        with torch.no_grad():
            self.backbone = copy.deepcopy(at_num_frames(model.backbone, counted)).eval().cpu().float()
            self.head = copy.deepcopy(model.head).eval().cpu().float()
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.num_frames = num_frames
        self.batch = batch
        self.pixels = pixels
        self._borders = _Borders()
        strides = set()
        for name, shift in list(self.backbone.named_modules()):
            if isinstance(shift, TemporalShift):
                strides.add(shift.time_stride)
                replace_module(self.backbone, name, _flat(shift, self._borders))
        self.strides = sorted(strides)
        clips = 2 if batch == "dynamic" else int(batch)
        size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        if pixels is None:
            self.example = torch.randn(clips, 3, counted, *size)
        else:
            self.example = torch.randint(0, 256, (clips, counted, *size, 3), dtype=torch.uint8)
            scale = 1 / (255 * torch.tensor(pixels.std)).view(1, 3, 1, 1)
            self.register_buffer("scale", scale)
            self.register_buffer(
                "offset", (torch.tensor(pixels.mean) / torch.tensor(pixels.std)).view(1, 3, 1, 1)
            )
        with torch.no_grad():
            fold_batch_norms(self, self.example[:1] if batch == "dynamic" else self.example)
        for module in list(self.modules()):
            if isinstance(module, FlatShift):
                module.pads = (
                    cut and num_frames is not None
                )  # one frame in all would leave nothing to cut from
                module.quantised = quantised
        if divide:
            shifts = [module for module in self.modules() if isinstance(module, FlatShift)]
            divide_features(self, shifts, self.example[:1])
            for shift in shifts:
                shift.divide()

    def forward(self, clip: Tensor) -> Tensor:
        if self.pixels is None:
            counted = clip.shape[2]
            frames = clip.transpose(1, 2).flatten(0, 1)  # (N, 3, H, W)
        else:
            counted = clip.shape[1]
            frames = clip.flatten(0, 1).permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale - self.offset
            frames = frames.flip(1) if self.pixels.channel_order == "bgr" else frames
        num_frames = counted if self.num_frames is None else self.num_frames
        self._mark_borders(frames, clip.shape[0], num_frames)
        logits = self.head(self.backbone(frames))  # (N, K)
        return logits.unflatten(0, (clip.shape[0], -1)).mean(1)

    def _mark_borders(self, frames: Tensor, num_clips: int, num_frames: int) -> None:
        for stride in self.strides:
            self._borders.alone[stride] = self.num_frames is not None and frames_left(num_frames, stride) == 1
            if self.batch == 1 or self._borders.alone[stride]:
                self._borders.first[stride] = self._borders.last[stride] = None
                continue
            left = frames_left(num_frames, stride)
            one, zero = torch.ones_like(frames[:left, :1, :1, :1]), torch.zeros_like(frames[:1, :1, :1, :1])
            self._borders.first[stride] = torch.cat([zero, one[1:]]).repeat(num_clips, 1, 1, 1)
            self._borders.last[stride] = torch.cat([one[1:], zero]).repeat(num_clips, 1, 1, 1)

    def to_input(self, clip: Tensor) -> Tensor:
        """A normalised clip as the graph takes it."""
        return clip if self.pixels is None else to_pixels(clip, self.pixels)


class FlatShift(nn.Module):
    """The temporal shift for exported graphs: slices and concatenations of whole frames, no 5-D tensor.

    Args:
        net: what sees the shifted features.
        shift: the module that this one stands for.
        borders: shared by all shifts of a network, filled by it at every forward.
        scale: a factor a channel for the shifted features, or None.
    """

    factor: Tensor | None

    def __init__(self, net: nn.Module, shift: TemporalShift, borders: _Borders, scale: Tensor | None) -> None:
        super().__init__()
        self.net = net
        self.shift_div = shift.shift_div
        self.time_stride = shift.time_stride
        self.causal = shift.causal
        self.borders = borders
        self.pads = False
        self.quantised = False
        self.register_buffer("factor", None if scale is None else scale.view(1, -1, 1, 1))

    def forward(self, x: Tensor | Divided) -> Tensor:
        num_channels = int(x.shape[1])
        fold = shifted_channels(num_channels, self.shift_div)
        first, second = slice(0, fold), slice(fold, 2 * fold)
        if isinstance(x, Divided):
            after = before = x.moved
            rest = x.rest
        elif self.quantised:
            # A quantiser stands behind every slice, but in front of a split: so features are quantised once.
            after, before, rest = x.split([fold, fold, num_channels - 2 * fold], 1)
            second = first
        else:
            after = before = x
            rest = x[:, 2 * fold :]
        ahead, behind = after[:, first], before[:, second]
        not_first, not_last = self.borders.first[self.time_stride], self.borders.last[self.time_stride]
        if self.borders.alone[self.time_stride]:
            behind = torch.zeros_like(behind)
            ahead = ahead if self.causal else behind
        else:
            behind = self._later(before, second)
            behind = behind if not_first is None else behind * not_first
            if not self.causal:
                ahead = self._earlier(after, first)
                ahead = ahead if not_last is None else ahead * not_last
        if isinstance(self.net, DividedConv):
            return self.net(Divided(torch.cat([ahead, behind], 1), rest))
        moved = torch.cat([ahead, behind, rest], 1)
        return self.net(moved if self.factor is None else moved * self.factor)

    def _later(self, x: Tensor, channels: slice) -> Tensor:
        """These channels of each frame's predecessor in the batch."""
        if self.pads:  # one operation: negative padding cuts
            return functional.pad(x, (0, 0, 0, 0, -channels.start, channels.stop - int(x.shape[1]), 1, -1))
        return torch.cat([torch.zeros_like(x[:1, channels]), x[:-1, channels]])

    def _earlier(self, x: Tensor, channels: slice) -> Tensor:
        """These channels of each frame's successor in the batch."""
        if self.pads:
            return functional.pad(x, (0, 0, 0, 0, -channels.start, channels.stop - int(x.shape[1]), -1, 1))
        return torch.cat([x[1:, channels], torch.zeros_like(x[:1, channels])])

    @property
    def num_moved(self) -> int:
        """How many of the first channels can be divided off: those that move, where runtimes have blocks for them."""
        moved = self._dividable()
        return moved if moved % _BLOCK == 0 else 0

    def _dividable(self) -> int:
        net = self.net
        plain = (
            type(net) is nn.Conv2d and net.kernel_size == (1, 1) and net.padding == (0, 0) and net.groups == 1
        )
        return 2 * shifted_channels(net.in_channels, self.shift_div) if plain else 0  # type: ignore[arg-type]

    def divide(self) -> None:
        """Spare the concatenation of all channels where a plain 1 x 1 convolution follows."""
        if moved := self._dividable():
            self.net = DividedConv(self.net, moved, None)  # type: ignore[arg-type]


class _Borders:
    """Where clips begin and end in the flat batch: 0 at a clip's last (first) frame, else 1; ``(N, 1, 1, 1)``.

    A graph computes them once, for all of its shifts. None stands for a batch of one clip, whose ends are those of
    the batch.

    Attributes:
        alone: whether clips have one frame, whose neighbours are all zero.
        last: zero at last frames.
        first: zero at first frames. All three for each `TemporalShift.time_stride`.
    """

    def __init__(self) -> None:
        self.alone: dict[int, bool] = {}
        self.last: dict[int, Tensor | None] = {}
        self.first: dict[int, Tensor | None] = {}


def _flat(shift: TemporalShift, borders: _Borders) -> FlatShift:
    """The scale of a frame-flexible network goes into the convolution behind it where that is a plain one."""
    if shift.scale is None:
        return FlatShift(shift.net, shift, borders, None)
    factor = 1 + shift.scale.weight.detach()  # type: ignore[operator]
    net = shift.net
    if type(net) is not nn.Conv2d:
        return FlatShift(net, shift, borders, factor)
    each = factor.view(net.groups, 1, -1).expand(-1, net.out_channels // net.groups, -1)
    with torch.no_grad():
        net.weight.mul_(each.reshape(net.out_channels, -1, 1, 1))
    return FlatShift(net, shift, borders, None)
