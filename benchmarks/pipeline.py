"""How fast videos become answers, stage by stage, and whether memory stays flat.

    frameflex data render motion
    python benchmarks/pipeline.py motion

Prints clips a second of decoding, preprocessing, the network and the whole road at T = 4, 8 and 16, the ratio of
decoding to a bare PyAV loop over the same frames (both measured in turn, paired medians), and the resident memory
over 1,000 videos. Everything runs in this process, without loader workers.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import av
import torch

from frameflex.data.clips import ClipDataset
from frameflex.data.datasets import load_split
from frameflex.data.records import VideoList
from frameflex.data.sampling import eval_indices
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.models import create_model
from frameflex.video import open_video

COUNTS = (4, 8, 16)


def bare_loop(path: Path, wanted: set[int]) -> list[object]:
    """What anyone would write with PyAV: decode until the last wanted frame, convert the wanted ones."""
    frames = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number == max(wanted):
                break
    return frames


def read(path: Path, num_frames: int) -> torch.Tensor:
    with open_video(path, decoder="pyav") as reader:
        return reader.sample(lambda available: eval_indices(available, num_frames))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resident_mib() -> float:
    """Resident memory of this process, from Linux's /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--videos", type=int, default=60, help="for the timings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-videos", type=int, default=1000)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    everything = load_split(args.data, "train")
    videos = everything.subset(range(min(args.videos, len(everything))))
    paths = [record.path for record in videos]
    preprocessing = Preprocessing(short_side=72, crop_size=64)
    transform = EvalTransform(preprocessing)
    model = create_model(args.backbone, num_classes=len(videos.classes)).eval()
    lengths = {}
    for path in paths:
        with open_video(path) as reader:
            lengths[path] = reader.num_frames
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}, "
        f"PyAV {av.__version__}"
    )
    print(
        f"{len(paths)} videos, {args.backbone} at 64 px; medians of {args.rounds} rounds, "
        "interquartile range in brackets\n"
    )
    print("| clips/s | " + " | ".join(f"T = {count}" for count in COUNTS) + " |")
    print("|---" * (len(COUNTS) + 1) + "|")
    rows: dict[str, list[str]] = {}
    for count in COUNTS:
        wanted = {path: set(eval_indices(lengths[path], count)) for path in paths}
        frames = [read(path, count) for path in paths]
        clips = [transform(frame) for frame in frames]
        dataset = ClipDataset(
            videos, frame_counts=(count,), transform=transform, training=False, decoder="pyav"
        )

        def decode(count: int = count) -> None:
            for path in paths:
                read(path, count)

        def decode_bare(wanted: dict[Path, set[int]] = wanted) -> None:
            for path in paths:
                bare_loop(path, wanted[path])

        def preprocess(frames: list[torch.Tensor] = frames) -> None:
            for frame in frames:
                transform(frame)

        def network(clips: list[torch.Tensor] = clips) -> None:
            with torch.inference_mode():
                for clip in clips:
                    model(clip)

        def road(dataset: ClipDataset = dataset, count: int = count) -> None:
            with torch.inference_mode():
                for index in range(len(dataset)):
                    model(dataset[index].clips[count])

        stages = {"decoding": decode, "bare PyAV loop": decode_bare, "preprocessing": preprocess,
                  "network": network, "whole road": road}  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in stages}
        for _ in range(args.rounds):
            for name, stage in stages.items():
                times[name].append(seconds(stage))
        for name, measured in times.items():
            rate = [len(paths) / value for value in measured]
            low, _, high = statistics.quantiles(rate, n=4)
            rows.setdefault(name, []).append(f"{statistics.median(rate):.0f} [{low:.0f}, {high:.0f}]")
        ratios = [ours / bare for ours, bare in zip(times["decoding"], times["bare PyAV loop"], strict=True)]
        rows.setdefault("decoding time / bare loop (paired)", []).append(f"{statistics.median(ratios):.2f}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    memory(everything, transform, args.memory_videos)


def memory(videos: VideoList, transform: EvalTransform, total: int) -> None:
    dataset = ClipDataset(videos, frame_counts=COUNTS, transform=transform, training=False)
    readings = []
    for number in range(total):
        dataset[number % len(dataset)]
        if (number + 1) % max(total // 10, 1) == 0:
            readings.append(resident_mib())
    print(
        f"\nresident MiB after every {max(total // 10, 1)} videos: {', '.join(f'{value:.0f}' for value in readings)}"
    )


if __name__ == "__main__":
    main()
