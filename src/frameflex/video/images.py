"""A folder of images as a video."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frameflex.video.reader import (
    ADVICE,
    Limits,
    VideoError,
    VideoReader,
)

if TYPE_CHECKING:
    pass

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
        from PIL import Image

        try:
            with Image.open(path) as image:
                if image.width * image.height > self._limits.max_pixels:
                    raise VideoError(
                        f"video {self.name}: {path.name} has {image.width}x{image.height} pixels; expected at most "
                        f"{self._limits.max_pixels}."
                    )
                return np.asarray(image.convert("RGB"))  # (H, W, 3)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(
                f"video {self.name}: {path.name} can't be decoded ({path.stat().st_size} bytes: {error}). {ADVICE}"
            ) from error

    def _read(self, wanted: list[int]) -> np.ndarray:
        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        for index in sorted(set(wanted)):
            image = self._decode(self._paths[index])
            if image.shape[:2] != (self.height, self.width):
                raise VideoError(
                    f"video {self.name}: {self._paths[index].name} has {image.shape[1]}x{image.shape[0]} pixels, the "
                    f"first frame {self.width}x{self.height}; expected one size. Extract the frames again."
                )
            out[[slot for slot, i in enumerate(wanted) if i == index]] = image
        return out


def _numerical_order(path: Path) -> tuple[list[int], str]:
    """Sort 2.jpg before 10.jpg, whether or not numbers are padded."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name
