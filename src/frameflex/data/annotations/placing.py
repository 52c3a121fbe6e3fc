"""From marks to segments: which video each is of, and when it starts and ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from frameflex.data.annotations.annotation import Mark, Segment
from frameflex.data.annotations.timeline import Timeline, Timelines
from frameflex.data.annotations.videos import FolderOfVideos, ListedVideos, find_all
from frameflex.data.layouts.layout import one_form

_NO_LABEL = "-1"  # of a list, where it stands for none


def place(
    marks: Sequence[tuple[Mark, Path]],
    videos: FolderOfVideos | ListedVideos,
    timelines: Timelines,
    *,
    fps: float | None = None,
) -> tuple[list[Segment], Counter[str]]:
    """Give marks their videos and times.

    Args:
        marks: each with the file that it is in.
        videos: where the videos are.
        timelines: of the videos.
        fps: ticks a second of tools that count frames without decoding them; None for what the file or video says.

    Returns:
        the segments, and how many marks were cut or left out, by what was wrong with them.

    Raises:
        ValueError: listing all videos that are not found, or all marks that start after their video's end; or at a
            rate of frames that is not the video's.
        VideoError: if a video can't be read.
    """
    if fps is not None and all(mark.unit != "ticks" for mark, _ in marks):
        raise ValueError(
            f"--fps is {fps:g}, but the annotations count times or decoded frames; expected no --fps"
        )
    paths = find_all(videos, [(mark.video, source) for mark, source in marks])
    segments: list[Segment] = []
    notes: Counter[str] = Counter()
    late: list[str] = []
    for mark, source in marks:
        path = paths[mark.video, source]
        timeline = timelines[path]
        label = one_form(" ".join(mark.label.split()))
        if not label:
            notes["without a label left out"] += 1
            continue
        if label == _NO_LABEL:
            raise ValueError(
                f"{mark.where}: the label is '-1', which stands for no label in a list; rename it"
            )
        _check_rate(mark, timeline, fps)
        _check_order(mark)
        times = _times_of(mark, timeline, fps)
        if times is None:
            late.append(f"{mark.where}: {label!r} of {videos.name(path)}, {timeline.end_seconds:.3f} s long")
            continue
        start, end, was_cut = times
        if end <= start:
            notes["without a length left out"] += 1
            continue
        if mark.unit == "ticks" and not (fps or mark.rate or mark.counted):
            notes[
                "placed at the video's frame rate, since the task says none; if another one was set, give --fps"
            ] += 1
        notes["that went past the end of the video cut there"] += was_cut
        segments.append(Segment(path, videos.name(path), label, start, end))
    if late:
        listed = "; ".join(late[:10]) + ("; ..." if len(late) > 10 else "")
        advice = "They are of another video, or the tool counted with another rate"
        if any(mark.unit == "ticks" for mark, _ in marks):
            advice += ": give that rate as --fps"
        raise ValueError(f"{len(late)} annotations start after the end of the video: {listed}. {advice}")
    return segments, +notes


def _check_order(mark: Mark) -> None:
    if mark.start < 0 or (mark.end is not None and mark.end < mark.start):
        raise ValueError(
            f"{mark.where}: it goes from {mark.start:g} to {'the end' if mark.end is None else f'{mark.end:g}'}; "
            "expected a start of 0 or more and an end after it"
        )


def _check_rate(mark: Mark, timeline: Timeline, fps: float | None) -> None:
    """Refuse numbers of frames that are not the video's."""
    if mark.counted is None:
        return
    count, seconds = mark.counted
    if mark.unit == "frames":
        if abs(count - timeline.num_frames) > max(1.5, 0.02 * timeline.num_frames):  # a few may be broken
            raise ValueError(
                f"{mark.where}: the tool counted {count:g} frames, and the video has {timeline.num_frames}; expected "
                "the same video. Compute its metadata again"
            )
        return
    rate = fps or mark.rate or timeline.rate
    if abs(count - rate * seconds) > 1.5:  # tools round the count up or down
        of = "--fps is" if fps else "the task says" if mark.rate else "the video has"
        counted = f"{count / seconds:.6g}"
        raise ValueError(
            f"{mark.where}: the tool counted {count:g} frames in {seconds:g} s, {counted} a second, but {of} "
            f"{rate:.6g}. Give --fps {counted}"
        )


def _times_of(mark: Mark, timeline: Timeline, fps: float | None) -> tuple[float, float, bool] | None:
    """Start, end, and whether it was cut at the video's end; None where it starts after that."""
    if mark.unit == "seconds":
        over = timeline.end_seconds
        if mark.start >= over:
            return None
        end = over if mark.end is None else mark.end
        start, end = timeline.snap(mark.start), timeline.snap(end)
        return start, min(end, over), end > over + 1 / timeline.fps  # less than a frame is rounding
    last = timeline.num_frames - 1
    if mark.unit == "frames":
        if mark.start > last:
            return None
        end_frame = last if mark.end is None else int(mark.end)
        return *timeline.seconds(int(mark.start), min(end_frame, last)), end_frame > last
    rate = fps or mark.rate or timeline.rate
    if mark.start / rate >= timeline.end_seconds:
        return None
    end_tick = timeline.end_seconds * rate if mark.end is None else mark.end
    cut = end_tick / rate > timeline.end_seconds + 1 / rate
    return *timeline.seconds(*timeline.frames_between(mark.start, end_tick, rate)), cut
