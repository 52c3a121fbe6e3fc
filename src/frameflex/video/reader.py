"""Open a video and read exactly the frames that were asked for.

`open_video` gives a `VideoReader` for a file, bytes, a file object or a folder of images. The number of frames is
what really decodes: containers that state a wrong count, or none, are common. One pass over the compressed packets
(no decoding, well under a millisecond for a short clip) yields count, timestamps and key frames; where anything about
it looks wrong, the frames are counted by decoding them. Decoding then starts at the nearest key frame and checks the
timestamp of each frame against that pass, so that a seek gives the frames that reading from the start would give.

Choices that a user may notice:

- Frames come in the stored resolution. Non-square pixels are not stretched, like in the published TSM pipelines.
- The rotation that a phone notes in the file is applied, rounded to a quarter turn.
- Of several video streams the first one is read; a cover picture doesn't count as one.
- Where the resolution changes within a stream, later frames are scaled to the first one's size.
- A file whose end is missing gives the frames that it has. One that is broken in the middle is an error.
- Files are not trusted: what they claim is held to `Limits` before memory is asked for, and only containers of
  videos are looked into, never playlists and the like that name other files.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import logging
import operator
import os
import re
import struct
import time
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import av
import av.error
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | bytes | BinaryIO
Decoder = Literal["auto", "pyav", "torchcodec"]

MAX_PIXELS = 8192 * 4320
"""Largest frame that is decoded: DCI 8K. A hostile header can claim more than a machine's memory."""

MAX_FRAMES = 2**20
"""Most frames that a video may have: ten hours at 29 fps."""

MAX_BYTES = 2**30
CHUNK_BYTES = 2**26  # of whole frames at once, where something smaller is made of them
"""Most bytes of pixels that one reading gives: 43 frames of 3840 x 2160."""

FOLDER_FPS = 12.0
"""Frame rate of a folder of images: Something-Something V1 was distributed as JPEGs at 12 fps."""

_CACHED_BYTES = (
    16 * 2**20
)  # compressed packets up to this size stay in memory, which saves opening the file twice
_HD_PIXELS = 1280 * 720  # from here on a frame can be worth more than one decoding thread
_MOST_THREADS = 4  # each holds frames of its own
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
ADVICE = "Download it again, or list it with `frameflex data check`."

# With these, one packet is one frame. VP8 is not among them (it stores hidden frames as packets of their own).
_ONE_FRAME_PER_PACKET = {
    "h264",
    "hevc",
    "vp9",
    "av1",
    "libdav1d",
    "libaom-av1",
    "mpeg4",
    "mjpeg",
    "ffv1",
    "prores",
}
_INDEXED_CONTAINERS = {"mov", "mp4", "matroska", "webm", "avi"}
_UNRELIABLE_PTS = {"avi"}  # stores no presentation times; FFmpeg guesses them, wrongly with B-frames
# Demuxers that look at nothing but the file's own bytes. FFmpeg has 350, among them playlists (hls, dash, concat),
# network descriptions (sdp) and text shown as video (tty); sound is here so that the message can say that it is.
_CONTAINERS = (
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
_CACHED_PACKET_BYTES = 1024  # what a packet in memory takes beside its data, amply
_MOST_STREAMS = 200  # of one file: the decoder of each is opened

_MP4_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof"}
_MP4_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_MP4_COUNT_OFFSETS = {b"stsz": 8, b"stz2": 8, b"trun": 4}


@dataclass(frozen=True)
class Limits:
    """How much a video may ask for, since a header can claim anything and little data can decode to much.

    Attributes:
        max_pixels: of one frame.
        max_frames: of the video.
        max_bytes: of the pixels that one call of `VideoReader.frames` or `sample` holds at once; iteration holds one
            frame, and with `each` no more than `CHUNK_BYTES` and one frame are held.
        max_seconds: that opening, or one reading, may take; looked at after each packet. None for no limit: to count
            the frames of a recording of hours can take minutes.
    """

    max_pixels: int = MAX_PIXELS
    max_frames: int = MAX_FRAMES
    max_bytes: int = MAX_BYTES
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_frames", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds is {self.max_seconds}; expected above 0, or None for no limit.")


