"""The one-frame step of a causal network as a graph: a frame and a state in, logits and the next state out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.export.manifest import describe, write_manifest
from frameflex.export.packages import ExportError, first_line, needed, openvino_core
from frameflex.export.running import HINTS
from frameflex.models.causal import CausalStep
from frameflex.models.precision import chosen_precision
from frameflex.new_files import new_folder

STEP_FORMATS = {"onnx": "step.onnx", "openvino": "step.xml"}
STEP_TOLERANCE = 1e-4  # of the largest value; runtimes sum in another order
_CHECKED_STEPS = 4

Runner = Callable[[np.ndarray, Sequence[np.ndarray]], list[np.ndarray]]


def export_step(
    checkpoint: Checkpoint | str | Path,
    path: str | Path,
    *,
    format: str = "onnx",
    num_frames: int | None = None,
    batch: int | str = 1,
    size: int | tuple[int, int] | None = None,
    opset: int = 18,
) -> dict[str, Any]:
    """Write a folder with the graph of `CausalStep` and ``manifest.json``, checked against the model.

    The graph's inputs are ``frame`` ``(B, 3, H, W)``, normalised as the manifest says, and ``state_0``,
    ``state_1``, … ``(B, fold, h, w)``, zeros before the first frame; its outputs ``logits`` ``(B, K)`` and
    ``next_0``, ``next_1``, …, the state for the next frame. No tensor has more than 4 axes.

    The graph is run over several frames, each from the state that it gave itself, and compared with the model; a
    value that is off by more than `STEP_TOLERANCE` of the largest one fails the export.

    Args:
        checkpoint: a causal one, or where it is.
        path: the folder to make.
        format: "onnx" or "openvino".
        num_frames: of a frame-flexible model, whose parts serve; see `CausalStep`.
        batch: streams at once, or "dynamic" for any number.
        size: pixels of a frame, ``(height, width)`` or the side of a square; by default the checkpoint's crop.
        opset: of ONNX.

    Returns:
        The manifest; its "state" lists name, next name and shape of every state tensor.

    Raises:
        ValueError: if an argument is out of range or the checkpoint is not causal.
        FileExistsError: if there is something at ``path``.
        ExportError: if a package is missing, the network can't be turned into such a graph, or the graph doesn't do
            what the model does. Nothing is left at ``path`` then.
    """
    path = Path(path)
    _check_possible(path, format, batch)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    size = size or checkpoint.preprocessing.size
    height, width = (size, size) if isinstance(size, int) else size
    chosen = num_frames or checkpoint.num_frames
    step = CausalStep(checkpoint.model, num_frames=chosen).cpu().float()
    if format == "openvino":
        step.split_convolutions()
    examples = 2 if isinstance(batch, str) else batch  # an exporter takes an axis of 1 for a constant
    state = step.init_state(examples, (height, width))
    frame = torch.zeros(examples, 3, height, width)
    names = [(f"state_{i}", f"next_{i}") for i in range(len(state))]

    with new_folder(path) as folder:
        graph = folder / STEP_FORMATS[format]
        onnx_path = folder / STEP_FORMATS["onnx"]
        _write_onnx(
            _StepGraph(step), (frame, *state), names, onnx_path, dynamic=batch == "dynamic", opset=opset
        )
        if format == "openvino":
            openvino = needed("openvino", "exporting the step to openvino")
            openvino.save_model(openvino.convert_model(onnx_path), graph, compress_to_fp16=False)
            onnx_path.unlink()
        run = open_step(graph)
        batches = (1, 3) if isinstance(batch, str) else (batch,)
        reference = CausalStep(checkpoint.model, num_frames=chosen).cpu().float()
        worst = max(_compare(reference, run, count, (height, width)) for count in batches)
        rows = "B" if isinstance(batch, str) else batch
        manifest = {
            "kind": "step",
            "format": format,
            "precision": "float32",
            "batch": batch,
            "input": {"name": "frame", "dtype": "float32", "shape": [rows, 3, height, width]},
            "output": {"name": "logits", "dtype": "float32", "shape": [rows, step.num_classes]},
            "state": [
                {"input": before, "output": after, "dtype": "float32", "shape": [rows, *tensor.shape[1:]]}
                for (before, after), tensor in zip(names, state, strict=True)
            ],
            "state_bytes": sum(tensor[0].numel() * tensor.element_size() for tensor in state),
            "num_frames": chosen,
            "opset": opset,
            "graphs": [{"file": graph.name}],
            "parity": {"steps": _CHECKED_STEPS, "batches": list(batches), "largest_difference": worst},
            **describe(checkpoint),
        }
        write_manifest(folder, manifest)
    return manifest


def _check_possible(path: Path, format: str, batch: int | str) -> None:
    if format not in STEP_FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(STEP_FORMATS)}")
    if batch != "dynamic" and (isinstance(batch, str) or batch < 1):
        raise ValueError(f'batch is {batch!r}; expected "dynamic" or a whole number of at least 1')
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} is there already; choose another folder, or remove it first")
    for package in ("onnx", "onnxscript", "onnxruntime" if format == "onnx" else "openvino"):
        needed(package, f"exporting the step to {format}")


def open_step(path: str | Path, *, precision: str = "float32") -> Runner:
    """Run an exported step: ``(frame, state) -> [logits, *state]``, all of them NumPy arrays.

    Args:
        path: the graph, ``step.onnx`` or ``step.xml``.
        precision: what OpenVINO computes in: "float32", "bfloat16", or "auto" for what this CPU does fast; states and
            logits stay float32.

    Raises:
        ValueError: if this CPU or ONNX Runtime, which computes in float32, can't do the precision.
        ExportError: if the runtime is missing or can't run it.
    """
    path = Path(path)
    hint = "float32" if path.suffix == ".onnx" and precision == "auto" else chosen_precision(precision, "cpu")
    if path.suffix == ".onnx" and hint != "float32":
        raise ValueError(
            f"precision is {hint!r}, which ONNX Runtime doesn't compute {path.name} in; expected auto or float32"
        )
    try:
        if path.suffix == ".onnx":
            runtime = needed("onnxruntime", "running an ONNX file")
            session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            names = [tensor.name for tensor in session.get_inputs()]
            return lambda frame, state: session.run(None, dict(zip(names, [frame, *state], strict=True)))
        # Left alone, OpenVINO computes in bfloat16 on CPUs that have it, whatever was asked for.
        request = (
            openvino_core()
            .compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": HINTS[hint]})
            .create_infer_request()
        )
        return lambda frame, state: [array.copy() for array in request.infer([frame, *state]).to_tuple()]
    except ExportError:
        raise
    except Exception as error:  # runtimes raise a dozen kinds, none of them documented
        raise ExportError(f"export {path}: it can't be run ({first_line(error)})") from error


class _StepGraph(nn.Module):
    """The step with its state as separate arguments, as graphs have them."""

    def __init__(self, step: CausalStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits, after = self.step(state, frame)
        return (logits, *after)


def _write_onnx(
    graph: _StepGraph,
    example: tuple[Tensor, ...],
    names: Sequence[tuple[str, str]],
    path: Path,
    *,
    dynamic: bool,
    opset: int,
) -> None:
    axes: dict[int, Any] = {0: torch.export.Dim("B", min=1)} if dynamic else {}
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)  # exporters warn of their own future
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            traced = torch.export.export(
                graph.eval(),
                example,
                dynamic_shapes=(axes, *([tuple(axes for _ in names)] if names else [])),
                strict=False,
            )
            program = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=opset,
                input_names=["frame", *(before for before, _ in names)],
                output_names=["logits", *(after for _, after in names)],
                verbose=False,
            )
        assert program is not None
        program.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:  # exporters raise kinds of their own, for operators that they can't express
        raise ExportError(f"this network's step can't be turned into a graph: {first_line(error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(step: CausalStep, run: Runner, batch: int, size: tuple[int, int]) -> float:
    """The largest difference over some steps, relative to the largest value; ExportError where it is too large."""
    generator = torch.Generator().manual_seed(batch)
    expected_state = step.init_state(batch, size)
    state = [tensor.numpy() for tensor in expected_state]
    worst = 0.0
    for number in range(_CHECKED_STEPS):
        frame = torch.randn(batch, 3, *size, generator=generator)
        with torch.inference_mode():
            logits, expected_state = step(expected_state, frame)
        if not all(bool(tensor.isfinite().all()) for tensor in (logits, *expected_state)):
            raise ExportError(
                "the model gives NaN or infinite logits or states; expected finite numbers. Its weights are damaged, "
                "as after a training that diverged: use another checkpoint. Nothing was written"
            )
        found = run(frame.numpy(), state)
        state = found[1:]
        for name, array, tensor in zip(
            ["logits", *(f"next_{i}" for i in range(len(state)))],
            found,
            (logits, *expected_state),
            strict=True,
        ):
            expected = tensor.numpy()
            if array.shape != expected.shape:
                raise ExportError(f"{name} of the graph has shape {array.shape}; expected {expected.shape}")
            off = float(np.abs(array - expected).max() / max(np.abs(expected).max(), 1e-6))
            if not off <= STEP_TOLERANCE:
                raise ExportError(
                    f"frame {number + 1} of {batch} streams: {name} of the graph is off by {off:.2g} of its largest "
                    f"value, more than {STEP_TOLERANCE:g}; the graph is not kept. Please report it"
                )
            worst = max(worst, off)
    return worst
