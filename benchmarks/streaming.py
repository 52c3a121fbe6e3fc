"""What a step of a stream costs against one frame of the same 2D network, on the same back end.

    python benchmarks/streaming.py graphs --prepare   # writes the graphs, measures nothing
    python benchmarks/streaming.py graphs --threads 2

Both networks run in turn, one frame each, many times over; what is reported is the median of each one's times and of
the ratios of neighbours, so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SIZE = 224
BACKBONES = ("resnet50", "mobilenetv2_100")
BACKENDS = ("eager", "onnxruntime", "openvino")


def networks(backbone: str) -> dict[str, Any]:
    """The plain 2D network and the causal one, with random weights, which cost what trained ones do."""
    import torch

    from frameflex.checkpoint import Checkpoint
    from frameflex.data.transforms import Preprocessing
    from frameflex.models import create_model

    found = {}
    for shift in ("none", "causal"):
        torch.manual_seed(0)
        model = create_model(backbone, num_classes=174, shift=shift).eval()
        names = [str(i) for i in range(174)]
        found[shift] = Checkpoint(model, names, Preprocessing(crop_size=SIZE), (8,))
    return found


def graph(folder: Path, backbone: str, shift: str, backend: str, checkpoint: Any) -> Path:
    """The exported step, made where it is not there yet."""
    from frameflex.export import STEP_FORMATS, export_step

    format = "onnx" if backend == "onnxruntime" else "openvino"
    path = folder / f"{backbone}-{shift}-{format}"
    if not path.exists():
        export_step(checkpoint, path, format=format)
    return path / STEP_FORMATS[format]


def runners(folder: Path, backbone: str, backend: str, threads: int) -> dict[str, Callable[[], Any]]:
    """For both networks a function that takes one frame, from a state that a frame has left behind."""
    import numpy as np
    import torch

    from frameflex.models import CausalStep

    found: dict[str, Callable[[], Any]] = {}
    frame = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for shift, checkpoint in networks(backbone).items():
        step = CausalStep(checkpoint.model).to(memory_format=torch.channels_last)
        picture = frame.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            _, state = step(step.init_state(1, SIZE), picture)
        if backend == "eager":
            found[shift] = partial(_eager, step, state, picture)
        elif backend == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            path = graph(folder, backbone, shift, backend, checkpoint)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            names = [tensor.name for tensor in session.get_inputs()]
            arrays = [frame.numpy(), *(np.ascontiguousarray(tensor.numpy()) for tensor in state)]
            found[shift] = partial(session.run, None, dict(zip(names, arrays, strict=True)))
        else:
            from frameflex.export.packages import openvino_core

            hints = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
            }
            path = graph(folder, backbone, shift, backend, checkpoint)
            request = openvino_core().compile_model(str(path), "CPU", hints).create_infer_request()
            arrays = [frame.numpy(), *(np.ascontiguousarray(tensor.numpy()) for tensor in state)]
            found[shift] = partial(request.infer, arrays, share_inputs=True, share_outputs=True)
    return found


def _eager(step: Any, state: Any, frame: Any) -> None:
    import torch

    with torch.inference_mode():
        step(state, frame)


def measure(functions: dict[str, Callable[[], Any]], seconds: float) -> tuple[dict[str, float], float, int]:
    """Median seconds of each, median ratio of neighbours (causal / none), and how many pairs."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(3):
            function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["none"]) < 10:
        order = list(functions) if len(times["none"]) % 2 else list(functions)[::-1]
        for name in order:
            start = time.perf_counter()
            functions[name]()
            times[name].append(time.perf_counter() - start)
    ratios = [causal / none for causal, none in zip(times["causal"], times["none"], strict=True)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians, statistics.median(ratios), len(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graphs", type=Path, help="folder for the exported steps")
    parser.add_argument("--prepare", action="store_true", help="write the graphs and stop")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=10.0, help="for each network and back end")
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--backends", default=",".join(BACKENDS))
    args = parser.parse_args()
    import torch

    from frameflex.models import CausalStep

    torch.set_num_threads(args.threads)
    args.graphs.mkdir(parents=True, exist_ok=True)
    for backbone in args.backbones.split(","):
        state = CausalStep(networks(backbone)["causal"].model).init_state(1, SIZE)
        size = sum(tensor.numel() * tensor.element_size() for tensor in state)
        print(f"{backbone} at {SIZE}: state of {len(state)} tensors, {size:,} bytes", flush=True)
        for backend in args.backends.split(","):
            functions = runners(args.graphs, backbone, backend, args.threads)
            if args.prepare:
                continue
            medians, ratio, number = measure(functions, args.seconds)
            print(
                f"| {backbone} | {backend} | {1e3 * medians['none']:.2f} | {1e3 * medians['causal']:.2f} | "
                f"{ratio:.3f} | n={number}",
                flush=True,
            )


if __name__ == "__main__":
    main()
