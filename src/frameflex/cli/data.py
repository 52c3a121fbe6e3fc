"""``frameflex data``: render, check and prepare data; labels from labelling tools and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from frameflex.cli.options import (
    add_bad_video_options,
    add_quarantine_option,
    add_ray_option,
    add_workers_option,
    check_inputs_stay,
    check_place,
    engine_of,
    fail,
    make_folder,
    parser_of,
    paths_of,
    positive,
    seconds,
)
from frameflex.printable import printable
from frameflex.storage import place_of

FORMATS = ("h264", "jpeg", "lossless")  # named here so that --help needs no torch
ANNOTATIONS = ("label-studio", "cvat", "via", "elan", "createml", "fiftyone", "segments")  # likewise
COMMANDS = ("render", "check", "prepare", "import", "export")


def run(argv: list[str], console: Any) -> int:
    verbs = (_data_render, _data_check, _data_prepare, _data_import, _data_export)
    commands = dict(zip(COMMANDS, verbs, strict=True))
    if not argv or argv[0] in ("-h", "--help"):
        print(  # noqa: T201
            "usage: frameflex data COMMAND ...\n\ncommands:\n"
            "  render   make the bundled benchmark of motions as video files\n"
            "  check    decode every video of a data set once and find what is wrong with it\n"
            "  prepare  re-encode a data set for training and pack it into shards\n"
            "  import   make a list for training of what a labelling tool exported\n"
            "  export   write such a list, or events, for a labelling tool\n\n"
            "frameflex data COMMAND --help explains one."
        )
        return 0
    if argv[0] not in commands:
        return fail(f"unknown command data {argv[0]!r}; expected data {', data '.join(commands)}", status=2)
    return commands[argv[0]](argv[1:], console)


def _data_check(argv: list[str], console: Any) -> int:
    parser = _check_parser()
    args = parser.parse_args(argv)
    from frameflex import report
    from frameflex.console import progress, results_console
    from frameflex.data.checking import KINDS, check
    from frameflex.data.datasets import survey
    from frameflex.data.quarantine import write_quarantine

    if unknown := set(args.also) - set(KINDS):
        parser.error(f"--also {min(unknown)}: expected some of {', '.join(KINDS)}")
    output = make_folder(args.output or Path(f"check-{Path(args.data).resolve().stem}"))
    written = ("report.json", "report.txt", "quarantine.txt", "journal.jsonl")
    check_inputs_stay((output / name for name in written), [args.data, args.quarantine, args.classes])
    classes = args.classes and [line for line in args.classes.read_text("utf-8").splitlines() if line.strip()]
    data = survey(
        args.data, split=args.split, classes=classes, video_dir=args.video_dir, quarantine=args.quarantine
    )
    try:
        with engine_of(args, args.workers) as engine, progress(console, "checking") as on_progress:
            if args.ray:
                engine.check_paths(paths_of(data.videos))
            found = check(
                data,
                engine=engine,
                timeout_seconds=args.timeout,
                min_frames=args.min_frames,
                also_quarantine=args.also,
                journal=output / "journal.jsonl",
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        console.print(f"what is done is kept in {output}; the same command goes on from there")
        raise
    report.write_json(output / "report.json", {"data": str(args.data), **found.to_dict()})
    write_quarantine(output / "quarantine.txt", found.quarantine())
    with (output / "report.txt").open("w", encoding="utf-8") as file:
        results_console(file, width=200).print(report.findings_table(found))
    if args.json:
        print((output / "report.json").read_text(encoding="utf-8"), end="")  # noqa: T201
    elif found.findings:
        results_console().print(report.findings_table(found, limit=50))
    console.print(
        f"{found.num_videos} videos: {found.num_bad} bad, {found.num_doubtful} doubtful, "
        f"{len(found.quarantine())} in quarantine; wrote report.json, report.txt and quarantine.txt into {output}"
    )
    return 1 if found.num_bad else 0


def _check_parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "data check",
        "Decode every frame of every video once, in parallel, and find files that are unreadable, truncated,\n"
        "without pictures, empty, too short, mislabelled, there twice, or on both sides of a split; those that\n"
        "hang the decoder or crash it, too. Writes report.json, report.txt and quarantine.txt, which every verb\n"
        "takes as --quarantine. Stopped, the same command goes on. The exit status is 1 if a video can't be used.",
        "frameflex data check data/something-something-v2 --output check",
    )
    parser.add_argument(
        "data", metavar="DATA", help="data set in any layout, or folder of videos; s3://… too"
    )
    parser.add_argument("--split", help="of data that has splits (default: all of them)")
    parser.add_argument("--video-dir", help="where the files of a list are (default: beside the list)")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="names that labels must be among, one a line"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="for the report (default: check-NAME)")
    parser.add_argument("--timeout", type=seconds, default=60.0, help="seconds for one file (default: 60)")
    parser.add_argument("--min-frames", type=positive, default=2, help="fewer are too short (default: 2)")
    parser.add_argument(
        "--also",
        type=lambda text: text.split(","),
        default=[],
        metavar="KINDS",
        help="doubtful kinds that go into quarantine, too, such as truncated,leak,duplicate",
    )
    add_quarantine_option(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    add_workers_option(parser)
    add_ray_option(parser)
    return parser


def _data_prepare(argv: list[str], console: Any) -> int:
    args = _prepare_parser().parse_args(argv)
    from frameflex.console import progress
    from frameflex.data.datasets import survey
    from frameflex.data.preparing import Encoding, prepare

    here = args.output if isinstance(args.output, Path) else None
    if here:
        check_place(here, name="OUT")
    encoding = Encoding(args.format, args.short_side, args.key_every, args.quality)
    data = survey(args.data, split=args.split, video_dir=args.video_dir, quarantine=args.quarantine)
    try:
        with engine_of(args, args.workers) as engine, progress(console, "preparing") as on_progress:
            if args.ray:
                engine.check_paths(paths_of(data.videos), here and make_folder(here, name="OUT"))
            index = prepare(
                data,
                args.output,
                encoding=encoding,
                videos_per_shard=args.videos_per_shard,
                engine=engine,
                timeout_seconds=args.timeout,
                on_bad_video=args.on_bad_video,
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        console.print(f"what is done is kept in {args.output}; the same command goes on from there")
        raise
    for split, name, reason in index.left_out:
        console.print(f"left out: {split + ': ' if split else ''}{name}: {reason}", markup=False)
    num_videos = sum(len(shard.videos) for shard in index.shards)
    num_bytes = sum(shard.num_bytes for shard in index.shards)
    console.print(
        f"{num_videos} videos in {len(index.shards)} shards of {num_bytes / 1e6:.1f} MB in all, "
        f"{len(index.left_out)} left out"
    )
    print(printable(args.output))  # noqa: T201
    return 0


def _prepare_parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "data prepare",
        "Scale the videos of a data set down, encode them for fast reading in any order, and pack them into tar\n"
        "files with an index, each checked by decoding it again. OUT is then a data set for every verb, here or\n"
        "at an address (https://..., s3://...). Stopped, the same command goes on.",
        "frameflex data prepare data/something-something-v2 ssv2-256 --quarantine check/quarantine.txt",
    )
    parser.add_argument("data", metavar="DATA", help="data set in any layout")
    parser.add_argument("output", type=place_of, metavar="OUT", help="new folder, here or s3://...")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="h264",
        help="h264 with frequent key frames, a jpeg for each frame, or lossless RGB (default: h264)",
    )
    parser.add_argument(
        "--short-side",
        type=positive,
        default=256,
        help="pixels; smaller videos stay as they are (default: 256)",
    )
    parser.add_argument(
        "--key-every", type=positive, default=8, help="h264: frames between key frames (default: 8)"
    )
    parser.add_argument(
        "--quality",
        type=int,
        help="h264: CRF 0 to 51 (default: 23); jpeg: 2 to 31 (default: 3); lower is better",
    )
    parser.add_argument("--videos-per-shard", type=positive, default=1000, help="at most (default: 1000)")
    parser.add_argument("--split", help="of data that has splits (default: all of them)")
    parser.add_argument("--video-dir", help="where the files of a list are (default: beside the list)")
    parser.add_argument("--timeout", type=seconds, default=600.0, help="seconds for one video (default: 600)")
    add_bad_video_options(
        parser, skip="leave it out, noted in the index; stop when more than 1 %% and more than 3 are bad"
    )
    add_workers_option(parser)
    add_ray_option(parser)
    return parser


def _data_import(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "data import",
        "Make a list of path,label,start_seconds,end_seconds, which frameflex train takes, of what labelling tools\n"
        "exported: Label Studio, CVAT, VIA 3, ELAN, Create ML, FiftyOne. Formats are known by what is in the files.\n"
        "Videos are found by their names, also where a tool changed those.",
        "frameflex data import project-1.json --videos my_videos --output segments.csv",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="that the tool exported")
    parser.add_argument(
        "--videos", required=True, type=Path, metavar="FOLDER", help="that holds the videos, or one video"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="CSV", help="the list")
    parser.add_argument(
        "--fps",
        type=seconds,
        help="frameRate that Label Studio was set to (default: what the task says as fps, else the video's)",
    )
    args = parser.parse_args(argv)
    if args.output.suffix.lower() != ".csv":
        parser.error(f"--output {args.output}: expected a name that ends in .csv")
    return _convert(args.files, args.videos, args.output, "segments", console, fps=args.fps)


def _data_export(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "data export",
        "Write labelled stretches of videos for a labelling tool: a list of path,label,start_seconds,end_seconds,\n"
        "the events of frameflex predict --window, or what another tool exported.",
        "frameflex data export segments.csv --format label-studio --output tasks.json",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="list, events, or annotations")
    parser.add_argument("--format", required=True, choices=ANNOTATIONS, help="of the tool")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="a new folder where cvat or elan gets several videos: they have a file for each",
    )
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="FOLDER",
        help="that holds the videos, or one video (default: where the list says)",
    )
    args = parser.parse_args(argv)
    return _convert(args.files, args.videos, args.output, args.format, console)


def _convert(
    files: list[Path],
    videos: Path | None,
    output: Path,
    name: str,
    console: Any,
    *,
    fps: float | None = None,
) -> int:
    """Read annotations and write them in another format."""
    from frameflex.data.annotations import read_annotations, write_annotations
    from frameflex.data.annotations.timeline import Timelines

    check_place(output)
    check_inputs_stay([output], [*files, videos])
    timelines = Timelines()
    segments, notes = read_annotations(files, videos, timelines=timelines, fps=fps)
    check_inputs_stay([output], {segment.path for segment in segments})
    written = write_annotations(output, name, segments, timelines=timelines)
    for what, count in notes.items():
        console.print(f"{count} {what}", markup=False)
    labels = {segment.label for segment in segments}
    num_videos = len({segment.path for segment in segments})
    console.print(f"{len(segments)} segments of {num_videos} videos, {len(labels)} labels")
    for path in written:
        print(printable(path))  # noqa: T201
    return 0


def _data_render(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "data render",
        "Render the bundled benchmark: short videos of moving things, in Something-Something V2's layout, in\n"
        "classes that a single frame can't tell apart. The same seed gives the same frames.",
        "frameflex data render motion --videos 600 --size 96 --seed 0",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="new folder")
    parser.add_argument(
        "--videos", type=positive, default=600, help="training and validation together (default: 600)"
    )
    parser.add_argument("--size", type=positive, default=96, help="height and width in pixels (default: 96)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--validation-fraction", type=float, default=0.2, help="between 0 and 1 (default: 0.2)"
    )
    args = parser.parse_args(argv)
    from frameflex.console import progress
    from frameflex.motion.rendering import render

    check_place(args.directory, name="DIR")
    with progress(console, "rendering") as on_progress:
        path = render(
            args.directory,
            num_videos=args.videos,
            size=args.size,
            seed=args.seed,
            validation_fraction=args.validation_fraction,
            on_progress=on_progress,
        )
    print(printable(path))  # noqa: T201
    return 0
