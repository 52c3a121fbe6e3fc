"""The rooms Try and Why of the page: a video, what the network says of it at any T, and when in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from frameflex.app.answers import Answers
from frameflex.app.decoding import Ended, NextWindow, OpenWindows, answer_of
from frameflex.app.explaining import explain
from frameflex.app.pictures import strip
from frameflex.app.talking import Handler, Talk, number_of, whole_number_of
from frameflex.app.uploads import Receiver, Upload
from frameflex.deploy.decoded import Decoded
from frameflex.deploy.long_videos.events import EventDetector, Segment, detect_events, merge_windows
from frameflex.deploy.recognizer import Recognizer
from frameflex.video import Limits

TOP = 5
_CURVES = 4  # classes, of the curve over T
_FIRST_COUNTS = (1, 2, 4, 8, 16, 32)  # of the curve; the others follow
_SHORT_SECONDS = 30.0  # of a longer video not all frames are decoded that any T takes


@dataclass
class _Video:
    """The one that a tab looks at."""

    number: int
    upload: Upload
    network: Recognizer | None = None  # whose rule chose the frames
    decoded: list[Decoded] = field(default_factory=list)


class Trying:
    """What one tab tries.

    Args:
        talk: with the tab.
        answers: those of the network of now.
        receiver: of the tab's files.
    """

    def __init__(self, talk: Talk, answers: Callable[[], Answers], receiver: Receiver) -> None:
        self._talk, self._answers, self._receiver = talk, answers, receiver
        self._video: _Video | None = None
        self._following: list[asyncio.Task[None]] = []
        self._explaining: asyncio.Task[None] | None = None
        self._stop = threading.Event()

    def handlers(self) -> dict[str, Handler]:
        """By the type of message."""
        return {
            "uploaded": self.end_upload,
            "look": self.look,
            "curve": self.curve,
            "timeline": self.timeline,
            "explain": self.explain,
        }

    def close(self) -> None:
        """The tab is gone."""
        self._forget()

    # A file

    async def end_upload(self, message: dict[str, Any]) -> None:
        """The file is whole: answer at the usual T."""
        self._forget()
        upload = self._receiver.end()
        self._video = _Video(whole_number_of(message, "video", 0, 2**31), upload)
        await self.look({**message, "frames": message.get("frames") or self._usual()})

    def _usual(self) -> int:
        answers = self._answers()
        return min(answers.recognizer.checkpoint.num_frames, answers.limits.max_frames)

    def _forget(self) -> None:
        for task in self._following:
            task.cancel()
        self._following.clear()
        self._stop.set()
        self._stop = threading.Event()
        if self._video is not None:
            self._video.upload.delete()
            self._video = None

    def current(self, message: dict[str, Any]) -> _Video:
        """The video that a message is about. Raises ValueError."""
        if self._video is None or self._video.number != message.get("video"):
            raise ValueError("the video is not here any more; drop it again")
        return self._video

    async def decoded(self, video: _Video, counts: list[int]) -> Decoded:
        """Its frames at these counts, decoded once."""
        answers = self._answers()
        network = answers.recognizer
        if video.network is not network:
            video.network, video.decoded = network, []
        for one in video.decoded:
            if set(counts) <= one.views.keys():
                return one
        decoded = await answers.decode(video.upload.path, counts, any_length=True)
        if len(counts) > 1:
            video.decoded.clear()  # each of them is in this one
        if video.network is network:
            video.decoded.append(decoded)
        return decoded

    # What the network says

    async def look(self, message: dict[str, Any]) -> None:
        """Answer at one T."""
        video, answers = self.current(message), self._answers()
        num_frames = whole_number_of(message, "frames", 1, answers.limits.max_frames)
        decoded = await self.decoded(video, [num_frames])
        clip = decoded.clip(num_frames, answers.transform)
        looked = await answers.look_at(clip)
        rows = decoded.shown(num_frames)
        await self._talk.send(
            {
                "type": "look",
                "video": video.number,
                "frames": num_frames,
                "predictions": [vars(one) for one in answers.best(looked.probabilities, TOP)],
                "milliseconds": 1000 * looked.seconds,
                "gflops": await answers.gflops(clip),
                "strip": strip(decoded.crops[rows, 0]),
                "frame_numbers": [decoded.frame_numbers[row] for row in rows],
                "num_frames": decoded.num_frames,
                "seconds": decoded.seconds,
                "size": list(decoded.size),
            }
        )

    async def curve(self, message: dict[str, Any]) -> None:
        """The probabilities of some classes at one T after the other."""
        self._following.append(self._talk.begin(self._curve(message), message))

    async def _curve(self, message: dict[str, Any]) -> None:
        video, answers = self.current(message), self._answers()
        indices = [int(index) for index in message["classes"]][:_CURVES]
        largest = answers.limits.max_frames
        first = [count for count in _FIRST_COUNTS if count <= largest]
        first = sorted({*first, self._usual()})
        decoded = await self.decoded(video, first)
        if decoded.seconds <= _SHORT_SECONDS:
            decoded = await self.decoded(video, list(range(1, largest + 1)))
        for count in (*first, *(count for count in decoded.views if count not in first)):
            looked = await answers.look(decoded, count)
            probabilities = looked.probabilities
            await self._talk.send(
                {
                    "type": "point",
                    "video": video.number,
                    "frames": count,
                    "values": probabilities[torch.tensor(indices)].tolist(),
                    "best": answers.class_names[int(probabilities.argmax())],
                }
            )
        await self._talk.send({"type": "curve-done", "video": video.number})

    # Why

    async def explain(self, message: dict[str, Any]) -> None:
        """Say why; what was asked before is dropped."""
        if self._explaining is not None:
            self._explaining.cancel()
        self._explaining = self._talk.begin(self._explain(message), message)
        self._following.append(self._explaining)

    async def _explain(self, message: dict[str, Any]) -> None:
        video, answers = self.current(message), self._answers()
        num_frames = whole_number_of(message, "frames", 1, answers.limits.max_frames)
        index = None
        if message.get("index") is not None:
            index = whole_number_of(message, "index", 0, len(answers.class_names) - 1)
        decoded = await self.decoded(video, [num_frames])
        await explain(self._talk, answers, video.number, decoded, num_frames, index)

    # What happens when

    async def timeline(self, message: dict[str, Any]) -> None:
        """Windows over the whole video, and the events that they make."""
        self._stop.set()
        self._stop = threading.Event()
        self._following.append(self._talk.begin(self._timeline(message, self._stop), message))

    async def _timeline(self, message: dict[str, Any], stop: threading.Event) -> None:
        video, answers = self.current(message), self._answers()
        window = number_of(message, "window", 0.1, 3600)
        threshold = number_of(message, "threshold", 0.01, 1)
        num_frames = whole_number_of(message, "frames", 1, answers.limits.max_frames)
        names = answers.class_names
        detector = EventDetector(
            names, threshold=threshold, nothing="nothing" if "nothing" in names else None
        )
        loop, messages = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()

        def say(said: dict[str, Any] | None) -> None:
            loop.call_soon_threadsafe(messages.put_nowait, said)

        rule = answers.recognizer.clip_rule(num_frames)
        task = OpenWindows(
            str(video.upload.path), rule, window, window / 2, Limits(max_pixels=answers.limits.max_pixels)
        )
        working = asyncio.ensure_future(
            answers.in_thread(lambda: _say_events(answers, task, detector, say, stop))
        )
        working.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (said := await messages.get()) is not None:
                await self._talk.send({**said, "video": video.number})
            await working
        finally:
            stop.set()


def _say_events(
    answers: Answers,
    task: OpenWindows,
    detector: EventDetector,
    say: Callable[[dict[str, Any]], None],
    stop: threading.Event,
) -> None:
    """In a thread: what `frameflex predict --window` would say of the video."""
    with answers.pool.process() as process:
        say({"type": "timeline", "duration": answer_of(process, task)})
        ended: list[Ended] = []

        def windows() -> Iterator[Segment]:
            while not stop.is_set():
                window = answer_of(process, NextWindow(task.path))
                if isinstance(window, Ended):
                    ended.append(window)
                    return
                looked = answers.batcher.look(torch.from_numpy(window.clip)).result()
                best = [vars(one) for one in answers.best(looked.probabilities, 3)]
                say(
                    {
                        "type": "window",
                        "start": window.start_seconds,
                        "end": window.end_seconds,
                        "predictions": best,
                    }
                )
                yield Segment(window.start_seconds, window.end_seconds, looked.probabilities.numpy())

        for event in detect_events(merge_windows(windows()), detector):
            say({"type": "event", **asdict(event)})
        if ended:
            say({"type": "timeline-done", **asdict(ended[0])})