class VideoError(Exception):
    """A video that can't be read; the message names it and says what to do."""


class NoVideoStream(VideoError):
    """A file of sound, text or something else without pictures."""


class NoFrames(VideoError):
    """A video of which no frame can be decoded."""


def open_video(source: Source, *, decoder: Decoder = "auto", limits: Limits | None = None) -> VideoReader:
    """Open a video for reading frames by index.

    Args:
        source: A file's path, a folder of images (`00001.jpg`, `00002.jpg`, ...; read in numerical order at 12 fps,
            as Something-Something V1 comes), a whole file's bytes, or a seekable binary file object.
        decoder: `"pyav"`; `"torchcodec"` (needs the package and FFmpeg's shared libraries); or `"auto"`, which
            takes torchcodec where it can be imported. Both give the same frames: torchcodec is used for the streams
            where it does, and PyAV reads the others.
        limits: how much a video may ask for; by default as `Limits` says.

    Returns:
        A reader, which is also a context manager.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        VideoError: If it isn't a video, has no decodable frame, or asks for more than `limits`.
        ImportError: If torchcodec was asked for and can't be imported.
        ValueError: If `decoder` is none of the three.

    Example:
        >>> with open_video("clip.webm") as reader:
        ...     frames = reader.frames([0, reader.num_frames - 1])  # uint8 (2, 3, H, W)
    """
    if decoder not in ("auto", "pyav", "torchcodec"):
        raise ValueError(f"decoder is {decoder!r}; expected 'auto', 'pyav' or 'torchcodec'.")
    limits = limits or Limits()
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return _FolderReader(path, limits)
        if not path.exists():
            raise FileNotFoundError(
                f"video {path}: there is no such file. Check the path and the data set's folder."
            )
    elif not isinstance(source, (bytes, bytearray, memoryview)) and not hasattr(source, "read"):
        raise TypeError(f"source is {type(source).__name__}; expected a path, bytes or a binary file object.")
    if decoder == "pyav":
        return _PyAVReader(source, limits)
    video_decoder, reason = _load_torchcodec()
    if video_decoder is not None:
        return _TorchCodecReader(source, limits, video_decoder)
    if decoder == "torchcodec":
        raise ImportError(
            f"decoder is 'torchcodec', which can't be imported ({reason}). Install it with "
            "`pip install frameflex[torchcodec]` together with FFmpeg, or use decoder='pyav'."
        )
    return _PyAVReader(source, limits)


