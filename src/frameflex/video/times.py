"""Where a file's time starts, and where its pictures end: counted as players and FFmpeg do, from the file's start."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_STATE_END = {"matroska", "webm", "nut", "asf"}  # the length that these files state is the time of their end
_STATE_STREAMS = {
    "mov",
    "mp4",
    "avi",
    "mxf",
}  # elsewhere FFmpeg estimates a stream's length, or takes the file's


def first_frame_seconds(container: InputContainer, stream: VideoStream, pts: int | None) -> float:
    """Return how long after the file's start, which is that of its earliest stream, the first frame is shown.

    Args:
        container: with its streams.
        stream: the video's.
        pts: of the frame; None where it isn't known.
    """
    pts = stream.start_time if pts is None else pts
    if len(container.streams) == 1 or container.start_time is None or pts is None or not stream.time_base:
        return 0.0
    # The container's start is in whole microseconds: finer differences are none.
    return max(0.0, round(float(pts * stream.time_base) - container.start_time / av.time_base, 6))


def stated_end(container: InputContainer, stream: VideoStream) -> tuple[float | None, bool]:
    """Return when the file says that it ends, in seconds from its start, and whether that is of the pictures alone.

    The sound can last longer than the pictures, and does in many recordings.
    """
    start = (container.start_time or 0) / av.time_base
    formats = set(container.format.name.split(","))
    whole = container.duration / av.time_base if container.duration and container.duration > 0 else None
    if whole is not None and formats & _STATE_END:
        whole = whole - max(0.0, start) if whole > start else None
    own = None
    if formats & _STATE_STREAMS and stream.duration and stream.time_base:
        first = float((stream.start_time or 0) * stream.time_base)
        own = first - start + float(stream.duration * stream.time_base)
    elif formats & _STATE_END:
        tags = [value for key, value in stream.metadata.items() if key.upper().startswith("DURATION")]
        if match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tags[0] if tags else ""):
            hours, minutes, seconds = match.groups()
            own = 3600 * int(hours) + 60 * int(minutes) + float(seconds) - max(0.0, start)
    if own is None or own <= 0:
        return whole, len(container.streams) == 1
    return (own if whole is None else min(own, whole)), True
