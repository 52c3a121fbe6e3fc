"""A folder of images as a video."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frameflex.video.orientation import UPRIGHT, Orientation
from frameflex.video.pixels import on_white
from frameflex.video.reader import (
    ADVICE,
    Limits,
    VideoError,
    VideoReader,
)

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

FOLDER_FPS = 12.0
"""Frame rate of a folder of images: Something-Something V1 was distributed as JPEGs at 12 fps."""

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class FolderReader(VideoReader):
    """A video stored as one image a frame."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.name = str(folder)
        self._limits = limits
        self._paths = sorted(
            (
                p
                for p in folder.iterdir()
                if p.suffix.lower() in _IMAGE_SUFFIXES and not p.name.startswith(".")
            ),
            key=_numerical_order,
        )
        self.num_frames = len(self._paths)
        if not self._paths:
            raise VideoError(
                f"video {folder}: no image in this folder; expected frames such as 00001.jpg. "
                "Give a video file or the folder of one video's frames."
            )
        self.fps = FOLDER_FPS
        self.height, self.width = self._decode(self._paths[0]).shape[:2]

    @property
    def timestamps(self) -> list[float]:
        return [i / self.fps for i in range(self.num_frames)]

    def close(self) -> None:
        """Nothing is open between two reads."""

    def _decode(self, path: Path) -> np.ndarray:
        from PIL.Image import DecompressionBombError
        from PIL.Image import open as open_image

        try:
            with open_image(path) as image:
                if image.width * image.height > self._limits.max_pixels:
                    raise VideoError(
                        f"video {self.name}: {path.name} has {image.width}x{image.height} pixels; expected at most "
                        f"{self._limits.max_pixels}."
                    )
                return _as_seen(image)
        except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
            raise VideoError(
                f"video {self.name}: {path.name} can't be decoded ({path.stat().st_size} bytes: {error}). {ADVICE}"
            ) from error

    def _read(self, wanted: list[int]) -> np.ndarray:
        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        for index in sorted(set(wanted)):
            self._check_clock()
            image = self._decode(self._paths[index])
            if image.shape[:2] != (self.height, self.width):
                raise VideoError(
                    f"video {self.name}: {self._paths[index].name} has {image.shape[1]}x{image.shape[0]} pixels, the "
                    f"first frame {self.width}x{self.height}; expected one size. Extract the frames again."
                )
            out[[slot for slot, i in enumerate(wanted) if i == index]] = image
        return out


# EXIF's tag of the camera's orientation, and what each value means.
_ORIENTATION = 0x0112
_ORIENTATIONS = {
    2: Orientation(False, True, False),
    3: Orientation(False, True, True),
    4: Orientation(False, False, True),
    5: Orientation(True, False, False),
    6: Orientation(True, True, False),
    7: Orientation(True, True, True),
    8: Orientation(True, False, True),
}


def _as_seen(image: Image) -> np.ndarray:
    """RGB ``(H, W, 3)`` of eight bits, upright, on white where it is transparent."""
    if image.mode.startswith("I"):  # grey of 16 bits, which `convert` would clip to 255
        values = np.asarray(image).astype(np.int64)
        grey = (values >> 8).clip(0, 255).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        pixels = np.repeat(grey[..., None], 3, 2)
    elif image.has_transparency_data:
        pixels = on_white(np.asarray(image.convert("RGBA")))
    else:
        pixels = np.asarray(image.convert("RGB"))
    return _orientation_of(image).apply(pixels)


def _orientation_of(image: Image) -> Orientation:
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION, 1), UPRIGHT)
    except (OSError, SyntaxError, ValueError) as error:
        logger.debug("damaged EXIF, which players pass over, too: %s", error)
        return UPRIGHT


def _numerical_order(path: Path) -> tuple[list[int], str]:
    """Sort 2.jpg before 10.jpg, whether or not numbers are padded."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name
