"""Long videos: windows that overlap, decoded in one pass, within memory that depends on the window alone."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frameflex.data.clips import ClipDataset, select_views
from frameflex.data.transforms import EvalTransform
from frameflex.deploy.long_videos.events import Segment
from frameflex.deploy.recognizer import Recognizer
from frameflex.video import ADVICE, Limits, VideoError
from frameflex.video.sequential import Damage, SequentialReader, SourceLost, TimedFrame

if TYPE_CHECKING:
    from typing_extensions import Self

_HELD_BYTES = 64 * 2**20
"""Decoded pictures that wait for their window; beyond it they are cut to the network's size right away."""

_SAME_TIME = 1e-3  # seconds: Matroska rounds times to milliseconds
_JUMP_SECONDS = 1.0  # a timestamp so far back is another recording that was appended, not a glitch


@dataclass(frozen=True)
class Trouble:
    """A part of a video that is not as it should be.

    Attributes:
        kind: "damaged" (can't be decoded), "gap" (no frame for longer than a window), "clock" (time ran backwards),
            "size" (the resolution changed) or "ended" (reading stopped before the end).
        start_seconds: where it starts.
        end_seconds: where it ends.
        text: for people.
    """

    kind: str
    start_seconds: float
    end_seconds: float
    text: str


class ForwardVideo:
    """A video file that is read once, on a clock that only runs forward; what is wrong with it is noted.

    Args:
        video: a file.
        limits: how much it may ask for; where it takes longer than `max_seconds` to read, the rest is missing.

    Attributes:
        name: of the file.
        fps: stated frames a second.
        troubles: what was wrong so far; complete when all frames have been read.
        seconds: time of the frame that was decoded last, from the file's start, as players count.
        duration_seconds: until the pictures end, from the file's start: as the header says; as decoded when all
            frames have been read; None where unknown.
        num_decoded: frames so far.

    Raises:
        FileNotFoundError: if there is no such file.
        VideoError: if it isn't a video.
    """

    def __init__(self, video: str | os.PathLike[str], *, limits: Limits | None = None) -> None:
        self._reader = SequentialReader(video, limits=limits)
        self._is_read = False
        self.name, self.fps = self._reader.name, self._reader.fps
        self.troubles: list[Trouble] = []
        self.seconds = 0.0
        self.duration_seconds = self._reader.duration_seconds
        self.num_decoded = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()

    def frames(self) -> Iterator[VideoFrame]:
        """Yield the frames in the order of time; once.

        Raises:
            ValueError: when called again.
        """
        if self._is_read:
            raise ValueError(f"video {self.name}: has been read; expected one pass. Open it again.")
        self._is_read = True
        offset, last = 0.0, None
        size = told = None
        try:
            for item in self._reader:
                if isinstance(item, Damage):
                    self._damaged(max(0.0, item.seconds + offset), item.reason)
                    continue
                usual = 1 / self._reader.fps
                seconds = item.seconds + offset
                if last is not None and seconds <= last:
                    if seconds < last - _JUMP_SECONDS:
                        offset += last + usual - seconds
                        text = f"time jumps back by {last - seconds:.2f} s; it is counted on from here"
                        self._trouble("clock", last, last + usual, text)
                        seconds = last + usual
                    else:  # a repeated or slightly wrong time
                        seconds = last + usual / 2
                if size is None:
                    size = told = (item.height, item.width)
                if (item.height, item.width) != told:
                    told = (item.height, item.width)
                    text = (
                        f"frames have {item.width}x{item.height} pixels from {seconds:.2f} s on, the first one "
                        f"{size[1]}x{size[0]}; all are scaled to that"
                    )
                    self._trouble("size", seconds, seconds, text)
                # The stated rate is a mean, which says little of a recording with pauses.
                passed = usual if last is None else seconds - last
                last = self.seconds = seconds
                self.num_decoded += 1
                yield VideoFrame(item, seconds, size, passed if passed < 0.75 * usual else usual)
        except SourceLost as error:
            self._trouble("ended", last or 0.0, last or 0.0, f"reading stopped: {error}")
        expected = self._reader.duration_seconds
        reached = max(last or 0.0, self._reader.reached_seconds)
        if expected is not None and last is not None and reached + max(2.0, 0.02 * expected) < expected:
            text = f"frames stop at {last:.2f} s of {expected:.2f} s"
            self._trouble("ended", last, expected, text)

    def _damaged(self, seconds: float, reason: str) -> None:
        """Note damage; what is less than a second apart is one trouble."""
        if self.troubles and self.troubles[-1].kind == "damaged":
            former = self.troubles[-1]
            if seconds - former.end_seconds < 1.0:
                self.troubles[-1] = Trouble("damaged", former.start_seconds, seconds, former.text)
                return
        self._trouble("damaged", seconds, seconds, f"damaged at {seconds:.2f} s ({reason})")

    def _trouble(self, kind: str, start: float, end: float, text: str) -> None:
        self.troubles.append(Trouble(kind, start, end, text))


