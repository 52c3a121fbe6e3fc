"""Read a video or stream from its start to its end, once, over whatever is damaged in it.

`open_video` gives frames by number, looks at the whole file first, and refuses one that is broken in the middle:
right for short clips that a number is reported of. Hours of video and live streams are read here instead: in one
pass, a frame at a time, and what can't be decoded is told and stepped over. Frames, their times and their pixels are
those of `open_video` where it can read the file.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from frameflex.addresses import without_secrets
from frameflex.storage import open_whole
from frameflex.video.containers import (
    is_cover_picture,
    nal_length_bytes,
    nal_units_fit,
    open_container,
    rate_of,
)
from frameflex.video.orientation import orientation_of
from frameflex.video.pixels import rgb_of
from frameflex.video.reader import MAX_PIXELS, Limits, VideoError, too_slow
from frameflex.video.times import first_frame_seconds, stated_end

_MOST_ERRORS = 500
"""So many errors in a row, without a frame between them, end a source: it isn't going to recover."""

_FEW_PIXELS = 1280 * 720  # up to here one thread decodes fast enough, and holds fewer frames back
_GUESSED_TIMES = {"avi"}  # stores no presentation times; FFmpeg guesses them, wrongly with B-frames


class SourceLost(VideoError):
    """A source stopped giving data: a closed connection, a time-out, an unplugged camera."""


@dataclass(frozen=True)
class Damage:
    """Something that could not be decoded.

    Attributes:
        seconds: time of the last frame before it.
        reason: what the decoder said.
    """

    seconds: float
    reason: str


