"""When each frame of a video is shown: between times and the numbers that tools give to frames."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from frameflex.video import open_video

_ROUNDING_SECONDS = 0.00051  # of tools that write milliseconds
_MOST_TICKS = 2000.0  # a second


@dataclass(frozen=True)
class Timeline:
    """The times of a video's frames.

    Attributes:
        timestamps: seconds from the file's start to each frame.
        fps: frames a second on average.
        height: pixels, as shown.
        width: pixels, as shown.
    """

    timestamps: Sequence[float]
    fps: float
    height: int
    width: int

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)

    @property
    def end_seconds(self) -> float:
        """When the last frame is over."""
        return self.timestamps[-1] + 1 / self.fps

    @property
    def rate(self) -> float:
        """Frames a second from the first to the last, however long that one is shown."""
        if self.num_frames == 1:
            return self.fps
        return (self.num_frames - 1) / (self.timestamps[-1] - self.timestamps[0])

    def frames(self, start_seconds: float, end_seconds: float) -> tuple[int, int]:
        """The first and the last frame of a stretch, those that training takes of it."""
        first = bisect_left(self.timestamps, start_seconds)
        end = bisect_left(self.timestamps, end_seconds)
        if first < end:
            return first, end - 1
        shown = max(0, bisect_right(self.timestamps, start_seconds) - 1)
        return shown, shown

    def seconds(self, first: int, last: int) -> tuple[float, float]:
        """When the first of some frames is shown, and when the last one is over."""
        return self.timestamps[first], self._boundary(last + 1)

    def snap(self, seconds: float) -> float:
        """The time of a frame that a tool meant which rounds to milliseconds; another time as it is."""
        after = bisect_left(self.timestamps, seconds)
        near = min((self._boundary(i) for i in (after - 1, after) if i >= 0), key=lambda t: abs(t - seconds))
        return near if abs(near - seconds) <= min(_ROUNDING_SECONDS, self._least_gap / 4) else seconds

    def frames_between(self, start_tick: float, end_tick: float, rate: float) -> tuple[int, int]:
        """The first and the last frame that a player shows from one tick up to another of a clock, from 0."""
        slack = self._slack_seconds(rate)
        first = max(0, bisect_right(self.timestamps, start_tick / rate + slack) - 1)
        end = bisect_left(self.timestamps, end_tick / rate - slack)
        return first, max(first, end - 1)

    def ticks(self, first: int, last: int, rate: float) -> tuple[int, int]:
        """The ticks from which, and up to which, some frames are shown."""
        start_seconds, end_seconds = self.seconds(first, last)
        slack = self._slack_seconds(rate)
        start = max(0, math.ceil((start_seconds - slack) * rate))
        return start, max(math.floor((end_seconds + slack) * rate), start + 1)

    def _slack_seconds(self, rate: float) -> float:
        """How far a frame may be from its tick: containers round times, Matroska to milliseconds."""
        return 0.25 / max(rate, self.rate)

    def clock(self) -> float:
        """A rate of ticks that tells all frames apart: the video's, or a faster one where frames are uneven.

        Raises:
            ValueError: if frames are too near to each other.
        """
        for rate in (self.rate, 2 / self._least_gap if self._least_gap > 0 else math.inf):
            if rate <= _MOST_TICKS and all(
                self.frames_between(*self.ticks(frame, frame, rate), rate) == (frame, frame)
                for frame in range(self.num_frames)
            ):
                return rate
        raise ValueError(
            f"two frames are {self._least_gap:.6f} s apart, too near for a clock of {_MOST_TICKS:g} ticks a second. "
            "Re-encode it at a constant rate: `ffmpeg -i INPUT -fps_mode cfr OUTPUT.mp4`"
        )

    def _boundary(self, index: int) -> float:
        return self.timestamps[index] if index < self.num_frames else self.end_seconds

    @cached_property
    def _least_gap(self) -> float:
        """Seconds between the two frames that are nearest to each other."""
        gaps = (after - before for before, after in itertools.pairwise(self.timestamps))
        return min(gaps, default=1 / self.fps)


class Timelines:
    """Timelines of videos, each read once."""

    def __init__(self) -> None:
        self._found: dict[Path, Timeline] = {}

    def __getitem__(self, path: Path) -> Timeline:
        """Read the times of a video's frames; errors as in `open_video`."""
        if path not in self._found:
            with open_video(path) as reader:
                self._found[path] = Timeline(reader.timestamps, reader.fps, reader.height, reader.width)
        return self._found[path]
