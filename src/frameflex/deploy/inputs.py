"""What a caller may hand over as a video: files, addresses, and pictures that are in memory already."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from frameflex.video import Limits, Source, VideoError, VideoReader, open_video

if TYPE_CHECKING:
    from PIL import Image

    # A list of pictures is one video.
    Video: TypeAlias = Source | np.ndarray | torch.Tensor | Sequence[Image.Image]

FPS = 12.0  # of pictures without times; which ones are looked at doesn't depend on it
_MIN_SIDE = 8  # pixels: an axis of 3 that is longer than nothing else is the colours
_TIMEOUT_SECONDS = 60.0
_MODES = {"RGB", "L", "1", "P", "CMYK", "YCbCr"}  # that Pillow turns into RGB without a guess
_HINT = "Give RGB uint8 (T, H, W, 3) or (T, 3, H, W), not normalised: the checkpoint knows how"


def is_many(video: Any) -> bool:
    """Whether it is a list of videos, rather than one; a list of pictures is one."""
    return isinstance(video, (list, tuple)) and not (video and _is_picture(video[0]))


def _is_picture(item: Any) -> bool:
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim < 4
    return hasattr(item, "getexif")  # a picture of Pillow, without importing it


def open_input(video: Any, *, limits: Limits | None = None) -> AbstractContextManager[VideoReader]:
    """Open whatever one video is given as.

    Args:
        video: a path, the bytes of a file, a binary file object, an address (``http://``, ``https://``, ``s3://``),
            an array or tensor of frames, a list of pictures (Pillow's, or arrays ``(H, W, 3)``).
        limits: as for `open_video`.

    Raises:
        ValueError: if an array's layout or range can't be told.
        TypeError: if it is nothing of these.
        VideoError, FileNotFoundError: as for `open_video`.
    """
    if isinstance(video, (np.ndarray, torch.Tensor)):
        return _Pictures(_as_frames(video))
    if isinstance(video, (list, tuple)):
        return _Pictures(_stacked(video))
    if isinstance(video, VideoReader):
        raise TypeError(
            f"video is an open {type(video).__name__}; expected what it was opened from, or its frames: "
            "reader.frames(range(reader.num_frames))"
        )
    if isinstance(video, str) and video.partition("://")[0].lower() in ("http", "https"):
        return _FromWeb(video, limits or Limits())
    if video is None or not (
        isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(video, "read")
    ):
        raise TypeError(
            f"video is {type(video).__name__}; expected a path, bytes, a file object, an address, an array or tensor "
            "of frames, or a list of pictures"
        )
    return open_video(video, limits=limits)


class _Pictures(VideoReader):
    """Frames ``(T, H, W, 3)`` in memory."""

    def __init__(self, frames: np.ndarray) -> None:
        self.name = f"array of {len(frames)} frames"
        self._frames = frames
        self._limits = Limits()
        self.num_frames, self.height, self.width = frames.shape[:3]
        self.fps = FPS

    @property
    def timestamps(self) -> list[float]:
        return [i / self.fps for i in range(self.num_frames)]

    def close(self) -> None:
        """Nothing is open."""

    def _read(self, wanted: list[int]) -> np.ndarray:
        return self._frames[wanted]  # a copy


class _FromWeb(AbstractContextManager[VideoReader]):
    """A video that is downloaded for as long as it is open."""

    def __init__(self, address: str, limits: Limits) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="frameflex-")
        path = Path(self._folder.name) / "video"
        request = urllib.request.Request(address, headers={"User-Agent": "frameflex"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                if response.headers.get_content_type() == "text/html":
                    raise VideoError(
                        f"video {address}: it is a web page; expected the address of the file itself"
                    )
                with open(path, "wb") as file:
                    shutil.copyfileobj(response, file)
            self._reader = open_video(path, limits=limits)
        except VideoError as error:
            self._folder.cleanup()
            raise VideoError(str(error).replace(str(path), address)) from error
        except OSError as error:  # urllib's errors are of this kind
            self._folder.cleanup()
            raise VideoError(
                f"video {address}: it can't be downloaded ({error}). Check the address"
            ) from error
        self._reader.name = address

    def __enter__(self) -> VideoReader:
        return self._reader

    def __exit__(self, *error: object) -> None:
        self._reader.close()
        self._folder.cleanup()


def _stacked(pictures: Sequence[Any]) -> np.ndarray:
    """Frames ``(T, H, W, 3)`` of a list of pictures."""
    if not pictures:
        raise ValueError("video is an empty list; expected pictures")
    arrays = [_as_picture(picture, number) for number, picture in enumerate(pictures)]
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        raise ValueError(
            f"the pictures of a video have shapes {', '.join(map(str, sorted(sizes)))}; expected one"
        )
    return _as_frames(np.stack(arrays))


def _as_picture(picture: Any, number: int) -> np.ndarray:
    if isinstance(picture, torch.Tensor):
        return _to_numpy(picture)
    if isinstance(picture, np.ndarray):
        return picture
    if not _is_picture(picture):
        raise TypeError(
            f"picture {number} of the list is {type(picture).__name__}; expected pictures throughout"
        )
    from PIL import ImageOps

    if picture.mode not in _MODES or "transparency" in picture.info:
        raise ValueError(
            f"picture {number} of the list has mode {picture.mode}{' and transparency' * (picture.mode in _MODES)}; "
            "expected RGB. Convert it as you mean it"
        )
    return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = (
            "on the meta device, without data"
            if tensor.is_meta
            else str(tensor.layout).removeprefix("torch.")
        )
        raise ValueError(f"video is a tensor that is {kind}; expected an ordinary one. {_HINT}")
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def _as_frames(video: np.ndarray | torch.Tensor) -> np.ndarray:
    """Frames uint8 ``(T, H, W, 3)`` of an array whose layout and range can be told."""
    array = _to_numpy(video) if isinstance(video, torch.Tensor) else video
    if array.ndim == 5:
        raise ValueError(
            f"video has shape {array.shape}; expected one video of 4 axes. For several, give list(array)"
        )
    if array.ndim != 4:
        raise ValueError(
            f"video has shape {array.shape}; expected 4 axes: frames, height, width, colours. {_HINT}"
        )
    axes = {"T, H, W, 3": (0, 1, 2, 3), "T, 3, H, W": (0, 2, 3, 1), "3, T, H, W": (1, 2, 3, 0)}
    fitting = {
        name: order
        for name, order in axes.items()
        if array.shape[order[3]] == 3 and min(array.shape[order[1]], array.shape[order[2]]) >= _MIN_SIDE
    }
    if len(fitting) != 1:
        reason = f"it may be ({') or ('.join(fitting)})" if fitting else "no axis is of 3 colours"
        raise ValueError(f"video has shape {array.shape}: {reason}. {_HINT}")
    (order,) = fitting.values()
    frames = array.transpose(order)
    if not len(frames):
        raise ValueError(f"video has shape {array.shape}: no frames")
    return np.ascontiguousarray(_as_bytes(frames))


def _as_bytes(frames: np.ndarray) -> np.ndarray:
    """Values of 0 to 255, or of 0 to 1, as uint8; others are refused."""
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind not in "iuf":
        raise ValueError(
            f"video has dtype {frames.dtype}; expected uint8, or numbers of 0 to 255 or 0 to 1. {_HINT}"
        )
    low, high = float(frames.min()), float(frames.max())
    if not np.isfinite(low + high):
        raise ValueError(f"video has values that are NaN or infinite. {_HINT}")
    if low < 0 or high > 255:
        raise ValueError(
            f"video has values from {low:.4g} to {high:.4g}; expected 0 to 255 or 0 to 1: normalised, or with more "
            f"than 8 bits? {_HINT}"
        )
    if frames.dtype.kind == "f" and 0 < high <= 1 and not np.array_equal(frames, np.round(frames)):
        return np.rint(frames * 255).astype(np.uint8)
    if high == 0 or high > 16:
        return np.rint(frames).astype(np.uint8)
    raise ValueError(
        f"video has {frames.dtype} values up to {high:.4g}: dark ones of 0 to 255, or bright ones of 0 to 1? {_HINT}"
    )
