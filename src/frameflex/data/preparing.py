"""Re-encode the videos of a data set for training, and pack them into shards.

Each video is read once, through the same reader as everywhere, scaled down, encoded, and decoded again to see that
what was written is what was meant. `shards` reads the result.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import av.error
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from frameflex.data.checking import file_state, reason_of
from frameflex.data.clips import stretch_of
from frameflex.data.datasets import Survey
from frameflex.data.journal import Journal, write_whole
from frameflex.data.records import BadVideo, BadVideos, VideoRecord
from frameflex.data.shards import Shard, ShardError, ShardIndex, ShardVideo
from frameflex.data.shards.index import INDEX_NAME, MAX_MEMBER_BYTES
from frameflex.data.shards.writing import write_tar
from frameflex.video import VideoError, VideoReader, open_video
from frameflex.video.isolated import Lost, run_isolated

__all__ = ["FORMATS", "Encoding", "prepare"]

Format = Literal["h264", "jpeg", "lossless"]
FORMATS = get_args(Format)

_TICKS = 90_000  # a second: the clock of MP4 and MPEG, in which every usual frame rate is exact
_MIN_TICKS = 90  # Matroska counts milliseconds
_GRID = 8  # a frame is compared by the means of 8 x 8 fields: free of the noise of compression
_MAX_FIELD_ERROR = 8.0  # of 255, averaged over the fields of a frame
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
_PARTS, _JOURNAL = ".parts", ".parts/journal.jsonl"
_SPLITS = ("train", "validation", "test", "")


@dataclass(frozen=True)
class Encoding:
    """How videos are stored.

    Attributes:
        format: "h264" in MP4; "jpeg", a JPEG for each frame, or "lossless", FFV1 of the RGB values, in Matroska.
        short_side: pixels; larger videos are scaled down to it, smaller ones keep their size (lossy formats round
            it to even numbers).
        key_every: h264: frames from one key frame to the next; reading one frame decodes half as many on average.
        quality: h264: CRF, 0 to 51, jpeg: FFmpeg's scale, 2 to 31, lower is better; None for 23 and 3.
    """

    format: Format = "h264"
    short_side: int = 256
    key_every: int = 8
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; expected one of {', '.join(FORMATS)}.")
        if self.short_side < 16 or self.key_every < 1:
            raise ValueError(
                f"short_side is {self.short_side} and key_every {self.key_every}; expected at least 16 and 1."
            )
        low, high = {"h264": (0, 51), "jpeg": (2, 31), "lossless": (0, -1)}[self.format]
        if self.quality is not None and not low <= self.quality <= high:
            expected = f"{low} to {high}" if low <= high else "none"
            raise ValueError(f"quality is {self.quality}; expected {expected} for {self.format}.")

    @property
    def suffix(self) -> str:
        """Of the files."""
        return ".mp4" if self.format == "h264" else ".mkv"


def prepare(
    data: Survey,
    output: Path,
    *,
    encoding: Encoding | None = None,
    videos_per_shard: int = 1000,
    num_workers: int = 1,
    timeout_seconds: float = 600.0,
    on_bad_video: Literal["error", "skip"] = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Encode every video of a data set and pack them into shards with an index.

    A call that is stopped, by whatever, is continued by the same call: what is encoded stays in a hidden folder of
    the output until its shard is complete. Shards and index get their names when they are whole and read back.
    Videos are mixed, in an order that depends on their names alone, so that each shard is a sample of the data set.

    Args:
        data: as `survey` finds it.
        output: folder for the shards, empty, new, or of a call that was stopped.
        encoding: how; by default `Encoding()`.
        videos_per_shard: at most.
        num_workers: processes that encode, at least 1.
        timeout_seconds: for one video.
        on_bad_video: "error" stops at the first that can't be decoded, is not there or has a wrong label; "skip"
            leaves it out, noted in the index, and stops when more than 1 % and more than 3 are bad.
        on_progress: called with (videos done, videos in all).

    Returns:
        The index that was written.

    Raises:
        VideoError: if a video is bad, or too many are.
        FileExistsError: if the folder holds prepared data or other files.
        ShardError: if something can't be written, or does not read back as it was written.
        ValueError: if an argument is out of range, or the folder holds a stopped call with another encoding.
        RuntimeError: if another process works in the folder.
    """
    encoding = encoding or Encoding()
    if videos_per_shard < 1:
        raise ValueError(f"videos_per_shard is {videos_per_shard}; expected at least 1.")
    if encoding.format == "h264" and "libx264" not in av.codecs_available:
        raise ValueError("this build of PyAV has no encoder libx264; use the format jpeg or lossless.")
    if (output / INDEX_NAME).exists():
        raise FileExistsError(f"{output} holds prepared data already. Choose another folder, or delete it.")
    if output.is_dir() and not (output / _JOURNAL).is_file() and any(output.iterdir()):
        raise FileExistsError(f"{output} holds other files. Choose an empty or a new folder.")
    bad = BadVideos(len(data.videos) + len(data.missing), on_bad_video)
    left_out = [(split, name, f"{path} is not there") for split, name, path in data.missing]
    left_out += [(split, name, reason) for split, name, _, reason in data.mislabelled]
    bad.add(BadVideo(-1, name, reason) for _, name, reason in left_out)
    tasks = list(_tasks(data, output / _PARTS, encoding))
    header = {"format": "frameflex prepare", "version": 1, "encoding": asdict(encoding)}
    with Journal(output / _JOURNAL, header) as journal:
        facts, packed = _what_is_done(journal, output, retry=on_bad_video == "error")
        # Of use is what this list has; a shard, if it would become the same one.
        plan = list(_plan(tasks, videos_per_shard))
        whole = {
            file: packed[file]
            for file, members in plan
            if file in packed and packed[file]["digest"] == _digest(members, facts, data.videos.classes)
        }
        inside = {key for entry in whole.values() for key in entry["keys"]}
        facts = {
            task.key: facts[task.key]
            for task in tasks
            if task.key in facts
            and ("bad" in facts[task.key] or task.key in inside or (output / _PARTS / task.part).is_file())
        }
        bad.add(
            BadVideo(task.position, task.record.name, facts[task.key]["bad"])
            for task in tasks
            if "bad" in facts.get(task.key, {})
        )
        waiting = [task for task in tasks if task.key not in facts]
        if on_progress is not None:
            on_progress(len(facts), len(tasks))
        results = run_isolated(_encode, waiting, num_workers=num_workers, timeout_seconds=timeout_seconds)
        for number, result in results:
            task = waiting[number]
            if isinstance(result, Lost):
                result = {"bad": f"{result.kind}: {result.reason}"}
            if "fatal" in result:
                raise ShardError(f"{result['fatal']}. Mend that, and the same call goes on from here.")
            facts[task.key] = {"key": task.key, **result}
            journal.add(facts[task.key])
            if "bad" in result:
                bad.add([BadVideo(task.position, task.record.name, result["bad"])])
            if on_progress is not None:
                on_progress(len(facts), len(tasks))
        left_out += [
            (task.split, task.record.name, facts[task.key]["bad"])
            for task in tasks
            if "bad" in facts[task.key]
        ]
        left_out += data.left_out
        shards = []
        for file, members in plan:
            good = [task for task in members if "bad" not in facts[task.key]]
            if not good:
                continue
            if file not in whole:
                whole[file] = _pack(output, file, good, facts, data.videos.classes)
                journal.add(whole[file])
            shards.append(_shard(file, good, whole[file]))
            for task in good:
                (output / _PARTS / task.part).unlink(missing_ok=True)
        if not shards:
            raise VideoError(f"none of the {len(data.videos)} videos could be prepared.")
        for stray in output.glob("*.tar"):
            if stray.name not in whole:
                stray.unlink()  # of a stopped call over another list of videos
        index = ShardIndex(
            str(output),
            tuple(data.videos.classes),
            tuple(split for split in _SPLITS if split and split in data.splits),
            tuple(shards),
            tuple(left_out),
            asdict(encoding),
        )
        write_whole(output / INDEX_NAME, index.to_json())
        shutil.rmtree(output / _PARTS)
    return index


