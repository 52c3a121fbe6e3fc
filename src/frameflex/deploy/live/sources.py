"""Live pictures from a webcam, a file, an address or standard input, that go on whatever happens to them.

Each source reads in a thread of its own, at the pace of its timestamps, and holds one picture for who asks: a picture
that nobody took in time makes place for the next one and is counted. What happens on the way comes as notices, in the
order of the pictures.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frameflex.addresses import without_secrets
from frameflex.video import VideoError
from frameflex.video.sequential import Damage, SequentialReader, SourceLost, TimedFrame

_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "rtp", "tcp", "srt")
_PROTOCOLS = "http,https,tls,tcp,udp,rtp,rtsp,rtsps,srtp,rtmp,rtmps,srt,crypto,httpproxy"  # never files
_NO_CLOCK = {"mpjpeg", "mjpeg", "image2pipe", "jpeg_pipe"}  # FFmpeg makes up their times
_GAP_SECONDS = 2.0  # without a frame: what a network remembers is of another scene
_JUMP_SECONDS = 10.0  # forward by so much is not a gap but another clock
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_TELL_EVERY_SECONDS = 5.0  # of what would otherwise be told for each frame


@dataclass(frozen=True)
class Notice:
    """Something that happened to a source.

    Attributes:
        kind: "lost", "connected", "silent", "gap", "clock", "size", "damaged", "dropped", "failed" or "ended".
        seconds: when, on the source's clock.
        text: for people.
        stale: whether what was seen before says nothing about what comes now: who remembers it has to forget.
        count: of "damaged" and "dropped", how many so far.
    """

    kind: str
    seconds: float
    text: str
    stale: bool = False
    count: int = 0


@dataclass
class LiveFrame:
    """A picture of a source.

    Attributes:
        seconds: on the source's clock, which starts at 0 and only runs forward.
        size: pixels ``(height, width)``.
        due: the network should see it; others are for drawing.
        read: makes the picture, RGB uint8 ``(3, H, W)``.
    """

    seconds: float
    size: tuple[int, int]
    due: bool
    read: Callable[[], Tensor]


class LiveSource:
    """One source of pictures; `start` it, `poll` it, `stop` it.

    Files, standard input and videos of a known length are played at their own speed. Cameras and streams give
    pictures when they come. The clock of a source is that of its timestamps; where those jump, or after a lost
    connection, it goes on by the time that has really passed.

    Args:
        source: a webcam's number such as "0", a file, an address (rtsp, http and others), or "-" for raw RGB pictures
            on standard input.
        size: ``(height, width)`` of raw pictures.
        fps: of raw pictures.
        every_frame: read as fast as pictures are taken and drop none; for files and standard input.
        stride: every which picture is due.
        rate: instead of ``stride``: how many pictures a second are due.
        all_frames: offer the pictures that aren't due, too, for drawing.
        timeout_seconds: longest wait for data before a connection counts as lost.
        give_up_seconds: so long without a picture ends a source that reconnects.
        stdin: file descriptor of "-".

    Attributes:
        name: the source as given, without a password in it.
        ended: nothing more comes.
        failed: it ended because of an error.
        num_frames: pictures decoded.
        num_dropped: due pictures that were not taken in time.
        num_damaged: packets or pictures that could not be decoded whole.
        fps: pictures a second, as stated; 0 before the first one.

    Raises:
        FileNotFoundError: if there is no such file or camera.
        ValueError: if the source or an option can't be understood.
    """

    def __init__(
        self,
        source: str,
        *,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        every_frame: bool = False,
        stride: int = 1,
        rate: float | None = None,
        all_frames: bool = False,
        timeout_seconds: float = 10.0,
        give_up_seconds: float = 60.0,
        stdin: int = 0,
    ) -> None:
        self.kind = source_kind(source)
        self.name = without_secrets(source)
        self._source, self._size, self._fps, self._stdin = source, size, fps, stdin
        if self.kind == "raw" and (size is None or fps is None or min(size) < 1 or not 0 < fps <= 1000):
            raise ValueError(
                f"raw pictures need size and fps; got size {size} and fps {fps}. On the command line: "
                "--size 480x640 --fps 30"
            )
        if self.kind == "file" and not os.path.isfile(source):
            raise FileNotFoundError(
                f"source {source}: there is no such file. Expected a webcam's number, a file, an address or -"
            )
        if every_frame and self.kind not in ("file", "raw"):
            raise ValueError(f"source {self.name}: is live; every_frame is for files and standard input")
        numbers = {
            "stride": stride,
            "rate": rate,
            "timeout_seconds": timeout_seconds,
            "give_up_seconds": give_up_seconds,
        }
        for name, value in numbers.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; expected more than 0")
        if self.kind == "camera":
            _find_camera(source)
        self._every_frame, self._stride, self._rate, self._all_frames = every_frame, stride, rate, all_frames
        self._timeout, self._give_up = timeout_seconds, give_up_seconds
        self.ended = self.failed = False
        self.num_frames = self.num_dropped = self.num_damaged = 0
        self.fps = 0.0
        self.seconds = 0.0
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._items: list[Notice | LiveFrame] = []
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._told = {"dropped": (0, -1e9), "damaged": (0, -1e9)}
        self._arrived = time.monotonic()  # of the last picture
        self._silent = False

    # For who takes the pictures

    def start(self, wake: threading.Event | None = None) -> None:
        """Begin to read; ``wake`` is set whenever there is something to `poll`."""
        self._wake = wake or self._wake
        self._arrived = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"source {self.name}", daemon=True)
        self._thread.start()

    def poll(self) -> list[Notice | LiveFrame]:
        """What has come since: notices and at most one picture, in order; never waits.

        Raises:
            Exception: what went wrong in the reading thread, if it is a mistake of ours.
        """
        with self._changed:
            items, self._items = self._items, []
            self._changed.notify_all()
            over = self.ended
        if self._error is not None:
            raise self._error
        silence = time.monotonic() - self._arrived
        if not over and not self._silent and silence > self._timeout + 1:
            # Some devices block without a time-out: the thread can't say it, so it is said here.
            self._silent = True
            items.append(
                Notice("silent", self.seconds, f"no picture for {silence:.0f} s; waiting", stale=True)
            )
        items += self._counts(over)
        return items

    @property
    def waiting(self) -> bool:
        """Whether `poll` would give something."""
        return bool(self._items)

    def stop(self) -> None:
        """End the thread; one that hangs in a device is left behind, it doesn't keep the process."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def __enter__(self) -> LiveSource:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _counts(self, over: bool) -> list[Notice]:
        notices = []
        for kind, count in (("dropped", self.num_dropped), ("damaged", self.num_damaged)):
            told, when = self._told[kind]
            if count > told and (over or time.monotonic() - when >= _TELL_EVERY_SECONDS):
                self._told[kind] = (count, time.monotonic())
                text = (
                    f"{count} {'frame' if count == 1 else 'frames'} dropped so far, to keep pace"
                    if kind == "dropped"
                    else f"{count} packets or frames damaged so far; they are skipped or shown as they are"
                )
                notices.append(Notice(kind, self.seconds, text, count=count))
        return notices

    # In the thread

    def _run(self) -> None:
        try:
            self._play()
        except BaseException as error:
            self._error = error
        with self._changed:
            self.ended = True
        self._wake.set()

    def _play(self) -> None:
        tries = 0
        while not self._stopped.is_set():
            before = self.num_frames
            try:
                finished = self._read_once(again=tries > 0 or before > 0)
                reason = "the stream ended"
            except (SourceLost, OSError) as error:
                finished, reason = False, str(error)
            except VideoError as error:
                self._finish(failed=True, text=str(error))
                return
            if self._stopped.is_set():
                return
            if finished:
                self._finish(failed=False, text=f"{self.num_frames} frames, {self.num_dropped} dropped")
                return
            if self.kind in ("file", "raw"):
                self._finish(failed=True, text=f"reading stopped: {reason}")
                return
            tries = 1 if self.num_frames > before else tries + 1
            wait = min(_FIRST_WAIT_SECONDS * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS)
            silence = time.monotonic() - self._arrived
            if silence + wait > self._give_up:
                self._finish(
                    failed=True,
                    text=f"gave up after {silence:.0f} s without a picture ({self._plain(reason)})",
                )
                return
            text = f"lost ({self._plain(reason)}); trying again in {wait:g} s"
            self._put(Notice("lost", self.seconds, text, stale=True))
            self._stopped.wait(wait)

    def _plain(self, text: str) -> str:
        return without_secrets(text.replace(self._source, self.name))

    def _finish(self, *, failed: bool, text: str) -> None:
        self.failed = failed
        self._put(Notice("failed" if failed else "ended", self.seconds, self._plain(text), stale=True))

    def _read_once(self, *, again: bool) -> bool:
        """Read until the source ends; whether that is its true end."""
        if self.kind == "raw":
            self._follow(self._raw_frames(), live=False, fps=self._fps or 25.0, resume=None, again=again)
            return True
        with self._open() as reader:
            known_length = reader.duration_seconds is not None
            live = self.kind != "file" and not (self.kind == "address" and known_length)
            self.fps = reader.fps
            arrival = live and bool(_NO_CLOCK & set(reader.format_name.split(",")))
            resume = self._media if again and self.kind == "address" and known_length else None
            self._follow(
                _by_arrival(reader) if arrival else iter(reader),
                live=live, fps=reader.fps, resume=resume, again=again,
            )  # fmt: skip
            if self.kind == "address" and known_length:
                reached = max(self._media, reader.reached_seconds)
                return reached + 1.0 + 2 / reader.fps >= (reader.duration_seconds or 0.0)
            return self.kind == "file"

    def _open(self) -> SequentialReader:
        if self.kind == "file":
            return SequentialReader(self._source)
        if self.kind == "camera":
            device, container_format = _find_camera(self._source)
            return SequentialReader(
                device, container_format=container_format, timeout_seconds=self._timeout, live=True
            )
        options = {"rtsp_flags": "prefer_tcp"} if self._source.lower().startswith("rtsp") else {}
        return SequentialReader(
            self._source, protocols=_PROTOCOLS, options=options, timeout_seconds=self._timeout, live=True
        )

    def _follow(
        self, frames: Iterator[Any], *, live: bool, fps: float, resume: float | None, again: bool
    ) -> None:
        """Put the pictures of one connection on the source's clock, and offer them when their time has come."""
        usual = 1 / fps
        offset: float | None = None  # from the connection's time to the source's
        media = 0.0  # the connection's time of its last picture
        size: tuple[int, int] | None = None if not again else self._last_size
        anchor = 0.0  # monotonic time at which second 0 of the source's clock is due
        for item in frames:
            if self._stopped.is_set():
                return
            if isinstance(item, Damage):
                self.num_damaged += 1
                self._wake.set()
                continue
            if resume is not None and item.seconds <= resume:
                continue  # seen before the connection was lost
            now = time.monotonic()
            passed = max(now - self._arrived, usual) if live or again else usual
            if offset is None:
                first = self.num_frames == 0
                begin = 0.0 if live else item.seconds  # a recording's own time, which starts with its sound
                offset = (begin if first else self.seconds + passed) - item.seconds
                if again and not first:
                    text = f"connected again after {now - self._arrived:.1f} s without a picture"
                    self._put(Notice("connected", self.seconds, text, stale=True))
                anchor = now - (item.seconds + offset)
            else:
                step = item.seconds - media
                if step < -1.0 or step > _JUMP_SECONDS:
                    seconds = self.seconds + (passed if live else usual)
                    text = f"the clock jumps by {step:+.2f} s; counted on from {seconds:.2f} s"
                    self._put(Notice("clock", self.seconds, text, stale=True))
                    offset = seconds - item.seconds
                    anchor = now - seconds
                elif step > max(_GAP_SECONDS, 4 * usual):
                    self._put(Notice("gap", self.seconds, f"no picture for {step:.1f} s", stale=True))
            seconds = item.seconds + offset
            if self.num_frames and seconds <= self.seconds:
                seconds = self.seconds + usual / 2  # repeated or slightly wrong times
            if size is not None and (item.height, item.width) != size:
                text = (
                    f"frames have {item.width}x{item.height} pixels from here on, before {size[1]}x{size[0]}"
                )
                self._put(Notice("size", seconds, text, stale=True))
            size = self._last_size = (item.height, item.width)
            media = self._media = item.seconds
            if not live and not self._every_frame:
                wait = anchor + seconds - time.monotonic()
                if wait > 0 and self._stopped.wait(wait):
                    return
            self.seconds, self._arrived, self._silent = seconds, time.monotonic(), False
            self._offer(LiveFrame(seconds, size, self._is_due(seconds), item.image))
            self.num_frames += 1

    _media = 0.0
    _last_size: tuple[int, int] | None = None
    _next_due = 0.0

    def _is_due(self, seconds: float) -> bool:
        if self._rate is None:
            return self.num_frames % self._stride == 0
        if seconds + 1e-6 < self._next_due:
            return False
        every = 1 / self._rate
        # On a grid, so that the rate is right on average; after a pause the grid starts anew.
        self._next_due = max(self._next_due + every, seconds + every / 2)
        return True

    def _offer(self, frame: LiveFrame) -> None:
        if not frame.due and not self._all_frames:
            return
        with self._changed:
            if self._every_frame:
                while any(isinstance(i, LiveFrame) for i in self._items) and not self._stopped.is_set():
                    self._changed.wait(0.1)
            for waiting in [i for i in self._items if isinstance(i, LiveFrame)]:
                if waiting.due and frame.due:
                    self.num_dropped += 1
                frame.due = frame.due or waiting.due  # the newer one takes its place
                self._items.remove(waiting)
            self._items.append(frame)
        self._wake.set()

    def _put(self, notice: Notice) -> None:
        with self._changed:
            self._items.append(notice)
        self._wake.set()

    def _raw_frames(self) -> Iterator[_RawFrame]:
        assert self._size is not None
        assert self._fps is not None
        self.fps = self._fps
        num_bytes, index = 3 * self._size[0] * self._size[1], 0
        while True:
            data = bytearray()
            while len(data) < num_bytes:
                # Not sys.stdin.buffer: its lock, held by a thread that waits, would hang the end of the process.
                part = os.read(self._stdin, min(num_bytes - len(data), 2**20))
                if not part:
                    break
                data += part
            if len(data) < num_bytes:
                if data:
                    text = f"the last {len(data)} bytes are no whole picture of {num_bytes}: check --size"
                    self._put(Notice("damaged", self.seconds, text, count=1))
                if index == 0:
                    raise VideoError(f"standard input: ended before the first picture of {num_bytes} bytes")
                return
            yield _RawFrame(index / self._fps, *self._size, bytes(data))
            index += 1


