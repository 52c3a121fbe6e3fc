"""What a format of annotations is: marks are read from it, and segments of videos written to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from frameflex.data.annotations.files import AnnotationFile
    from frameflex.data.annotations.timeline import Timelines


@dataclass(frozen=True)
class Mark:
    """A label over a stretch of a video, as a file of annotations says it.

    Attributes:
        video: what the file calls the video; empty where it names none.
        label: may be empty.
        start: seconds from the video's start; or a frame's number, from 0.
        end: seconds; the number of the last frame that belongs to it; or the tick at which it is over. None for the
            video's end.
        where: for messages.
        unit: "seconds"; "frames" as they decode; or "ticks" of a clock that runs at `rate`, for tools that count
            frames without decoding them.
        rate: ticks a second; None for the video's frames a second.
        counted: frames, and in how many seconds, that the tool says the video has.
    """

    video: str
    label: str
    start: float
    end: float | None
    where: str
    unit: Literal["seconds", "frames", "ticks"] = "seconds"
    rate: float | None = None
    counted: tuple[float, float] | None = None


@dataclass
class Marks:
    """All marks of a file, and how many things in it are none, by what they are."""

    marks: list[Mark] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Segment:
    """A label over a stretch of a video.

    Attributes:
        path: of the video.
        name: of the video in the folder of videos, with slashes.
        label: of one line, never empty.
        start_seconds: from the file's start.
        end_seconds: after the start; the video's end at the most.
    """

    path: Path
    name: str
    label: str
    start_seconds: float
    end_seconds: float


class Format(Protocol):
    """A file format of annotations.

    Attributes:
        name: for the command line.
        looks_for: one line: what it is recognised by. The error about an unreadable file shows it.
        suffix: of its files.
        one_video: whether a file of it is about one video.
    """

    name: str
    looks_for: str
    suffix: str
    one_video: bool

    def matches(self, file: AnnotationFile) -> bool:
        """Whether the file is one of these."""

    def read(self, file: AnnotationFile) -> Marks:
        """Read what matched.

        Raises:
            ValueError: naming the place that is wrong.
        """

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        """Write segments of videos, of one if `one_video`, to a file.

        Raises:
            ValueError: if the format can't hold them.
        """


def number_of(value: Any, where: str, what: str) -> float:
    """A number of a JSON document or an attribute.

    Raises:
        ValueError: if it is none, or not finite.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {what} is {_short(value)}; expected a number")
    return number


def frame_of(value: Any, where: str, what: str, *, least: int) -> int:
    """A frame's number of a JSON document or an attribute.

    Raises:
        ValueError: if it is no whole number, or below ``least``.
    """
    number = number_of(value, where, what)
    if number != int(number) or number < least:
        raise ValueError(f"{where}: {what} is {_short(value)}; expected a frame's number, {least} or more")
    return int(number)


def label_of(value: Any, where: str) -> str:
    """A label of a JSON document; numbers are names.

    Raises:
        ValueError: if it is neither text nor a number.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{where}: the label is {_short(value)}; expected text")
    return str(value)


def by_video(segments: Sequence[Segment]) -> dict[Path, list[Segment]]:
    """Segments of each video in the order of time, videos in the order in which they come."""
    found: dict[Path, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.path, []).append(segment)
    return {
        path: sorted(of_one, key=lambda one: (one.start_seconds, one.end_seconds, one.label))
        for path, of_one in found.items()
    }


def file_names(segments: Sequence[Segment]) -> dict[Path, str]:
    """What tools call each video: its file's name, or where two have the same one that in the folder of videos."""
    names = {segment.path: segment.name for segment in segments}
    often = Counter(path.name for path in names)
    return {path: path.name if often[path.name] == 1 else name for path, name in names.items()}


def labels_in(segments: Sequence[Segment]) -> list[str]:
    return sorted({segment.label for segment in segments})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
