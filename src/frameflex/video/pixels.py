"""Pixels of any kind to RGB of eight bits, as they are seen: what is transparent lies on white."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import av.error
import numpy as np
from av.video.format import VideoFormat

from frameflex.video.reader import VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter


def rgb_of(
    frame: VideoFrame, reformatter: VideoReformatter, *, height: int, width: int, name: str
) -> np.ndarray:
    """Convert a decoded frame, as stored, to RGB uint8 ``(H, W, 3)``; it holds until the next one is converted.

    Args:
        frame: as decoded.
        reformatter: one for all frames keeps its scaling tables; ``frame.to_ndarray()`` builds them anew for each.
        height: to scale to.
        width: to scale to.
        name: of the video, for messages.

    Raises:
        VideoError: if the pixel format can't be converted.
    """
    kind, depth = ("rgba", 4) if can_be_transparent(frame.format.name) else ("rgb24", 3)
    try:
        converted = reformatter.reformat(frame, width=width, height=height, format=kind)
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(
            f"video {name}: pixels of format {frame.format.name} can't be converted to RGB ({error}). "
            "Convert it with `ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4`."
        ) from error
    plane = converted.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
    image = rows[:, : depth * width].reshape(height, width, depth)
    return image if depth == 3 else on_white(image)


@functools.cache
def can_be_transparent(pixel_format: str) -> bool:
    """Whether pixels of FFmpeg's format of that name have an opacity."""
    known = VideoFormat(pixel_format)
    return known.has_palette or any(component.is_alpha for component in known.components)


def on_white(image: np.ndarray) -> np.ndarray:
    """Lay a picture ``(H, W, 4)`` on white, as a browser shows it on a page: ``(H, W, 3)``."""
    colours, opacity = image[..., :3], image[..., 3:].astype(np.uint16)
    if (opacity == 255).all():
        return colours
    return ((colours * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
