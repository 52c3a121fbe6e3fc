"""Frames by number through PyAV: one pass over the packets, then decoding from the nearest key frame."""

from __future__ import annotations

import itertools
import logging
import operator
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import av
import av.error
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from frameflex.video.containers import (
    as_file,
    check_count,
    is_cover_picture,
    nal_length_bytes,
    nal_units_fit,
    open_container,
    rate_of,
    size_text,
)
from frameflex.video.orientation import orientation_of
from frameflex.video.pixels import rgb_of
from frameflex.video.reader import (
    ADVICE,
    Limits,
    NoFrames,
    NoVideoStream,
    Source,
    VideoError,
    VideoReader,
)
from frameflex.video.times import first_frame_seconds, stated_end

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_CACHED_BYTES = (
    16 * 2**20
)  # compressed packets up to this size stay in memory, which saves opening the file twice

_HD_PIXELS = 1280 * 720  # from here on a frame can be worth more than one decoding thread

_MOST_THREADS = 4  # each holds frames of its own

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

_CACHED_PACKET_BYTES = 1024  # what a packet in memory takes beside its data, amply


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


class PyAVReader(VideoReader):
    def __init__(self, source: Source, limits: Limits) -> None:
        self._source, self.name, self._size = as_file(source)
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
        try:
            container = open_container(self._source, name=self.name, limits=self._limits)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            raise VideoError(
                f"video {self.name}: not a video file ({size_text(self._size)}). {ADVICE}"
            ) from error
        self._container = container
        streams = [s for s in container.streams.video if not is_cover_picture(s)]
        if not streams:
            raise NoVideoStream(
                f"video {self.name}: no video stream (it is {container.format.long_name}, "
                f"{size_text(self._size)}). Expected a video file; check the list that names it."
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

    def _scan_packets(self) -> _Scan:
        assert self._container is not None
        scan = _Scan()
        stream = self._stream
        nal_bytes = nal_length_bytes(stream)
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
                if nal_bytes and not nal_units_fit(packet, nal_bytes):
                    scan.trouble = "damaged packets"
                scan.pts.append(packet.pts)
                scan.num_bytes += packet.size
                if scan.packets is not None:
                    if scan.num_bytes + len(scan.pts) * _CACHED_PACKET_BYTES > _CACHED_BYTES:
                        scan.packets = None
                    else:
                        scan.packets.append(packet)
                check_count(len(scan.pts), self.name, self._limits)
                self._check_clock()
                if scan.num_bytes > 2 * self._size + 2**20:
                    raise VideoError(
                        f"video {self.name}: its index names more data than it can hold "
                        f"({size_text(self._size)}). {ADVICE}"
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
        """Whether the packets stop clearly before the time at which the pictures are said to end."""
        assert self._container is not None
        end, of_pictures = stated_end(self._container, self._stream)
        if end is None or not of_pictures or not pts:
            return False
        last = (max(pts) - min(pts)) * float(self._stream.time_base or 0)
        last += first_frame_seconds(self._container, self._stream, min(pts))
        return end > last + 3 / rate_of(self._stream, fallback=10.0)

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
        assert self._container is not None
        self._first_seconds = first_frame_seconds(self._container, self._stream, pts[0] if pts else None)
        self._unit_seconds = float(self._stream.time_base or 0)  # which a closed stream doesn't have any more
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
            check_count(len(pts), self.name, self._limits)
        if not pts:
            raise NoFrames(f"video {self.name}: no decodable frame ({size_text(self._size)}). {ADVICE}")
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
                f"video {self.name}: decoding it again gave other frames ({size_text(self._size)}). {ADVICE}"
            )

    def _look_at_first_frame(self) -> None:
        if self.num_frames == 0:
            raise NoFrames(f"video {self.name}: no decodable frame ({size_text(self._size)}). {ADVICE}")
        self._restart((0, 0))
        while True:
            try:
                frame = self._frame(0)
                break
            except _CountWasWrong:
                self._mend()
        self._stored_size = (frame.height, frame.width)
        self._check_size(*self._stored_size)
        self.orientation = orientation_of(frame)
        self.height, self.width = self.orientation.size(*self._stored_size)
        aspect = float(self._stream.sample_aspect_ratio or 1)
        self.pixel_aspect = 1 / aspect if self.orientation.transposed else aspect
        self.fps = self._mean_rate()

    def _mean_rate(self) -> float:
        if self._pts is not None and len(self._pts) > 1:
            span = (self._pts[-1] - self._pts[0]) * float(self._stream.time_base or 0)
            measured = (len(self._pts) - 1) / span if span > 0 else 25.0
            stated = rate_of(self._stream, fallback=measured)
            return stated if abs(stated / measured - 1) < 0.05 else measured
        return rate_of(self._stream, fallback=25.0)  # 25 is FFmpeg's own default

    @property
    def timestamps(self) -> list[float]:
        if self._timestamps is None:
            if self._pts is not None:
                first, unit = self._pts[0], self._unit_seconds or 1 / self.fps
                self._timestamps = [self._first_seconds + (pts - first) * unit for pts in self._pts]
            else:
                self._timestamps = [self._first_seconds + i / self.fps for i in range(self.num_frames)]
        return self._timestamps

    def _read(self, wanted: list[int]) -> np.ndarray:
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
        image = rgb_of(frame, self._reformatter, height=height, width=width, name=self.name)
        out[:] = self.orientation.apply(image)

    def close(self) -> None:
        self._decoded = iter(())
        self._held = None
        if self._container is not None:
            self._container.close()
            self._container = None


def _decode(stream: VideoStream, packet: Packet | None) -> list[VideoFrame]:
    """Decode one packet, or with None what the decoder still holds back."""
    return stream.decode(packet)
