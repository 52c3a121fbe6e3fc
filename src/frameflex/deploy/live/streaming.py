"""Frames in as they come, labels out while the video runs."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frameflex.arguments import check_path, checked_num_frames, finite_number, shown, whole
from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.sampling import eval_indices
from frameflex.data.transforms import EvalTransform
from frameflex.deploy.long_videos.events import Event, EventDetector
from frameflex.deploy.recognizer import Prediction, chosen_device, computing, precision_of
from frameflex.models.causal import CausalStep, State
from frameflex.models.finite import finite

CONSENSUS = ("mean", "exponential", "window", "last")
Frame = Tensor | np.ndarray


@dataclass(frozen=True)
class StreamPrediction(Prediction):
    """What a stream shows now.

    Attributes:
        label: name of the most probable class, which may flicker; `event` does not.
        index: of the class among the model's outputs.
        probability: of the class, 0 to 1, after the consensus over frames.
        seconds: on the stream's clock, of the frame that was pushed.
        probabilities: of every class, ``(K,)``, after the consensus.
        logits: ``(K,)`` of this frame alone (of this window, with ``window``).
        num_seen: frames that the network has seen since it started afresh; the first few know little.
        reset: why it started afresh with this frame, for people ("start", "the clock went back from 12.00 s to
            3.00 s"); empty where it goes on from the frames before.
        event: what goes on, after hysteresis; None where nothing does.
        ended: events that ended with this frame.
    """

    seconds: float
    probabilities: Tensor
    logits: Tensor
    num_seen: int
    reset: str
    event: Event | None
    ended: tuple[Event, ...]


class StreamingRecognizer:
    """Recognise actions in streams, a frame at a time.

    A causal checkpoint costs one frame of its 2D network for each frame that it looks at (`CausalStep`), and its
    logits are those of the offline model. With ``window`` any checkpoint works: the last ``window`` frames go through
    the offline network each time, which costs as many times more.

    Which frames the network looks at is up to ``stride`` or ``interval_seconds``. They should lie as far apart as in
    training: where a model was trained on T frames spread over videos of D seconds, D / T seconds.

    A frame that doesn't follow the ones before it (see ``max_gap_seconds``) starts the stream afresh, and its
    prediction says so in ``reset``.

    Args:
        checkpoint: as `load_checkpoint` gives it, or a path or address for it.
        stride: look at every so many pushed frames; by default that of the training where it had a fixed one (dense
            sampling), else 1.
        interval_seconds: instead of ``stride``: look at one frame in so much time; holds the rate where frames are
            dropped or come unevenly.
        num_frames: of a frame-flexible causal model, whose parts serve: those of this T; by default the largest
            trained count. With ``window``, that is T.
        window: how many frames the offline network sees at once. A window that is not full yet has its frames
            repeated, as a video that is too short.
        hop: with ``window``: look at the window with every so many frames that enter it.
        consensus: over frames: "mean" of all logits since the start (what the offline model does with a clip),
            "window" mean of the last ``memory`` ones, "exponential" mean in which a frame's weight falls to
            1 / e after ``memory`` ones, "last" none. By default "window", and "last" with ``window``.
        memory: frames of the consensus; by default T.
        fps: the clock of streams whose frames are pushed without timestamps: frames a second.
        max_gap_seconds: pushed frames further apart than this start the stream afresh.
        warm_up: no event starts before the network has seen so many frames; the first ones know little.
        threshold: probability from which an event starts.
        release: probability below which it ends; see `EventDetector`.
        min_seconds: shorter events are dropped.
        nothing: class that stands for nothing happening; by default one of that name, where there is one.
        num_streams: streams that run side by side through `push_many`.
        device: where the network runs; by default the best there is.
        precision: what the network computes in, as for a `Recognizer`; by default float32.

    Attributes:
        precision: what it computes in, "auto" resolved.
        step: the `CausalStep` beneath, whose state is explicit; None with ``window``.

    Raises:
        ValueError: if an argument is out of range, or the checkpoint is not causal and no window is given.

    Example::

        recognizer = StreamingRecognizer("causal.safetensors", interval_seconds=0.25)
        for seconds, frame in camera:  # uint8 RGB, (3, H, W) tensors or (H, W, 3) arrays
            prediction = recognizer.push(frame, seconds)
            if prediction and prediction.event:
                print(prediction.event.label)
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path,
        *,
        stride: int | None = None,
        interval_seconds: float | None = None,
        num_frames: int | None = None,
        window: int | None = None,
        hop: int = 1,
        consensus: str | None = None,
        memory: int | None = None,
        fps: float = 30.0,
        max_gap_seconds: float = 1.0,
        warm_up: int = 1,
        threshold: float = 0.5,
        release: float | None = None,
        min_seconds: float = 0.0,
        nothing: str | None = None,
        num_streams: int = 1,
        device: str | torch.device | None = None,
        precision: str | None = None,
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            check_path(checkpoint, "checkpoint", "a Checkpoint, or a path or address for it")
            checkpoint = load_checkpoint(checkpoint)
        if stride is not None and interval_seconds is not None:
            raise ValueError("both stride and interval_seconds are given; expected one of them")
        if window is not None and num_frames is not None:
            raise ValueError(
                "both window and num_frames are given; a window of T frames is served by T's parts"
            )
        for name, value in (("num_frames", num_frames), ("window", window)):
            if value is not None:
                checked_num_frames(value, name)
        _check_at_least_one(stride=stride, hop=hop, memory=memory, warm_up=warm_up, num_streams=num_streams)
        _check_positive(interval_seconds=interval_seconds, fps=fps, max_gap_seconds=max_gap_seconds)
        consensus = consensus or ("window" if window is None else "last")
        if consensus not in CONSENSUS:
            raise ValueError(f"consensus is {consensus!r}; expected one of {', '.join(CONSENSUS)}")
        if window is None:
            _check_causal(checkpoint)
        self.checkpoint = checkpoint
        self.device = chosen_device(device)
        self.precision = precision_of(checkpoint.model, precision, self.device)
        self.model = checkpoint.model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.window, self.hop = window, hop
        self.num_frames = window or num_frames or checkpoint.num_frames
        self.step: CausalStep | None = None
        if window is None:
            self.step = CausalStep(self.model, num_frames=self.num_frames)
        if stride is None and interval_seconds is None:
            stride = stride_of_training(checkpoint.sampling, self.num_frames)
        self.stride, self.interval_seconds = stride, interval_seconds
        self.consensus, self.memory = consensus, memory or self.num_frames
        self.fps, self.max_gap_seconds, self.warm_up = fps, max_gap_seconds, warm_up
        self._transform = EvalTransform(checkpoint.preprocessing)
        self._fresh = _Stream(_detector(checkpoint, threshold, release, min_seconds, nothing))
        self._zeros = self.init_state() if self.step else ()
        self._streams = [copy.deepcopy(self._fresh) for _ in range(num_streams)]

    @property
    def num_streams(self) -> int:
        """How many streams run side by side."""
        return len(self._streams)

    def push(self, frame: Frame, timestamp: float | None = None) -> StreamPrediction | None:
        """Take the next frame of the one stream.

        Args:
            frame: RGB, uint8: a tensor ``(3, H, W)`` or an array ``(H, W, 3)``, at any size.
            timestamp: seconds on the stream's clock; by default one frame at ``fps`` after the last.

        Returns:
            a prediction, or None for a frame that the network doesn't look at.

        Raises:
            ValueError: if the frame is no picture or the timestamp no number; the stream is as before.
        """
        if self.num_streams != 1:
            raise ValueError(f"this recognizer has {self.num_streams} streams; call push_many")
        if frame is None:
            raise ValueError(
                "frame is None; expected a picture. Where a camera or file has no more, stop; its events end with "
                "reset()"
            )
        return self.push_many([frame], [timestamp])[0]

    def push_many(
        self, frames: Sequence[Frame | None], timestamps: Sequence[float | None] | None = None
    ) -> list[StreamPrediction | None]:
        """Take the next frame of every stream, in one batch.

        Args:
            frames: one for each stream, as for `push`; None where a stream has no new frame.
            timestamps: likewise.

        Returns:
            for each stream what `push` returns; None where it has no new frame.

        Raises:
            ValueError: as `push`; all streams are as before.
        """
        for name, given in (("frames", frames), ("timestamps", timestamps)):
            if not isinstance(given, (list, tuple)) and (name == "frames" or given is not None):
                raise ValueError(f"{name} is {shown(given)}; expected a list of one for each stream")
        timestamps = [None] * len(frames) if timestamps is None else timestamps
        if not len(frames) == len(timestamps) == self.num_streams:
            raise ValueError(
                f"{len(frames)} frames and {len(timestamps)} timestamps; expected {self.num_streams} of each, one "
                "for each stream"
            )
        pictures = [None if frame is None else _as_tensor(frame) for frame in frames]
        for stamp in timestamps:
            if stamp is not None:
                finite_number(stamp, "timestamp", "a finite number of seconds")
        due = []
        for number, (picture, stamp) in enumerate(zip(pictures, timestamps, strict=True)):
            if picture is not None and self._admit(self._streams[number], picture, stamp):
                due.append(number)
        if not due:
            return [None] * len(frames)
        rows = [pictures[number] for number in due]
        clips = torch.cat([self._transform(row[None]) for row in rows if row is not None])  # (n, 3, 1, h, w)
        predictions: list[StreamPrediction | None] = [None] * len(frames)
        for number, logits in self._look(due, clips):
            predictions[number] = self._answer(self._streams[number], logits)
        return predictions

    def reset(self, stream: int | None = None) -> list[Event]:
        """Start afresh: the next frame is a first one.

        Args:
            stream: which; by default all.

        Returns:
            the events that went on and have ended with this.
        """
        numbers = range(self.num_streams) if stream is None else [self._number(stream)]
        ended = []
        for number in numbers:
            ended += self._streams[number].restart("reset")
            self._streams[number] = copy.deepcopy(self._fresh)
            self._streams[number].reset_reason = "reset"
        return ended

    def snapshot(self, stream: int = 0) -> Any:
        """All that is known of a stream, for `restore`, here or in another process; can be pickled."""
        return copy.deepcopy(self._streams[self._number(stream)])

    def restore(self, snapshot: Any, stream: int = 0) -> None:
        """Go on where a `snapshot` of a recognizer with the same checkpoint and options was taken."""
        if not isinstance(snapshot, _Stream):
            raise ValueError(f"snapshot is {shown(snapshot)}; expected what snapshot() gave")
        stream = self._number(stream)
        restored = copy.deepcopy(snapshot)
        restored.state = tuple(tensor.to(self.device) for tensor in restored.state)
        self._streams[stream] = restored

    def init_state(self, batch: int = 1) -> State:
        """The state of ``batch`` streams before their first frame, for `CausalStep`; see there."""
        return self._causal().init_state(batch, self.checkpoint.preprocessing.size)

    def _number(self, stream: int) -> int:
        return whole(stream, "stream", most=self.num_streams - 1)

    def _causal(self) -> CausalStep:
        if self.step is None:
            raise ValueError("a sliding window has no state; leave window out, with a causal checkpoint")
        return self.step

    def _admit(self, stream: _Stream, picture: Tensor, stamp: float | None) -> bool:
        """Bring the stream's clock on, start it afresh where that is due, and tell whether to look at the frame."""
        last = stream.seconds
        seconds = (0.0 if last is None else last + 1 / self.fps) if stamp is None else float(stamp)
        size = (picture.shape[-2], picture.shape[-1])
        if last is not None and stream.size is not None:
            if seconds < last:
                stream.restart(f"the clock went back from {last:.2f} s to {seconds:.2f} s")
            elif seconds - last > self.max_gap_seconds:
                stream.restart(f"no frame came for {seconds - last:.2f} s")
            elif size != stream.size:
                was, now = ("x".join(map(str, pixels[::-1])) for pixels in (stream.size, size))
                stream.restart(f"the picture changed from {was} to {now}")
        stream.seconds, stream.size = seconds, size
        if stream.num_seen == 0:
            due = True
        elif self.interval_seconds is None:
            due = stream.since_last + 1 >= (self.stride or 1)
        else:
            # A thousandth of slack: timestamps are rounded, and a frame too late could halve the rate.
            due = seconds >= stream.due_seconds - self.interval_seconds / 1000
        stream.since_last = 0 if due else stream.since_last + 1
        if due:
            interval = self.interval_seconds or 0.0
            on_time = stream.num_seen > 0 and seconds < stream.due_seconds + interval
            stream.due_seconds = (stream.due_seconds if on_time else seconds) + interval
            stream.looked_seconds = seconds
            stream.num_seen += 1
        return due

    def _look(self, due: list[int], clips: Tensor) -> list[tuple[int, Tensor]]:
        """Logits ``(K,)`` by stream: of the frame, or of the window where one is due."""
        streams = [self._streams[number] for number in due]
        with torch.inference_mode(), computing(self.model, self.precision, self.device):
            if self.step is not None:
                frames = clips[:, :, 0].to(self.device).contiguous(memory_format=torch.channels_last)
                states = [stream.state or self._zeros for stream in streams]
                logits, joined = self.step(_join(states), frames)
                finite(logits, num_frames=1)
                for row, stream in enumerate(streams):
                    stream.state = (
                        tuple(tensor[row : row + 1].clone() for tensor in joined) if streams[1:] else joined
                    )
                return list(zip(due, logits.float().cpu(), strict=True))
            ready = []
            for number, stream, clip in zip(due, streams, clips, strict=True):
                stream.held.append(clip[:, 0])
                if len(stream.held) > self.num_frames:
                    stream.held.popleft()
                if (stream.num_seen - 1) % self.hop == 0:
                    ready.append(number)
            if not ready:
                return []
            windows = []
            for number in ready:
                held = self._streams[number].held
                windows.append(torch.stack([held[i] for i in eval_indices(len(held), self.num_frames)], 1))
            logits = self.model(torch.stack(windows).to(self.device)).float()  # (n, K)
            finite(logits, num_frames=self.num_frames)
            return list(zip(ready, logits.float().cpu(), strict=True))

    def _answer(self, stream: _Stream, logits: Tensor) -> StreamPrediction:
        logits = logits.clone()
        mean = stream.average(logits, self.consensus, self.memory)
        finite(mean[None], num_frames=self.num_frames)
        mean = mean / self.checkpoint.temperature(self.num_frames)
        probabilities = mean.sigmoid() if self.checkpoint.multi_label else mean.softmax(-1)
        ended = stream.ended
        if stream.num_seen >= self.warm_up:
            ended = [*ended, *stream.detector.update(probabilities, stream.looked_seconds)]
        reset, stream.reset_reason, stream.ended = stream.reset_reason, "", []
        best = int(probabilities.argmax())
        return StreamPrediction(
            label=self.checkpoint.class_names[best],
            index=best,
            probability=float(probabilities[best]),
            seconds=stream.looked_seconds,
            probabilities=probabilities,
            logits=logits,
            num_seen=stream.num_seen,
            reset=reset,
            event=stream.detector.current,
            ended=tuple(ended),
        )


def _check_at_least_one(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None or name not in ("stride", "memory"):
            whole(value, name, least=1)


def _check_positive(**rates: float | None) -> None:
    for name, rate in rates.items():
        never = name == "max_gap_seconds" and rate == math.inf  # starts a stream afresh
        if not never and (rate is not None or name != "interval_seconds"):
            finite_number(rate, name, "a number of more than 0", least=math.ulp(0.0), most=math.inf)


def _check_causal(checkpoint: Checkpoint) -> None:
    if checkpoint.model.config["shift"] == "bidirectional":
        raise ValueError(
            "the checkpoint's shift is bidirectional: its frames depend on later ones, which a stream has not "
            "seen yet. Either train a causal one (model.shift: causal; with model.init: this checkpoint it "
            "starts from what it knows), or let this one look at a sliding window: window="
            f"{checkpoint.num_frames} (--window on the command line), at {checkpoint.num_frames} times the cost"
        )


def _detector(
    checkpoint: Checkpoint,
    threshold: float,
    release: float | None,
    min_seconds: float,
    nothing: str | None,
) -> EventDetector:
    if nothing is None and "nothing" in checkpoint.class_names:
        nothing = "nothing"
    return EventDetector(
        checkpoint.class_names,
        threshold=threshold,
        release=release,
        min_seconds=min_seconds,
        nothing=nothing,
    )


def stride_of_training(sampling: dict[str, Any], num_frames: int) -> int:
    """Frames between those of a clip where training had them a fixed distance apart, else 1."""
    if sampling.get("sampling") != "dense":
        return 1
    return max(1, int(sampling.get("window") or 0) // num_frames)


@dataclass
class _Stream:
    """What is known of one stream."""

    detector: EventDetector
    reset_reason: str = "start"
    seconds: float | None = None  # of the last frame pushed
    size: tuple[int, int] | None = None
    since_last: int = 0  # frames pushed since one was looked at
    looked_seconds: float = 0.0
    due_seconds: float = 0.0  # when the next one should be looked at
    num_seen: int = 0
    state: State = ()
    held: deque[Tensor] = field(default_factory=deque)
    total: Tensor | None = None  # of logits, weighted
    weight: float = 0.0
    recent: deque[Tensor] = field(default_factory=deque)
    ended: list[Event] = field(default_factory=list)  # but not told yet

    def restart(self, reason: str) -> list[Event]:
        """Forget all that was seen; events that went on end where they were last seen."""
        if self.seconds is not None:
            self.ended += self.detector.finish(max(self.seconds, self.looked_seconds))
        self.detector.reset()
        self.reset_reason = reason
        self.num_seen = self.since_last = 0
        self.state, self.total, self.weight = (), None, 0.0
        self.held.clear()
        self.recent.clear()
        return self.ended

    def average(self, logits: Tensor, consensus: str, memory: int) -> Tensor:
        if consensus == "last":
            return logits
        if consensus == "window":
            self.recent.append(logits)
            if len(self.recent) > memory:
                self.recent.popleft()
            return torch.stack(list(self.recent)).mean(0)
        decay = math.exp(-1 / memory) if consensus == "exponential" else 1.0
        # In double: a sum over days must not lose the frames of today.
        now = logits.double()
        self.total = now if self.total is None else decay * self.total + now
        self.weight = decay * self.weight + 1
        return (self.total / self.weight).float()


def _join(states: Sequence[State]) -> State:
    if len(states) == 1:
        return states[0]
    return tuple(torch.cat(tensors) for tensors in zip(*states, strict=True))


def _as_tensor(frame: Frame) -> Tensor:
    """RGB uint8 ``(3, H, W)``."""
    if isinstance(frame, np.ndarray):
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or frame.size == 0:
            raise ValueError(f"frame is an array {frame.dtype} {frame.shape}; expected RGB uint8 (H, W, 3)")
        # torch warns of memory that it may not write to, such as a pipe's bytes; a copy costs microseconds.
        pixels = np.ascontiguousarray(frame) if frame.flags.writeable else frame.copy()
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if not isinstance(frame, Tensor):
        raise ValueError(f"frame is {type(frame).__name__}; expected a tensor or an array of RGB uint8")
    if frame.ndim != 3 or frame.shape[0] != 3 or frame.dtype != torch.uint8 or frame.numel() == 0:
        raise ValueError(f"frame is {frame.dtype} {tuple(frame.shape)}; expected RGB uint8 (3, H, W)")
    return frame
