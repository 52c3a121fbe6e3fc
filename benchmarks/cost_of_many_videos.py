"""What many videos cost: decoding, transfer, network and money, from rates measured here and prices that are assumed.

    python benchmarks/cost_of_many_videos.py                     # 10 million videos of 10 s
    python benchmarks/cost_of_many_videos.py --videos 1e6 --cpu-hour 0.02 --cores 64 --gbit 25

Rates are processor time of this process (user time, `resource.getrusage`) for one item on one thread, so that others
who use the machine change them little. Prices, the GPU's rate and the machine at the end are assumptions: options.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from frameflex.data.clips import ClipDataset
from frameflex.data.records import VideoList
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.models import create_model
from frameflex.video import open_video

FPS = 30
# Codec -> encoder, and options of a file as cameras and sites make them: a key frame every 2 s or more.
ENCODERS = {
    "h264": ("libx264", {"preset": "veryfast", "crf": "23", "g": "60"}),
    "hevc": ("libx265", {"preset": "ultrafast", "crf": "28", "g": "60", "x265-params": "log-level=none"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "33", "b": "0", "g": "120"}),
    "av1": ("libsvtav1", {"preset": "11", "crf": "35", "g": "120"}),
}
PREPARED = ("libx264", {"preset": "veryfast", "crf": "23", "g": "8"})  # as `frameflex data prepare` does
FILES = [
    *(("h264", height) for height in (240, 360, 720, 1080)),
    *((codec, 720) for codec in ("hevc", "vp9", "av1")),
]
NETWORKS = [("resnet50", 224), ("mobilenetv3_small_100", 224)]


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = [measure_file(Path(folder), codec, height, args.seconds) for codec, height in FILES]
        files.append(measure_file(Path(folder), "prepared", 256, args.seconds))
    networks = [(name, size, measure_network(name, size)) for name, size in NETWORKS]
    print(
        f"measured on one thread, user time; {args.seconds:g} s at {FPS} fps; 8 frames, short side 256, crop 224\n"
    )
    print_files(args, files)
    print_networks(args, networks)
    print_bottlenecks(args, files, networks)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=float, default=1e7)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each video")
    parser.add_argument(
        "--cpu-hour", type=float, default=0.04, help="dollars for a core's hour, rented on demand"
    )
    parser.add_argument("--gpu-hour", type=float, default=2.5, help="dollars for a GPU's hour, on demand")
    parser.add_argument(
        "--gpu-clips", type=float, default=1500.0, help="ResNet-50 clips of 8 frames a second, on it"
    )
    parser.add_argument(
        "--gb-out", type=float, default=0.09, help="dollars for a GB out of the storage's region"
    )
    parser.add_argument("--thousand-requests", type=float, default=0.0004, help="dollars for 1,000 GETs")
    parser.add_argument("--gb-month", type=float, default=0.023, help="dollars for a GB stored, a month")
    parser.add_argument("--cores", type=int, default=32, help="of the machine whose bottleneck is sought")
    parser.add_argument("--gbit", type=float, default=10.0, help="a second, of its network")
    return parser.parse_args()


def milliseconds(item: Callable[[], object], *, at_least: float = 1.0) -> float:
    """User time of one call, from as many as take some seconds; the first one is not counted."""
    item()
    start, calls = resource.getrusage(resource.RUSAGE_SELF).ru_utime, 0
    deadline = time.monotonic() + 60
    while True:
        item()
        calls += 1
        used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - start
        if (used > at_least and calls > 2) or time.monotonic() > deadline:
            return 1000 * used / calls


def measure_file(folder: Path, codec: str, height: int, seconds: float) -> tuple[str, int, int, float, float]:
    """Codec, height, bytes; user time of a clip of 8 frames, and of a loop over all frames for the same 8."""
    path = folder / f"{codec}-{height}.mp4"
    encoder, options = PREPARED if codec == "prepared" else ENCODERS[codec]
    write(path, encoder, options, height, seconds)
    rule = ClipDataset(
        VideoList([], ["a"]),
        frame_counts=(8,),
        transform=EvalTransform(Preprocessing(short_side=256, crop_size=224)),
        training=False,
    )

    def clip() -> object:
        with open_video(path, decoder="pyav") as reader:
            return rule.clips(reader)

    def loop() -> object:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            wanted = {int((i + 0.5) * stream.frames / 8) for i in range(8)}
            few = [frame for number, frame in enumerate(container.decode(stream)) if number in wanted]
        return [frame.reformat(width=256 * 16 // 9, height=256, format="rgb24").to_ndarray() for frame in few]

    return codec, height, path.stat().st_size, milliseconds(clip), milliseconds(loop)


def write(path: Path, encoder: str, options: dict[str, str], height: int, seconds: float) -> None:
    """A camera that pans over a rough picture with a moving patch and the noise of a sensor."""
    width = height * 16 // 9 // 2 * 2
    rng = np.random.default_rng(0)
    rough = [
        Image.fromarray(rng.integers(0, 256, (n * 9, n * 16, 3), np.uint8)).resize((2 * width, 2 * height))
        for n in (1, 4, 16)
    ]
    scene = sum(np.asarray(one, np.int16) // 2 ** (i + 1) for i, one in enumerate(rough))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        noise = rng.normal(0, 2, (4, height, width, 1)).round().astype(np.int16)
        for t in range(round(seconds * FPS)):
            y = round((0.5 + 0.4 * np.sin(t / 37)) * height)
            x = round((0.5 + 0.4 * np.cos(t / 53)) * width)
            frame = scene[y : y + height, x : x + width] + noise[t % 4]
            at = (t * width // 90) % (width * 3 // 4)
            patch = frame[height // 3 : height // 2, at : at + width // 8]
            np.subtract(255, patch, out=patch)
            picture = av.VideoFrame.from_ndarray(frame.clip(0, 255).astype(np.uint8), format="rgb24")
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def measure_network(name: str, size: int) -> float:
    """User time of one clip of 8 frames, float32."""
    model = create_model(name, num_classes=174, pretrained=False).eval().to(memory_format=torch.channels_last)
    clip = torch.randn(1, 3, 8, size, size)
    with torch.inference_mode():
        return milliseconds(lambda: model(clip), at_least=2)


def print_files(args: argparse.Namespace, files: list[tuple[str, int, int, float, float]]) -> None:
    print(f"{args.videos:,.0f} videos, by file: dollars at {args.cpu_hour:g} a core-hour, {args.gb_out:g} a GB out, "
          f"{args.gb_month:g} a GB-month")  # fmt: skip
    print(
        "| file | MB | decoding, ms | all frames, ms | core-hours | $ | TB | $ out of the region | $ a month kept |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for codec, height, num_bytes, ms, of_loop in files:
        hours, gigabytes = args.videos * ms / 3.6e6, args.videos * num_bytes / 1e9
        print(
            f"| {codec} {height}p | {num_bytes / 1e6:.2f} | {ms:.0f} | {of_loop:.0f} | {hours:,.0f} | "
            f"{hours * args.cpu_hour:,.0f} | {gigabytes / 1e3:,.1f} | {gigabytes * args.gb_out:,.0f} | "
            f"{gigabytes * args.gb_month:,.0f} |"
        )
    requests = args.videos / 1000 * args.thousand_requests
    print(f"\nrequests, one a video: {requests:,.2f} $\n")


def print_networks(args: argparse.Namespace, networks: list[tuple[str, int, float]]) -> None:
    print("| network | ms a clip | core-hours | $ |")
    print("|---|---|---|---|")
    for name, size, ms in networks:
        hours = args.videos * ms / 3.6e6
        print(f"| {name}, 8 frames of {size} | {ms:.0f} | {hours:,.0f} | {hours * args.cpu_hour:,.0f} |")
    hours = args.videos / args.gpu_clips / 3600
    print(f"| resnet50 on a GPU, {args.gpu_clips:g} clips/s (assumed) | | {hours:,.1f} GPU-hours | "
          f"{hours * args.gpu_hour:,.0f} |\n")  # fmt: skip


def print_bottlenecks(
    args: argparse.Namespace,
    files: list[tuple[str, int, int, float, float]],
    networks: list[tuple[str, int, float]],
) -> None:
    """What a machine waits for: the largest of three times, where they overlap."""
    print(
        f"a machine of {args.cores} cores, {args.gbit:g} Gbit/s and one GPU (ResNet-50 on it): videos a second"
    )
    print(
        "| file | decoding | transfer | network on the GPU | first bottleneck | without a GPU: ResNet-50, small |"
    )
    print("|---|---|---|---|---|---|")
    for codec, height, num_bytes, ms, _ in files:
        rates = {
            "decoding": args.cores * 1000 / ms,
            "transfer": args.gbit * 1e9 / 8 / num_bytes,
            "network": args.gpu_clips,
        }
        first = min(rates, key=lambda name: rates[name])
        alone = ", ".join(f"{args.cores * 1000 / (ms + of_network):,.0f}" for _, _, of_network in networks)
        print(
            f"| {codec} {height}p | "
            + " | ".join(f"{rate:,.0f}" for rate in rates.values())
            + f" | {first} | {alone} |"
        )


if __name__ == "__main__":
    main()
