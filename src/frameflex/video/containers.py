"""What may be opened for reading, in one place: containers of videos, never playlists and the like."""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import av
from av.stream import Disposition

from frameflex.video.reader import ADVICE, Limits, Source, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

# Demuxers that look at nothing but the file's own bytes. FFmpeg has 350, among them playlists (hls, dash, concat),
# network descriptions (sdp) and text shown as video (tty); sound is here so that the message can say that it is.
CONTAINERS = (
    *(
        "mov",
        "matroska",
        "avi",
        "mpegts",
        "mpeg",
        "flv",
        "live_flv",
        "asf",
        "ogg",
        "gif",
        "apng",
        "webp",
        "avif",
    ),
    *(
        "ivf",
        "obu",
        "av1",
        "h264",
        "hevc",
        "vvc",
        "mpegvideo",
        "m4v",
        "mjpeg",
        "h263",
        "h261",
        "vc1",
        "cavsvideo",
    ),
    *(
        "yuv4mpegpipe",
        "nut",
        "mxf",
        "dv",
        "rm",
        "wtv",
        "swf",
        "amv",
        "nsv",
        "nuv",
        "smjpeg",
        "dirac",
        "jpegxl_anim",
    ),
    *("image2", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif_pipe"),
    *(
        "mp3",
        "wav",
        "w64",
        "aac",
        "ac3",
        "eac3",
        "flac",
        "aiff",
        "au",
        "caf",
        "amr",
        "ape",
        "wv",
        "dts",
        "tta",
    ),
)

MOST_STREAMS = 200  # of one file: the decoder of each is opened

_MP4_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof"}

_MP4_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}

_MP4_COUNT_OFFSETS = {b"stsz": 8, b"stz2": 8, b"trun": 4}


def open_container(
    source: Any,
    *,
    name: str,
    limits: Limits,
    protocols: str = "file",
    device: str | None = None,
    options: Mapping[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> InputContainer:
    """Open something for reading: every file, address and camera of this library is opened here.

    A file is looked into only as a container of video or sound: a playlist must not make us read other files, or the
    network. An address may lead on to others, by the protocols that are given, which are never those of files.

    Args:
        source: an absolute path, a seekable binary file object, an address, or what a device is called.
        name: for messages.
        limits: what it may ask for before a frame is decoded.
        protocols: of FFmpeg, comma-separated.
        device: FFmpeg's name of a kind of device, for a camera.
        options: of FFmpeg for the format.
        timeout_seconds: longest wait for data, and for a connection.

    Raises:
        VideoError: if an MP4's index claims more than `limits`, or more frames than the file has bytes.
        FileNotFoundError, PermissionError, av.error.FFmpegError, OSError, ValueError: as FFmpeg says.
    """
    given = dict(options or {})
    if device is None and protocols == "file":
        check_index(source, name, limits)
        given["format_whitelist"] = ",".join(CONTAINERS)
    return av.open(
        source,
        format=device,
        container_options={"protocol_whitelist": protocols, "max_streams": str(MOST_STREAMS), **given},
        # They hold while FFmpeg decodes first frames to learn about the streams, too.
        options={"max_pixels": str(limits.max_pixels), "threads": "1"},
        timeout=timeout_seconds,
        metadata_errors="replace",  # a title in another encoding says nothing about the pictures
    )


def check_index(source: Any, name: str, limits: Limits) -> None:
    """Refuse an MP4 index with more frames than the file has bytes: FFmpeg would allocate for all of them."""
    if isinstance(source, str):
        size = os.path.getsize(source)
        with open(source, "rb") as file:
            claimed = max(mp4_counts(file, size), default=0)
    else:
        size = source.seek(0, os.SEEK_END)
        claimed = max(mp4_counts(source, size), default=0)
        source.seek(0)
    if claimed > size:
        raise VideoError(
            f"video {name}: its index claims {claimed} frames, more than it has bytes ({size_text(size)}). {ADVICE}"
        )
    check_count(claimed, name, limits)


def check_count(num_frames: int, name: str, limits: Limits) -> None:
    """Refuse more frames than the limit."""
    if num_frames > limits.max_frames:
        raise VideoError(
            f"video {name}: has {num_frames} frames or more; expected at most {limits.max_frames}. "
            "Cut it with `ffmpeg -i INPUT -c copy -f segment -segment_time 3600 OUTPUT%03d.mp4`."
        )


def as_file(source: Source) -> tuple[Any, str, int]:
    """Return what PyAV can open, a name for messages, and the size in bytes."""
    if isinstance(source, (str, os.PathLike)):
        # An absolute path can't be taken for one of FFmpeg's protocols ("concat:a|b").
        return os.path.abspath(source), os.fspath(source), os.path.getsize(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), f"<{len(source)} bytes>", len(source)
    name = getattr(source, "name", None)
    if not (hasattr(source, "seekable") and source.seekable()):
        raise ValueError(
            f"video {name or source!r}: the file object can't seek; expected one that can. "
            "Pass its whole content instead: open_video(file.read())."
        )
    return source, str(name or f"<{type(source).__name__}>"), source.seek(0, os.SEEK_END)


def mp4_counts(file: BinaryIO, num_bytes: int) -> Iterator[int]:
    """Yield every count of samples that an MP4's index states; nothing for another kind of file."""
    file.seek(4)
    if file.read(4) not in _MP4_FIRST_BOXES:
        return
    position = 0
    while position + 16 <= num_bytes:
        file.seek(position)
        size, kind, long_size = struct.unpack(">I4sQ", file.read(16))
        header = 8
        if size == 1:
            size, header = long_size, 16
        if kind in _MP4_COUNT_OFFSETS:
            file.seek(position + header + _MP4_COUNT_OFFSETS[kind])
            yield int.from_bytes(file.read(4), "big")
        if kind in _MP4_PARENTS:
            position += header  # children fill their parent, so a flat walk visits all
        elif size >= header:
            position += size
        else:
            return  # 0 stands for the rest of the file, the others for damage


def is_cover_picture(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def size_text(num_bytes: int) -> str:
    return f"the file has {num_bytes} bytes"


def rate_of(stream: VideoStream, *, fallback: float) -> float:
    """Return the stated frames a second, where it is one that a camera could have."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and 0 < rate <= 1000 else fallback


def nal_length_bytes(stream: VideoStream) -> int:
    """Return how many bytes state a unit's length in H.264/HEVC packets, or 0 where units aren't stored that way."""
    extradata = stream.codec_context.extradata or b""
    if not extradata or extradata[0] != 1:
        return 0
    if stream.codec_context.name == "h264" and len(extradata) > 6:
        return (extradata[4] & 3) + 1
    if stream.codec_context.name == "hevc" and len(extradata) > 22:
        return (extradata[21] & 3) + 1
    return 0


def nal_units_fit(packet: Packet, length_bytes: int) -> bool:
    """Whether the lengths within a packet add up to it: damage that else shows only while decoding."""
    data = memoryview(packet)
    position, end = 0, len(data)
    while position + length_bytes <= end:
        position += length_bytes + int.from_bytes(data[position : position + length_bytes], "big")
    return position == end
