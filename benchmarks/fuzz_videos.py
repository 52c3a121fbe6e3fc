"""Decode mutated videos, each in a process of its own, and count how that ends.

    python benchmarks/fuzz_videos.py --files 2000 --seed 0 --output fuzz.json

Seeds are small videos of many containers and codecs, made by PyAV's encoders, and the files of folders that are named
with --clips. Each mutation (bit flips, truncation, exchanged, repeated, removed and zeroed parts, extreme values in
header fields, boxes moved into other boxes, two files spliced) is a function of --seed and its number, so that
`--only 137` makes and decodes that one file again. A file is opened, 16 frames are sampled as in evaluation, and
then every frame is read once. One of these is the end of each:

    frames      it was read to its end
    refused     VideoError: one clear line
    exception   another exception                      )
    crash       the process died of a signal           ) none of these may happen:
    hang        not done after --deadline seconds      ) the exit status is 1 and the file is kept
    memory      more than --memory MiB resident        )
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import select
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import torch

from frameflex.data.sampling import eval_indices
from frameflex.video import VideoError, open_video

BAD_ENDS = ("exception", "crash", "hang", "memory")

# file name: codec, pixel format, options; what this PyAV can't encode is left out and named
ENCODINGS = {
    "h264.mp4": ("libx264", "yuv420p", {"bf": "2", "g": "8"}),
    "h264-faststart.mp4": ("libx264", "yuv420p", {"bf": "0"}),
    "h264-fragmented.mp4": ("libx264", "yuv420p", {"g": "6"}),
    "h264.mkv": ("libx264", "yuv420p", {"bf": "2"}),
    "h264.ts": ("libx264", "yuv420p", {}),
    "h264.flv": ("libx264", "yuv420p", {}),
    "h264-444.mov": ("libx264", "yuv444p", {}),
    "h265.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none:keyint=8"}),
    "vp8.webm": ("libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "8"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "8", "cpu-used": "8", "deadline": "realtime"}),
    "av1.mp4": ("libsvtav1", "yuv420p", {"preset": "12"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "ffv1.mkv": ("ffv1", "yuv420p", {}),
    "prores.mov": ("prores_ks", "yuv422p10le", {}),
    "raw.avi": ("rawvideo", "yuv420p", {}),
    "wmv2.wmv": ("wmv2", "yuv420p", {}),
    "theora.ogv": ("libtheora", "yuv420p", {}),
    "picture.gif": ("gif", "rgb8", {}),
    "picture.apng": ("apng", "rgb24", {}),
}
CONTAINER_OPTIONS = {
    "h264-faststart.mp4": {"movflags": "faststart"},
    "h264-fragmented.mp4": {"movflags": "frag_keyframe+empty_moov"},
}


def make_seeds(folder: Path, clips: list[Path]) -> dict[str, bytes]:
    """Small videos with their names: of every encoder that is there, and the files of ``clips``."""
    seeds: dict[str, bytes] = {}
    for name, (codec, pixels, options) in ENCODINGS.items():
        if codec not in av.codecs_available:
            print(f"left out: {name}, this PyAV has no encoder {codec}")
            continue
        path = folder / name
        rng = np.random.default_rng(len(seeds))
        picture = rng.integers(0, 255, (48, 64, 3)).repeat(2, 0).repeat(2, 1).astype(np.uint8)  # (96, 128, 3)
        try:
            with av.open(str(path), "w", container_options=CONTAINER_OPTIONS.get(name, {})) as container:
                stream = container.add_stream(codec, rate=25, options=options)
                stream.height, stream.width, stream.pix_fmt = 96, 128, pixels
                for shift in range(24):
                    frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * shift, 1), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        except (av.error.FFmpegError, ValueError) as error:
            print(f"left out: {name}, {error}")
            continue
        seeds[name] = path.read_bytes()
    for clip in clips:
        found = [clip] if clip.is_file() else sorted(p for p in clip.iterdir() if p.suffix != ".md")
        seeds |= {path.name: path.read_bytes() for path in found if path.is_file()}
    return {name: content for name, content in seeds.items() if content}


# Mutations: bytes -> bytes


def flip_bits(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 4, 16, 64, 256))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_header_bits(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    """Where headers usually are: at the start, and in an MP4's index at the end."""
    num_bytes = min(len(data), 2048)
    first = rng.choice((0, len(data) - num_bytes))
    for _ in range(rng.choice((1, 4, 16))):
        data[first + rng.randrange(num_bytes)] ^= 1 << rng.randrange(8)
    return data


