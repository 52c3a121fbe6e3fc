"""How fast a network is, next to its own backbone without the shift, on every back end that is installed.

Both networks of a pair run in turn, clip by clip, and the ratio is the median over pairs: what other programs take on
the same machine slows single runs and cancels where it slows both.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frameflex.checkpoint import Checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.models import TSM, create_model
from frameflex.models.precision import check_precision, chosen_precision, computing_in, fast_precision

Run = Callable[[Tensor], Any]

_PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "av")


class Unavailable(Exception):
    """A back end that can't run here, or not in this precision; the message says why."""


@dataclass(frozen=True)
class Timing:
    """A network at one T and batch on one back end, and its backbone without the shift beside it.

    Attributes:
        backend: one of `BACKENDS`.
        precision: what it computed in.
        num_frames: T.
        batch: clips at once.
        seconds: median time of a batch.
        quartiles: of those times, in seconds.
        plain_seconds: the same of the backbone without the shift.
        ratio: median of the time over the plain backbone's, pair by pair.
        ratio_quartiles: of those ratios.
        num_runs: pairs.
    """

    backend: str
    precision: str
    num_frames: int
    batch: int
    seconds: float
    quartiles: tuple[float, float]
    plain_seconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    num_runs: int

    @property
    def clips_per_second(self) -> float:
        return self.batch / self.seconds


@dataclass
class BenchmarkReport:
    """What was measured.

    Attributes:
        timings: in the order measured.
        unavailable: back ends that can't run here, or not in a precision, each with the reason.
        hardware: of this machine, and versions.
    """

    timings: list[Timing] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        timings = [asdict(timing) | {"clips_per_second": timing.clips_per_second} for timing in self.timings]
        return {"hardware": self.hardware, "timings": timings, "unavailable": self.unavailable}


