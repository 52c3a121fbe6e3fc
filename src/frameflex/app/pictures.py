"""Pictures for the page, as addresses that hold their own data."""

from __future__ import annotations

import base64
import io

import numpy as np

SIDE = 160  # pixels, of a picture in a strip


def jpeg_address(pixels: np.ndarray, *, side: int = SIDE, quality: int = 82) -> str:
    """A ``data:`` address of RGB uint8 ``(H, W, 3)``, at most ``side`` pixels wide and high."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side, side))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def strip(crops: np.ndarray) -> list[str]:
    """An address for each of the crops ``(N, 3, h, w)``."""
    return [jpeg_address(crop.transpose(1, 2, 0)) for crop in crops]
