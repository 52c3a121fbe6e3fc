"""``frameflex predict --manifest``: recognise a long list of videos, in parts, by one process or many."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from frameflex.cli.options import check_place, limits_of, positive, say_precision

PART_FORMATS = ("parquet", "jsonl")


def add_manifest_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "a long list of videos",
        "Parts are written into a folder; what is there is not done again after a restart. Under\n"
        "torchrun --nproc-per-node N -m frameflex predict … each process takes its share of the parts.",
    )
    group.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help=".txt, or a .csv, .tsv, .jsonl or .parquet with a column path",
    )
    group.add_argument("--out", type=Path, metavar="DIR", help="folder for the parts of --manifest")
    group.add_argument(
        "--video-dir", type=Path, help="where relative paths start (default: beside the manifest)"
    )
    group.add_argument(
        "--part-format",
        choices=PART_FORMATS,
        help="of the parts (default: parquet where pyarrow is installed)",
    )
    group.add_argument("--rows-a-part", type=positive, help="videos of one part (default: at most 1000)")


def check_manifest_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that don't go together."""
    if args.manifest is None:
        given = [
            name
            for name in ("out", "video_dir", "part_format", "rows_a_part")
            if getattr(args, name) is not None
        ]
        if given:
            parser.error(f"--{given[0].replace('_', '-')} goes with --manifest")
        if not args.videos:
            parser.error("no video is given; name files, folders or patterns, or a list with --manifest")
        return
    if args.videos:
        parser.error(f"both --manifest and videos ({args.videos[0]}) are given; expected one of them")
    if args.out is None:
        parser.error("--manifest needs --out, a folder for the predictions")
    if args.window is not None or args.json:
        parser.error(f"--manifest doesn't go with {'--json' if args.json else '--window'}")


def recognize_manifest(args: argparse.Namespace, console: Any) -> int:
    """Recognise this process's share.

    Bad videos have a row with the reason and don't change the exit status: under torchrun a process that ends with
    another status than 0 takes the others with it.
    """
    from frameflex.console import progress
    from frameflex.data.quarantine import read_quarantine
    from frameflex.deploy.batch import BatchOptions, digest_of, predict_manifest
    from frameflex.deploy.recognizer import Recognizer

    check_place(args.out, name="--out")
    rank, world_size = place_among_processes()
    device = args.device
    if device is None and world_size > 1:
        device = device_of_process()
    recognizer = Recognizer.from_checkpoint(
        args.checkpoint, device=device, precision=args.precision, limits=limits_of(args)
    )
    name = f"process {rank} of {world_size}: " if world_size > 1 else ""
    if rank == 0:
        say_precision(console, args.precision, recognizer.precision)
    with progress(console, f"{name}recognising") as on_progress:
        report = predict_manifest(
            recognizer,
            args.manifest,
            args.out,
            checkpoint_digest=digest_of(args.checkpoint),
            options=BatchOptions(
                num_frames=args.frames,
                budget=args.budget,
                confidence=args.confidence,
                top=args.top,
                views=args.views,
            ),
            video_dir=args.video_dir,
            quarantine=read_quarantine(args.quarantine) if args.quarantine else None,
            on_bad_video=args.on_bad_video,
            part_format=args.part_format,
            rows_a_part=args.rows_a_part,
            rank=rank,
            world_size=world_size,
            batch_size=args.batch_size or 8,
            num_workers=args.workers,
            on_progress=on_progress,
        )
    if report.num_parts_kept:
        console.print(f"{name}{report.num_parts_kept} parts were there already")
    if report.num_parts_left:
        console.print(
            f"{name}done; {report.num_parts_left} of {report.num_parts} parts are left to other processes",
            markup=False,
        )
        return 0
    console.print(
        f"{name}{report.num_recognised} of {report.num_rows} videos recognised, {report.num_bad} bad, in "
        f"{report.num_parts} parts in {args.out}",
        markup=False,
    )
    for reason, times in sorted(report.reasons.items(), key=lambda item: -item[1])[:10]:
        console.print(f"  {times} x {reason}", markup=False, style="red")
    if report.num_bad:
        console.print(f"each with its reason: {args.out / '_bad.jsonl'}", markup=False)
    return 0


def place_among_processes() -> tuple[int, int]:
    """Rank and number of the processes that torchrun or a scheduler started, from RANK and WORLD_SIZE.

    Raises:
        ValueError: if they make no sense.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ValueError(
            f"RANK is {rank!r} and WORLD_SIZE {world_size!r}; expected a number from 0, and how many there are"
        )
    return int(rank), int(world_size)


def device_of_process() -> str | None:
    """The GPU of this process among those of its machine, from LOCAL_RANK; None where there is none."""
    import torch

    local = os.environ.get("LOCAL_RANK", "0")
    if not torch.cuda.is_available() or not local.isdecimal():
        return None
    return f"cuda:{int(local) % torch.cuda.device_count()}"
