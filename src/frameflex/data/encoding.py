"""Re-encode one video for training: scaled down, read back, and compared with what was meant."""

from __future__ import annotations

import errno
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import av.error
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from frameflex.data.checking import reason_of
from frameflex.data.clips import stretch_of
from frameflex.data.part_folder import part_folder
from frameflex.data.records import VideoRecord
from frameflex.data.shards.index import MAX_MEMBER_BYTES
from frameflex.storage import StorageError
from frameflex.video import VideoError, VideoReader, open_video

__all__ = ["FORMATS", "Encoding", "Task", "encode"]

Format = Literal["h264", "jpeg", "lossless"]
FORMATS = get_args(Format)

_TICKS = 90_000  # a second: the clock of MP4 and MPEG, in which every usual frame rate is exact
_MIN_TICKS = 90  # Matroska counts milliseconds
_GRID = 8  # a frame is compared by the means of 8 x 8 fields: free of the noise of compression
_MAX_FIELD_ERROR = 8.0  # of 255, averaged over the fields of a frame
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


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


@dataclass(frozen=True)
class Task:
    """An entry of a data set that is to become a part, a file in the folder `parts`."""

    key: str  # names an entry, wherever in the list; the same file and stretch again has another
    position: int
    record: VideoRecord
    split: str
    parts: str
    encoding: Encoding

    @property
    def part(self) -> str:
        return self.key + self.encoding.suffix


def encode(task: Task) -> dict[str, Any]:
    """Encode one video into a part: what it became, or `bad` with the reason, or `fatal` where the disk fails."""
    try:
        with part_folder(task.parts).making(task.part) as path:
            return _encode(task, path)
    except _BadError as error:
        return {"bad": str(error)}
    except StorageError as error:
        return {"fatal": str(error).rstrip(".")}
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        return {"fatal": f"{task.parts}: {error.strerror or error}"}


class _BadError(Exception):
    """Why no part can be made of a video."""


def _encode(task: Task, path: Path) -> dict[str, Any]:
    try:
        with task.record.open() as reader:
            written = _write(reader, task, path)
    except (VideoError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise _BadError(reason_of(error, task.record.path)) from error
    except av.error.FFmpegError as error:
        raise _BadError(f"can't be encoded ({error})") from error
    num_bytes = path.stat().st_size
    if num_bytes > MAX_MEMBER_BYTES:
        raise _BadError(f"has {num_bytes} bytes once encoded; expected at most {MAX_MEMBER_BYTES}")
    try:
        fact = _verify(path, written)
    except VideoError as error:
        raise _BadError(f"does not read back once encoded: {reason_of(error, path)}") from error
    with path.open("rb") as file:
        crc32 = 0
        while block := file.read(2**20):
            crc32 = zlib.crc32(block, crc32)
    return {**fact, "num_bytes": num_bytes, "crc32": crc32}


@dataclass
class _Written:
    """What was given to the encoder: small, however long the video."""

    height: int
    width: int
    ticks: list[int]
    fields: list[np.ndarray]
    checksums: list[int]  # of the frames, where they are stored without loss


def _write(reader: VideoReader, task: Task, path: Path) -> _Written:
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


def _write_stretch(reader: VideoReader, task: Task, path: Path) -> _Written:
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
