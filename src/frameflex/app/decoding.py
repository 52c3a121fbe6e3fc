"""Files of strangers, decoded in processes of their own: what such a process does, and who hands it work."""

from __future__ import annotations

import contextlib
import io
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from frameflex.data.clips import ClipDataset
from frameflex.deploy.decoded import Decoded, decode
from frameflex.video import ADVICE, Limits, VideoError, open_video
from frameflex.video.isolated import Isolated, Lost

SHOWN_AS = "the video"  # in messages, instead of the name of a temporary file


@dataclass(frozen=True)
class DecodeClips:
    """Task: the frames that a rule chooses of a video.

    Attributes:
        path: of the file.
        rule: which frames, and how they are cut.
        limits: of the file.
        max_video_seconds: a longer video is refused; None for any.
    """

    path: str
    rule: ClipDataset
    limits: Limits
    max_video_seconds: float | None = None

    def run(self) -> Decoded:
        with open_video(self.path, limits=self.limits) as reader:
            seconds = reader.num_frames / reader.fps
            if self.max_video_seconds is not None and seconds > self.max_video_seconds:
                raise VideoError(
                    f"video {self.path}: lasts {seconds:.1f} s; expected at most {self.max_video_seconds:g} s"
                )
            return decode(reader, self.rule)


@dataclass(frozen=True)
class DecodePicture:
    """Task: a picture of a webcam, as RGB uint8 ``(H, W, 3)``.

    Attributes:
        data: of a JPEG file.
        max_pixels: a larger one is refused.
    """

    data: bytes = field(repr=False)
    max_pixels: int = 1920 * 1080

    def run(self) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.data), formats=["JPEG"]) as picture:
                width, height = picture.size
                if width * height > self.max_pixels:
                    raise VideoError(
                        f"a picture has {width}x{height} pixels; expected at most {self.max_pixels}"
                    )
                return np.asarray(picture.convert("RGB"))
        except OSError as error:
            raise VideoError(f"a picture can't be decoded: {error}") from error


def work(task: Any) -> Any:
    """Do a task; what is wrong with its file is an answer, and no end of the process."""
    try:
        return task.run()
    except (VideoError, OSError) as error:
        return VideoError(str(error))


class DecodingPool:
    """Processes that decode, each one file at a time; from any thread.

    Args:
        num_processes: at least 1.
        timeout_seconds: for one task; then its process is ended and another one takes its place.
    """

    def __init__(self, num_processes: int, *, timeout_seconds: float) -> None:
        self.num_processes = num_processes
        self._all = [Isolated(work, timeout_seconds=timeout_seconds) for _ in range(num_processes)]
        self._free: queue.SimpleQueue[Isolated] = queue.SimpleQueue()
        for process in self._all:
            self._free.put(process)

    def start(self) -> None:
        """Begin to start the processes."""
        for process in self._all:
            process.start()

    @contextlib.contextmanager
    def process(self) -> Iterator[Isolated]:
        """One process for several tasks in a row."""
        process = self._free.get()
        try:
            yield process
        finally:
            self._free.put(process)

    def call(self, task: Any) -> Any:
        """What the task gives.

        Raises:
            VideoError: if the file can't be decoded, took too long, or took its process along.
        """
        with self.process() as process:
            return answer_of(process, task)

    def close(self) -> None:
        """End all processes."""
        for process in self._all:
            process.close()


class TookTooLong(VideoError):
    """A file on which a process worked for longer than it may."""


def answer_of(process: Isolated, task: Any) -> Any:
    """What the task gives in that process; errors as in `DecodingPool.call`."""
    answer = process.call(task)
    if isinstance(answer, Lost):
        kind = TookTooLong if answer.kind == "timed-out" else VideoError
        raise kind(f"{SHOWN_AS}: can't be decoded: {answer.reason}")
    if isinstance(answer, VideoError):
        path = getattr(task, "path", "")
        text = str(answer).replace(ADVICE, "Send another one.")  # who sends it has no list of videos
        raise VideoError(text.replace(f"video {path}", SHOWN_AS).replace(path, SHOWN_AS) if path else text)
    return answer


