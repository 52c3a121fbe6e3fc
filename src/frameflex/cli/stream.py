"""``frameflex stream``: recognise what happens in live pictures."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.event_options import add_event_options, detector_of, seconds
from frameflex.cli.options import (
    add_device_option,
    add_precision_option,
    check_inputs_stay,
    frame_count,
    parser_of,
    positive,
    say_precision,
)
from frameflex.printable import to_json
from frameflex.tuning import objects_that_stay

if TYPE_CHECKING:
    from frameflex.checkpoint import Checkpoint
    from frameflex.deploy.live.sources import LiveFrame, LiveSource, Notice
    from frameflex.deploy.live.streaming import StreamingRecognizer, StreamPrediction
    from frameflex.deploy.long_videos.events import Event

_CONSENSUS = ("mean", "exponential", "window", "last")  # named here so that --help needs no torch


def run(argv: list[str], console: Any) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.sources.count("-") > 1:
        parser.error("- is given twice; standard input is one source")
    if args.release is not None and args.release > args.threshold:
        parser.error(f"--release {args.release:g} is above --threshold {args.threshold:g}")
    saved = _saved_names(args.save, len(args.sources))
    check_inputs_stay(saved, [args.checkpoint, *args.sources])
    with objects_that_stay():
        from frameflex.checkpoint import load_checkpoint
        from frameflex.deploy.live.sources import LiveSource, running
        from frameflex.deploy.live.streaming import stride_of_training

        checkpoint = load_checkpoint(args.checkpoint)
    detector_of(args, checkpoint.class_names)  # says early what can't work
    recognizer = _recognizer(args, checkpoint)
    stride = args.stride or stride_of_training(checkpoint.sampling, recognizer.num_frames)
    sources = [
        LiveSource(
            source,
            size=args.size,
            fps=args.fps,
            every_frame=args.every_frame,
            stride=stride,
            rate=args.rate,
            all_frames=args.show or args.save is not None,
            timeout_seconds=args.timeout,
            give_up_seconds=args.give_up,
        )
        for source in args.sources
    ]
    say_precision(console, args.precision, recognizer.precision)
    with contextlib.ExitStack() as stack:
        window = stack.enter_context(_Window(len(sources))) if args.show else None
        stack.enter_context(_terminate_like_interrupt())
        pictures = stack.enter_context(_Pictures(saved, window))
        streams = _Streams(recognizer, sources, pictures, console, print_every=args.print_every)
        stack.callback(streams.finish)
        wake = stack.enter_context(running(sources))
        end = time.monotonic() + args.duration if args.duration else None
        while not streams.over and (end is None or time.monotonic() < end):
            wake.wait(0.1)
            wake.clear()
            streams.work()
            if window is not None and not window.update():
                break  # closed by hand
    return 1 if any(source.failed for source in sources) else 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "stream",
        "Recognise what happens in live pictures. Prints a JSON object a line: predictions now and then, events as\n"
        "they start and end, notices of all that happens to a source. Ends with the sources, or by Ctrl-C.",
        "frameflex stream causal.safetensors 0 --rate 8 --show\n"
        "  frameflex stream causal.safetensors rtsp://camera-1/live rtsp://camera-2/live --save seen.mp4\n"
        "  ffmpeg -i IN -f rawvideo -pix_fmt rgb24 - | frameflex stream causal.safetensors - --size 480x640 --fps 30",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a causal .safetensors file of frameflex; any with --window"
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a webcam's number, a file, an address (rtsp, http, ...), or - for raw RGB pictures on standard input",
    )
    _add_picture_options(parser)
    _add_network_options(parser)
    add_event_options(parser.add_argument_group("events"))
    _add_output_options(parser)
    parser.add_argument(
        "--duration", type=seconds, metavar="TIME", help="stop after so long (default: never)"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="TIME", help="longest wait for data (default: 10s)"
    )
    parser.add_argument(
        "--give-up",
        type=seconds,
        default=60.0,
        metavar="TIME",
        help="so long without a picture ends a source that can't be reached (default: 60s)",
    )
    add_device_option(parser)
    add_precision_option(parser)
    return parser


def _add_picture_options(parser: argparse.ArgumentParser) -> None:
    """What comes in, and which of it the network sees."""
    parser.add_argument("--size", type=_size, metavar="HxW", help="of raw pictures, such as 480x640")
    parser.add_argument("--fps", type=_rate, help="of raw pictures")
    which = parser.add_argument_group("what the network sees").add_mutually_exclusive_group()
    which.add_argument("--rate", type=_rate, metavar="FPS", help="so many frames a second")
    which.add_argument(
        "--stride", type=positive, help="every so many frames (default: as in training, else 1)"
    )
    parser.add_argument(
        "--every-frame",
        action="store_true",
        help="don't keep pace and drop no frame; for files and -",
    )


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    """How many frames it looks at, and what becomes of their answers."""
    parser.add_argument(
        "--window",
        type=frame_count,
        metavar="T",
        help="look at the last T frames each time: for any checkpoint",
    )
    parser.add_argument(
        "--hop", type=positive, default=1, help="with --window: every so many frames (default: 1)"
    )
    parser.add_argument(
        "--frames",
        type=frame_count,
        help="of a frame-flexible checkpoint, the parts of which T (default: largest)",
    )
    parser.add_argument(
        "--consensus", choices=_CONSENSUS, help="over frames (default: window; with --window: last)"
    )
    parser.add_argument("--memory", type=positive, help="frames of the consensus (default: T)")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--print-every", type=seconds, default=1.0, metavar="TIME", help="between predictions (default: 1s)"
    )
    output.add_argument("--show", action="store_true", help="show the labelled pictures in a window")
    output.add_argument(
        "--save",
        type=Path,
        metavar="MP4",
        help="write the labelled pictures; of several sources MP4-1, MP4-2, ...",
    )


def _recognizer(args: argparse.Namespace, checkpoint: Checkpoint) -> StreamingRecognizer:
    """The network, ready: it has seen a picture, and forgotten it."""
    import torch

    from frameflex.deploy.live.streaming import StreamingRecognizer

    interval = 1 / args.rate if args.rate else 0.0
    recognizer = StreamingRecognizer(
        checkpoint,
        stride=1,  # the sources choose: a frame that the network won't see needs no conversion
        num_frames=args.frames,
        window=args.window,
        hop=args.hop,
        consensus=args.consensus,
        memory=args.memory,
        max_gap_seconds=max(5.0, 4 * interval),  # the sources tell of gaps of their own
        threshold=args.threshold,
        release=args.release,
        min_seconds=args.min_length or 0.0,
        nothing=args.nothing,
        num_streams=len(args.sources),
        device=args.device,
        precision=args.precision,
    )
    # The first forward is the slowest: live pictures shouldn't wait for it.
    blank = torch.zeros(3, 64, 64, dtype=torch.uint8)
    recognizer.push_many([blank] * len(args.sources), [0.0] * len(args.sources))
    recognizer.reset()
    return recognizer


class _Streams:
    """Takes what the sources give, and says what is to be said."""

    def __init__(
        self,
        recognizer: StreamingRecognizer,
        sources: Sequence[LiveSource],
        pictures: _Pictures,
        console: Any,
        *,
        print_every: float,
    ) -> None:
        self.recognizer, self.sources, self.pictures, self.console = recognizer, sources, pictures, console
        self._print_every = print_every
        self._reasons = ["start" for _ in sources]  # why a stream starts afresh with its next frame
        self._printed = [-float("inf") for _ in sources]
        self._started: list[float | None] = [None for _ in sources]  # start of the event that was told
        self._events: list[Event | None] = [None for _ in sources]

    @property
    def over(self) -> bool:
        return all(source.ended and not source.waiting for source in self.sources)

    def work(self) -> None:
        """Handle what has come: notices in their order with the frames, frames of all sources in one batch."""
        frames: list[LiveFrame | None] = [None] * len(self.sources)
        later: list[tuple[int, Notice]] = []
        for number, source in enumerate(self.sources):
            for item in source.poll():
                if not hasattr(item, "text"):
                    frames[number] = item
                elif frames[number] is None:
                    self._notice(number, item)  # type: ignore[arg-type]
                else:
                    later.append((number, item))  # type: ignore[arg-type]
        images = [None if frame is None else frame.read() for frame in frames]
        seen = [image if f is not None and f.due else None for f, image in zip(frames, images, strict=True)]
        if any(image is not None for image in seen):
            times = [None if frame is None else frame.seconds for frame in frames]
            for number, prediction in enumerate(self.recognizer.push_many(seen, times)):
                if prediction is not None:
                    self._prediction(number, prediction)
        for number, (frame, image) in enumerate(zip(frames, images, strict=True)):
            if frame is not None and image is not None:
                source = self.sources[number]
                self.pictures.add(number, image, frame.seconds, self._events[number], source.fps)
        for number, notice in later:
            self._notice(number, notice)

    def finish(self) -> None:
        """End the events that go on."""
        for number in range(len(self.sources)):
            self._forget(number, "the end")

    def _notice(self, number: int, notice: Notice) -> None:
        self._print(number, {"type": "notice", **asdict(notice)})
        style = "red" if notice.kind == "failed" else "yellow"
        if notice.kind not in ("ended", "dropped"):
            text = f"frameflex: {self.sources[number].name}: {notice.text}"
            self.console.print(text, style=style, markup=False)
        if notice.stale:
            self._forget(number, notice.text)

    def _forget(self, number: int, reason: str) -> None:
        self._ended(number, self.recognizer.reset(number))
        self._events[number] = None
        self._reasons[number] = reason

    def _prediction(self, number: int, prediction: StreamPrediction) -> None:
        reset = prediction.reset
        if reset == "reset":
            reset = self._reasons[number]
        self._ended(number, prediction.ended)
        event = prediction.event
        if event is not None:
            self._begun(number, event)
        self._events[number] = event
        if reset or prediction.seconds - self._printed[number] >= self._print_every - 1e-6:
            self._printed[number] = prediction.seconds
            values = {
                "seconds": prediction.seconds,
                "label": prediction.label,
                "index": prediction.index,
                "probability": prediction.probability,
                "event": event.label if event is not None else None,
                "num_seen": prediction.num_seen,
            }
            if reset:
                values["reset"] = reset
            self._print(number, {"type": "prediction", **values})

    def _begun(self, number: int, event: Event) -> None:
        if event.start_seconds != self._started[number]:
            self._started[number] = event.start_seconds
            values = {"label": event.label, "index": event.index, "start_seconds": event.start_seconds}
            self._print(number, {"type": "start", **values})

    def _ended(self, number: int, events: Sequence[Event]) -> None:
        for event in events:
            self._begun(number, event)
            self._started[number] = None
            self._print(number, {"type": "event", **asdict(event)})

    def _print(self, number: int, values: dict[str, Any]) -> None:
        line = {"type": values["type"], "source": self.sources[number].name, **values}
        line = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
        print(to_json(line), flush=True)  # noqa: T201


class _Pictures:
    """Where labelled pictures go: files, a window, both or nowhere."""

    def __init__(self, saved: Sequence[Path | None], window: _Window | None) -> None:
        self._saved, self._window = saved, window
        self._writers: dict[int, Any] = {}
        self._stack = contextlib.ExitStack()

    def add(self, number: int, image: Any, at: float, event: Event | None, fps: float) -> None:
        from frameflex.deploy.long_videos.drawing import VideoWriter, clock, draw_label, label_of

        path = self._saved[number]
        if path is None and self._window is None:
            return
        image = draw_label(image, label_of(event), clock(at))
        if path is not None:
            if number not in self._writers:
                self._writers[number] = self._stack.enter_context(VideoWriter(path, fps=fps))
            self._writers[number].write(image, at)
        if self._window is not None:
            self._window.draw(number, image)

    def __enter__(self) -> _Pictures:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class _Window:
    """Shows pictures side by side, with Python's own tkinter."""

    def __init__(self, num_pictures: int) -> None:
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise ValueError(
                f"--show needs tkinter, which this Python comes without ({error}): install your system's python3-tk, "
                "or use --save"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise ValueError(f"--show can't open a window ({error}); use --save here") from error
        self._make = ImageTk.PhotoImage
        self._root.title("frameflex stream")
        self._labels = [tkinter.Label(self._root) for _ in range(num_pictures)]
        for column, label in enumerate(self._labels):
            label.grid(row=0, column=column)
        self._open = True
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        self._shown: dict[int, Any] = {}  # tkinter keeps no reference of its own

    def _close(self) -> None:
        self._open = False

    def draw(self, number: int, image: Any) -> None:
        from PIL import Image

        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        picture.thumbnail((max(320, 1600 // len(self._labels)), 900))
        self._shown[number] = self._make(picture)
        self._labels[number].configure(image=self._shown[number])

    def update(self) -> bool:
        """Whether the window is still open."""
        if self._open:
            self._root.update()
        return self._open

    def __enter__(self) -> _Window:
        return self

    def __exit__(self, *_: object) -> None:
        self._root.destroy()


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """A service manager's SIGTERM finishes files like Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _saved_names(path: Path | None, number: int) -> list[Path | None]:
    if path is None:
        return [None] * number
    from frameflex.cli.long_videos import check_writable
    from frameflex.deploy.long_videos.drawing import check_video_name

    check_video_name(path)
    check_writable(path)
    if number == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, number + 1)]


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r}; expected height x width such as 480x640")
    return int(height), int(width)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}; expected frames a second, above 0 and up to 1000")
    return value
