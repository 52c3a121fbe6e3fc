"""One table of limits: what this machine can do, and what share of it each stage from file to label reaches.

    python benchmarks/limits.py [--video FILE] [--backbone resnet50] [--frames 8] [--runs 7] [--int8]

The machine's rates are measured in the same run as the stages, in turn with them: multiplications and additions of
large matrix products in float32, bfloat16 and int8, and bytes that a large copy reads and writes. A stage's limit:

- decoding: FFmpeg alone, which decodes every frame up to the last wanted one and converts none;
- preprocessing: the copy's rate, for the pixels of the wanted frames read once and the clip written once;
- the network: the matrix products' rate in the precision that it computes in, for the arithmetic of its convolutions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import torch
from peers import one_video
from torch import Tensor

from frameflex import tune_process
from frameflex.checkpoint import Checkpoint
from frameflex.data.sampling import eval_indices
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.deploy.benchmark import BACKENDS, Unavailable, hardware, paired_seconds, spread
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.evaluation import clip_gflops
from frameflex.models import create_model
from frameflex.models.precision import cpu_flags, possible_precisions
from frameflex.video import open_video

PIXELS = 224
MATRIX = 3072
COPIED = 256 << 20
TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", type=Path, help="by default one is rendered: 4 s of H.264, 428 x 240")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--int8", action="store_true", help="also OpenVINO's int8, which needs nncf")
    args = parser.parse_args()
    tuned = tune_process(num_threads=args.threads)
    flags = [flag for flag in TELLING_FLAGS if flag in cpu_flags()]
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    print(
        f"flags: {', '.join(flags) or 'none of interest'}; {tuned.num_threads} threads; medians of {args.runs}"
    )
    with tempfile.TemporaryDirectory() as folder:
        video = args.video or one_video(Path(folder) / "video.mp4")
        torch.manual_seed(0)
        model = create_model(args.backbone, num_classes=174).eval()
        machine, rates = machine_rates()
        stages = Stages(model, video, args.frames, int8=args.int8)
        calls = {**machine, **stages.calls}
        times = dict(
            zip(calls, map(spread, paired_seconds(list(calls.values()), args.runs, warm_up=2)), strict=True)
        )
        limits = {name: work / min_of(times[name]) for name, work in rates.items()}
    print("\n| the machine | rate |\n|---|---|")
    for name, rate in limits.items():
        print(f"| {name} | {rate / 1e9:.0f} {'GB/s' if 'copy' in name else 'GFLOP/s'} |")
    print("\n| stage | ms | limit | ms at the limit | share reached |\n|---|---|---|---|---|")
    bare = times["FFmpeg alone"][0]
    row("decoding", times["decoding"], "FFmpeg alone", bare)
    moved = stages.frames.nbytes + stages.clip.nbytes
    row("preprocessing", times["preprocessing"], "copy", moved / limits["memory copy"])
    for name, kind in stages.networks.items():
        row(f"network, {name}", times[name], f"{kind} products", stages.flops / limits[kind])
    total = times["decoding"][0] + times["preprocessing"][0] + times["PyTorch float32"][0]
    row("file to label, PyTorch float32", times["file to label"], "the three stages", total)


def machine_rates() -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Calls that show what the machine can do, and the operations or bytes of each."""
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        if name in possible_precisions("cpu"):
            a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
            calls[name] = lambda a=a, b=b: torch.mm(a, b)  # type: ignore[misc]
    c, d = (torch.randint(-128, 128, (MATRIX, MATRIX), dtype=torch.int8) for _ in range(2))
    calls["int8"] = lambda: torch._int_mm(c, d)
    work = dict.fromkeys(calls, 2.0 * MATRIX**3)
    source = torch.zeros(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls["memory copy"] = lambda: target.copy_(source)
    return calls, work | {"memory copy": 2.0 * COPIED}


class Stages:
    """What lies between a file and its label, each as a call.

    Attributes:
        calls: by name.
        networks: name -> the kind of product that is its limit.
        frames: of the video, that are wanted.
        clip: that the network sees.
        flops: multiplications and additions of one clip.
    """

    def __init__(self, model: torch.nn.Module, video: Path, num_frames: int, *, int8: bool) -> None:
        preprocessing = Preprocessing(short_side=256, crop_size=PIXELS)
        transform = EvalTransform(preprocessing)

        def decode() -> Tensor:
            with open_video(video, decoder="pyav") as reader:
                return reader.sample(lambda available: eval_indices(available, num_frames))

        self.frames = decode()
        self.clip = transform(self.frames)  # (1, 3, T, H, W)
        with torch.inference_mode():
            self.flops = 2e9 * clip_gflops(model, self.clip)
        with open_video(video) as reader:
            last = max(eval_indices(reader.num_frames, num_frames))
        checkpoint = Checkpoint(model, [str(i) for i in range(174)], preprocessing, (num_frames,))  # type: ignore[arg-type]
        recognizer = Recognizer(checkpoint, device="cpu")
        self.calls: dict[str, Callable[[], object]] = {
            "FFmpeg alone": lambda: decode_only(video, last),
            "decoding": decode,
            "preprocessing": lambda: transform(self.frames),
            "file to label": lambda: recognizer(video),
        }
        self.networks: dict[str, str] = {}
        wanted = [("eager", precision) for precision in possible_precisions("cpu")]
        wanted += [("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")]
        wanted += [("onnxruntime-int8", "int8"), ("openvino-int8", "int8")] if int8 else []
        for backend, precision in wanted:
            try:
                run = BACKENDS[backend](model, self.clip, precision)
            except Unavailable as error:
                print(f"{backend} {precision}: not measured, {error}")
                continue
            name = f"{'PyTorch' if backend == 'eager' else backend.removesuffix('-int8')} {precision}"
            self.calls[name] = lambda run=run: run(self.clip)  # type: ignore[misc]
            self.networks[name] = precision


def decode_only(video: Path, last: int) -> None:
    with av.open(str(video)) as container:
        for number, _ in enumerate(container.decode(video=0)):
            if number == last:
                break


def min_of(times: tuple[float, float, float]) -> float:
    """The lower quartile: a rate that the machine does reach, and not once by luck."""
    return times[1]


def row(name: str, times: tuple[float, float, float], limit: str, at_limit: float) -> None:
    median, low, high = (1e3 * second for second in times)
    print(
        f"| {name} | {median:.1f} ({low:.1f} to {high:.1f}) | {limit} | {1e3 * at_limit:.1f} | "
        f"{1e3 * at_limit / median:.0%} |"
    )


if __name__ == "__main__":
    main()
