"""Checkpoints into graphs for other runtimes, each compared with its model before it gets its name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.records import VideoList
from frameflex.data.transforms import Preprocessing
from frameflex.export.clips import VideoClips
from frameflex.export.comparing import check_model, compare_labels, compare_logits
from frameflex.export.manifest import describe, read_manifest, write_manifest
from frameflex.export.network import export_network
from frameflex.export.packages import needed
from frameflex.export.quantising import QUANTIZERS
from frameflex.export.running import RUNNERS, ExportedModel
from frameflex.export.writing import SUFFIXES, write_graph
from frameflex.models import TSM
from frameflex.new_files import new_folder

FORMATS = tuple(RUNNERS)
OPSETS = (18, 23)  # what torch's exporter writes; before 18 a graph would have to be converted down

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
    on_bad_video: Literal["error", "skip"] = "error",
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
        on_bad_video: "error" stops at the first of the videos that can't be decoded; "skip" leaves it out, and stops
            when more than 1 % and more than 3 are bad.
        on_progress: called with what begins.

    Returns:
        The manifest.

    Raises:
        ValueError: if an argument is out of range or the combination can't be.
        FileExistsError: if there is something at ``path``.
        ExportError: if a package is missing, the network can't be turned into such a graph, or the graph doesn't do
            what the model does. Nothing is left at ``path`` then.
        VideoError: if a video can't be decoded, or too many can't.
    """
    asked = _Asked(
        format=format,
        batch=batch,
        half=half,
        int8_videos=int8_videos,
        check_videos=check_videos if check_videos is not None else int8_videos,
        min_agreement=min_agreement,
        uint8_input=uint8_input,
        opset=opset,
        num_workers=num_workers,
        on_bad_video=on_bad_video,
        tell=on_progress or log.info,
    )
    _check_arguments(asked)
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
    check_model(checkpoint, counts)

    with new_folder(path) as folder:
        graphs = [_write_graph(asked, checkpoint, count, folder) for count in counts]
        manifest = _manifest(asked, checkpoint, counts, graphs)
        write_manifest(folder, manifest)
        exported = ExportedModel(*read_manifest(folder))
        asked.tell("comparing with the model")
        manifest |= _compare(asked, checkpoint, exported, counts)
        written = write_manifest(folder, manifest)
    return read_manifest(path / written.name)[1]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The arguments of `export` that say how, by their names."""

    format: str
    batch: int | str
    half: bool
    int8_videos: VideoList | None
    check_videos: VideoList | None
    min_agreement: float
    uint8_input: bool
    opset: int
    num_workers: int
    on_bad_video: Literal["error", "skip"]
    tell: Callable[[str], None]

    @property
    def precision(self) -> str:
        return "half" if self.half else "float32" if self.int8_videos is None else "int8"


def _check_arguments(asked: _Asked) -> None:
    format, batch, int8_videos, opset = asked.format, asked.batch, asked.int8_videos, asked.opset
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    if batch != "dynamic" and (isinstance(batch, str) or batch < 1):
        raise ValueError(f'batch is {batch!r}; expected "dynamic" or a whole number of at least 1')
    if asked.half and int8_videos is not None:
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
    if not 0 <= asked.min_agreement <= 1:
        raise ValueError(f"min_agreement is {asked.min_agreement}; expected 0 to 1")


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


def _write_graph(asked: _Asked, checkpoint: Checkpoint, count: int | None, folder: Path) -> dict[str, Any]:
    """One graph's file; returns its row of the manifest."""
    name = f"model_{'any' if count is None else count}.{SUFFIXES[asked.format]}"
    named = "any number of frames" if count is None else f"{count} frames"
    asked.tell(f"{asked.format}: the graph for {named}")
    network = export_network(
        checkpoint.model,
        count,
        batch=asked.batch,
        pixels=checkpoint.preprocessing if asked.uint8_input else None,
        crop_size=checkpoint.preprocessing.size,
        cut=asked.format in ("onnx", "openvino"),
        divide=asked.format in ("onnx", "openvino") and asked.int8_videos is None,
        quantised=asked.int8_videos is not None,
    )
    write_graph(network, folder / name, format=asked.format, half=asked.half, opset=asked.opset)
    if asked.int8_videos is not None:
        asked.tell(f"{asked.format}: calibrating int8 with {len(asked.int8_videos)} videos")
        clips = VideoClips(
            checkpoint,
            asked.int8_videos,
            count or checkpoint.num_frames,
            asked.batch,
            num_workers=asked.num_workers,
            on_bad_video=asked.on_bad_video,
        )
        with contextlib.closing(clips):
            QUANTIZERS[asked.format](folder / name, clips, network.to_input)
    return {"num_frames": "any" if count is None else count, "file": name}


def _manifest(
    asked: _Asked, checkpoint: Checkpoint, counts: Sequence[int | None], graphs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": asked.format,
        "precision": asked.precision,
        "batch": asked.batch,
        "uint8_input": asked.uint8_input,
        "input": _input(checkpoint.preprocessing, counts, asked.batch, asked.uint8_input),
        "output": {"name": "logits", "dtype": "float32", "shape": ["B", len(checkpoint.class_names)]},
        "opset": asked.opset if asked.format == "onnx" else None,
        "graphs": graphs,
        **describe(checkpoint),
    }


def _compare(
    asked: _Asked, checkpoint: Checkpoint, exported: ExportedModel, counts: Sequence[int | None]
) -> dict[str, Any]:
    """How close the graphs are to the model, for the manifest."""
    found: dict[str, Any] = {}
    if asked.precision != "int8":
        found["parity"] = compare_logits(checkpoint, exported, counts, half=asked.half)
    if asked.check_videos is not None and asked.precision != "float32":
        found["agreement"] = [
            compare_labels(
                checkpoint,
                exported,
                asked.check_videos,
                count or checkpoint.num_frames,
                min_agreement=asked.min_agreement,
                num_workers=asked.num_workers,
                on_bad_video=asked.on_bad_video,
            )
            for count in counts
        ]
    return found


def _input(
    preprocessing: Preprocessing, counts: Sequence[int | None], batch: int | str, uint8_input: bool
) -> dict[str, Any]:
    """For readers of the manifest without frameflex."""
    clips: Any = "B" if batch == "dynamic" else batch
    frames = counts[0] if len(counts) == 1 and counts[0] is not None else "T"
    height, width = preprocessing.size
    if uint8_input:
        return {
            "name": "clip",
            "dtype": "uint8",
            "shape": [clips, frames, height, width, 3],
            "colours": "rgb",
        }
    return {
        "name": "clip",
        "dtype": "float32",
        "shape": [clips, 3, frames, height, width],
        "colours": preprocessing.channel_order,
        "values": "(pixel / 255 - mean) / std",
    }
