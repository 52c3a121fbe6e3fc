"""``frameflex predict --window``: what happens when in long videos."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.event_options import add_event_options, detector_of, seconds
from frameflex.cli.options import check_inputs_stay, say_precision
from frameflex.printable import printable, to_json

if TYPE_CHECKING:
    from frameflex.deploy.long_videos.events import Event, Segment
    from frameflex.deploy.long_videos.windows import LongVideo
    from frameflex.deploy.recognizer import Recognizer
    from frameflex.storage import Place

_FORMATS = ("json", "csv", "srt")  # named here so that --help needs no torch
_NEED_WINDOW = (
    "stride", "output", "format", "timeline", "annotate", "release", "min_length", "nothing",
)  # fmt: skip


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """--window and what belongs to it."""
    group = parser.add_argument_group(
        "long videos", "Say what happens when: windows over the whole video, merged into events."
    )
    group.add_argument("--window", type=seconds, metavar="TIME", help="length of a window, such as 2s")
    group.add_argument(
        "--stride", type=seconds, metavar="TIME", help="from one window to the next (default: half a window)"
    )
    add_event_options(group)
    group.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="events as .json, .csv or .srt; of several videos a folder",
    )
    group.add_argument(
        "--format", choices=_FORMATS, help="of --output (default: as its name ends, else json)"
    )
    group.add_argument(
        "--timeline", type=Path, metavar="PNG", help="draw the events over time; of several videos a folder"
    )
    group.add_argument(
        "--annotate",
        type=Path,
        metavar="MP4",
        help="write the video with its labels, without sound; of several videos a folder",
    )


def check_window_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error where options don't go together."""
    if args.window is None:
        given = [name for name in _NEED_WINDOW if getattr(args, name) is not None]
        if given:
            parser.error(f"--{given[0].replace('_', '-')} needs --window, such as --window 2s")
    elif args.budget:
        parser.error("--budget and --window don't go together; choose --frames instead")
    if args.release is not None and args.release > args.threshold:
        parser.error(f"--release {args.release:g} is above --threshold {args.threshold:g}")


def recognize_long(
    args: argparse.Namespace, recognizer: Recognizer, files: Sequence[Place], console: Any
) -> int:
    """Recognise each file in windows; returns the exit status."""
    from frameflex.deploy.long_videos.drawing import check_video_name
    from frameflex.deploy.long_videos.events import event_format
    from frameflex.video import VideoError

    detector_of(args, recognizer.checkpoint.class_names)  # says early what can't work
    suffix = f".{args.format}" if args.format else ".json"
    outputs = _targets(args.output, files, suffix)
    timelines = _targets(args.timeline, files, ".png")
    annotated = _targets(args.annotate, files, ".mp4")
    for target in outputs:
        if target is not None:
            event_format(target, args.format)
    for target in annotated:
        if target is not None:
            check_video_name(target)
    for target in timelines:
        if target is not None and target.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"output {target}: expected a picture's name, ending in .png, .svg or .pdf")
    check_inputs_stay([*outputs, *timelines, *annotated], [args.checkpoint, args.quarantine, *files])
    for target in [*outputs, *timelines, *annotated]:
        if target is not None:
            check_writable(target)
    say_precision(console, args.precision, recognizer.precision)
    failed = 0
    for file, output, timeline, video in zip(files, outputs, timelines, annotated, strict=True):
        try:
            complete = _recognize_one(args, recognizer, file, output, timeline, video, console)
            failed += not complete
        except (VideoError, FileNotFoundError, PermissionError) as error:  # also a link that leads nowhere
            if args.on_bad_video == "error":
                raise
            failed += 1
            if args.json:
                _print_json({"video": str(file), "error": str(error)})
            console.print(f"frameflex: {error}", style="red", markup=False)
    if failed:
        console.print(
            f"frameflex: {failed} of {len(files)} videos could not be recognised from start to end",
            style="red",
        )
    return 1 if failed else 0


def _recognize_one(
    args: argparse.Namespace,
    recognizer: Recognizer,
    file: Place,
    output: Path | None,
    timeline: Path | None,
    annotated: Path | None,
    console: Any,
) -> bool:
    """Whether nothing of the video was missing."""
    from frameflex.console import progress
    from frameflex.deploy.long_videos.drawing import plot_timeline
    from frameflex.deploy.long_videos.events import write_events
    from frameflex.deploy.long_videos.windows import LongVideo

    names = recognizer.checkpoint.class_names
    watching = _Watching(args, file, names, keep_windows=timeline is not None, console=console)
    with (
        LongVideo(
            recognizer,
            file,
            window_seconds=args.window,
            stride_seconds=args.stride,
            num_frames=args.frames,
            views=args.views,
            # On a CPU a batch takes memory and saves no time.
            batch_size=args.batch_size or (1 if recognizer.device.type == "cpu" else 8),
        ) as video,
        progress(console, f"{file.name}, seconds") as on_progress,
    ):
        watching.watch(video, on_progress)
    events = watching.events
    if not events and not args.json:
        print("  no event")  # noqa: T201
    duration = video.duration_seconds or 0.0
    if output is not None:
        details = {
            "video": str(file),
            "duration_seconds": duration,
            "num_frames": args.frames or recognizer.checkpoint.num_frames,
            "window_seconds": args.window,
            "stride_seconds": args.stride or args.window / 2,
            "num_windows": watching.num_windows,
            "threshold": args.threshold,
            "troubles": [asdict(trouble) for trouble in video.troubles],
        }
        write_events(output, events, file_format=args.format, details=details)
    if timeline is not None:
        gaps = [(t.start_seconds, t.end_seconds) for t in video.troubles if t.kind != "size"]
        plot_timeline(
            timeline, events, watching.drawn, names, duration_seconds=duration, gaps=gaps, title=file.name
        )
    if annotated is not None:
        with progress(console, f"{annotated.name}, seconds") as on_progress:
            for done in _annotate(file, annotated, events):
                on_progress(int(done), int(duration))
    return not any(trouble.kind in ("damaged", "ended") for trouble in video.troubles)


