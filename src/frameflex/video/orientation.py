"""Which way round pictures are shown: the display matrix that phones write into a file, as FFmpeg applies it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay down a picture: rows and columns change places first, then it is flipped.

    Attributes:
        transposed: what is stored as rows is shown as columns.
        flipped_x: left and right change places.
        flipped_y: top and bottom change places.
    """

    transposed: bool = False
    flipped_x: bool = False
    flipped_y: bool = False

    @property
    def is_mirrored(self) -> bool:
        """Whether no turning of the stored picture gives the shown one."""
        return self.transposed ^ self.flipped_x ^ self.flipped_y

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Shown (height, width) of a stored one, and the other way round."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turn a stored picture ``(H, W, 3)`` to how it is shown; a view."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1]


UPRIGHT = Orientation()

_MOST_KINDS = 64  # of side data; FFmpeg 8 has 32


def orientation_of(frame: VideoFrame) -> Orientation:
    """Return how a decoded frame is to be shown; rotations are rounded to a quarter turn."""
    beside = _side_data(frame)
    if Type.DISPLAYMATRIX not in beside:
        return UPRIGHT
    # Fixed-point numbers: a stored (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = struct.unpack_from("=5i", bytes(beside[Type.DISPLAYMATRIX]))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def _side_data(frame: VideoFrame) -> Any:  # PyAV's stubs call it a dict of strings
    try:
        return frame.side_data
    except ValueError:
        # PyAV 18 refuses all of it where one kind has no name in its list, such as FFmpeg 8's EXIF of a JPEG.
        known = {kind.value for kind in Type}
        graph = Graph()
        first = last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
        )
        for kind in set(range(_MOST_KINDS)) - known:
            step = graph.add("sidedata", f"mode=delete:type={kind}")
            last.link_to(step)
            last = step
        end = graph.add("buffersink")
        last.link_to(end)
        graph.configure()
        first.push(frame)
        return graph.vpull().side_data