class VideoReader(ABC):
    """Frames of one video by index. Made by `open_video`; one thread at a time may use a reader.

    Attributes:
        name: What error messages call the video.
        num_frames: How many frames decode.
        fps: Frames a second on average.
        height: Pixels, after rotation.
        width: Pixels, after rotation.
    """

    name: str
    num_frames: int
    fps: float
    height: int
    width: int
    _limits: Limits

    def frames(
        self, indices: Sequence[int], *, each: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Decode the frames at some indices, each once.

        Args:
            indices: Frame numbers from 0 to `num_frames - 1`, in any order, repeats allowed.
            each: What to make of frames as they are decoded, from some `(n, 3, H, W)` to `(n, ...)`, such as smaller
                ones. Then no more than `CHUNK_BYTES` of whole frames are held at once, and at least one.

        Returns:
            RGB, uint8 `(len(indices), 3, H, W)`, in the order of `indices`, or what `each` made of them. The memory
            is laid out channels last.

        Raises:
            IndexError: If an index is outside of the video.
            VideoError: If a frame can't be decoded, or all together are more than the reader's limits allow.
        """
        wanted = [operator.index(i) for i in indices]
        outside = [i for i in wanted if not 0 <= i < self.num_frames]
        if outside:
            raise IndexError(
                f"video {self.name}: index {outside[0]} is outside of its {self.num_frames} frames; "
                f"expected 0 to {self.num_frames - 1}."
            )
        if not wanted:
            return torch.empty(0, 3, self.height, self.width, dtype=torch.uint8)
        if each is not None:
            return self._in_chunks(wanted, each)
        num_bytes = len(wanted) * 3 * self.height * self.width
        if num_bytes > self._limits.max_bytes:
            raise VideoError(
                f"video {self.name}: {len(wanted)} frames of {self.width}x{self.height} take {num_bytes >> 20} MiB; "
                f"expected at most {self._limits.max_bytes >> 20} MiB at once. Ask for fewer frames, scale the video "
                "down with `ffmpeg -i INPUT -vf scale=-2:1080 OUTPUT.mp4`, or open it with other Limits."
            )
        return torch.from_numpy(self._read(wanted)).permute(0, 3, 1, 2)  # (N, 3, H, W)

    def _in_chunks(self, wanted: list[int], each: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        order = sorted(set(wanted))
        size = max(CHUNK_BYTES // (3 * self.height * self.width), 1)
        made = torch.cat([each(self.frames(order[i : i + size])) for i in range(0, len(order), size)])
        return made if order == wanted else made[[bisect_left(order, index) for index in wanted]]

    def sample(
        self,
        choose: Callable[[int], Sequence[int]],
        *,
        each: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Decode the frames that a rule chooses from the number of frames.

        `num_frames` can turn out to be smaller while decoding. `choose` is then asked again, once, with the count
        that holds, so that no caller acts on a wrong one.

        Args:
            choose: From the number of frames to frame indices, as for `frames`.
            each: As for `frames`.

        Returns:
            RGB, uint8 `(N, 3, H, W)`, or what `each` made of them.

        Raises:
            IndexError: If `choose` names a frame outside of the video.
            VideoError: If a frame can't be decoded.
        """
        promised = self.num_frames
        try:
            frames = self.frames(choose(promised), each=each)
            if self.num_frames == promised:
                return frames
        except VideoError:
            if self.num_frames == promised:
                raise
        return self.frames(choose(self.num_frames), each=each)

    @property
    @abstractmethod
    def timestamps(self) -> list[float]:
        """Seconds from the first frame to each, `num_frames` values; uneven where the rate varies."""

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.timestamps[-1] + 1 / self.fps

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield every frame in order, uint8 `(3, H, W)`, holding one at a time."""
        index = 0
        while index < self.num_frames:
            try:
                frame = self.frames([index])[0]
            except VideoError:
                if index < self.num_frames:
                    raise
                return  # the count was corrected to the frames that have been given
            yield frame
            index += 1

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.num_frames} frames of {self.height}x{self.width} at {self.fps:.3g} fps"
        return f"{type(self).__name__}({self.name!r}, {size})"

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. A file object that was passed in stays open."""

    @abstractmethod
    def _read(self, wanted: list[int]) -> np.ndarray:
        """Return the frames as uint8 `(N, H, W, 3)`; every index is within `num_frames`."""


class _CountWasWrong(Exception):
    """Decoding gave another frame, or none, where the packets promised one."""


@dataclass
class _Scan:
    """What the packets of a stream tell without decoding."""

    pts: list[int | None] = field(default_factory=list)  # of each packet, in decoding order
    key_packets: list[int] = field(default_factory=list)
    packets: list[Packet] | None = field(default_factory=list)  # None: too many to hold
    num_bytes: int = 0
    trouble: str | None = None  # why the count can't be trusted


class _PyAVReader(VideoReader):
    def __init__(self, source: Source, limits: Limits) -> None:
        self._source, self.name, self._size = _as_file(source)
        self._limits = limits
        self._start_the_clock()
        self.num_frames = self.height = self.width = 0
        self.fps = 0.0
        self._container: InputContainer | None = None
        self._reformatter = VideoReformatter()
        self._decoded: Iterator[VideoFrame] = iter(())
        self._next = 0  # index of the frame that `_decoded` gives next
        self._held: tuple[int, VideoFrame] | None = None
        self._timestamps: list[float] | None = None
        try:
            self._open()
            self._scan = self._scan_packets()
            self._num_counts = 0  # how often the frames were counted by decoding
            self._map_packets()
            if self._scan.trouble is not None:
                logger.debug("video %s: counting frames by decoding: %s", self.name, self._scan.trouble)
                self._count_by_decoding()
            self._look_at_first_frame()
        except BaseException:
            self.close()
            raise

    # From source to packets

    def _open(self) -> None:
        """(Re)open the container at its start and find the video stream."""
        if self._container is not None:
            self._container.close()
        if not isinstance(self._source, str):
            self._source.seek(0)
        self._check_mp4_counts()
        try:
            # Only this one file: a playlist must not make us read others, or the network. The options hold while
            # FFmpeg decodes first frames to learn about the streams, too.
            container = av.open(
                self._source,
                container_options={
                    "protocol_whitelist": "file",
                    "format_whitelist": ",".join(_CONTAINERS),
                    "max_streams": str(_MOST_STREAMS),
                },
                options={"max_pixels": str(self._limits.max_pixels), "threads": "1"},
            )
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            raise VideoError(
                f"video {self.name}: not a video file ({_size_text(self._size)}). {ADVICE}"
            ) from error
        self._container = container
        streams = [s for s in container.streams.video if not _is_cover_picture(s)]
        if not streams:
            raise NoVideoStream(
                f"video {self.name}: no video stream (it is {container.format.long_name}, "
                f"{_size_text(self._size)}). Expected a video file; check the list that names it."
            )
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise VideoError(
                f"video {self.name}: no decoder for its codec. Convert it with "
                "`ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`."
            )
        self._check_size(context.height, context.width)
        # One thread is fastest for small clips, and loader workers decode side by side already.
        if context.width * context.height < _HD_PIXELS or torch.utils.data.get_worker_info() is not None:
            context.thread_type = "NONE"
            context.thread_count = 1
        else:
            context.thread_count = min(_MOST_THREADS, os.cpu_count() or 1)
        context.options = {
            "max_pixels": str(self._limits.max_pixels)
        }  # holds for sizes that change later, too
        self._stream: VideoStream = stream

    def _check_size(self, height: int, width: int) -> None:
        if height * width > self._limits.max_pixels:
            raise VideoError(
                f"video {self.name}: a frame has {width}x{height} pixels; expected at most "
                f"{self._limits.max_pixels}. Scale it down with `ffmpeg -i INPUT -vf scale=-2:1080 OUTPUT.mp4`."
            )

    def _check_mp4_counts(self) -> None:
        """Refuse an MP4 index with more frames than the file has bytes: FFmpeg would allocate for all of them."""
        if isinstance(self._source, str):
            with open(self._source, "rb") as file:
                claimed = max(_mp4_counts(file, self._size), default=0)
        else:
            claimed = max(_mp4_counts(self._source, self._size), default=0)
            self._source.seek(0)
        if claimed > self._size:
            raise VideoError(
                f"video {self.name}: its index claims {claimed} frames, more than it has bytes "
                f"({_size_text(self._size)}). {ADVICE}"
            )
        self._check_count(claimed)

    def _check_count(self, num_frames: int) -> None:
        if num_frames > self._limits.max_frames:
            raise VideoError(
                f"video {self.name}: has {num_frames} frames or more; expected at most {self._limits.max_frames}. "
                "Cut it with `ffmpeg -i INPUT -c copy -f segment -segment_time 3600 OUTPUT%03d.mp4`."
            )

    def _start_the_clock(self) -> None:
        limit = self._limits.max_seconds
        self._deadline = None if limit is None else time.monotonic() + limit

    def _check_clock(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise VideoError(
                f"video {self.name}: not decoded after {self._limits.max_seconds:g} s ({_size_text(self._size)}). "
                "Cut it or scale it down, or allow more time."
            )

    def _scan_packets(self) -> _Scan:
        assert self._container is not None
        scan = _Scan()
        stream = self._stream
        nal_bytes = _nal_length_bytes(stream)
        try:
            for packet in self._container.demux(stream):
                if packet.size == 0:
                    if packet.pts is not None or packet.dts is not None:
                        scan.trouble = "empty packets"
                    continue
                if packet.is_keyframe:
                    scan.key_packets.append(len(scan.pts))
                elif not scan.pts:
                    scan.trouble = "it doesn't start with a key frame"
                if packet.is_corrupt or packet.is_discard:
                    scan.trouble = "corrupt or discarded packets"
                if nal_bytes and not _nal_units_fit(packet, nal_bytes):
                    scan.trouble = "damaged packets"
                scan.pts.append(packet.pts)
                scan.num_bytes += packet.size
                if scan.packets is not None:
                    if scan.num_bytes + len(scan.pts) * _CACHED_PACKET_BYTES > _CACHED_BYTES:
                        scan.packets = None
                    else:
                        scan.packets.append(packet)
                self._check_count(len(scan.pts))
                self._check_clock()
                if scan.num_bytes > 2 * self._size + 2**20:
                    raise VideoError(
                        f"video {self.name}: its index names more data than it can hold "
                        f"({_size_text(self._size)}). {ADVICE}"
                    )
        except av.error.FFmpegError as error:
            scan.trouble = f"reading stopped early ({error})"
        formats = set(self._container.format.name.split(","))
        num_packets = len(scan.pts)
        known = [pts for pts in scan.pts if pts is not None]
        if stream.codec_context.name not in _ONE_FRAME_PER_PACKET or not formats & _INDEXED_CONTAINERS:
            scan.trouble = "a format where packets are not always frames"
        elif stream.frames and stream.frames != num_packets:
            scan.trouble = f"the header says {stream.frames} frames, there are {num_packets} packets"
        elif not formats & _UNRELIABLE_PTS and len(set(known)) < num_packets:
            scan.trouble = "missing or repeated timestamps"
        elif not stream.frames and self._ends_early(known):
            scan.trouble = "it ends before the duration in its header"
        return scan

    def _ends_early(self, pts: list[int]) -> bool:
        """Whether a silent video's packets stop clearly before its stated duration."""
        assert self._container is not None
        total = self._container.duration
        if total is None or len(self._container.streams) > 1 or not pts:
            return False
        last = (max(pts) - min(pts)) * float(self._stream.time_base or 0)
        return total / av.time_base > last + 3 / _rate(self._stream, fallback=10.0)

    def _map_packets(self) -> None:
        """Take count and timestamps from the packets."""
        formats = set(self._container.format.name.split(",")) if self._container else set()
        known = sorted({pts for pts in self._scan.pts if pts is not None})
        reliable = len(known) == len(self._scan.pts) and not formats & _UNRELIABLE_PTS
        self._set_frames(len(self._scan.pts), known if reliable else None)

    def _set_frames(self, num_frames: int, pts: list[int] | None) -> None:
        self.num_frames = num_frames
        self._pts = pts  # of each frame in display order, strictly rising; None where it can't be relied on
        self._timestamps = None
        self._keys: list[tuple[int, int]] = []  # (frame index, packet index) of the places to start at
        if pts is not None:
            index_of = {time: i for i, time in enumerate(pts)}
            for packet in self._scan.key_packets:
                value = self._scan.pts[packet]
                frame = None if value is None else index_of.get(value)
                if frame is not None and (not self._keys or frame > self._keys[-1][0]):
                    self._keys.append((frame, packet))
        if not self._keys or self._keys[0][0] != 0:
            self._keys.insert(0, (0, 0))
        self._keys[0] = (0, 0)  # whatever precedes the first shown frame is decoded with it

    # From packets to frames

    def _packets_from(self, start: int) -> Iterator[tuple[int, Packet]]:
        """Yield (number, packet) from packet `start` on."""
        packets = self._scan.packets
        if packets is not None:
            for number in range(start, len(packets)):
                yield number, packets[number]
            return
        number = self._seek(start)
        assert self._container is not None
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0:
                    continue
                if number >= start:
                    yield number, packet
                number += 1
        except av.error.FFmpegError as error:
            if number < len(self._scan.pts):
                raise VideoError(
                    f"video {self.name}: can't be read after packet {number} ({error.strerror}). {ADVICE}"
                ) from error

    def _seek(self, start: int) -> int:
        """Go to packet `start` or before it; return the number of the packet that comes next."""
        assert self._container is not None
        target = self._scan.pts[start]
        if start > 0 and target is not None:
            numbers = {self._scan.pts[k]: k for k in self._scan.key_packets if k <= start}
            try:
                self._container.seek(target, stream=self._stream)
                landed = next((p.pts for p in self._container.demux(self._stream) if p.size), None)
                if landed in numbers:
                    self._container.seek(target, stream=self._stream)
                    return numbers[landed]
            except av.error.FFmpegError as error:
                logger.debug("video %s: can't seek (%s); reading from the start", self.name, error)
        self._open()
        return 0

    def _decode_from(self, start: int) -> Iterator[VideoFrame]:
        """Yield decoded frames, in display order, from packet `start` on."""
        last = len(self._scan.pts) - 1
        first_key = self._scan.key_packets[0] if self._scan.key_packets else 0
        if self._stream.codec_context.is_open:
            self._stream.codec_context.flush_buffers()
        for number, packet in self._packets_from(start):
            self._check_clock()
            try:
                yield from _decode(self._stream, packet)
            except av.error.FFmpegError as error:
                # A missing end is no surprise, nor is a recording that starts between two key frames.
                if first_key <= number < last:
                    raise VideoError(
                        f"video {self.name}: damaged at packet {number + 1} of {last + 1} "
                        f"({error.strerror}). {ADVICE}"
                    ) from error
        try:
            yield from _decode(self._stream, None)
        except av.error.FFmpegError as error:
            logger.debug("video %s: the decoder ended with %s", self.name, error)

    def _restart(self, key: tuple[int, int]) -> None:
        self._next, packet = key
        self._held = None
        self._decoded = self._decode_from(packet)
        self._skip_before = self._pts[self._next] if self._pts is not None and packet > 0 else None

    def _frame(self, index: int) -> VideoFrame:
        """Decode up to frame `index`, from the nearest place."""
        if self._held is not None and self._held[0] == index:
            return self._held[1]
        key = self._keys[bisect_right(self._keys, index, key=operator.itemgetter(0)) - 1]
        if index < self._next or key[0] > self._next:
            self._restart(key)
        while True:
            frame = next(self._decoded, None)
            if frame is None:
                raise _CountWasWrong
            if self._skip_before is not None and frame.pts is not None and frame.pts < self._skip_before:
                continue  # shown before the key frame, needs what came before it
            if self._pts is not None and frame.pts != self._pts[self._next]:
                raise _CountWasWrong
            self._held = (self._next, frame)
            self._next += 1
            if self._next > index:
                return frame

    def _count_by_decoding(self) -> None:
        self._restart((0, 0))
        pts: list[int | None] = []
        for frame in self._decoded:
            pts.append(frame.pts)
            self._check_count(len(pts))
        if not pts:
            raise NoFrames(f"video {self.name}: no decodable frame ({_size_text(self._size)}). {ADVICE}")
        known = [value for value in pts if value is not None]
        rising = len(known) == len(pts) and all(a < b for a, b in itertools.pairwise(known))
        self._num_counts += 1
        self._set_frames(len(pts), known if rising else None)
        self._restart((0, 0))

    def _mend(self) -> None:
        """After a surprise: do without seeking, and if that was not it, count again by decoding."""
        if len(self._keys) > 1:
            self._keys = [(0, 0)]
            self._restart((0, 0))
        elif (
            self._num_counts < 3
        ):  # a decoder can learn from the first pass and give a frame more in the second
            self._count_by_decoding()
        else:
            raise VideoError(
                f"video {self.name}: decoding it again gave other frames ({_size_text(self._size)}). {ADVICE}"
            )

    def _look_at_first_frame(self) -> None:
        if self.num_frames == 0:
            raise NoFrames(f"video {self.name}: no decodable frame ({_size_text(self._size)}). {ADVICE}")
        self._restart((0, 0))
        while True:
            try:
                frame = self._frame(0)
                break
            except _CountWasWrong:
                self._mend()
        self._stored_size = (frame.height, frame.width)
        self._check_size(*self._stored_size)
        self._quarter_turns = round(frame.rotation / 90) % 4
        self.height, self.width = self._stored_size[:: -1 if self._quarter_turns % 2 else 1]
        self.fps = self._mean_rate()

    def _mean_rate(self) -> float:
        if self._pts is not None and len(self._pts) > 1:
            span = (self._pts[-1] - self._pts[0]) * float(self._stream.time_base or 0)
            measured = (len(self._pts) - 1) / span if span > 0 else 25.0
            stated = _rate(self._stream, fallback=measured)
            return stated if abs(stated / measured - 1) < 0.05 else measured
        return _rate(self._stream, fallback=25.0)  # 25 is FFmpeg's own default

    @property
    def timestamps(self) -> list[float]:
        if self._timestamps is None:
            if self._pts is not None:
                first, unit = self._pts[0], self._stream.time_base
                unit_seconds = float(unit) if unit else 1 / self.fps
                self._timestamps = [(pts - first) * unit_seconds for pts in self._pts]
            else:
                self._timestamps = [i / self.fps for i in range(self.num_frames)]
        return self._timestamps

    def _read(self, wanted: list[int]) -> np.ndarray:
        self._start_the_clock()
        slots: dict[int, list[int]] = {}
        for slot, index in enumerate(wanted):
            slots.setdefault(index, []).append(slot)
        if self._container is None:
            raise ValueError(f"video {self.name}: the reader is closed. Open the video again.")
        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        while True:
            if max(slots) >= self.num_frames:
                raise VideoError(
                    f"video {self.name}: index {max(slots)} was asked for, but only {self.num_frames} frames decode, "
                    "fewer than the file promised. Choose frames with `reader.sample`, or read `num_frames` again."
                )
            try:
                for index in sorted(slots):
                    first, *others = slots[index]
                    self._to_rgb(self._frame(index), out[first])
                    out[others] = out[first]
                return out
            except _CountWasWrong:
                self._mend()
            except VideoError:
                self._restart((0, 0))
                raise

    def _to_rgb(self, frame: VideoFrame, out: np.ndarray) -> None:
        height, width = self._stored_size
        # One reformatter for all frames keeps its scaling tables; frame.to_ndarray() builds them anew for each.
        try:
            rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24")
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(
                f"video {self.name}: pixels of format {frame.format.name} can't be converted to RGB ({error}). "
                "Convert it with `ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4`."
            ) from error
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        image = rows[:, : 3 * width].reshape(height, width, 3)
        out[:] = np.rot90(image, self._quarter_turns) if self._quarter_turns else image

    def close(self) -> None:
        self._decoded = iter(())
        self._held = None
        if self._container is not None:
            self._container.close()
            self._container = None


def _decode(stream: VideoStream, packet: Packet | None) -> list[VideoFrame]:
    """Decode one packet, or with None what the decoder still holds back."""
    return stream.decode(packet)


def _as_file(source: Source) -> tuple[Any, str, int]:
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


def _mp4_counts(file: BinaryIO, num_bytes: int) -> Iterator[int]:
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


def _is_cover_picture(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _size_text(num_bytes: int) -> str:
    return f"the file has {num_bytes} bytes"


def _rate(stream: VideoStream, *, fallback: float) -> float:
    """Return the stated frames a second, where it is one that a camera could have."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and 0 < rate <= 1000 else fallback


def _nal_length_bytes(stream: VideoStream) -> int:
    """Return how many bytes state a unit's length in H.264/HEVC packets, or 0 where units aren't stored that way."""
    extradata = stream.codec_context.extradata or b""
    if not extradata or extradata[0] != 1:
        return 0
    if stream.codec_context.name == "h264" and len(extradata) > 6:
        return (extradata[4] & 3) + 1
    if stream.codec_context.name == "hevc" and len(extradata) > 22:
        return (extradata[21] & 3) + 1
    return 0


def _nal_units_fit(packet: Packet, length_bytes: int) -> bool:
    """Whether the lengths within a packet add up to it: damage that else shows only while decoding."""
    data = memoryview(packet)
    position, end = 0, len(data)
    while position + length_bytes <= end:
        position += length_bytes + int.from_bytes(data[position : position + length_bytes], "big")
    return position == end


class _TorchCodecReader(_PyAVReader):
    """Decodes with torchcodec where the packets are in order, so that both back ends number frames alike.

    PyAV's scan still decides what exists, and PyAV reads what torchcodec would number or convert differently:
    streams without reliable timestamps or with signs of damage, and more than 8 bits a colour.
    """

    def __init__(self, source: Source, limits: Limits, video_decoder: Any) -> None:
        self._video_decoder = video_decoder
        super().__init__(source, limits)
        self._torchcodec = self._open_torchcodec()

    def _open_torchcodec(self) -> Any | None:
        assert self._container is not None
        pixels = self._stream.codec_context.format
        if (
            self._pts is None
            or self._num_counts
            or pixels is None
            or any(c.bits != 8 for c in pixels.components)
        ):
            return None
        source = self._source
        if isinstance(source, io.BytesIO):
            source = source.getvalue()
        elif not isinstance(source, str):
            return None  # it would share the position in the file with PyAV
        try:
            decoder = self._video_decoder(source, stream_index=self._stream.index, dimension_order="NHWC")
        except (RuntimeError, ValueError) as error:
            logger.debug("video %s: torchcodec can't open it (%s); PyAV reads it", self.name, error)
            return None
        return decoder if len(decoder) == self.num_frames else None

    def _read(self, wanted: list[int]) -> np.ndarray:
        if self._torchcodec is not None and self._container is not None:
            order = sorted(set(wanted))
            try:
                data = self._torchcodec.get_frames_at(order).data.numpy()  # (N, H, W, 3)
            except (RuntimeError, IndexError) as error:
                logger.debug("video %s: torchcodec stopped (%s); PyAV reads it", self.name, error)
                self._torchcodec = None
            else:
                if data.shape[1:3] == (self.height, self.width):
                    return data if order == wanted else data[np.searchsorted(order, wanted)]
                self._torchcodec = None
        return super()._read(wanted)

    def close(self) -> None:
        self._torchcodec = None
        super().close()


@functools.cache
def _load_torchcodec() -> tuple[Any | None, str]:
    """Return torchcodec's decoder class, or None and why it can't be had; a failing import is slow, so once."""
    if importlib.util.find_spec("torchcodec") is None:
        return None, "it is not installed"
    try:
        from torchcodec.decoders import VideoDecoder
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # RuntimeError: FFmpeg's shared libraries are missing
        return None, str(error).strip().split("\n")[0]
    return VideoDecoder, ""


class _FolderReader(VideoReader):
    """A video stored as one image a frame."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.name = str(folder)
        self._limits = limits
        self._paths = sorted(
            (
                p
                for p in folder.iterdir()
                if p.suffix.lower() in _IMAGE_SUFFIXES and not p.name.startswith(".")
            ),
            key=_numerical_order,
        )
        self.num_frames = len(self._paths)
        if not self._paths:
            raise VideoError(
                f"video {folder}: no image in this folder; expected frames such as 00001.jpg. "
                "Give a video file or the folder of one video's frames."
            )
        self.fps = FOLDER_FPS
        self.height, self.width = self._decode(self._paths[0]).shape[:2]

    @property
    def timestamps(self) -> list[float]:
        return [i / self.fps for i in range(self.num_frames)]

    def close(self) -> None:
        """Nothing is open between two reads."""

    def _decode(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(path) as image:
                if image.width * image.height > self._limits.max_pixels:
                    raise VideoError(
                        f"video {self.name}: {path.name} has {image.width}x{image.height} pixels; expected at most "
                        f"{self._limits.max_pixels}."
                    )
                return np.asarray(image.convert("RGB"))  # (H, W, 3)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(
                f"video {self.name}: {path.name} can't be decoded ({path.stat().st_size} bytes: {error}). {ADVICE}"
            ) from error

    def _read(self, wanted: list[int]) -> np.ndarray:
        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        for index in sorted(set(wanted)):
            image = self._decode(self._paths[index])
            if image.shape[:2] != (self.height, self.width):
                raise VideoError(
                    f"video {self.name}: {self._paths[index].name} has {image.shape[1]}x{image.shape[0]} pixels, the "
                    f"first frame {self.width}x{self.height}; expected one size. Extract the frames again."
                )
            out[[slot for slot, i in enumerate(wanted) if i == index]] = image
        return out


def _numerical_order(path: Path) -> tuple[list[int], str]:
    """Sort 2.jpg before 10.jpg, whether or not numbers are padded."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name
