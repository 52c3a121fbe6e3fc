"""From probabilities over time to events with a start and an end, and files of them.

A network gives probabilities now and then: `EventDetector` makes events of them that don't flicker. For a long video
they come from windows that overlap: `merge_windows` makes segments of those, each with one set of probabilities.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frameflex.arguments import finite_number, whole
from frameflex.new_files import new_file
from frameflex.printable import printable, to_json, writable

EVENT_FORMATS = ("json", "csv", "srt")


@dataclass(frozen=True)
class Event:
    """Something that happened in a video or stream.

    Attributes:
        label: name of the class.
        index: of the class among the model's outputs.
        start_seconds: of the first update that showed it.
        end_seconds: when it was over; of an event that still goes on, the time of the latest update.
        probability: mean of the class's probability over the updates of the event, 0 to 1.
    """

    label: str
    index: int
    start_seconds: float
    end_seconds: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of time with the probabilities ``(K,)`` of every class in it."""

    start_seconds: float
    end_seconds: float
    probabilities: np.ndarray


class EventDetector:
    """Turns probabilities over time into events, with hysteresis so that they don't flicker.

    Probabilities hold from the time of their update until the next one. An event starts when the most probable class
    reaches ``threshold``. It ends when its class falls below ``release``, or when another class takes over: reaches
    ``threshold`` and is ahead by at least ``threshold - release``. At most one event goes on at a time.

    Args:
        class_names: of the model's outputs, K of them.
        threshold: probability from which an event starts, above 0 to 1.
        release: probability below which it ends, 0 to ``threshold``; by default 0.7 of ``threshold``.
        min_seconds: shorter events are dropped, and one that goes on is not shown before it is this old.
        nothing: name or index of a class that stands for nothing happening: it never makes an event, and ends one.

    Raises:
        ValueError: if an argument is out of range, or ``nothing`` is no class.

    Example::

        detector = EventDetector(["wave", "nothing"], nothing="nothing")
        for seconds, probabilities in predictions:
            for event in detector.update(probabilities, seconds):
                print(event.label, event.start_seconds, event.end_seconds)
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        threshold: float = 0.5,
        release: float | None = None,
        min_seconds: float = 0.0,
        nothing: str | int | None = None,
    ) -> None:
        above = "a probability above 0 and up to 1"
        threshold = finite_number(threshold, "threshold", above, least=math.ulp(0.0), most=1)
        below = f"0 to the threshold, {threshold:g}: an event starts at the threshold and ends below release"
        release = (
            0.7 * threshold
            if release is None
            else finite_number(release, "release", below, least=0, most=threshold)
        )
        min_seconds = finite_number(min_seconds, "min_seconds", "at least 0 seconds", least=0)
        self.class_names = tuple(class_names)
        self.threshold, self.release, self.min_seconds = threshold, release, min_seconds
        self.nothing = _class_index(nothing, self.class_names)
        self.reset()

    def reset(self) -> None:
        """Forget the event that goes on, and the time."""
        self._time: float | None = None
        self._index: int | None = None  # class of the event that goes on
        self._start = 0.0
        self._sum, self._count = 0.0, 0

    @property
    def current(self) -> Event | None:
        """The event that goes on, from when it is ``min_seconds`` old."""
        if self._index is None or self._time is None or self._time - self._start < self.min_seconds:
            return None
        return self._event(self._time)

    def update(self, probabilities: Any, time_seconds: float) -> list[Event]:
        """Tell what the network says from this time on.

        Args:
            probabilities: of each class, ``(K,)``: tensor, array or sequence.
            time_seconds: on the video's or stream's clock; never before the last update's time. After a jump back,
                call `finish` with the last time, or `reset`.

        Returns:
            the event that ended with this update, or nothing.

        Raises:
            ValueError: if there are not K probabilities of 0 to 1, or time runs backwards.
        """
        values = self._check(probabilities)
        self._check_time(time_seconds)
        ended: list[Event] = []
        if self._index is not None and self._is_over(values, self._index):
            ended = self._end(time_seconds)
        self._time = time_seconds
        best = int(values.argmax())
        if self._index is None and best != self.nothing and values[best] >= self.threshold:
            self._index, self._start, self._sum, self._count = best, time_seconds, 0.0, 0
        if self._index is not None:
            self._sum += float(values[self._index])
            self._count += 1
        return ended

    def finish(self, time_seconds: float) -> list[Event]:
        """End the event that goes on, as at the end of a video, and start afresh.

        Args:
            time_seconds: where the last update's probabilities stop to hold.

        Returns:
            the event that ended, or nothing.

        Raises:
            ValueError: if time runs backwards.
        """
        self._check_time(time_seconds)
        ended = self._end(time_seconds)
        self.reset()
        return ended

    def _is_over(self, values: np.ndarray, index: int) -> bool:
        others = values.copy()
        others[index] = -1.0
        best = float(others.max(initial=-1.0))
        ahead = best - float(values[index]) >= self.threshold - self.release and best > values[index]
        return bool(values[index] < self.release or (best >= self.threshold and ahead))

    def _end(self, time_seconds: float) -> list[Event]:
        if self._index is None:
            return []
        event = self._event(time_seconds)
        self._index = None
        return [event] if event.end_seconds - event.start_seconds >= self.min_seconds else []

    def _event(self, end_seconds: float) -> Event:
        assert self._index is not None
        return Event(
            self.class_names[self._index], self._index, self._start, end_seconds, self._sum / self._count
        )

    def _check(self, probabilities: Any) -> np.ndarray:
        values = torch.as_tensor(probabilities).detach().to("cpu", torch.float64).numpy()
        if values.shape != (len(self.class_names),):
            raise ValueError(
                f"probabilities have shape {values.shape}; expected ({len(self.class_names)},), one for each class"
            )
        if not ((values >= 0) & (values <= 1 + 1e-6)).all():
            raise ValueError(
                f"probabilities are {values.min():.3g} to {values.max():.3g}; expected 0 to 1. Of logits take the "
                "softmax, or the sigmoid where several labels can be right"
            )
        return values

    def _check_time(self, time_seconds: float) -> None:
        if not math.isfinite(time_seconds):
            raise ValueError(f"time_seconds is {time_seconds}; expected a finite number of seconds")
        if self._time is not None and time_seconds < self._time:
            raise ValueError(
                f"time_seconds is {time_seconds:.3f}, before the last update's {self._time:.3f}; expected time to "
                "run forward. After a jump of the clock call reset()"
            )


def merge_windows(windows: Iterable[Segment]) -> Iterator[Segment]:
    """Cut windows that overlap into segments that don't, with the mean of the windows that cover each.

    Args:
        windows: in the order of their starts. Only those that overlap are held, so the video may be of any length.

    Yields:
        segments in the order of time, each of which no window starts or ends within; none where no window is.

    Raises:
        ValueError: if a window starts before the one before it.
    """
    open_windows: list[Segment] = []
    done = -math.inf
    for window in windows:
        if open_windows and window.start_seconds < open_windows[-1].start_seconds:
            raise ValueError(
                f"a window starts at {window.start_seconds:.3f} s, before the one before it "
                f"({open_windows[-1].start_seconds:.3f} s); expected the order of time"
            )
        yield from _cut(open_windows, done, window.start_seconds)
        done = max(done, window.start_seconds)
        open_windows = [w for w in open_windows if w.end_seconds > window.start_seconds]
        open_windows.append(window)
    yield from _cut(open_windows, done, math.inf)


def _cut(windows: Sequence[Segment], start: float, end: float) -> Iterator[Segment]:
    """The segments between two times of windows that all start at the first of them or before."""
    times = sorted({t for w in windows for t in (w.start_seconds, w.end_seconds) if start < t < end})
    if windows and math.isfinite(start):
        times.insert(0, start)
    if math.isfinite(end):
        times.append(end)
    for low, high in itertools.pairwise(times):
        here = [w.probabilities for w in windows if w.start_seconds <= low and w.end_seconds >= high]
        if here:
            yield Segment(low, high, np.mean(here, axis=0))


def detect_events(segments: Iterable[Segment], detector: EventDetector) -> Iterator[Event]:
    """The events of segments in the order of time; a gap between two segments ends an event."""
    end = None
    for segment in segments:
        if end is not None and segment.start_seconds > end:
            yield from detector.finish(end)
        yield from detector.update(segment.probabilities, segment.start_seconds)
        end = segment.end_seconds
    if end is not None:
        yield from detector.finish(end)


def event_format(path: str | Path, given: str | None = None) -> str:
    """The format of a file of events: the given one, else by the name's ending.

    Raises:
        ValueError: if it is none of `EVENT_FORMATS`.
    """
    kind = given or Path(path).suffix.lstrip(".").lower()
    if kind not in EVENT_FORMATS:
        raise ValueError(
            f"output {path}: events can't be written as {kind or 'a file without an ending'}; expected a name "
            f"that ends in {', '.join('.' + name for name in EVENT_FORMATS)}"
        )
    return kind


def write_events(
    path: str | Path,
    events: Sequence[Event],
    *,
    file_format: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write events as JSON, CSV or SRT subtitles; the file gets its name when it is complete.

    Args:
        path: of the file; folders are made.
        events: in the order of time.
        file_format: "json", "csv" or "srt"; by default as the name ends.
        details: what else JSON says, before the key "events".

    Raises:
        ValueError: if the format is none of the three.
        OSError: if the file can't be written.
    """
    kind = event_format(path, file_format)
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        if kind == "json":
            values = {**(details or {}), "events": [asdict(e) for e in events]}
            file.write(to_json(values, indent=2) + "\n")
        elif kind == "csv":
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["start_seconds", "end_seconds", "label", "index", "probability"])
            for e in events:
                times = (f"{e.start_seconds:.3f}", f"{e.end_seconds:.3f}")
                writer.writerow([*times, writable(e.label), e.index, f"{e.probability:.4f}"])
        else:
            for number, e in enumerate(events, start=1):
                label = printable(" ".join(e.label.replace("-->", "→").split()))
                file.write(f"{number}\n{_srt(e.start_seconds)} --> {_srt(e.end_seconds)}\n")
                file.write(f"{label} ({e.probability:.0%})\n\n")


def _class_index(name: str | int | None, class_names: Sequence[str]) -> int | None:
    if name is None:
        return None
    if isinstance(name, str):
        if name not in class_names:
            shown = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
            raise ValueError(f"nothing is {name!r}, which is no class; expected one of {shown}")
        return list(class_names).index(name)
    return whole(name, "nothing", most=len(class_names) - 1)


def _srt(seconds: float) -> str:
    milliseconds = max(0, round(seconds * 1000))
    whole, rest = divmod(milliseconds, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{rest:03}"