def benchmark(
    model: TSM,
    *,
    backends: Sequence[str] | None = None,
    frame_counts: Sequence[int] = (8, 16),
    batches: Sequence[int] = (1,),
    size: int | tuple[int, int] = 224,
    precisions: Sequence[str] = ("float32",),
    num_runs: int = 10,
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchmarkReport:
    """Time a network on every back end, T and batch, in pairs with its backbone without the shift.

    Values are random: times don't depend on them. Int8 graphs are calibrated with noise, so only their times mean
    something.

    Args:
        model: left as it is.
        backends: of `BACKENDS`; by default all.
        frame_counts: T's.
        batches: clips at once.
        size: pixels ``(height, width)``, or the side of a square.
        precisions: of `PRECISIONS`, each timed on every back end that has a choice; int8 back ends are timed in int8.
            "auto" is what each does fast.
        num_runs: pairs for each, at least 2, after one that warms up.
        on_progress: called with (settings done, settings in all).

    Raises:
        ValueError: if an argument is out of range.
    """
    names = tuple(BACKENDS) if backends is None else tuple(backends)
    for name in names:
        if name not in BACKENDS:
            raise ValueError(f"back end {name!r} is unknown; expected some of {', '.join(BACKENDS)}")
    if num_runs < 2:
        raise ValueError(f"num_runs is {num_runs}; expected at least 2")
    height, width = (size, size) if isinstance(size, int) else size
    if min([*frame_counts, *batches, height, width]) < 1:
        raise ValueError("frame counts, batches and size must be at least 1")
    asked = [check_precision(precision) for precision in precisions]
    report = BenchmarkReport(hardware=hardware())
    plain = without_shift(model)
    settings = [
        (name, precision, count, batch)
        for name in names
        for precision in _precisions(name, asked)
        for count in frame_counts
        for batch in batches
    ]
    for done, (name, precision, num_frames, batch) in enumerate(settings, start=1):
        told = name if precision in ("float32", "int8") else f"{name}, {precision}"
        if told not in report.unavailable:
            clip = torch.randn(batch, 3, num_frames, height, width)
            try:
                runs = [BACKENDS[name](network, clip, precision) for network in (model, plain)]
                report.timings.append(_timing(name, precision, clip, runs, num_runs))
            except Unavailable as error:
                report.unavailable[told] = str(error)
        if on_progress:
            on_progress(done, len(settings))
    return report


def _precisions(backend: str, asked: Sequence[str]) -> list[str]:
    """What a back end is timed in: "auto" resolved, each once."""
    if backend.endswith("int8"):
        return ["int8"]
    if backend == "onnxruntime":
        fast = "float32"
    else:
        on_gpu = backend.startswith("cuda") and torch.cuda.is_available()
        fast = fast_precision("cuda" if on_gpu else "cpu")[0]
    return list(dict.fromkeys(fast if precision == "auto" else precision for precision in asked))


def without_shift(model: TSM) -> TSM:
    """The same backbone without the shift (nor a frame-flexible network's scales), with random weights."""
    config = {**model.config, "shift": "none"}
    if config.get("frame_counts"):
        config["frame_scales"] = False
    return create_model(**config).eval()


def _timing(name: str, precision: str, clip: Tensor, runs: Sequence[Run], num_runs: int) -> Timing:
    times = paired_seconds([lambda run=run: run(clip) for run in runs], num_runs)  # type: ignore[misc]
    ratio, low, high = spread([ours / plain for ours, plain in zip(*times, strict=True)])
    seconds, *quartiles = spread(times[0])
    return Timing(
        name, precision, clip.shape[2], len(clip), seconds, (quartiles[0], quartiles[1]), statistics.median(times[1]),
        ratio, (low, high), num_runs,
    )  # fmt: skip


def paired_seconds(
    calls: Sequence[Callable[[], Any]], num_runs: int, *, warm_up: int = 1
) -> list[list[float]]:
    """Seconds of each call, made in turn ``num_runs`` times after ``warm_up`` rounds that don't count."""
    times: list[list[float]] = [[] for _ in calls]
    for run in range(warm_up + num_runs):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if run >= warm_up:
                taken.append(time.perf_counter() - start)
    return times


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = np.quantile(np.asarray(values), (0.25, 0.5, 0.75))
    return float(median), float(low), float(high)


def matrix_rate(size: int = 3072, num_runs: int = 5) -> float:
    """Single-precision GFLOP/s (multiplications and additions) of a large ``torch.mm`` on this CPU."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    (times,) = paired_seconds([lambda: torch.mm(a, b)], num_runs)
    return 2 * size**3 / min(times) / 1e9


def hardware() -> dict[str, Any]:
    """What ran: CPU, cores, threads, GPU, and versions."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------- back ends


def _private(model: nn.Module, device: str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    return copy.deepcopy(model).eval().to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _eager(model: TSM, clip: Tensor, precision: str = "float32") -> Run:
    return _inference(_private(model), _possible(precision, "cpu"))


def _compiled(model: TSM, clip: Tensor, precision: str = "float32") -> Run:
    """torch.compile, as a user calls it; compiled here, so that no timed run compiles."""
    torch._dynamo.reset()
    run = _inference(torch.compile(_private(model), dynamic=False), _possible(precision, "cpu"))
    try:
        run(clip)
    except RuntimeError as error:
        raise Unavailable(
            f"torch.compile fails here ({_first_line(error)}); it needs a C++ compiler"
        ) from error
    return run


def _possible(precision: str, device: str) -> str:
    try:
        return chosen_precision(precision, device)
    except ValueError as error:
        raise Unavailable(str(error)) from error


def _inference(module: Callable[[Tensor], Tensor], precision: str = "float32") -> Run:
    def run(clip: Tensor) -> Tensor:
        with torch.inference_mode(), computing_in(precision, clip.device):
            return module(clip)

    return run


def _cuda(model: TSM, clip: Tensor, precision: str = "bfloat16") -> Run:
    return _on_cuda(model, clip, precision, compiled=False)


def _cuda_compiled(model: TSM, clip: Tensor, precision: str = "bfloat16") -> Run:
    return _on_cuda(model, clip, precision, compiled=True)


def _on_cuda(model: TSM, clip: Tensor, precision: str, *, compiled: bool) -> Run:
    """Weights in the precision, channels-last; the clip is copied once, outside of what is timed."""
    if not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device")
    dtype = getattr(torch, _possible(precision, "cuda"))
    module: Callable[[Tensor], Tensor] = _private(model, "cuda", dtype)
    module = torch.compile(module, dynamic=False) if compiled else module
    moved = clip.to("cuda", dtype)
    infer = _inference(module)

    def run(_: Tensor) -> None:
        infer(moved)
        torch.cuda.synchronize()

    for _ in range(3):
        run(clip)
    return run


def _exported(format: str, *, int8: bool = False) -> Callable[..., Run]:
    def prepare(model: TSM, clip: Tensor, precision: str | None = None) -> Run:
        packages = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}[format]
        for package in [*packages, *(["nncf"] if int8 and format == "openvino" else [])]:
            if importlib.util.find_spec(package) is None:
                raise Unavailable(f"{package} is not installed: pip install 'frameflex[export]'")
        from frameflex.export import ExportedModel, export, load_exported

        num_frames, height, width = clip.shape[2:]
        classes = [str(i) for i in range(model.config["num_classes"])]
        preprocessing = Preprocessing(crop_size=(height, width), fit="whole")
        checkpoint = Checkpoint(model, classes, preprocessing, (num_frames,))
        with tempfile.TemporaryDirectory() as folder:
            videos = _noise_videos(Path(folder) / "videos", num_frames, (height, width)) if int8 else None
            path = Path(folder) / "graph"
            export(
                checkpoint,
                path,
                format=format,
                frame_counts=[num_frames],
                batch=len(clip),
                int8_videos=videos,
                min_agreement=0,
            )
            graph = load_exported(path).model
            assert isinstance(graph, ExportedModel)
            try:
                graph.compute_in(precision)
            except ValueError as error:
                raise Unavailable(str(error)) from error
            graph(clip)  # opens the session while the file is there
        return graph

    return prepare


def _noise_videos(folder: Path, num_frames: int, size: tuple[int, int]) -> Any:
    """Two short videos of noise, to calibrate an int8 graph whose answers nobody asks for."""
    import av

    from frameflex.data.records import VideoList, VideoRecord

    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for i in range(2):
        path = folder / f"{i}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=12)
            stream.height, stream.width = (pixels + pixels % 2 for pixels in size)
            stream.pix_fmt = "yuv420p"
            for _ in range(num_frames):
                pixels = rng.integers(0, 256, (stream.height, stream.width, 3), dtype=np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        records.append(VideoRecord(path, None, path.name))
    return VideoList(records, ["noise"])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


BACKENDS: dict[str, Callable[..., Run]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _exported("onnx"),
    "onnxruntime-int8": _exported("onnx", int8=True),
    "openvino": _exported("openvino"),
    "openvino-int8": _exported("openvino", int8=True),
    "cuda": _cuda,
    "cuda-compile": _cuda_compiled,
}
