"""Running exported graphs as a checkpoint's model is run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frameflex.checkpoint import Checkpoint
from frameflex.checkpoint.format import checked_temperatures
from frameflex.data.transforms import Preprocessing
from frameflex.export.manifest import read_manifest
from frameflex.export.packages import ExportError, first_line, needed, openvino_core
from frameflex.models.clips import check_clip
from frameflex.models.precision import check_precision, fast_precision


class ExportedModel(nn.Module):
    """Runs exported graphs under the contract of a `TSM`: clips ``(B, 3, T, H, W)`` in, logits ``(B, K)`` out.

    Args:
        folder: where the graphs are.
        manifest: as `read_manifest` gives it.

    Attributes:
        frame_counts: the T's that were exported, ascending; empty where one graph takes any T.
        batch: clips at once in the graph; None where it takes any number.
        config: the architecture behind the graphs, as `TSM` has it.

    Raises:
        ExportError: if the manifest doesn't hold together.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        super().__init__()
        if manifest.get("kind") == "step":
            raise ExportError(
                f"export {folder} is the one-frame step of a stream, which takes no clips. Export again without the "
                "step, or run it as docs/background/streaming.md shows"
            )
        try:
            self.config = dict(manifest["architecture"])
            self.graph_format = str(manifest["format"])
            self.precision = str(manifest["precision"])
            batch = manifest["batch"]
            self.batch = None if batch == "dynamic" else int(batch)
            self.uint8_input = bool(manifest["uint8_input"])
            self.num_classes = len(manifest["class_names"])
            graphs = {graph["num_frames"]: str(graph["file"]) for graph in manifest["graphs"]}
            self.graphs = {None if count == "any" else int(count): file for count, file in graphs.items()}
            preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
            if not self.graphs or (self.batch is not None and self.batch < 1):
                raise ValueError(f"{len(self.graphs)} graphs, batch {batch!r}")
            if not set(self.graphs.values()) <= set(manifest["files"]):
                raise ValueError("a graph's file is not among files")
            if self.graph_format not in RUNNERS:
                raise ValueError(f"format {self.graph_format!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(f"export {folder}: its manifest doesn't hold together: {error!r}") from error
        self.folder = folder
        self.frame_counts = tuple(sorted(count for count in self.graphs if count is not None))
        self.preprocessing = preprocessing
        self._arithmetic: str | None = None
        self._sessions: dict[int | None, Callable[[np.ndarray], np.ndarray]] = {}
        self._lock = threading.Lock()  # one session serves one clip at a time: it uses all cores anyway

    def forward(self, clip: Tensor) -> Tensor:
        """Classify clips.

        Args:
            clip: float ``(B, 3, T, H, W)``, normalised as in the manifest's preprocessing; T one that was exported.

        Returns:
            Logits ``(B, K)``, float32, on the CPU.

        Raises:
            ValueError: if there is no graph for this T or size.
        """
        check_clip(clip)
        count = None if None in self.graphs else clip.shape[2]
        if count not in self.graphs:
            raise ValueError(
                f"this export has no graph for {count} frames; it has {', '.join(map(str, self.frame_counts))}. "
                f"Export the checkpoint again with {count} among --frames, or ask for one of those"
            )
        plain = clip.detach().float().cpu().contiguous()
        values = to_pixels(plain, self.preprocessing) if self.uint8_input else plain
        with self._lock:
            if count not in self._sessions:
                self._sessions[count] = RUNNERS[self.graph_format](
                    self.folder / self.graphs[count], self._arithmetic or self.precision
                )
            logits = [
                self._run(self._sessions[count], part) for part in values.split(self.batch or len(values))
            ]
        return torch.cat(logits)

    def compute_in(self, precision: str | None) -> str:
        """Choose what the graphs are computed in from now on.

        Args:
            precision: of `PRECISIONS`; "auto" is what this CPU does fast where the runtime has a choice; None for the
                graphs' own. OpenVINO computes graphs of float32 and half precision in others that this CPU has; all
                other graphs have one precision.

        Returns:
            What was chosen.

        Raises:
            ValueError: if the graphs can't be computed in it here.
        """
        own = "float16" if self.precision == "half" else self.precision
        possible: tuple[str, ...] = (own,)
        if precision is None:
            chosen = own
        else:
            possible = self._possible_precisions(own)
            fast = fast_precision("cpu")[0]
            auto = fast if fast in possible else own
            chosen = auto if check_precision(precision) == "auto" else precision
        if chosen not in possible:
            raise ValueError(
                f"precision is {chosen!r}, which this {self.graph_format} export of {own} can't be computed in here; "
                f"expected {', '.join(('auto', *possible))}. Export again, or use the checkpoint itself"
            )
        with self._lock:
            # Its own is left to the runner, which knows what a half-precision graph prefers.
            self._arithmetic = None if chosen == own else chosen
            self._sessions.clear()
        return chosen

    def _possible_precisions(self, own: str) -> tuple[str, ...]:
        if self.graph_format != "openvino" or own == "int8":
            return (own,)
        return tuple(dict.fromkeys((own, "float32", *_openvino_precisions())))

    def _run(self, session: Callable[[np.ndarray], np.ndarray], clips: Tensor) -> Tensor:
        missing = (self.batch or 0) - len(clips)
        if missing > 0:  # a graph for a fixed number of clips: fill it up, and drop what comes of the filling
            clips = torch.cat([clips, clips[-1:].expand(missing, *clips.shape[1:])])
        logits = torch.from_numpy(np.array(session(clips.numpy()), dtype=np.float32))
        return logits[: len(clips) - max(missing, 0)]


def to_pixels(clip: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The pixels, uint8 RGB ``(B, T, H, W, 3)``, behind normalised clips ``(B, 3, T, H, W)``.

    Exact: before they were normalised they were whole numbers.
    """
    clip = clip.flip(1) if preprocessing.channel_order == "bgr" else clip
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    pixels = (clip.permute(0, 2, 3, 4, 1) * std + mean) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8).contiguous()


def from_pixels(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels, uint8 RGB ``(B, T, H, W, 3)``, into clips ``(B, 3, T, H, W)`` as a model expects them."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    clip = ((pixels.float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    return (clip.flip(1) if preprocessing.channel_order == "bgr" else clip).contiguous()


def load_exported(path: str | Path) -> Checkpoint:
    """An export as a `Checkpoint` whose model runs the graphs; for use, not for training.

    Raises:
        FileNotFoundError: as `read_manifest`.
        ExportError: as `read_manifest`, and if the manifest doesn't hold together.
    """
    folder, manifest = read_manifest(path)
    model = ExportedModel(folder, manifest).eval()
    try:
        counts = model.frame_counts or tuple(int(count) for count in manifest["trained_frame_counts"])
        if not counts or model.num_classes < 1:
            raise ValueError(f"{len(counts)} frame counts, {model.num_classes} classes")
        return Checkpoint(
            model=model,  # type: ignore[arg-type]  # it keeps the contract of a TSM's forward
            class_names=[str(name) for name in manifest["class_names"]],
            preprocessing=Preprocessing.from_dict(manifest["preprocessing"]),
            frame_counts=counts,
            sampling=dict(manifest.get("sampling") or {"sampling": "segments"}),
            license=str(manifest.get("license") or ""),
            source=str(manifest.get("source") or ""),
            multi_label=bool(manifest.get("multi_label", False)),
            temperatures=checked_temperatures(manifest.get("temperatures")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"export {folder}: its manifest doesn't hold together: {error!r}") from error


def _run_onnx(path: Path, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    runtime = needed("onnxruntime", "running an ONNX file")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen kinds, none of them documented
        raise ExportError(
            f"export {path}: onnxruntime {runtime.__version__} can't run it ({first_line(error)}). Where it says "
            "that the operator set is not supported, update it (pip install -U onnxruntime) or export with an older "
            "--opset"
        ) from error
    name = session.get_inputs()[0].name
    return lambda clips: session.run(None, {name: clips})[0]


def _run_openvino(path: Path, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    openvino = needed("openvino", "running an OpenVINO file")
    # Left alone, OpenVINO computes in bfloat16 on CPUs that have it: faster, but not what a float32 model says.
    options = {} if precision == "half" else {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    try:
        compiled = openvino_core().compile_model(str(path), "CPU", options)
    except RuntimeError as error:
        raise ExportError(
            f"export {path}: openvino {openvino.__version__} can't run it ({first_line(error)}). Update it: "
            "pip install -U openvino"
        ) from error
    request = compiled.create_infer_request()
    return lambda clips: request.infer([clips])[0]


HINTS = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int8": "f32",
}  # of what int8 leaves over, too


def _openvino_precisions() -> list[str]:
    needed("openvino", "running an OpenVINO file")
    found = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name, short in (("bfloat16", "BF16"), ("float16", "FP16")) if short in found]


def _run_torchexport(path: Path, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # as above
        raise ExportError(
            f"export {path}: torch {torch.__version__} can't run it ({first_line(error)}). Programs of torch.export "
            "are read by the torch that wrote them or a newer one: update it, or export again"
        ) from error
    return _torch_runner(module)


def _run_torchscript(path: Path, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"export {path}: torch {torch.__version__} can't run it ({first_line(error)}). Export again"
        ) from error
    return _torch_runner(module)


def _torch_runner(module: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    def run(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(clips)).numpy()

    return run


RUNNERS: dict[str, Callable[[Path, str], Callable[[np.ndarray], np.ndarray]]] = {
    "onnx": _run_onnx,
    "openvino": _run_openvino,
    "torchexport": _run_torchexport,
    "torchscript": _run_torchscript,
}