def truncate(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    return data[: rng.randrange(len(data))]


def lose_the_start(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    return data[rng.randrange(len(data)) :]


def part(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((4, 64, 1024, 16384)))


def exchange(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    start, end = part(data, rng)
    other = rng.randrange(max(1, len(data) - (end - start)))
    data[start:end], data[other : other + end - start] = data[other : other + end - start], data[start:end]
    return data


def repeat(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    start, end = part(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def remove(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    start, end = part(data, rng)
    return data[:start] + data[end:]


def blank(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    start, end = part(data, rng)
    data[start:end] = bytes([rng.choice((0, 255))]) * (end - start)
    return data


def splice(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    other = rng.choice(others)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


EXTREMES = (
    *(struct.pack(">I", value) for value in (0, 1, 100_000, 0x7FFFFFFF, 0xFFFFFFFF)),
    *(struct.pack("<I", value) for value in (1, 100_000, 0x7FFFFFFF)),
    *(struct.pack(">Q", value) for value in (10**12, 2**63 - 1)),
    struct.pack("<Q", 10**12),
    struct.pack(">H", 65535),
    struct.pack("<H", 32767),
)


def claim_extremes(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    """Counts and sizes of 10^12, 2^31 - 1 and the like, where headers usually are."""
    num_bytes = min(len(data), 2048)
    first = rng.choice((0, len(data) - num_bytes))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = first + rng.randrange(num_bytes)
        value = rng.choice(EXTREMES)
        data[at : at + len(value)] = value
    return data


# The sequence after a name that a container gives to a field's group: sizes, counts, dimensions, durations.
FIELD_NAMES = (
    *(
        b"stts stss stsz stsc stco co64 ctts tkhd mvhd mdhd hdlr stsd avc1 hvc1 hev1 vp09 av01 mp4v avcC hvcC".split()
    ),
    *(b"elst trun tfhd tfdt moof traf mdat moov trak minf stbl trex sidx mfhd pasp colr".split()),
    *(b"avih strh strf movi idx1 LIST hdrl strl indx 00dc".split()),
    *(
        b"\x1a\x45\xdf\xa3 \x15\x49\xa9\x66 \x16\x54\xae\x6b \x1f\x43\xb6\x75 \x1c\x53\xbb\x6b \xb0 \xba".split()
    ),
    *(b"FLV Oggs theora fcTL acTL IHDR IDAT GIF89a".split()),
)


def field_edit(data: bytearray, rng: random.Random, _: list[bytes]) -> bytearray:
    """An extreme value in a field of a named box, chunk or element, or in the size before its name."""
    content = bytes(data)
    known = [name for name in FIELD_NAMES if name in content]
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not known:
            return claim_extremes(data, rng, [])
        name = rng.choice(known)
        places = (
            [i for i in range(len(content)) if content.startswith(name, i)] if len(content) < 1 << 16 else []
        )
        at = rng.choice(places) if places else content.find(name)
        at += rng.choice((-4, 0, *range(4, 48, 2)))
        value = rng.choice(EXTREMES)
        if at >= 0:
            data[at : at + len(value)] = value
    return data


def boxes(data: bytes) -> list[tuple[int, int]]:
    """Start and end of every MP4 box, parents and children."""
    found, position = [], 0
    while position + 8 <= len(data) and len(found) < 1000:
        size = int.from_bytes(data[position : position + 4], "big")
        if size < 8 or position + size > len(data):
            break
        found.append((position, position + size))
        parent = data[position + 4 : position + 8] in (
            b"moov",
            b"trak",
            b"mdia",
            b"minf",
            b"stbl",
            b"moof",
            b"traf",
        )
        position += 8 if parent else size
    return found


def move_boxes(data: bytearray, rng: random.Random, others: list[bytes]) -> bytearray:
    """Put a box of this or another file at the start of, or in the place of, a box of this one."""
    here = boxes(bytes(data))
    donor = rng.choice((bytes(data), rng.choice(others)))
    there = boxes(donor)
    if not here or not there:
        return exchange(data, rng, others)
    start, end = rng.choice(here)
    first, last = rng.choice(there)
    return data[:start] + donor[first:last] + data[rng.choice((start, end)) :]


MUTATIONS: tuple[Callable[[bytearray, random.Random, list[bytes]], bytearray], ...] = (
    *(flip_bits, flip_header_bits, truncate, lose_the_start, exchange, repeat, remove, blank, splice),
    *(claim_extremes, field_edit, field_edit, move_boxes),
)


def mutate(seeds: dict[str, bytes], seed: int, number: int) -> tuple[str, str, bytes]:
    """The name of the seed, those of the mutations, and the mutated file of a number."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choice(sorted(seeds))
    data = bytearray(seeds[name])
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        done.append(mutation.__name__)
        data = mutation(data, rng, list(seeds.values())) or bytearray(b"\0")
    return name, "+".join(done), bytes(data)


# Decoding in a process of its own


@dataclass
class End:
    """How decoding one file ended."""

    number: int
    name: str
    mutation: str
    end: str
    seconds: float
    peak_mib: float
    detail: str


def read_everything(path: Path) -> str:
    with open_video(path, decoder="pyav") as reader:
        frames = reader.sample(lambda available: eval_indices(available, 16))
        if tuple(frames.shape[1:]) != (3, reader.height, reader.width):
            raise AssertionError(f"frames have shape {tuple(frames.shape)}")
        if len(reader.timestamps) != reader.num_frames:
            raise AssertionError(f"{len(reader.timestamps)} timestamps of {reader.num_frames} frames")
        num_frames = sum(1 for _ in reader)
        return f"{num_frames} frames of {reader.width}x{reader.height}"


def decode_apart(path: Path, *, deadline: float, memory_mib: int) -> tuple[str, float, float, str]:
    """Decode in a forked process: how it ended, after how many seconds, at which peak of memory, and what it said."""
    inlet, outlet = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(inlet)
        # Room for eight times the memory, so that what is measured is not what this limit prevents.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + 8 * (memory_mib << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            said = ("frames", read_everything(path))
        except VideoError as error:
            said = ("refused", str(error))
        except MemoryError as error:
            said = ("memory", repr(error))
        except BaseException as error:
            said = ("memory" if "alloc" in str(error) else "exception", repr(error))
        os.write(outlet, json.dumps(said).encode()[:60000])
        os._exit(0)
    os.close(outlet)
    said = b""
    end = "hang"
    while (left := started + deadline - time.monotonic()) > 0:
        if select.select([inlet], [], [], left)[0]:
            chunk = os.read(inlet, 65536)
            said += chunk
            if not chunk:
                end = "done"
                break
    os.close(inlet)
    if end == "hang":
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    peak_mib = usage.ru_maxrss / 1024
    if end == "hang":
        return "hang", seconds, peak_mib, f"not done after {deadline} s"
    if os.WIFSIGNALED(status) or not said:
        return "crash", seconds, peak_mib, f"status {status}"
    end, detail = json.loads(said)
    if peak_mib > memory_mib:
        end = "memory"
    return end, seconds, peak_mib, detail


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000, help="mutated files (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--only", type=int, help="make and decode the file of this number alone")
    parser.add_argument(
        "--clips", type=Path, nargs="*", default=[], help="more seeds: files or folders of them"
    )
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds a file (default: 10)")
    parser.add_argument("--memory", type=int, default=1024, help="MiB a process may use (default: 1024)")
    parser.add_argument("--kept", type=Path, help="folder for the files that ended badly")
    parser.add_argument("--output", type=Path, help="JSON with the counts and how each file ended")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process must not wait for threads that it doesn't have
    av.logging.set_level(None)
    ends: list[End] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seeds = make_seeds(folder, args.clips)
        numbers = range(args.files) if args.only is None else [args.only]
        for number in numbers:
            name, mutation, content = mutate(seeds, args.seed, number)
            path = folder / f"{number}-{name}"
            path.write_bytes(content)
            end, seconds, peak_mib, detail = decode_apart(
                path, deadline=args.deadline, memory_mib=args.memory
            )
            ends.append(End(number, name, mutation, end, round(seconds, 3), round(peak_mib, 1), detail))
            if end in BAD_ENDS:
                print(f"{number}: {end} ({name}, {mutation}): {detail[:300]}", flush=True)
                if args.kept:
                    args.kept.mkdir(parents=True, exist_ok=True)
                    (args.kept / path.name).write_bytes(content)
            path.unlink()
            if len(ends) % 100 == 0:
                print(f"{len(ends)} of {len(numbers)}", file=sys.stderr, flush=True)
    counts = Counter(end.end for end in ends)
    summary = {
        "seed": args.seed,
        "seed_files": len(seeds),
        "files": len(ends),
        "counts": {end: counts.get(end, 0) for end in ("frames", "refused", *BAD_ENDS)},
        "slowest_seconds": max(end.seconds for end in ends),
        "median_seconds": statistics.median(end.seconds for end in ends),
        "peak_mib": max(end.peak_mib for end in ends),
        "versions": {
            "python": platform.python_version(),
            "av": av.__version__,
            "ffmpeg": av.ffmpeg_version_info,
        },
    }
    print(json.dumps(summary, indent=2))
    if args.output:
        everything = {**summary, "ends": [asdict(end) for end in ends]}
        args.output.write_text(json.dumps(everything, indent=1), encoding="utf-8")
    return 1 if any(counts[end] for end in BAD_ENDS) else 0


if __name__ == "__main__":
    sys.exit(main())
