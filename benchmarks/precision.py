"""What a lower precision costs in answers and gives in time, on real videos.

    python benchmarks/precision.py CHECKPOINT DATA [--video-dir DIR] [--frames 8] [--videos 100]
                                   [--exports openvino,onnx]

Every precision that this machine can do, in PyTorch and of the exports named (float32, what OpenVINO computes it in,
and int8, calibrated on videos of the training split), looks at the same clips of the validation split: the share of
videos that keep float32's label, the largest and the mean difference of a probability, top-1, and the network's time,
taken clip by clip in turn.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from frameflex.allocator import keep_freed_memory
from frameflex.checkpoint import load_checkpoint
from frameflex.data.datasets import load_split
from frameflex.deploy.benchmark import hardware
from frameflex.deploy.recognizer import Recognizer
from frameflex.export import export
from frameflex.export.clips import VideoClips
from frameflex.models.precision import cpu_flags, possible_precisions

CALIBRATION_VIDEOS = 40
TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data")
    parser.add_argument("--video-dir")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--videos", type=int, default=100, help="at most so many, spread evenly")
    parser.add_argument("--exports", default="openvino,onnx")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.ERROR)
    checkpoint = load_checkpoint(args.checkpoint)
    num_frames = args.frames or checkpoint.num_frames
    splits = {
        name: load_split(args.data, name, classes=checkpoint.class_names, video_dir=args.video_dir)
        for name in ("train", "validation")
    }
    videos = splits["validation"]
    videos = videos.subset(spread_over(len(videos), args.videos))
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    print("flags:", ", ".join(flag for flag in TELLING_FLAGS if flag in cpu_flags()) or "none of interest")
    print(
        f"{args.checkpoint}: {checkpoint.model.config['backbone']}, {num_frames} frames, "
        f"{checkpoint.preprocessing.size} pixels, {len(videos)} videos"
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            f"PyTorch {precision}": Recognizer(
                load_checkpoint(args.checkpoint), device="cpu", precision=precision
            ).probabilities
            for precision in possible_precisions("cpu")
        }
        calibration = splits["train"].subset(spread_over(len(splits["train"]), CALIBRATION_VIDEOS))
        for name in filter(None, args.exports.split(",")):
            for int8_videos in (None, calibration):
                path = Path(folder) / f"{name}-{'float32' if int8_videos is None else 'int8'}"
                export(
                    args.checkpoint,
                    path,
                    format=name,
                    frame_counts=[num_frames],
                    batch=1,
                    int8_videos=int8_videos,
                    min_agreement=0,
                )
                runs |= of_export(path, name)
        measure(runs, VideoClips(checkpoint, videos, num_frames))


def spread_over(number: int, most: int) -> list[int]:
    taken = min(number, most)
    return [i * number // taken for i in range(taken)]


def of_export(path: Path, name: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """What gives probabilities, for each precision that a graph can be computed in."""
    found = {}
    for precision in ("float32", "bfloat16", "float16", "int8"):
        try:
            recognizer = Recognizer.from_checkpoint(path, precision=precision)
        except ValueError:
            continue  # the graph or the CPU doesn't have it
        found[f"{name} {precision}"] = recognizer.probabilities
    return found


def measure(runs: dict[str, Callable[[Tensor], Tensor]], clips: VideoClips) -> None:
    probabilities: dict[str, list[Tensor]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    labels = []
    for number, (clip, label) in enumerate(clips.labelled()):
        labels.append(label)
        for name, run in runs.items():
            if number == 0:
                run(clip[:, None])  # the first one opens the graph
            start = time.perf_counter()
            found = run(clip[:, None])[0]
            seconds[name].append(time.perf_counter() - start)
            probabilities[name].append(found)
    exact = torch.stack(probabilities["PyTorch float32"])
    truth = torch.tensor(labels)
    slowest = statistics.median(seconds["PyTorch float32"])
    print(
        "| | same label | largest difference of a probability | mean of each video's largest | top-1 | ms | "
        "times as fast |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in runs:
        got = torch.stack(probabilities[name])
        same = (got.argmax(1) == exact.argmax(1)).float().mean().item()
        difference = (got - exact).abs().amax(1)
        top1 = (got.argmax(1) == truth).float().mean().item()
        median = statistics.median(seconds[name])
        print(
            f"| {name} | {same:.1%} | {difference.max():.4f} | {difference.mean():.4f} | {top1:.1%} | "
            f"{1e3 * median:.0f} | {slowest / median:.2f} |"
        )


if __name__ == "__main__":
    main()