class LongVideo(ForwardVideo):
    """Probabilities of the windows of a video of any length.

    A window takes the frames from its start up to, and without, its end, chosen and prepared as those of a video
    that spans exactly the window. Windows start every ``stride_seconds`` from the first frame on; the last one ends
    with the video. A video shorter than the window is one window. Times count from the file's start, as in players:
    the first frame's is not 0 where sound starts earlier.

    Args:
        recognizer: whose network looks, and whose limits hold.
        video: a file.
        window_seconds: length of a window, at least 0.01.
        stride_seconds: from one start to the next, at least 0.01; by default half the window.
        num_frames: T of each window; by default the largest trained count.
        views: as for `Recognizer`.
        batch_size: windows through the network at once; more than 1 pays on a GPU.

    Raises:
        FileNotFoundError: if there is no such file.
        VideoError: if it isn't a video.
        ValueError: if an argument is out of range.

    Example::

        with LongVideo(recognizer, "match.mp4", window_seconds=2.0, stride_seconds=1.0) as video:
            for event in detect_events(merge_windows(video), EventDetector(recognizer.class_names)):
                print(event)
    """

    def __init__(
        self,
        recognizer: Recognizer,
        video: str | os.PathLike[str],
        *,
        window_seconds: float,
        stride_seconds: float | None = None,
        num_frames: int | None = None,
        views: str = "1x1",
        batch_size: int = 1,
    ) -> None:
        stride_seconds = window_seconds / 2 if stride_seconds is None else stride_seconds
        for name, value in (("window_seconds", window_seconds), ("stride_seconds", stride_seconds)):
            if not 0.01 <= value < math.inf:
                raise ValueError(f"{name} is {value}; expected at least a hundredth of a second")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self._recognizer = recognizer
        self._window, self._stride = window_seconds, stride_seconds
        self._batch_size = batch_size
        self._clips: ClipDataset = recognizer.clip_rule(num_frames, views)
        self._transform: EvalTransform = self._clips.transform  # type: ignore[assignment]
        super().__init__(video, limits=recognizer.limits)

    def __iter__(self) -> Iterator[Segment]:
        """Yield each window with its probabilities, in the order of time; once.

        Raises:
            VideoError: if no frame can be decoded.
        """
        waiting: list[tuple[float, float, Tensor]] = []
        for window in self.windows():
            waiting.append(window)
            if len(waiting) == self._batch_size:
                yield from self._look(waiting)
                waiting = []
        if waiting:
            yield from self._look(waiting)

    def _look(self, windows: list[tuple[float, float, Tensor]]) -> Iterator[Segment]:
        probabilities = self._recognizer.probabilities(torch.stack([clip for _, _, clip in windows]))
        for (start, end, _), row in zip(windows, probabilities, strict=True):
            yield Segment(start, end, row.numpy())

    def windows(self) -> Iterator[tuple[float, float, Tensor]]:
        """Yield start and end in seconds and clip ``(V, 3, T, h, w)`` of each window, without the network; once."""
        held = _HeldFrames(self._transform)
        number, start = 0, 0.0  # of the next window
        origin = None  # the first frame's time: not 0 in a file whose sound starts earlier
        covered = None  # up to where windows have been
        for frame in self.frames():
            if origin is None:
                origin = start = frame.seconds
            if held and frame.seconds - held.last_seconds > max(self._window, 1.0):
                text = f"no frame from {held.last_seconds:.2f} to {frame.seconds:.2f} s"
                self._trouble("gap", held.last_seconds, frame.seconds, text)
            while frame.seconds >= start + self._window - _SAME_TIME:
                clip = self._clip(held, start, start + self._window, shown_until=frame.seconds)
                if clip is not None:
                    covered = start + self._window
                    yield start, covered, clip
                    number += 1
                else:  # nothing to see: go on with the first window that this frame is in
                    behind = math.floor((frame.seconds - origin - self._window) / self._stride) + 1
                    number = max(number + 1, behind)
                start = round(origin + number * self._stride, 9)
            held.add(frame)
            held.drop_before(min(start, frame.seconds - self._window))
        if origin is None:
            why = f" ({self.troubles[0].text})" if self.troubles else ""
            raise VideoError(f"video {self.name}: no decodable frame{why}. {ADVICE}")
        end = held.last_seconds + held.last_duration
        self.duration_seconds = end
        if covered is None or end > covered + held.last_duration / 2:
            start = max(origin, round(end - self._window, 9))
            clip = self._clip(held, start, end + 1, shown_until=end)
            assert clip is not None, "the last frame is within a window of the end"
            yield start, end, clip

    def _clip(self, held: _HeldFrames, start: float, end: float, *, shown_until: float) -> Tensor | None:
        """The clip of the frames within, or of the one that is shown meanwhile; None where there is neither."""
        first, stop = held.within(start, end)
        if first == stop:
            # A window shorter than a frame sees the one that is shown. One within a gap sees nothing.
            if first == 0 or shown_until - held.seconds(first - 1) > max(self._window, 1.0):
                return None
            first -= 1
        ((_, views),) = self._clips.choose(stop - first).items()
        chosen = sorted({index for view in views for index in view})
        place = {index: slot for slot, index in enumerate(chosen)}
        crops = torch.stack([held.crops(first + index) for index in chosen], 1)  # (num_crops, N, 3, h, w)
        return select_views(
            self._transform.normalise(crops), [[place[index] for index in view] for view in views]
        )


