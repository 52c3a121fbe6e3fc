"""What every reader of a video gives, and what a video may ask for: the contract."""

from __future__ import annotations

import logging
import math
import os
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import torch

from frameflex.addresses import without_secrets
from frameflex.arguments import finite_number, shown, whole, whole_or_none
from frameflex.printable import printable
from frameflex.video.orientation import UPRIGHT, Orientation

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | bytes | BinaryIO

Decoder = Literal["auto", "pyav", "torchcodec"]

MAX_PIXELS = 8192 * 4320
"""Largest frame that is decoded: DCI 8K. A hostile header can claim more than a machine's memory."""

MAX_FRAMES = 2**20
"""Most frames that a video may have: ten hours at 29 fps."""

MAX_BYTES = 2**30

CHUNK_BYTES = 2**26  # of whole frames at once, where something smaller is made of them
"""Most bytes of pixels that one reading gives: 43 frames of 3840 x 2160."""

ADVICE = "Download it again, or list it with `frameflex data check`."


@dataclass(frozen=True)
class Limits:
    """How much a video may ask for, since a header can claim anything and little data can decode to much.

    Attributes:
        max_pixels: of one frame.
        max_frames: of the video.
        max_bytes: of the pixels that one call of `VideoReader.frames` or `sample` holds at once; iteration holds one
            frame, and with `each` no more than `CHUNK_BYTES` and one frame are held.
        max_seconds: that opening, or one reading, may take; looked at after each packet. None for no limit: to count
            the frames of a recording of hours can take minutes.
    """

    max_pixels: int = MAX_PIXELS
    max_frames: int = MAX_FRAMES
    max_bytes: int = MAX_BYTES
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_frames", "max_bytes"):
            whole(getattr(self, name), name, least=1)
        if self.max_seconds is not None:
            finite_number(
                self.max_seconds, "max_seconds", "above 0, or None for no limit", least=math.ulp(0.0)
            )


