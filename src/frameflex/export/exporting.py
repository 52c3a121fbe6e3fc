"""Checkpoints into graphs for other runtimes, each compared with its model before it gets its name.

The temporal shift is rewritten for the target, because how it is written decides what it costs there
(docs/experiments/speed.md): with the frames of all clips in one flat batch, moving a channel by one frame is a slice
and a concatenation of whole frames, which no runtime has to change its memory layout for.
"""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.datasets import ClipDataset, VideoList, collate, end_with_parent, shielded
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.export.divided import Divided, DividedConv, divide_features
from frameflex.export.running import (
    RUNNERS,
    ExportedModel,
    ExportError,
    describe,
    from_pixels,
    needed,
    read_manifest,
    to_pixels,
    write_manifest,
)
from frameflex.models import TSM
from frameflex.models.folding import fold_batch_norms
from frameflex.models.temporal_shift import (
    TemporalShift,
    at_num_frames,
    frames_left,
    replace_module,
    shifted_channels,
)

__all__ = ["FORMATS", "ExportError", "export", "export_network", "read_manifest", "write_manifest"]

FORMATS = tuple(RUNNERS)
OPSETS = (18, 23)  # what torch's exporter writes; before 18 a graph would have to be converted down
TOLERANCE = 1e-3  # of the largest logit; runtimes sum in another order and use other convolutions
HALF_TOLERANCE = 3e-2  # float16 has 11 bits; a network of 50 layers loses some of them
_PARITY_BATCHES = (1, 3)
_BLOCK = 16  # channels that runtimes keep together with AVX-512
_SUFFIXES = {"onnx": "onnx", "openvino": "xml", "torchexport": "pt2", "torchscript": "pt"}

log = logging.getLogger(__name__)


