"""One writer for each format: a traced network into a file."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frameflex.export.network import ExportNetwork
from frameflex.export.packages import ExportError, first_line, needed

SUFFIXES = {"onnx": "onnx", "openvino": "xml", "torchexport": "pt2", "torchscript": "pt"}


def write_graph(network: ExportNetwork, path: Path, *, format: str, half: bool, opset: int) -> None:
    """Write a network as one graph.

    Args:
        network: as `export_network` gives it.
        path: the file to write.
        format: a key of `SUFFIXES`.
        half: weights and arithmetic in float16 (OpenVINO: weights).
        opset: of ONNX.

    Raises:
        ExportError: if the network can't be turned into such a graph, or a package is missing.
        OSError: if the file can't be written.
    """
    with _quiet():
        try:
            _WRITERS[format](network, path, half=half, opset=opset)
        except (ExportError, OSError):
            raise
        except (
            Exception
        ) as error:  # each exporter raises kinds of its own, for operators that it can't express
            raise ExportError(f"this network can't be turned into {format}: {first_line(error)}") from error


def _write_onnx(network: ExportNetwork, path: Path, *, half: bool, opset: int) -> None:
    program = torch.onnx.export(
        _program(network, half=half),
        dynamo=True,
        opset_version=opset,
        input_names=["clip"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    _name_axes(program.model.graph, network)
    for node in program.model.graph:  # stack traces, with paths of this machine, in every node
        node.metadata_props.clear()
    program.model.graph.metadata_props.clear()
    program.model.metadata_props.clear()
    program.save(path, external_data=False)


def _name_axes(graph: Any, network: ExportNetwork) -> None:
    """Axes that are open have names for people: "batch" and "frames" in place of torch's symbols, such as s53."""
    axes = {0: "batch", 2 if network.pixels is None else 1: "frames"}
    shape = graph.inputs[0].shape
    names = {str(shape[axis]): name for axis, name in axes.items() if not isinstance(shape[axis], int)}
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                text = str(size)
                for symbol, name in names.items():
                    text = re.sub(rf"\b{re.escape(symbol)}\b", name, text)
                value.shape[axis] = text


def _write_openvino(network: ExportNetwork, path: Path, *, half: bool, opset: int) -> None:
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


def _write_torchexport(network: ExportNetwork, path: Path, *, half: bool, opset: int) -> None:
    torch.export.save(_program(network, half=half), path)


def _write_torchscript(network: ExportNetwork, path: Path, *, half: bool, opset: int) -> None:
    with torch.no_grad():
        torch.jit.trace(
            _Half(network).eval() if half else network, (network.example,), check_trace=False
        ).save(str(path))


_WRITERS: dict[str, Callable[..., None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torchexport": _write_torchexport,
    "torchscript": _write_torchscript,
}


def _program(network: ExportNetwork, *, half: bool) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(
            _Half(network).eval() if half else network,
            (network.example,),
            dynamic_shapes=(_dynamic_axes(network),),
            strict=False,
        )


def _dynamic_axes(network: ExportNetwork) -> dict[int, Any]:
    axes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC} if network.batch == "dynamic" else {}
    if network.num_frames is None:
        axes[2 if network.pixels is None else 1] = torch.export.Dim.AUTO
    return axes


class _Half(nn.Module):
    """Arithmetic in float16 between float32 clips and logits."""

    def __init__(self, network: ExportNetwork) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()
        self.takes_pixels = network.pixels is not None

    def forward(self, clip: Tensor) -> Tensor:
        return self.network(clip if self.takes_pixels else clip.half()).float()


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
