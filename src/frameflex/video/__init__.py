"""Videos and streams into frames: knows nothing of clips or classes."""

from frameflex.video.images import FOLDER_FPS
from frameflex.video.opening import open_video
from frameflex.video.reader import (
    ADVICE,
    MAX_BYTES,
    MAX_FRAMES,
    MAX_PIXELS,
    Decoder,
    Limits,
    NoFrames,
    NoVideoStream,
    Source,
    VideoError,
    VideoReader,
)

__all__ = [
    "ADVICE",
    "FOLDER_FPS",
    "MAX_BYTES",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "Decoder",
    "Limits",
    "NoFrames",
    "NoVideoStream",
    "Source",
    "VideoError",
    "VideoReader",
    "open_video",
]
