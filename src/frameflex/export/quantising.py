"""Graphs with 8-bit weights and activations, whose ranges are taken from videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from frameflex.export.clips import VideoClips
from frameflex.export.packages import needed, openvino_core


def _quantize_openvino(path: Path, clips: VideoClips, to_input: Callable[[Tensor], Tensor]) -> None:
    openvino, nncf = needed("openvino", "int8"), needed("nncf", "int8 in OpenVINO")
    model = openvino_core().read_model(path)
    data = nncf.Dataset(clips, lambda clip: to_input(clip).numpy())
    quantized = nncf.quantize(model, data, subset_size=len(clips), fast_bias_correction=True)
    del model  # it maps the file that is written now
    path.unlink()
    path.with_suffix(".bin").unlink()
    openvino.save_model(quantized, path, compress_to_fp16=False)


def _quantize_onnx(path: Path, clips: VideoClips, to_input: Callable[[Tensor], Tensor]) -> None:
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


QUANTIZERS = {"onnx": _quantize_onnx, "openvino": _quantize_openvino}