@dataclass
class _Watching:
    """One video while it is recognised: what is told at once, and what is kept for the files."""

    args: argparse.Namespace
    file: Place
    names: Sequence[str]
    keep_windows: bool
    console: Any
    events: list[Event] = field(default_factory=list)
    drawn: list[Segment] = field(default_factory=list)
    num_windows: int = 0
    num_told: int = 0  # of the troubles

    def watch(self, video: LongVideo, on_progress: Callable[[int, int], None]) -> None:
        """Go through the windows of a video, and say each event when it is over."""
        from frameflex.deploy.long_videos.drawing import clock
        from frameflex.deploy.long_videos.events import detect_events, merge_windows

        if not self.args.json:
            print(printable(self.file))  # noqa: T201
        segments = merge_windows(self._windows(video, on_progress))
        for event in detect_events(self._kept(segments), detector_of(self.args, self.names)):
            self.events.append(event)
            if self.args.json:
                _print_json({"video": str(self.file), "event": asdict(event)})
            else:
                times = f"{clock(event.start_seconds)} - {clock(event.end_seconds)}"
                print(f"  {times:>19}  {event.probability:6.1%}  {printable(event.label)}", flush=True)  # noqa: T201
        _tell(video, self.num_told, self.args.json, self.console)

    def _windows(self, video: LongVideo, on_progress: Callable[[int, int], None]) -> Iterator[Segment]:
        for window in video:
            self.num_windows += 1
            on_progress(int(video.seconds), int(video.duration_seconds or video.seconds))
            self.num_told = _tell(video, self.num_told, self.args.json, self.console)
            if self.args.json:
                best = window.probabilities.argsort()[::-1][: self.args.top]
                answers = [
                    {"label": self.names[i], "index": int(i), "probability": float(window.probabilities[i])}
                    for i in best
                ]
                _print_json({"video": str(self.file), **_times(window), "predictions": answers})
            yield window

    def _kept(self, segments: Iterable[Segment]) -> Iterator[Segment]:
        from frameflex.deploy.long_videos.events import Segment

        for segment in segments:
            if self.keep_windows:  # half precision: a day of windows of 400 classes stays small
                values = segment.probabilities.astype("float16")
                self.drawn.append(Segment(segment.start_seconds, segment.end_seconds, values))
            yield segment


def _annotate(file: Place, target: Path, events: Sequence[Event]) -> Iterator[float]:
    """Write the labelled video in a second pass, now that the events are known; yields the seconds done."""
    from frameflex.deploy.long_videos.drawing import VideoWriter, clock, draw_label, label_of
    from frameflex.deploy.long_videos.windows import ForwardVideo

    waiting = iter(events)
    event = next(waiting, None)
    with ForwardVideo(file) as video, VideoWriter(target, fps=video.fps) as writer:
        for frame in video.frames():
            at = frame.seconds
            while event is not None and at >= event.end_seconds:
                event = next(waiting, None)
            now = event if event is not None and at >= event.start_seconds else None
            writer.write(draw_label(frame.image(), label_of(now), clock(at)), at)
            yield at


def _tell(video: LongVideo, told: int, as_json: bool, console: Any) -> int:
    """Say the troubles that have come up since, all but the latest damage, which may still grow."""
    for trouble in video.troubles[told:]:
        if as_json:
            _print_json({"video": video.name, "trouble": asdict(trouble)})
        console.print(f"frameflex: video {video.name}: {trouble.text}", style="yellow", markup=False)
    return len(video.troubles)


def _targets(path: Path | None, files: Sequence[Place], suffix: str) -> list[Path | None]:
    """Where each video's result goes: one file, or for several videos a file each in a folder."""
    if path is None:
        return [None] * len(files)
    if len(files) == 1 and not path.is_dir():
        return [path]
    if path.exists() and not path.is_dir():
        raise ValueError(f"output {path}: is a file, and there are {len(files)} videos; expected a folder")
    if path.suffix in (suffix, ".json", ".csv", ".srt", ".png", ".mp4") and not path.is_dir():
        raise ValueError(f"output {path}: is one file for {len(files)} videos; expected a folder's name")
    names = [file.stem for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:  # told apart by their full names
        names = [file.name for file in files]
        twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"output {path}: two videos are called {twice[0]}; give them to two commands")
    return [path / f"{name}{suffix}" for name in names]


def check_writable(target: Path) -> None:
    """Say before hours of work that a file can't be made."""
    import os

    if target.is_dir():
        raise ValueError(f"output {target}: is a folder; expected a file's name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output {target}: the folder {target.parent} can't be made ({error.strerror}); choose another place"
        ) from error
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"output {target}: no permission to write in {target.parent}; choose another place")


def _times(segment: Segment) -> dict[str, float]:
    return {"start_seconds": round(segment.start_seconds, 6), "end_seconds": round(segment.end_seconds, 6)}


def _print_json(values: Any) -> None:
    print(to_json(values), flush=True)  # noqa: T201
