"""The room Live of the page: a webcam of the browser, or a source that was given at the start, as it happens."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from frameflex.app.answers import Answers
from frameflex.app.decoding import DecodePicture
from frameflex.app.pictures import jpeg_address
from frameflex.app.talking import Handler, Talk, number_of, whole_number_of
from frameflex.deploy.live.sources import LiveSource, Notice
from frameflex.deploy.live.streaming import StreamingRecognizer, StreamPrediction
from frameflex.deploy.recognizer import best_of
from frameflex.video import VideoError

_TOP = 5
_SECONDS = struct.Struct("<d")  # before each picture: when it was taken
_MAX_GAP_SECONDS = 3.0
_SHOWN_SIDE = 480  # pixels, of a source's picture on the page


class Watching:
    """What one tab watches.

    Args:
        talk: with the tab.
        answers: those of the network of now.
        sources: that were given at the start; no tab can name another.
    """

    def __init__(self, talk: Talk, answers: Callable[[], Answers], sources: Sequence[str]) -> None:
        self._talk, self._answers, self._sources = talk, answers, sources
        self._work: asyncio.Task[None] | None = None
        self._newest: bytes | None = None
        self._came = asyncio.Event()

    def handlers(self) -> dict[str, Handler]:
        """By the type of message."""
        return {"start": self.start, "stop": self.stop}

    def add_bytes(self, data: bytes) -> None:
        """A picture of the tab's camera; one that nobody took yet makes place for it."""
        self._newest = data
        self._came.set()

    def close(self) -> None:
        """The tab is gone."""
        if self._work is not None:
            self._work.cancel()

    async def stop(self, message: dict[str, Any]) -> None:
        """Watch no more; the event that goes on ends."""
        if self._work is not None:
            self._work.cancel()
            self._work = None

    async def start(self, message: dict[str, Any]) -> None:
        """Watch afresh."""
        await self.stop(message)
        source = None
        if message.get("source") is not None:
            source = self._sources[whole_number_of(message, "source", 0, len(self._sources) - 1)]
        recognizer = await self._recognizer(message)
        self._newest = None
        self._came.clear()
        work = self._watch(recognizer) if source is None else self._follow(source, message, recognizer)
        self._work = self._talk.begin(work, message)
        causal = recognizer.step is not None
        await self._talk.send(
            {"type": "started", "causal": causal, "window": recognizer.window, "hop": recognizer.hop}
        )

    async def _recognizer(self, message: dict[str, Any]) -> StreamingRecognizer:
        answers = self._answers()
        checkpoint = answers.recognizer.checkpoint
        causal = shift_of(answers) == "causal"
        window = whole_number_of(message, "frames", 1, answers.limits.max_frames)
        nothing = message.get("nothing")
        if nothing is not None and nothing not in checkpoint.class_names:
            raise ValueError(f"nothing is {nothing!r}, which is no class")
        threshold = number_of(message, "threshold", 0.01, 1)
        return await answers.do(
            lambda: StreamingRecognizer(
                checkpoint,
                stride=1,  # the tab, or the source, chooses the pictures
                num_frames=window if causal else None,
                window=None if causal else window,
                hop=1 if causal else max(1, window // 4),
                max_gap_seconds=_MAX_GAP_SECONDS,
                threshold=threshold,
                min_seconds=number_of(message, "min_seconds", 0, 60),
                nothing=nothing,
                device=answers.recognizer.device,
                precision=answers.recognizer.precision,
            )
        )

    # Pictures of the tab

    async def _watch(self, recognizer: StreamingRecognizer) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            data, self._newest = self._newest, None
            if data is None or len(data) <= _SECONDS.size:
                continue
            [seconds] = _SECONDS.unpack_from(data)
            start = time.perf_counter()
            try:
                picture = await self._answers().call(DecodePicture(data[_SECONDS.size :]))
            except VideoError as error:
                await self._talk.send({"type": "error", "about": "live", "text": str(error)})
                continue
            said = await self._push(recognizer, picture, seconds)
            said["server_milliseconds"] = 1000 * (time.perf_counter() - start)
            await self._talk.send(said)

    async def _push(
        self, recognizer: StreamingRecognizer, picture: np.ndarray | Tensor, seconds: float
    ) -> dict[str, Any]:
        answers = self._answers()
        names = recognizer.checkpoint.class_names  # the page may have another network by now

        def push() -> tuple[StreamPrediction | None, float]:
            start = time.perf_counter()
            prediction = recognizer.push(picture, seconds)
            return prediction, 1000 * (time.perf_counter() - start)

        prediction, milliseconds = await answers.do(push)
        said: dict[str, Any] = {"type": "seen", "seconds": seconds}
        if prediction is None:
            return said
        event = prediction.event
        return {
            **said,
            "predictions": [vars(one) for one in best_of(prediction.probabilities, names, _TOP)],
            "event": None if event is None else asdict(event),
            "ended": [asdict(one) for one in prediction.ended],
            "num_seen": prediction.num_seen,
            "reset": prediction.reset,
            "network_milliseconds": milliseconds,
        }

    # A source of this machine

    async def _follow(self, name: str, message: dict[str, Any], recognizer: StreamingRecognizer) -> None:
        rate = number_of(message, "rate", 0.1, 60)
        source = LiveSource(name, rate=rate)
        wake = threading.Event()
        source.start(wake)
        try:
            await self._take(source, wake, recognizer)
            ended = [asdict(event) for event in recognizer.reset()]
            await self._talk.send({"type": "source-ended", "ended": ended, "failed": source.failed})
        finally:
            # It may wait for a device that hangs, and others talk meanwhile.
            threading.Thread(target=source.stop, daemon=True).start()

    async def _take(self, source: LiveSource, wake: threading.Event, recognizer: StreamingRecognizer) -> None:
        while not (source.ended and not source.waiting):
            await asyncio.to_thread(wake.wait, 0.1)
            wake.clear()
            for item in source.poll():
                if isinstance(item, Notice):
                    ended = [asdict(event) for event in recognizer.reset()] if item.stale else []
                    await self._talk.send({"type": "notice", "text": item.text, "ended": ended})
                    continue
                start = time.perf_counter()
                picture = await asyncio.to_thread(item.read)
                said = await self._push(recognizer, picture, item.seconds)
                said["server_milliseconds"] = 1000 * (time.perf_counter() - start)
                said["picture"] = await asyncio.to_thread(_address, picture)
                await self._talk.send(said)


def _address(picture: Tensor) -> str:
    return jpeg_address(picture.permute(1, 2, 0).numpy(), side=_SHOWN_SIDE)


def shift_of(answers: Answers) -> str:
    """Of the network; an export doesn't say, and looks at windows."""
    config = getattr(answers.recognizer.model, "config", {})
    return str(config.get("shift", "bidirectional"))
