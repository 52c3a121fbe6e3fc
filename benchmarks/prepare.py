"""What each way of storing a data set costs in bytes, and how many training clips a second are read back from it.

    python benchmarks/prepare.py DATA runs/prepare

Prepares a data set in every way (`frameflex data prepare`), then reads training clips of T = 4, 8 and 16 frames
from each way and from the files as they were, in turn, in this process, without loader workers. Prints a table:
mebibytes a video, against the files as they were, clips a second (medians of the rounds), against the files as they
were, and the seconds that preparing took.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import av
import torch

from frameflex.data.clips import ClipDataset
from frameflex.data.datasets import load_split, survey
from frameflex.data.preparing import Encoding, prepare
from frameflex.data.records import VideoList
from frameflex.data.transforms import Preprocessing, TrainTransform

COUNTS = (4, 8, 16)
WAYS = {
    "h264, key frame every 4": Encoding("h264", key_every=4),
    "h264, key frame every 8": Encoding("h264", key_every=8),
    "h264, key frame every 16": Encoding("h264", key_every=16),
    "jpeg": Encoding("jpeg"),
    "lossless": Encoding("lossless"),
}
AS_IT_WAS = "files as they were"


def read_all(videos: VideoList, num_frames: int, epoch: int) -> float:
    """Clips a second: a training clip of every video, decoded, cropped and normalised."""
    transform = TrainTransform(Preprocessing(short_side=256, crop_size=224))
    dataset = ClipDataset(videos, frame_counts=(num_frames,), transform=transform, training=True)
    start = time.perf_counter()
    for index in range(len(dataset)):
        dataset[index, epoch]
    return len(dataset) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a small data set in any layout, of videos larger than 256 pixels")
    parser.add_argument("output", type=Path, help="folder for the prepared data; what is there is used again")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    original = load_split(args.data, "train")
    lists = {AS_IT_WAS: original}
    num_bytes = {AS_IT_WAS: sum(record.path.stat().st_size for record in original)}
    took = {}
    for way, encoding in WAYS.items():
        folder = args.output / way.replace(" ", "_").replace(",", "")
        if not (folder / "index.json").exists():
            start = time.perf_counter()
            prepare(survey(args.data, split="train"), folder, encoding=encoding)
            took[way] = time.perf_counter() - start
        lists[way] = load_split(folder, "train")
        num_bytes[way] = sum(path.stat().st_size for path in folder.glob("*.tar"))
    rates: dict[tuple[str, int], list[float]] = {}
    for epoch in range(args.rounds):
        for count in COUNTS:
            for way, videos in lists.items():
                rates.setdefault((way, count), []).append(read_all(videos, count, epoch))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, PyAV {av.__version__}; {len(original)} videos, "
        f"medians of {args.rounds} rounds\n"
    )
    heads = "".join(f" clips/s, T = {count} |" for count in COUNTS)
    print(f"| way | MiB a video | of the files |{heads} preparing, s |")
    print("|---|---|---|" + "---|" * len(COUNTS) + "---|")
    for way in lists:
        cells = []
        for count in COUNTS:
            ratios = [
                ours / base for ours, base in zip(rates[way, count], rates[AS_IT_WAS, count], strict=True)
            ]
            cells.append(f"{statistics.median(rates[way, count]):.1f} ({statistics.median(ratios):.2f} x)")
        mebibytes = num_bytes[way] / len(original) / 2**20
        print(
            f"| {way} | {mebibytes:.3f} | {num_bytes[way] / num_bytes[AS_IT_WAS]:.2f} x | {' | '.join(cells)} "
            f"| {f'{took[way]:.0f}' if way in took else ''} |"
        )


if __name__ == "__main__":
    main()
