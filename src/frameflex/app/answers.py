"""From a file to an answer for many at once: decoded apart, recognised together, as ``predict`` would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from frameflex.app.batching import Batcher, Looked
from frameflex.app.decoding import DecodeClips, DecodingPool
from frameflex.data.transforms import EvalTransform
from frameflex.deploy.decoded import Decoded
from frameflex.deploy.recognizer import Prediction, Recognizer
from frameflex.engine.evaluation import clip_gflops
from frameflex.video import Limits

T = TypeVar("T")


@dataclass(frozen=True)
class UploadLimits:
    """What one who uploads a file may ask for.

    Attributes:
        max_bytes: of the file.
        max_video_seconds: of the video; None for any.
        max_pixels: of one frame.
        max_frames: T.
        timeout_seconds: for decoding.
    """

    max_bytes: int = 64 * 2**20
    max_video_seconds: float | None = 120.0
    max_pixels: int = 3840 * 2160
    max_frames: int = 64
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("max_video_seconds", "timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; expected more than 0")

    @property
    def of_video(self) -> Limits:
        """What the reader of the file holds it to."""
        return Limits(max_pixels=self.max_pixels, max_seconds=self.timeout_seconds)


class Answers:
    """A network, and the processes that decode for it.

    Args:
        recognizer: whose network answers.
        limits: of what is uploaded.
        num_processes: that decode.
        batch_size: clips through the network at once.
    """

    def __init__(
        self, recognizer: Recognizer, *, limits: UploadLimits, num_processes: int = 2, batch_size: int = 8
    ) -> None:
        self.recognizer, self.limits = recognizer, limits
        self.pool = DecodingPool(num_processes, timeout_seconds=limits.timeout_seconds)
        self.batcher = Batcher(recognizer, batch_size=batch_size)
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="decoding")
        self._gflops: dict[int, float | None] = {}

    @property
    def class_names(self) -> Sequence[str]:
        """One for each output of the network."""
        return self.recognizer.checkpoint.class_names

    def start(self) -> None:
        """Begin to start the processes that decode."""
        self.pool.start()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Wait for work in one of as many threads as there are processes that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def call(self, task: Any) -> Any:
        """What a task gives in a process that decodes; errors as in `DecodingPool.call`."""
        return await self.in_thread(lambda: self.pool.call(task))

    async def decode(
        self, path: Path, frame_counts: Sequence[int], *, views: str = "1x1", any_length: bool = False
    ) -> Decoded:
        """The frames that the network is shown at each of the counts.

        Raises:
            VideoError: if the file can't be decoded within the limits.
        """
        rule = self.recognizer.clip_rule(frame_counts[0], views)
        rule.frame_counts = tuple(frame_counts)
        seconds = None if any_length else self.limits.max_video_seconds
        decoded: Decoded = await self.call(DecodeClips(str(path), rule, self.limits.of_video, seconds))
        return decoded

    async def look(self, decoded: Decoded, num_frames: int) -> Looked:
        """What the network says at one count."""
        return await self.look_at(decoded.clip(num_frames, self.transform))

    async def look_at(self, clip: Tensor) -> Looked:
        """What the network says of a clip ``(V, 3, T, h, w)``."""
        return await asyncio.wrap_future(self.batcher.look(clip))

    async def do(self, work: Callable[[], T]) -> T:
        """Do something with the network while no clip goes through it."""
        result: T = await asyncio.wrap_future(self.batcher.do(work))
        return result

    async def gflops(self, clip: Tensor) -> float | None:
        """Billions of multiply-adds of the first view of a clip; None for an export, which can't be counted."""
        num_frames = clip.shape[2]
        if num_frames not in self._gflops:
            self._gflops[num_frames] = await self.do(lambda: self._count(clip[:1]))
        return self._gflops[num_frames]

    def _count(self, clip: Tensor) -> float | None:
        import torch

        with torch.inference_mode():
            counted = clip_gflops(self.recognizer.model, clip.to(self.recognizer.device))
        return counted or None

    @property
    def transform(self) -> EvalTransform:
        """How frames become clips."""
        return EvalTransform(self.recognizer.checkpoint.preprocessing)

    def best(self, probabilities: Tensor, top: int) -> list[Prediction]:
        """The ``top`` classes, best first."""
        return self.recognizer.best(probabilities, top)

    async def change(self, recognizer: Recognizer) -> None:
        """Take another network, between two batches."""

        def change() -> None:
            self.recognizer = self.batcher.recognizer = recognizer
            self._gflops.clear()

        await self.do(change)

    def close(self) -> None:
        """End threads and processes."""
        self.batcher.close()
        self.pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
