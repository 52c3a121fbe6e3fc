"""``frameflex data``: render, check and prepare data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frameflex.cli.options import fail, parser_of, positive


def run(argv: list[str], console: Any) -> int:
    commands = {"render": _data_render, "check": _data_check}
    if not argv or argv[0] in ("-h", "--help"):
        print(  # noqa: T201
            "usage: frameflex data COMMAND ...\n\ncommands:\n"
            "  render  make the bundled benchmark of motions as video files\n"
            "  check   decode every video of a data set once and list the files that fail"
        )
        return 0
    if argv[0] not in commands:
        return fail(f"unknown command data {argv[0]!r}; expected data {' or data '.join(commands)}", status=2)
    return commands[argv[0]](argv[1:], console)


def _data_check(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "data check",
        "Decode every frame of every video once, in parallel, and list the files that fail. The exit status is 1\n"
        "if there are any. DATA is a data set in any layout, or a folder of videos.",
        "frameflex data check data/something-something-v2 --json bad.json",
    )
    parser.add_argument("data", metavar="DATA", help="data set, or folder of videos")
    parser.add_argument("--split", help="of data that has splits (default: all of them)")
    parser.add_argument("--video-dir", help="where the files of a list are (default: beside the list)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the list as JSON")
    args = parser.parse_args(argv)
    from frameflex import report
    from frameflex.console import progress
    from frameflex.data.check import check_videos
    from frameflex.data.datasets import all_videos

    videos = all_videos(args.data, split=args.split, video_dir=args.video_dir)
    with progress(console, "checking") as on_progress:
        bad = check_videos(videos, num_workers=args.workers, on_progress=on_progress)
    for video in bad:
        print(f"{videos[video.index].path}: {video.reason}")  # noqa: T201
    if args.json:
        listed = [{"path": str(videos[v.index].path), "name": v.name, "reason": v.reason} for v in bad]
        report.write_json(args.json, {"num_videos": len(videos), "bad": listed})
    console.print(f"{len(videos)} videos decoded, {len(bad)} of them bad")
    return 1 if bad else 0


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
    from frameflex.data.motion import render

    with progress(console, "rendering") as on_progress:
        path = render(
            args.directory,
            num_videos=args.videos,
            size=args.size,
            seed=args.seed,
            validation_fraction=args.validation_fraction,
            on_progress=on_progress,
        )
    print(path)  # noqa: T201
    return 0