class VideoError(Exception):
    """A video that can't be read; the message names it and says what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(without_secrets(message)))


class NoVideoStream(VideoError):
    """A file of sound, text or something else without pictures."""


class NoFrames(VideoError):
    """A video of which no frame can be decoded."""


def too_slow(name: str, limits: Limits) -> VideoError:
    """The error of a video that takes longer than its limit."""
    return VideoError(
        f"video {name}: not decoded after {limits.max_seconds:g} s. Cut it or scale it down, or allow more time."
    )


def _checked_indices(indices: Iterable[int]) -> list[int]:
    expected = "expected frame numbers, such as [0, 8] or range(8)"
    if isinstance(indices, (str, bytes)) or not isinstance(indices, Iterable):
        raise TypeError(f"indices is {shown(indices)}; {expected}.")
    given = list(indices)
    wanted = [whole_or_none(one) for one in given]
    if None in wanted:
        raise TypeError(f"indices holds {shown(given[wanted.index(None)])}; {expected}.")
    return [one for one in wanted if one is not None]


class VideoReader(ABC):
    """Frames of one video by index. Made by `open_video`; one thread at a time may use a reader.

    Attributes:
        name: What error messages call the video.
        num_frames: How many frames decode.
        fps: Frames a second on average.
        height: Pixels, as shown.
        width: Pixels, as shown.
        orientation: How stored frames are turned and mirrored to those that are given.
        pixel_aspect: Width of a shown pixel over its height, as the file says; frames are not stretched by it.
    """

    name: str
    num_frames: int
    fps: float
    height: int
    width: int
    orientation: Orientation = UPRIGHT
    pixel_aspect: float = 1.0
    _limits: Limits
    _deadline: float | None = None  # on the monotonic clock

    def frames(
        self, indices: Sequence[int], *, each: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Decode the frames at some indices, each once.

        Args:
            indices: Frame numbers from 0 to `num_frames - 1`, in any order, repeats allowed.
            each: What to make of frames as they are decoded, from some `(n, 3, H, W)` to `(n, ...)`, such as smaller
                ones. Then no more than `CHUNK_BYTES` of whole frames are held at once, and at least one.

        Returns:
            RGB, uint8 `(len(indices), 3, H, W)`, in the order of `indices`, or what `each` made of them. The memory
            is laid out channels last.

        Raises:
            IndexError: If an index is outside of the video.
            TypeError: If they are no whole numbers.
            VideoError: If a frame can't be decoded, or all together are more than the reader's limits allow.
        """
        wanted = _checked_indices(indices)
        outside = [i for i in wanted if not 0 <= i < self.num_frames]
        if outside:
            raise IndexError(
                f"video {self.name}: index {outside[0]} is outside of its {self.num_frames} frames; "
                f"expected 0 to {self.num_frames - 1}."
            )
        if not wanted:
            return torch.empty(0, 3, self.height, self.width, dtype=torch.uint8)
        if each is not None:
            return self._in_chunks(wanted, each)
        self._start_the_clock()
        return self._within_limits(wanted)

    def _within_limits(self, wanted: list[int]) -> torch.Tensor:
        num_bytes = len(wanted) * 3 * self.height * self.width
        if num_bytes > self._limits.max_bytes:
            raise VideoError(
                f"video {self.name}: {len(wanted)} frames of {self.width}x{self.height} take {num_bytes >> 20} MiB; "
                f"expected at most {self._limits.max_bytes >> 20} MiB at once. Ask for fewer frames, scale the video "
                "down with `ffmpeg -i INPUT -vf scale=-2:1080 OUTPUT.mp4`, or open it with other Limits."
            )
        return torch.from_numpy(self._read(wanted)).permute(0, 3, 1, 2)  # (N, 3, H, W)

    def _in_chunks(self, wanted: list[int], each: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        self._start_the_clock()
        order = sorted(set(wanted))
        size = max(CHUNK_BYTES // (3 * self.height * self.width), 1)
        made = torch.cat([each(self._within_limits(order[i : i + size])) for i in range(0, len(order), size)])
        return made if order == wanted else made[[bisect_left(order, index) for index in wanted]]

    def sample(
        self,
        choose: Callable[[int], Sequence[int]],
        *,
        each: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Decode the frames that a rule chooses from the number of frames.

        `num_frames` can turn out to be smaller while decoding. `choose` is then asked again, once, with the count
        that holds, so that no caller acts on a wrong one.

        Args:
            choose: From the number of frames to frame indices, as for `frames`.
            each: As for `frames`.

        Returns:
            RGB, uint8 `(N, 3, H, W)`, or what `each` made of them.

        Raises:
            IndexError: If `choose` names a frame outside of the video.
            VideoError: If a frame can't be decoded.
        """
        promised = self.num_frames
        try:
            frames = self.frames(choose(promised), each=each)
            if self.num_frames == promised:
                return frames
        except VideoError:
            if self.num_frames == promised:
                raise
        return self.frames(choose(self.num_frames), each=each)

    def _start_the_clock(self) -> None:
        limit = self._limits.max_seconds
        self._deadline = None if limit is None else time.monotonic() + limit

    def _check_clock(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise too_slow(self.name, self._limits)

    @property
    @abstractmethod
    def timestamps(self) -> list[float]:
        """Seconds from the file's start to each frame, `num_frames` values; uneven where the rate varies.

        As players and FFmpeg count: the first frame is at 0 unless the file has another stream, such as sound, that
        starts earlier.
        """

    @property
    def duration(self) -> float:
        """Seconds from the file's start to the end of the last frame."""
        return self.timestamps[-1] + 1 / self.fps

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield every frame in order, uint8 `(3, H, W)`, holding one at a time."""
        index = 0
        while index < self.num_frames:
            try:
                frame = self.frames([index])[0]
            except VideoError:
                if index < self.num_frames:
                    raise
                return  # the count was corrected to the frames that have been given
            yield frame
            index += 1

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.num_frames} frames of {self.height}x{self.width} at {self.fps:.3g} fps"
        return f"{type(self).__name__}({self.name!r}, {size})"

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. A file object that was passed in stays open."""

    @abstractmethod
    def _read(self, wanted: list[int]) -> np.ndarray:
        """Return the frames as uint8 `(N, H, W, 3)`; every index is within `num_frames`."""