@dataclass
class _RawFrame:
    seconds: float
    height: int
    width: int
    data: bytes

    def image(self) -> Tensor:
        pixels = np.frombuffer(self.data, np.uint8).reshape(self.height, self.width, 3)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)  # (3, H, W)


def source_kind(source: str) -> str:
    """ "camera", "raw", "address" or "file".

    Raises:
        ValueError: if it is an address of a kind that is not read.
    """
    if source == "-":
        return "raw"
    if source.isdecimal() or re.fullmatch(r"/dev/video\d+", source):
        return "camera"
    scheme, colon, _ = source.partition("://")
    if colon:
        if scheme.lower() not in _SCHEMES:
            raise ValueError(
                f"source {without_secrets(source)}: can't read {scheme}; expected one of {', '.join(_SCHEMES)}"
            )
        return "address"
    return "file"


def _find_camera(source: str) -> tuple[str, str]:
    """What FFmpeg calls a camera, and the kind of device."""
    if sys.platform == "darwin":
        return source, "avfoundation"
    if sys.platform == "win32":
        from av.device import enumerate_input_devices

        names = [d.name for d in enumerate_input_devices("dshow") if "video" in d.media_types]
        if int(source) >= len(names):
            raise FileNotFoundError(f"source {source}: there are {len(names)} cameras; expected 0 and up")
        return f"video={names[int(source)]}", "dshow"
    path = source if source.startswith("/dev/") else f"/dev/video{source}"
    if not os.path.exists(path):
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
        raise FileNotFoundError(f"source {source}: there is no camera {path}; cameras here: {there}")
    return path, "v4l2"


def _by_arrival(reader: SequentialReader) -> Iterator[TimedFrame | Damage]:
    """Frames with the time at which they came, for formats that have none."""
    start = None
    for item in reader:
        if isinstance(item, TimedFrame):
            now = time.monotonic()
            start = now if start is None else start
            item.seconds = now - start
        yield item


@contextlib.contextmanager
def running(sources: list[LiveSource]) -> Iterator[threading.Event]:
    """Start all; gives the event that says that one of them has something; stops all at the end."""
    wake = threading.Event()
    try:
        for source in sources:
            source.start(wake)
        yield wake
    finally:
        for source in sources:
            source._stopped.set()
        for source in sources:
            source.stop()