@dataclass(frozen=True)
class _Task:
    key: str  # names an entry, wherever in the list; the same file and stretch again has another
    position: int
    record: VideoRecord
    split: str
    parts: str
    encoding: Encoding

    @property
    def part(self) -> str:
        return self.key + self.encoding.suffix


def _tasks(data: Survey, parts: Path, encoding: Encoding) -> Iterator[_Task]:
    """A task for each entry with a right label. A file that is listed again is another entry, encoded again."""
    wrong = set(data.mislabelled_at)
    times: Counter[str] = Counter()
    for position, (record, split) in enumerate(zip(data.videos, data.splits, strict=True)):
        if position in wrong:
            continue
        key = _key(record, split)
        times[key] += 1
        if times[key] > 1:
            key = hashlib.blake2b(f"{key} {times[key]}".encode(), digest_size=12).hexdigest()
        yield _Task(key, position, record, split, str(parts), encoding)


def _key(record: VideoRecord, split: str) -> str:
    parts = (
        record.path,
        file_state(record.path),
        record.start_seconds,
        record.end_seconds,
        record.name,
        split,
    )
    text = "\0".join(map(str, parts))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def _what_is_done(
    journal: Journal, output: Path, *, retry: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Facts of encoded videos by key, and of shards that are whole by file."""
    facts, packed = {}, {}
    for entry in journal.entries:
        if "shard" in entry:
            path = output / entry["shard"]
            if path.is_file() and path.stat().st_size == entry["num_bytes"]:
                packed[entry["shard"]] = entry
        elif "bad" not in entry or not retry:
            facts[entry["key"]] = entry
    return facts, packed


def _plan(tasks: Iterable[_Task], videos_per_shard: int) -> Iterator[tuple[str, list[_Task]]]:
    """Yield a shard's name and its videos: mixed by their names, so that each shard is a sample of the data set."""
    by_split: dict[str, list[_Task]] = {}
    for task in tasks:
        by_split.setdefault(task.split, []).append(task)
    for split, members in by_split.items():
        mixed = sorted(members, key=lambda task: hashlib.blake2b(task.key.encode()).digest())
        for number, start in enumerate(range(0, len(mixed), videos_per_shard)):
            yield f"{split or 'videos'}-{number:05d}.tar", mixed[start : start + videos_per_shard]


# Packing


def _member(task: _Task) -> str:
    return f"{task.position:06d}{task.encoding.suffix}"


def _digest(members: Sequence[_Task], facts: dict[str, dict[str, Any]], classes: Sequence[str]) -> str:
    """Of everything that a shard is made of."""
    good = [task for task in members if "bad" not in facts.get(task.key, {})]
    content = [[task.key, task.position, task.record.label, task.record.name] for task in good]
    return hashlib.blake2b(json.dumps([content, list(classes)]).encode(), digest_size=16).hexdigest()


def _pack(
    output: Path,
    file: str,
    good: Sequence[_Task],
    facts: dict[str, dict[str, Any]],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Write a shard, read it back, and give it its name."""
    partial = output / _PARTS / f"{file}.partial"
    files: list[tuple[str, bytes | Path]] = []
    for task in good:
        fact, label = facts[task.key], task.record.label
        about = {
            "name": task.record.name,
            "label": label,
            "class": None if label is None else classes[label],
            **{key: fact[key] for key in ("num_frames", "fps", "height", "width")},
        }
        files.append((_member(task), output / _PARTS / task.part))
        files.append((f"{task.position:06d}.json", json.dumps(about).encode()))
    try:
        places, sha256 = write_tar(partial, files)
    except OSError as error:
        raise ShardError(
            f"{partial}: {error.strerror or error}. Mend that, and the same call goes on."
        ) from error
    for task, (_, num_bytes, crc32) in zip(good, places[::2], strict=True):
        if (num_bytes, crc32) != (facts[task.key]["num_bytes"], facts[task.key]["crc32"]):
            (output / _PARTS / task.part).unlink()
            raise ShardError(
                f"video {task.record.name}: what was encoded has changed on the disk. The same call encodes it again."
            )
    again = hashlib.sha256()
    with partial.open("rb") as written:
        while block := written.read(2**20):
            again.update(block)
    if again.hexdigest() != sha256:
        raise ShardError(f"{partial}: does not read back as it was written. Check the disk.")
    partial.replace(output / file)
    return {
        "shard": file,
        "digest": _digest(good, facts, classes),
        "num_bytes": (output / file).stat().st_size,
        "sha256": sha256,
        "keys": [task.key for task in good],
        "places": [list(place) for place in places[::2]],
    }


def _shard(file: str, good: Sequence[_Task], entry: dict[str, Any]) -> Shard:
    return Shard(
        file,
        good[0].split,
        entry["num_bytes"],
        entry["sha256"],
        tuple(
            ShardVideo(task.position, task.record.name, task.record.label, _member(task), *place)
            for task, place in zip(good, entry["places"], strict=True)
        ),
    )


# In a process of its own


def _encode(task: _Task) -> dict[str, Any]:
    """Encode one video into a part: what it became, or `bad` with the reason, or `fatal` where the disk fails."""
    part = Path(task.parts) / task.part
    partial = part.with_suffix(f".{os.getpid()}.partial")
    try:
        try:
            with task.record.open() as reader:
                written = _write(reader, task, partial)
        except (VideoError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                return {"fatal": f"{partial}: {error.strerror or error}"}
            return {"bad": reason_of(error, task.record.path)}
        except av.error.FFmpegError as error:
            return {"bad": f"can't be encoded ({error})"}
        num_bytes = partial.stat().st_size
        if num_bytes > MAX_MEMBER_BYTES:
            return {"bad": f"has {num_bytes} bytes once encoded; expected at most {MAX_MEMBER_BYTES}"}
        try:
            fact = _verify(partial, written)
        except VideoError as error:
            return {"bad": f"does not read back once encoded: {reason_of(error, partial)}"}
        with partial.open("rb") as file:
            crc32 = 0
            while block := file.read(2**20):
                crc32 = zlib.crc32(block, crc32)
        partial.replace(part)
        return {**fact, "num_bytes": num_bytes, "crc32": crc32}
    finally:
        partial.unlink(missing_ok=True)


@dataclass
class _Written:
    """What was given to the encoder: small, however long the video."""

    height: int
    width: int
    ticks: list[int]
    fields: list[np.ndarray]
    checksums: list[int]  # of the frames, where they are stored without loss


def _write(reader: VideoReader, task: _Task, path: Path) -> _Written:
    while True:
        promised = reader.num_frames
        try:
            written = _write_stretch(reader, task, path)
        except VideoError:
            if reader.num_frames == promised:
                raise
            continue
        if reader.num_frames == promised:
            return written
        # Decoding corrected the count: the stretch may be another one.


def _write_stretch(reader: VideoReader, task: _Task, path: Path) -> _Written:
    encoding = task.encoding
    first, end = stretch_of(task.record, reader, reader.num_frames)
    height, width = _target(reader.height, reader.width, encoding)
    times = reader.timestamps[first:end]
    written = _Written(height, width, [], [], [])
    scaler = VideoReformatter()
    options = {"fflags": "bitexact"}  # nothing random in the file
    muxer = "mp4" if encoding.format == "h264" else "matroska"
    with av.open(str(path), "w", format=muxer, options=options) as container:
        stream = _add_stream(container, reader.fps, height, width, encoding)
        for number in range(first, end):
            frame = reader.frames([number])[0]  # (3, H, W)
            tick = round((times[number - first] - times[0]) * _TICKS)
            written.ticks.append(max(tick, written.ticks[-1] + _MIN_TICKS) if written.ticks else 0)
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), "rgb24"
            )
            if encoding.format == "lossless":
                picture = scaler.reformat(picture, width, height, "rgb24", interpolation="BICUBIC")
                written.checksums.append(zlib.crc32(picture.to_ndarray().tobytes()))
            written.fields.append(_fields(frame))
            picture = scaler.reformat(picture, width, height, stream.pix_fmt, interpolation="BICUBIC")
            picture.pts, picture.time_base = written.ticks[-1], Fraction(1, _TICKS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return written


def _target(height: int, width: int, encoding: Encoding) -> tuple[int, int]:
    scale = min(1.0, encoding.short_side / min(height, width))
    if encoding.format == "lossless":
        return max(1, round(height * scale)), max(1, round(width * scale))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def _add_stream(container: Any, fps: float, height: int, width: int, encoding: Encoding) -> Any:
    codec, pixels, options = {
        "h264": (
            "libx264",
            "yuv420p",
            # No frame waits for a later one (bf), and key frames where they are due, not where the scene changes.
            {
                "crf": str(23 if encoding.quality is None else encoding.quality),
                "bf": "0",
                "sc_threshold": "0",
            },
        ),
        "jpeg": ("mjpeg", "yuvj420p", dict.fromkeys(("qmin", "qmax"), str(encoding.quality or 3))),
        "lossless": ("ffv1", "bgr0", {"slicecrc": "1"}),
    }[encoding.format]
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, pixels
    stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
    stream.codec_context.gop_size = encoding.key_every if encoding.format == "h264" else 1
    stream.codec_context.thread_count = 1
    return stream


def _fields(frame: Tensor) -> np.ndarray:
    """The means of 8 x 8 fields of a frame ``(3, H, W)``."""
    return torch.nn.functional.adaptive_avg_pool2d(frame.float(), _GRID).to(torch.float16).numpy()


def _verify(path: Path, written: _Written) -> dict[str, Any]:
    """Decode what was written.

    Raises:
        VideoError: if it isn't what the encoder was given.
    """
    with open_video(path) as reader:
        expected = (len(written.ticks), written.height, written.width)
        if (reader.num_frames, reader.height, reader.width) != expected:
            raise VideoError(f"{reader!r} was written, where {expected} was meant")
        for number, frame in enumerate(reader):
            error = np.abs(
                _fields(frame).astype(np.float32) - written.fields[number].astype(np.float32)
            ).mean()
            same = not written.checksums or written.checksums[number] == zlib.crc32(
                frame.permute(1, 2, 0).numpy().tobytes()
            )
            if error > _MAX_FIELD_ERROR or not same:
                raise VideoError(f"frame {number} reads back as another one ({error:.1f} of 255)")
        late = max(abs(t - tick / _TICKS) for t, tick in zip(reader.timestamps, written.ticks, strict=True))
        if late > 0.002:
            raise VideoError(f"a frame's time reads back {late:.4f} s off")
        return {
            "num_frames": reader.num_frames,
            "fps": round(reader.fps, 6),
            "height": reader.height,
            "width": reader.width,
        }