def export(
    checkpoint: Checkpoint | str | Path,
    path: str | Path,
    *,
    format: str = "onnx",
    frame_counts: Sequence[int] | str | None = None,
    batch: int | str = "dynamic",
    half: bool = False,
    int8_videos: VideoList | None = None,
    check_videos: VideoList | None = None,
    min_agreement: float = 0.8,
    uint8_input: bool = False,
    opset: int = OPSETS[0],
    num_workers: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a folder of graphs and their manifest; it appears under its name only when all has been checked.

    Every float32 graph is compared with the model on fresh random clips, one and three at a time, as many frames as
    it is for; a logit that is off by more than `TOLERANCE` of the largest one fails the export. For a half-precision
    graph that is `HALF_TOLERANCE`. An int8 graph is instead compared on videos: how often both give the same label,
    and how often each is right where labels are known.

    Args:
        checkpoint: or where one is, as `load_checkpoint` takes it. Its model is left as it is.
        path: the folder to make.
        format: "onnx", "openvino", "torchexport" or "torchscript".
        frame_counts: the T's, a graph for each; "any" for one graph that takes every T (ONNX and OpenVINO, a network
            without parts of its own for each T); by default those that it was trained at.
        batch: clips at once, or "dynamic" for any number.
        half: weights and arithmetic in float16 (OpenVINO: weights in float16, arithmetic as the device prefers);
            clips and logits stay float32.
        int8_videos: quantise weights and activations to 8 bits (ONNX and OpenVINO); these videos, some tens to
            hundreds and no labels needed, show which values occur.
        check_videos: what half precision and int8 are compared with the model on; by default ``int8_videos``.
        min_agreement: share of the checked videos, 0 to 1, on which the graph must give the model's label.
        uint8_input: the graph takes pixels, uint8 RGB ``(B, T, H, W, 3)``, resized and cropped but not normalised,
            and normalises them itself.
        opset: of ONNX, 18 to 23.
        num_workers: processes that decode videos.
        on_progress: called with what begins.

    Returns:
        The manifest.

    Raises:
        ValueError: if an argument is out of range or the combination can't be.
        FileExistsError: if there is something at ``path``.
        ExportError: if a package is missing, the network can't be turned into such a graph, or the graph doesn't do
            what the model does. Nothing is left at ``path`` then.
    """
    tell = on_progress or log.info
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    if batch != "dynamic" and (isinstance(batch, str) or batch < 1):
        raise ValueError(f'batch is {batch!r}; expected "dynamic" or a whole number of at least 1')
    if half and int8_videos is not None:
        raise ValueError("both half and int8_videos are given; expected one of them")
    if int8_videos is not None and format not in ("onnx", "openvino"):
        raise ValueError(f"format {format!r} has no int8 here; expected onnx or openvino")
    if int8_videos is not None and not int8_videos:
        raise ValueError("there are no videos to calibrate int8 with; give some tens")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(
            f"opset is {opset}; expected {OPSETS[0]} to {OPSETS[1]}. A runtime that needs an older operator "
            "set can't take these graphs: update it, or export to another format"
        )
    if not 0 <= min_agreement <= 1:
        raise ValueError(f"min_agreement is {min_agreement}; expected 0 to 1")
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} is there already; choose another folder, or remove it first")
    _check_packages(format, int8=int8_videos is not None)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    if not isinstance(checkpoint.model, TSM):
        raise ValueError(
            f"the checkpoint's model is a {type(checkpoint.model).__name__}; expected a checkpoint, not an export"
        )
    counts = _frame_counts(checkpoint, frame_counts, format)
    precision = "half" if half else "float32" if int8_videos is None else "int8"

    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        graphs: list[dict[str, Any]] = []
        for count in counts:
            name = f"model_{'any' if count is None else count}.{_SUFFIXES[format]}"
            named = "any number of frames" if count is None else f"{count} frames"
            tell(f"{format}: the graph for {named}")
            network = export_network(
                checkpoint.model,
                count,
                batch=batch,
                pixels=checkpoint.preprocessing if uint8_input else None,
                crop_size=checkpoint.preprocessing.crop_size,
                cut=format in ("onnx", "openvino"),
                divide=format in ("onnx", "openvino") and int8_videos is None,
                quantised=int8_videos is not None,
            )
            _write_graph(network, folder / name, format=format, half=half, opset=opset)
            if int8_videos is not None:
                tell(f"{format}: calibrating int8 with {len(int8_videos)} videos")
                clips = _Clips(checkpoint, int8_videos, count or checkpoint.num_frames, batch, num_workers)
                _QUANTIZERS[format](folder / name, clips, network.to_input)
            graphs.append({"num_frames": "any" if count is None else count, "file": name})
        manifest: dict[str, Any] = {
            "format": format,
            "precision": precision,
            "batch": batch,
            "uint8_input": uint8_input,
            "input": _input(checkpoint.preprocessing, counts, batch, uint8_input),
            "output": {"name": "logits", "dtype": "float32", "shape": ["B", len(checkpoint.class_names)]},
            "opset": opset if format == "onnx" else None,
            "graphs": graphs,
            **describe(checkpoint),
        }
        write_manifest(folder, manifest)
        exported = ExportedModel(*read_manifest(folder))
        tell("comparing with the model")
        if precision != "int8":
            manifest["parity"] = compare_logits(checkpoint, exported, counts, half=half)
        videos = check_videos if check_videos is not None else int8_videos
        if videos is not None and precision != "float32":
            manifest["agreement"] = [
                compare_labels(
                    checkpoint,
                    exported,
                    videos,
                    count or checkpoint.num_frames,
                    min_agreement=min_agreement,
                    num_workers=num_workers,
                )
                for count in counts
            ]
        written = write_manifest(folder, manifest)
        folder.chmod(0o755)  # mkdtemp's folders are for their owner alone
        folder.rename(path)
        return read_manifest(path / written.name)[1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_packages(format: str, *, int8: bool) -> None:
    """Missing packages are named before any work is done."""
    names = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}.get(format, [])
    for name in [*names, *(["nncf"] if int8 and format == "openvino" else [])]:
        needed(name, f"exporting to {format}{' in int8' if int8 else ''}")


def _frame_counts(
    checkpoint: Checkpoint, frame_counts: Sequence[int] | str | None, format: str
) -> list[int | None]:
    if frame_counts == "any":
        model = checkpoint.model
        own = [
            *(["norms and scales for each frame count"] if model.frame_counts else []),
            *(["temporal pooling"] if model.config["temporal_pool"] else []),
            *(["non-local blocks"] if model.config["non_local"] != "none" else []),
        ]
        if own:
            raise ValueError(
                f'frame_counts is "any", but the network has {" and ".join(own)}; give the counts, such as '
                f"{','.join(map(str, checkpoint.frame_counts))}, for a graph each"
            )
        if format not in ("onnx", "openvino"):
            raise ValueError(
                f'frame_counts is "any", which {format!r} can\'t hold; expected onnx or openvino'
            )
        return [None]
    if isinstance(frame_counts, str):
        raise ValueError(f'frame_counts is {frame_counts!r}; expected numbers, or "any"')
    counts = sorted(set(checkpoint.frame_counts if frame_counts is None else frame_counts))
    if not counts or counts[0] < 1:
        raise ValueError(f"frame_counts is {counts}; expected one or more of at least 1 each")
    return list(counts)


def _input(
    preprocessing: Preprocessing, counts: Sequence[int | None], batch: int | str, uint8_input: bool
) -> dict[str, Any]:
    """For readers of the manifest without frameflex."""
    clips: Any = "B" if batch == "dynamic" else batch
    frames = counts[0] if len(counts) == 1 and counts[0] is not None else "T"
    size = preprocessing.crop_size
    if uint8_input:
        return {"name": "clip", "dtype": "uint8", "shape": [clips, frames, size, size, 3], "colours": "rgb"}
    return {
        "name": "clip",
        "dtype": "float32",
        "shape": [clips, 3, frames, size, size],
        "colours": preprocessing.channel_order,
        "values": "(pixel / 255 - mean) / std",
    }


# ------------------------------------------------------------------------------ the network to be traced


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
        crop_size: int,
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
        if pixels is None:
            self.example = torch.randn(clips, 3, counted, crop_size, crop_size)
        else:
            self.example = torch.randint(0, 256, (clips, counted, crop_size, crop_size, 3), dtype=torch.uint8)
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


def export_network(
    model: TSM,
    num_frames: int | None,
    *,
    batch: int | str = "dynamic",
    pixels: Preprocessing | None = None,
    crop_size: int = 224,
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
        crop_size: height and width of the example that is traced.
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


class _Half(nn.Module):
    """Arithmetic in float16 between float32 clips and logits."""

    def __init__(self, network: ExportNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()
        self.takes_pixels = network.pixels is not None

    def forward(self, clip: Tensor) -> Tensor:
        return self.network(clip if self.takes_pixels else clip.half()).float()


# ------------------------------------------------------------------------------------- writing the graphs


def _write_graph(network: ExportNetwork, path: Path, *, format: str, half: bool, opset: int) -> None:
    traced: nn.Module = _Half(network).eval() if half and format != "openvino" else network
    with _quiet():
        try:
            if format == "onnx":
                _write_onnx(traced, network, path, opset)
            elif format == "openvino":
                _write_openvino(network, path, half=half)
            elif format == "torchexport":
                torch.export.save(_program(traced, network), path)
            else:
                with torch.no_grad():
                    torch.jit.trace(traced, (network.example,), check_trace=False).save(str(path))
        except (ExportError, OSError):
            raise
        except (
            Exception
        ) as error:  # each exporter raises kinds of its own, for operators that it can't express
            cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(f"this network can't be turned into {format}: {cause}") from error


def _dynamic_axes(network: ExportNetwork) -> dict[int, Any]:
    axes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC} if network.batch == "dynamic" else {}
    if network.num_frames is None:
        axes[2 if network.pixels is None else 1] = torch.export.Dim.AUTO
    return axes


def _program(traced: nn.Module, network: ExportNetwork) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(
            traced, (network.example,), dynamic_shapes=(_dynamic_axes(network),), strict=False
        )


def _write_onnx(traced: nn.Module, network: ExportNetwork, path: Path, opset: int) -> None:
    program = torch.onnx.export(
        _program(traced, network),
        dynamo=True,
        opset_version=opset,
        input_names=["clip"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:  # stack traces, with paths of this machine, in every node
        node.metadata_props.clear()
    program.model.graph.metadata_props.clear()
    program.model.metadata_props.clear()
    program.save(path, external_data=False)


def _write_openvino(network: ExportNetwork, path: Path, *, half: bool) -> None:
    openvino = needed("openvino", "exporting to openvino")
    axes = _dynamic_axes(network)
    shape = [-1 if axis in axes else size for axis, size in enumerate(network.example.shape)]
    with torch.no_grad():
        model = openvino.convert_model(
            network, example_input=network.example, input=[openvino.PartialShape(shape)]
        )
    model.inputs[0].get_tensor().set_names({"clip"})
    model.outputs[0].get_tensor().set_names({"logits"})
    openvino.save_model(model, path, compress_to_fp16=half)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own future and of shapes that are constants here on purpose."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


# ------------------------------------------------------------------------------------------------- int8


class _Clips:
    """The clips of videos at one T, decoded anew each time they are gone through, ``(B, 3, T, H, W)``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        videos: VideoList,
        num_frames: int,
        batch: int | str = 1,
        num_workers: int = 0,
    ) -> None:
        self.dataset = ClipDataset(
            videos,
            frame_counts=[num_frames],
            transform=EvalTransform(checkpoint.preprocessing),
            training=False,
            **checkpoint.sampling,
        )
        self.num_frames = num_frames
        self.batch = 1 if batch == "dynamic" else int(batch)
        self.num_workers = num_workers

    def labelled(self) -> Iterator[tuple[Tensor, int]]:
        loader: DataLoader = DataLoader(
            self.dataset,
            batch_size=1,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=end_with_parent,
        )
        for read in shielded(loader):
            yield read.clips[self.num_frames].flatten(0, 1), int(read.labels[0])

    def __iter__(self) -> Iterator[Tensor]:
        for clip, _ in self.labelled():
            yield clip.expand(self.batch, -1, -1, -1, -1)

    def __len__(self) -> int:
        return len(self.dataset)