def rule_for(rule: ClipDataset, frame_counts: list[int]) -> ClipDataset:
    """The same rule at other frame counts."""
    return ClipDataset(
        rule.videos,
        frame_counts=frame_counts,
        transform=rule.transform,
        training=False,
        sampling=rule.sampling,
        num_views=rule.num_views,
        window=rule.window,
        on_bad_video="skip",
    )


@dataclass(frozen=True)
class OpenWindows:
    """Task: begin with the windows of a long video; `NextWindow`, in the same process, gives them.

    Attributes:
        path: of the file.
        rule: which frames of a window.
        window_seconds: length of a window.
        stride_seconds: from one to the next.
        limits: of the file.
    """

    path: str
    rule: ClipDataset
    window_seconds: float
    stride_seconds: float
    limits: Limits

    def run(self) -> float | None:
        """The video's length in seconds, as its header says."""
        from frameflex.deploy.long_videos.windows import LongVideo

        # Only these two are asked for; the network is in another process.
        recognizer: Any = _RuleAlone(self.rule, self.limits)
        _opened.close()
        video = LongVideo(
            recognizer, self.path, window_seconds=self.window_seconds, stride_seconds=self.stride_seconds
        )
        _opened.video, _opened.windows = video, video.windows()
        return video.duration_seconds


@dataclass(frozen=True)
class NextWindow:
    """Task: the next window of the video that was opened.

    Attributes:
        path: of the file, for messages.
    """

    path: str

    def run(self) -> Window | Ended:
        assert _opened.video is not None, "OpenWindows comes first"
        for start, end, clip in _opened.windows:
            return Window(start, end, clip.numpy())
        ended = Ended(_opened.video.duration_seconds or 0.0, [one.text for one in _opened.video.troubles])
        _opened.close()
        return ended


@dataclass(frozen=True)
class Window:
    """Start and end in seconds and clip ``(V, 3, T, h, w)`` of a window."""

    start_seconds: float
    end_seconds: float
    clip: np.ndarray


@dataclass(frozen=True)
class Ended:
    """The video's length in seconds, and what was wrong with it."""

    duration_seconds: float
    troubles: list[str]


@dataclass(frozen=True)
class _RuleAlone:
    rule: ClipDataset
    limits: Limits

    def clip_rule(self, num_frames: int | None = None, views: str = "1x1") -> ClipDataset:
        return self.rule


class _Opened:
    """The long video that a process is in."""

    video: Any = None
    windows: Iterator[tuple[float, float, Tensor]] = iter(())

    def close(self) -> None:
        if self.video is not None:
            self.video.close()
        self.video, self.windows = None, iter(())


_opened = _Opened()


@dataclass(frozen=True)
class SaveClip:
    """Task: write a stretch of a video as an MP4 that every player and `frameflex train` read.

    Attributes:
        path: of the file.
        target: of the new one.
        limits: of the file.
        start_seconds: from where.
        end_seconds: up to where; None for the end.
        max_seconds: of the stretch.
    """

    path: str
    target: str
    limits: Limits
    start_seconds: float = 0.0
    end_seconds: float | None = None
    max_seconds: float = 60.0

    def run(self) -> int:
        """How many frames there are."""
        from frameflex.deploy.long_videos.drawing import VideoWriter

        with open_video(self.path, limits=self.limits) as reader:
            end = reader.duration if self.end_seconds is None else self.end_seconds
            times = reader.timestamps
            chosen = [i for i, seconds in enumerate(times) if self.start_seconds <= seconds < end]
            if not chosen:
                raise VideoError(
                    f"video {self.path}: no frame from {self.start_seconds:.1f} to {end:.1f} s; it lasts "
                    f"{reader.duration:.1f} s"
                )
            seconds = times[chosen[-1]] - times[chosen[0]]
            if seconds > self.max_seconds:
                raise VideoError(
                    f"video {self.path}: the clip would last {seconds:.1f} s; expected at most "
                    f"{self.max_seconds:g} s. Cut it shorter"
                )
            with VideoWriter(self.target, fps=reader.fps) as writer:
                for first in range(0, len(chosen), _AT_ONCE):
                    some = chosen[first : first + _AT_ONCE]
                    for i, frame in zip(some, reader.frames(some), strict=True):
                        writer.write(frame, times[i] - times[chosen[0]])
                return writer.num_frames


_AT_ONCE = 8  # frames in memory
