"""Labels on pictures, videos of such pictures, and the timeline of a video."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from frameflex.deploy.long_videos.events import Event, Segment
from frameflex.new_files import new_file
from frameflex.printable import in_figure, printable

_MOST_ROWS = 16
"""Classes in a timeline: more can't be read."""

_MOST_STEPS = 1000
"""Of a line in a timeline: there are as many pixels."""

_TICKS_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)

_UNIT = Fraction(1, 1000)  # of times in a written video: milliseconds, whatever the source's rate


def draw_label(image: Tensor, text: str, note: str = "") -> Tensor:
    """Write a label into the upper left corner of a picture.

    Args:
        image: RGB, uint8 ``(3, H, W)``; left as it is.
        text: the label; empty for none.
        note: smaller, in the lower left corner, such as the time.

    Returns:
        a new picture, uint8 ``(3, H, W)``.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(picture, "RGBA")
    size = max(9, min(picture.height // 14, 40))
    for words, points, at_top in ((text, size, True), (note, max(8, size * 2 // 3), False)):
        if not words:
            continue
        font = _font(points)
        lines = "\n".join(_wrapped(words, font, picture.width - points))
        left, top, right, bottom = draw.multiline_textbbox((0, 0), lines, font=font)
        height = bottom - top + points // 2
        y = 0 if at_top else picture.height - height
        draw.rectangle((0, y, right - left + points, y + height), fill=(0, 0, 0, 160))
        place = (points // 2 - left, y + points // 4 - top)
        draw.multiline_text(place, lines, font=font, fill=(255, 255, 255, 255))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3, H, W)


def label_of(event: Event | None) -> str:
    """What is written on a picture while an event goes on."""
    return f"{printable(event.label)} {event.probability:.0%}" if event is not None else ""


class VideoWriter:
    """Writes pictures with their times as an H.264 video; the file gets its name when it is complete.

    A context manager. Left by an error it leaves no file; left by Ctrl-C, or because nobody reads what the
    program prints, it finishes what there is, so that a recording that is stopped by hand can be played.

    Args:
        path: ends in .mp4, .mkv or .mov; folders are made.
        fps: about how many pictures a second will come.

    Raises:
        ValueError: if the name has another ending.
        OSError: if the file can't be made.
    """

    def __init__(self, path: str | Path, *, fps: float = 25.0) -> None:
        self.path = Path(path)
        check_video_name(self.path)
        self._fps = Fraction(min(max(fps, 1.0), 240.0)).limit_denominator(1001)
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(new_file(self.path))
        try:
            self._container: Any = av.open(str(temporary), "w")
        except BaseException:
            self._stack.__exit__(OSError, OSError(), None)
            raise
        self._stream: Any = None
        self._last = -1
        self.num_frames = 0

    def write(self, image: Tensor, seconds: float) -> None:
        """Add a picture, uint8 ``(3, H, W)``, at a time; one of another size than the first is scaled to that."""
        height, width = (max(2, pixels - pixels % 2) for pixels in image.shape[1:])  # 4:2:0 wants even sizes
        if self._stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self._fps)
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
            self._stream.codec_context.time_base = _UNIT
            if codec == "libx264":
                self._stream.options = {"preset": "veryfast", "crf": "23"}
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[:height, :width])
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._last = max(round(seconds / _UNIT), self._last + 1)  # times have to rise
        frame.pts, frame.time_base = self._last, _UNIT
        frame = frame.reformat(width=self._stream.width, height=self._stream.height, format="yuv420p")
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = kind is None or issubclass(kind, (KeyboardInterrupt, BrokenPipeError))
        if finished and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if finished and self._stream is not None:
            self._stack.close()
        else:  # nothing that could be played: no file
            with contextlib.suppress(_NoPictures):
                failure = error or _NoPictures()
                self._stack.__exit__(type(failure), failure, trace)


class _NoPictures(Exception):
    pass


def check_video_name(path: Path) -> None:
    """Refuse a name that `VideoWriter` can't write to, before work is done.

    Raises:
        ValueError: saying which it can.
    """
    if path.suffix.lower() not in (".mp4", ".mkv", ".mov"):
        raise ValueError(f"output {path}: expected a video's name, ending in .mp4, .mkv or .mov")


def plot_timeline(
    path: str | Path,
    events: Sequence[Event],
    segments: Sequence[Segment],
    class_names: Sequence[str],
    *,
    duration_seconds: float,
    gaps: Sequence[tuple[float, float]] = (),
    title: str = "",
) -> None:
    """Draw what happens in a video: a row a class, its events as bars and its probability as a line.

    Args:
        path: of a PNG, or what else matplotlib writes by the ending.
        events: in the order of time.
        segments: probabilities over time, without overlap.
        class_names: of the model's outputs.
        duration_seconds: of the video.
        gaps: stretches in seconds that could not be read; drawn in grey.
        title: above the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    rows = _rows(events, segments)
    segments = _thinned(segments)
    figure = Figure(figsize=(12, 1.4 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for start, end in gaps:
        axes.axvspan(start, max(end, start + duration_seconds / 800), color="0.85", zorder=0)
    edges = [s.start_seconds for s in segments]
    for row, index in enumerate(rows):
        colour = f"C{row % 10}"
        bars = [(e.start_seconds, e.end_seconds - e.start_seconds) for e in events if e.index == index]
        axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour, alpha=0.35)
        if segments:
            # A gap between two segments breaks the line.
            times, values = [], []
            for i, segment in enumerate(segments):
                if i and segment.start_seconds > segments[i - 1].end_seconds:
                    times.append(segments[i - 1].end_seconds)
                    values.append(np.nan)
                times.append(edges[i])
                values.append(row + 0.4 - 0.8 * float(segment.probabilities[index]))
            times.append(segments[-1].end_seconds)
            values.append(values[-1])
            axes.step(times, values, where="post", color=colour, linewidth=1)
    axes.set_yticks(range(len(rows)), [in_figure(class_names[index][:40]) for index in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, max(duration_seconds, 1e-3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(max(0.0, seconds))))
    apart = next((s for s in _TICKS_SECONDS if duration_seconds / s <= 12), None)
    if apart is not None:
        axes.xaxis.set_major_locator(MultipleLocator(apart))
    axes.set_xlabel("time")
    hidden = len({e.index for e in events}) - len(rows)
    axes.set_title(in_figure(title) + (f"  ({hidden} more classes have events)" if hidden > 0 else ""))
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def clock(seconds: float) -> str:
    """Seconds as people read them: 1:02:03.4, or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02}.{tenths % 10}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def _rows(events: Sequence[Event], segments: Sequence[Segment]) -> list[int]:
    """The classes to draw: those of events, longest first; of a video without events the most probable ones."""
    total: dict[int, float] = {}
    for event in events:
        total[event.index] = total.get(event.index, 0.0) + event.end_seconds - event.start_seconds
    if not total and segments:
        mean = np.mean([s.probabilities for s in segments], axis=0, dtype=np.float32)
        return [int(i) for i in mean.argsort()[::-1][:5]]
    return sorted(total, key=lambda index: -total[index])[:_MOST_ROWS]


def _thinned(segments: Sequence[Segment]) -> Sequence[Segment]:
    """At most about `_MOST_STEPS` segments: the mean of neighbours that touch."""
    together = -(-len(segments) // _MOST_STEPS)
    if together <= 1:
        return segments
    thinned: list[Segment] = []
    group: list[Segment] = []
    for segment in segments:
        if group and (len(group) == together or segment.start_seconds > group[-1].end_seconds):
            thinned.append(_mean(group))
            group = []
        group.append(segment)
    return [*thinned, _mean(group)]


def _mean(group: Sequence[Segment]) -> Segment:
    values = np.stack([s.probabilities for s in group]).mean(0, dtype=np.float32)
    return Segment(group[0].start_seconds, group[-1].end_seconds, values)


def _font(points: int) -> Any:
    """matplotlib's own DejaVu Sans: it has most alphabets, and is there wherever we are."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), points)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """At most three lines; what doesn't fit is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_cut(line, font, width) for line in lines[:3]]


def _cut(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