def _quantize_openvino(path: Path, clips: _Clips, to_input: Callable[[Tensor], Tensor]) -> None:
    openvino, nncf = needed("openvino", "int8"), needed("nncf", "int8 in OpenVINO")
    model = openvino.Core().read_model(path)
    data = nncf.Dataset(clips, lambda clip: to_input(clip).numpy())
    quantized = nncf.quantize(model, data, subset_size=len(clips), fast_bias_correction=True)
    del model  # it maps the file that is written now
    path.unlink()
    path.with_suffix(".bin").unlink()
    openvino.save_model(quantized, path, compress_to_fp16=False)


def _quantize_onnx(path: Path, clips: _Clips, to_input: Callable[[Tensor], Tensor]) -> None:
    quantization = needed("onnxruntime.quantization", "int8 in ONNX")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.clips = iter(clips)

        def get_next(self) -> dict[str, np.ndarray] | None:
            clip = next(self.clips, None)
            return None if clip is None else {"clip": to_input(clip).contiguous().numpy()}

    plain = path.with_name(f"float32-{path.name}")
    path.rename(plain)
    try:
        quantization.quantize_static(
            plain,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    finally:
        plain.unlink()


_QUANTIZERS = {"onnx": _quantize_onnx, "openvino": _quantize_openvino}


# ------------------------------------------------------------------------------- comparing with the model


def compare_logits(
    checkpoint: Checkpoint, exported: ExportedModel, counts: Sequence[int | None], *, half: bool = False
) -> list[dict[str, Any]]:
    """Logits of the graphs against the model's on fresh random clips.

    Returns:
        for each T and batch the largest difference and what was allowed.

    Raises:
        ExportError: if a difference is larger than that.
    """
    preprocessing, results = checkpoint.preprocessing, []
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    size = preprocessing.crop_size
    frames = [count for count in counts if count is not None] or sorted({1, *checkpoint.frame_counts})
    for count in frames:
        for batch in _PARITY_BATCHES:
            pixels = torch.randint(0, 256, (batch, count, size, size, 3), dtype=torch.uint8)
            clip = from_pixels(pixels, preprocessing)
            expected, got = _logits(checkpoint.model, clip), exported(clip)
            allowed = tolerance * expected.abs().max().item()
            difference = (expected - got).abs().max().item() if got.shape == expected.shape else float("nan")
            results.append(
                {"num_frames": count, "batch": batch, "max_difference": difference, "allowed": allowed}
            )
            if not difference <= allowed:
                raise ExportError(
                    f"the graph's logits differ from the model's by {difference:.3g} at {count} frames and {batch} "
                    f"clips, where {allowed:.3g} is allowed; nothing was written. Export to another format, and "
                    "report this with the name of the architecture"
                )
    return results


def compare_labels(
    checkpoint: Checkpoint,
    exported: ExportedModel,
    videos: VideoList,
    num_frames: int,
    *,
    min_agreement: float,
    num_workers: int = 0,
) -> dict[str, Any]:
    """Labels of the graph against the model's on videos.

    Returns:
        the share of videos on which both agree; where all videos are labelled also the top-1 accuracy of each.

    Raises:
        ExportError: if they agree on less than ``min_agreement``.
    """
    agreed = before = after = 0
    for clip, label in _Clips(checkpoint, videos, num_frames, num_workers=num_workers).labelled():
        model = _logits(checkpoint.model, clip).argmax().item()
        graph = exported(clip).argmax().item()
        agreed, before, after = agreed + (model == graph), before + (model == label), after + (graph == label)
    result: dict[str, Any] = {
        "num_frames": num_frames,
        "num_videos": len(videos),
        "same_label": agreed / len(videos),
    }
    if -1 not in videos.labels:
        result |= {"top1_model": before / len(videos), "top1_graph": after / len(videos)}
    if result["same_label"] < min_agreement:
        raise ExportError(
            f"at {num_frames} frames the graph gives the model's label on {agreed} of {len(videos)} videos, fewer "
            f"than the share of {min_agreement:g} that is asked for; nothing was written. Calibrate with more videos "
            "of the kind that it will see, or ask for a smaller agreement"
        )
    return result


def _logits(model: nn.Module, clip: Tensor) -> Tensor:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(clip.to(device)).float().cpu()
    finally:
        model.train(was_training)