class TimedFrame:
    """A decoded picture and its time; it becomes RGB when `image` is called.

    Attributes:
        seconds: from the file's start, as players count, on the source's own clock: it may jump where that does.
        height: pixels, upright.
        width: pixels, upright.
        num_bytes: memory that the decoded picture takes.
    """

    def __init__(self, picture: VideoFrame, seconds: float, reformatter: VideoReformatter, name: str) -> None:
        self._picture, self._reformatter, self._name = picture, reformatter, name
        self._orientation = orientation_of(picture)
        self.seconds = seconds
        self.height, self.width = self._orientation.size(picture.height, picture.width)
        self.num_bytes = sum(plane.buffer_size for plane in picture.planes)

    def image(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """RGB, uint8 ``(3, H, W)``, upright, in memory channels last; scaled to ``size`` (height, width) if given.

        Raises:
            VideoError: if the pixel format can't be converted.
        """
        height, width = self._orientation.size(*(size or (self.height, self.width)))
        image = rgb_of(self._picture, self._reformatter, height=height, width=width, name=self._name)
        image = self._orientation.apply(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)


class SequentialReader:
    """Reads the first video stream of a file, address or device; a context manager.

    Args:
        source: path, address (of object storage, too), or what a device is called.
        container_format: FFmpeg's name of a format or device; by default told from the data.
        options: of FFmpeg for the format.
        protocols: which ones may be used, comma-separated: a playlist must not make us read other things.
        timeout_seconds: longest wait for data, and for a connection; None for files.
        live: decode with little delay instead of fast.
        limits: of these, its `max_seconds` is for all that is spent reading and decoding, from start to end.

    Attributes:
        name: what messages call it.
        fps: stated or guessed frames a second.
        format_name: FFmpeg's, several separated by commas.
        duration_seconds: stated end of the pictures, of the whole file where it states only that, or None for what
            has neither, such as a camera.
        reached_seconds: where `duration_seconds` is the whole file's: how far its other streams have been read.

    Raises:
        FileNotFoundError: if there is no such file.
        SourceLost: if there is no connection, or no answer in time.
        VideoError: if it isn't a video.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        container_format: str | None = None,
        options: Mapping[str, str] | None = None,
        protocols: str = "file",
        timeout_seconds: float | None = None,
        live: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._spent = 0.0
        self.name = without_secrets(os.fspath(source))
        opened = open_whole(source)
        if opened is not source:
            self.name = opened.name  # an address as it was meant, where a Path has one slash of it
        elif protocols == "file" and container_format is None:
            if not os.path.exists(source):
                raise FileNotFoundError(f"video {self.name}: there is no such file. Check the path.")
            opened = os.path.abspath(source)  # can't be taken for one of FFmpeg's protocols ("concat:a|b")
        self._reformatter = VideoReformatter()
        try:
            self._container: Any = open_container(
                os.fspath(opened) if opened is source else opened,
                name=self.name,
                limits=self._limits,
                protocols=protocols,
                device=container_format,
                options=options,
                timeout_seconds=timeout_seconds,
            )
        except (FileNotFoundError, PermissionError) as error:
            if protocols == "file" and container_format is None:
                raise
            raise SourceLost(f"{self.name}: can't be opened ({_reason(error)})") from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if protocols == "file" and container_format is None:
                raise VideoError(
                    f"video {self.name}: not a video file ({_reason(error)}). "
                    "Download it again, or list it with `frameflex data check`."
                ) from error
            raise SourceLost(f"{self.name}: can't be opened ({_reason(error)})") from error
        try:
            self._prepare(live)
        except BaseException:
            self.close()
            raise

    def _prepare(self, live: bool) -> None:
        streams = [s for s in self._container.streams.video if not is_cover_picture(s)]
        if self._container.format.name == "tty" or not streams:
            raise VideoError(
                f"video {self.name}: no video stream (it is {self._container.format.long_name})."
            )
        self._stream = streams[0]
        context = self._stream.codec_context
        if context is None:
            raise VideoError(
                f"video {self.name}: no decoder for its codec. Convert it with "
                "`ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4`."
            )
        if context.width * context.height <= _FEW_PIXELS:
            context.thread_type, context.thread_count = "NONE", 1
        elif not live:
            context.thread_type = "AUTO"
        context.options = {"max_pixels": str(MAX_PIXELS)}  # holds for sizes that change later, too
        self.duration_seconds, self._ends_with_pictures = stated_end(self._container, self._stream)
        self.reached_seconds = 0.0
        self.fps = rate_of(self._stream, fallback=25.0)
        self.format_name: str = self._container.format.name
        self._has_times = not set(self.format_name.split(",")) & _GUESSED_TIMES

    def __iter__(self) -> Iterator[TimedFrame | Damage]:
        """Yield frames in the order in which they are shown, and between them what was damaged.

        Raises:
            SourceLost: if the source stops giving data before its end, or reading takes longer than its limit.
        """
        first_pts: int | None = None
        start, seconds, count, errors = 0.0, 0.0, 0, 0
        slots: deque[int] = deque()  # where times are guessed: those of packets, one for each frame to come
        unit = float(self._stream.time_base or 0)
        nal_bytes = nal_length_bytes(self._stream)
        for packet in self._packets():
            began = time.monotonic()
            if isinstance(packet, str):
                errors += 1
                yield Damage(seconds, packet)
                frames = []
            else:
                if packet.size and (
                    packet.is_corrupt or (nal_bytes and not nal_units_fit(packet, nal_bytes))
                ):
                    yield Damage(seconds, "a damaged packet")
                if packet.size and packet.dts is not None and not self._has_times:
                    slots.append(packet.dts)
                try:
                    frames = self._stream.decode(packet)
                except av.error.EOFError:
                    frames = []
                except (av.error.FFmpegError, ValueError) as error:
                    # At the start of a stream that was joined midway, this is normal until the first key frame.
                    errors += 1
                    frames = []
                    if slots:
                        slots.pop()
                    yield Damage(seconds, without_secrets(_reason(error)))
            self._spend(time.monotonic() - began)
            for frame in frames:
                errors = 0
                if frame.height * frame.width > MAX_PIXELS:
                    raise VideoError(
                        f"video {self.name}: a frame has {frame.width}x{frame.height} pixels; expected at most "
                        f"{MAX_PIXELS} (8192x4320)."
                    )
                # AVI numbers its packets; a number without data is a frame that is shown for longer.
                pts = frame.pts if self._has_times else slots.popleft() if slots else None
                if count == 0:
                    seconds = start = first_frame_seconds(self._container, self._stream, pts)
                if pts is not None and unit:
                    if first_pts is None:
                        first_pts = pts
                    seconds = start + (pts - first_pts) * unit
                elif first_pts is not None:
                    seconds += 1 / self.fps
                else:
                    seconds = start + count / self.fps
                count += 1
                if frame.is_corrupt:
                    yield Damage(seconds, "a frame with missing parts")
                yield TimedFrame(frame, seconds, self._reformatter, self.name)
            if errors > _MOST_ERRORS:
                raise SourceLost(f"{self.name}: {errors} errors without a frame between them")

    def _packets(self) -> Iterator[Any]:
        """Yield packets, the empty one at the end included, or the message of an error between them."""
        # The other streams tell how much of the file is there, where nothing says how much of it the pictures are.
        streams = [self._stream] if self._ends_with_pictures or self.duration_seconds is None else []
        packets = self._container.demux(*streams)
        while True:
            began = time.monotonic()
            try:
                packet = next(packets, None)
            except (BlockingIOError, av.error.BlockingIOError):  # a device that has no picture yet
                time.sleep(0.005)
                packets = self._container.demux(*streams)
                continue
            except (av.error.InvalidDataError, ValueError) as error:
                yield without_secrets(_reason(error))
                packets = self._container.demux(*streams)
                continue
            except (av.error.FFmpegError, OSError) as error:
                raise SourceLost(f"{self.name}: lost ({_reason(error)})") from error
            self._spend(time.monotonic() - began)
            if packet is None:
                return
            if packet.stream.index == self._stream.index:
                yield packet
            elif packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                start = (self._container.start_time or 0) / av.time_base
                self.reached_seconds = max(self.reached_seconds, end - start)

    def _spend(self, seconds: float) -> None:
        """Count time of reading and decoding, which is not that of who takes the frames."""
        self._spent += seconds
        if self._limits.max_seconds is not None and self._spent > self._limits.max_seconds:
            raise SourceLost(str(too_slow(self.name, self._limits)))

    def close(self) -> None:
        """Let go of the source."""
        self._container.close()

    def __enter__(self) -> SequentialReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reason(error: BaseException) -> str:
    if isinstance(error, av.error.ExitError):
        return "no data in time"
    return str(getattr(error, "strerror", None) or error)
