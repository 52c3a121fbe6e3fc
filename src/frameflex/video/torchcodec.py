"""Frames by number through torchcodec, where it gives the same ones."""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from frameflex.video.orientation import UPRIGHT
from frameflex.video.pixels import can_be_transparent
from frameflex.video.pyav import PyAVReader
from frameflex.video.reader import (
    Limits,
    Source,
)

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


class TorchCodecReader(PyAVReader):
    """Decodes with torchcodec where the packets are in order, so that both back ends number frames alike.

    PyAV's scan still decides what exists, and PyAV reads what torchcodec would number or convert differently:
    streams without reliable timestamps or with signs of damage, more than 8 bits a colour, transparent pixels, and
    pictures that are shown turned or mirrored (versions of torchcodec differ in what they do with these).
    """

    def __init__(self, source: Source, limits: Limits, video_decoder: Any) -> None:
        self._video_decoder = video_decoder
        super().__init__(source, limits)
        self._torchcodec = self._open_torchcodec()

    def _open_torchcodec(self) -> Any | None:
        assert self._container is not None
        pixels = self._stream.codec_context.format
        if (
            self._pts is None
            or self._num_counts
            or self._limits.max_seconds is not None  # torchcodec can't be stopped
            or self.orientation != UPRIGHT
            or pixels is None
            or can_be_transparent(pixels.name)
            or any(c.bits != 8 for c in pixels.components)
        ):
            return None
        source = self._source
        if isinstance(source, io.BytesIO):
            source = source.getvalue()
        elif not isinstance(source, str):
            return None  # it would share the position in the file with PyAV
        try:
            decoder = self._video_decoder(source, stream_index=self._stream.index, dimension_order="NHWC")
        except (RuntimeError, ValueError) as error:
            logger.debug("video %s: torchcodec can't open it (%s); PyAV reads it", self.name, error)
            return None
        return decoder if len(decoder) == self.num_frames else None

    def _read(self, wanted: list[int]) -> np.ndarray:
        if self._torchcodec is not None and self._container is not None:
            order = sorted(set(wanted))
            try:
                data = self._torchcodec.get_frames_at(order).data.numpy()  # (N, H, W, 3)
            except (RuntimeError, IndexError) as error:
                logger.debug("video %s: torchcodec stopped (%s); PyAV reads it", self.name, error)
                self._torchcodec = None
            else:
                if data.shape[1:3] == (self.height, self.width):
                    return data if order == wanted else data[np.searchsorted(order, wanted)]
                self._torchcodec = None
        return super()._read(wanted)

    def close(self) -> None:
        self._torchcodec = None
        super().close()


@functools.cache
def load_torchcodec() -> tuple[Any | None, str]:
    """Return torchcodec's decoder class, or None and why it can't be had; a failing import is slow, so once."""
    if importlib.util.find_spec("torchcodec") is None:
        return None, "it is not installed"
    try:
        from torchcodec.decoders import VideoDecoder
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # RuntimeError: FFmpeg's shared libraries are missing
        return None, str(error).strip().split("\n")[0]
    return VideoDecoder, ""