class VideoFrame:
    """A frame and its time: as decoded, or already cut to the network's size."""

    def __init__(self, frame: TimedFrame, seconds: float, size: tuple[int, int], duration: float) -> None:
        self._decoded: TimedFrame | None = frame
        self._size = size
        self._crops: Tensor | None = None
        self.seconds, self.duration = seconds, duration

    @property
    def num_bytes(self) -> int:
        return self._decoded.num_bytes if self._decoded is not None else 0

    def image(self) -> Tensor:
        """RGB, uint8 ``(3, H, W)``, upright, as large as the video's first frame."""
        assert self._decoded is not None, "only who holds frames for windows cuts them"
        return self._decoded.image(self._size)

    def crops(self, transform: EvalTransform) -> Tensor:
        """uint8 ``(num_crops, 3, h, w)``; the decoded picture is let go of."""
        if self._crops is None:
            self._crops = transform.crops(self.image()[None])[:, 0].contiguous()
            self._decoded = None
        return self._crops


class _HeldFrames:
    """The frames that a window to come may need."""

    def __init__(self, transform: EvalTransform) -> None:
        self._transform = transform
        self._frames: deque[VideoFrame] = deque()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def last_seconds(self) -> float:
        return self._frames[-1].seconds

    @property
    def last_duration(self) -> float:
        return self._frames[-1].duration

    def seconds(self, index: int) -> float:
        return self._frames[index].seconds

    def add(self, frame: VideoFrame) -> None:
        self._frames.append(frame)
        self._num_bytes += frame.num_bytes
        if self._num_bytes > _HELD_BYTES:
            self._cut(frame)

    def drop_before(self, seconds: float) -> None:
        """Let go of frames before a time, but for the one that is shown at it."""
        while len(self._frames) > 1 and self._frames[1].seconds <= seconds:
            self._num_bytes -= self._frames.popleft().num_bytes

    def within(self, start: float, end: float) -> tuple[int, int]:
        """The first frame from ``start`` on, and the first from ``end`` on."""
        times = [frame.seconds for frame in self._frames]
        first = next((i for i, t in enumerate(times) if t >= start - _SAME_TIME), len(times))
        stop = next((i for i, t in enumerate(times) if t >= end - _SAME_TIME), len(times))
        return first, stop

    def crops(self, index: int) -> Tensor:
        frame = self._frames[index]
        return self._cut(frame)

    def _cut(self, frame: VideoFrame) -> Tensor:
        self._num_bytes -= frame.num_bytes
        return frame.crops(self._transform)
