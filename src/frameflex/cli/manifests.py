"""``frameflex predict --manifest``: recognise a long list of videos, in parts, on one machine or many."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from frameflex.cli.options import (
    add_ray_option,
    check_place,
    engine_of,
    limits_of,
    num_cores,
    paths_of,
    positive,
    say_precision,
)
from frameflex.storage import place_of

PART_FORMATS = ("parquet", "jsonl")


def add_manifest_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "a long list of videos",
        "Parts are written into a folder; what is there is not done again after a restart. Here --workers is\n"
        "the number of processes that decode and, without a GPU, recognise (default: one for each core).",
    )
    group.add_argument(
        "--manifest",
        type=place_of,
        metavar="FILE",
        help=".txt, or a .csv, .tsv, .jsonl or .parquet with a column path",
    )
    group.add_argument(
        "--out", type=place_of, metavar="DIR", help="folder for the parts of --manifest, here or s3://…"
    )
    group.add_argument(
        "--video-dir", type=place_of, help="where relative paths start (default: beside the manifest)"
    )
    group.add_argument(
        "--part-format",
        choices=PART_FORMATS,
        help="of the parts (default: parquet where pyarrow is installed)",
    )
    group.add_argument("--rows-a-part", type=positive, help="videos of one part (default: at most 1000)")
    add_ray_option(group)


def check_manifest_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that don't go together."""
    if args.manifest is None:
        given = [
            name
            for name in ("out", "video_dir", "part_format", "rows_a_part", "ray")
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
    """Recognise a manifest's videos, here or on a Ray cluster.

    Bad videos have a row with the reason and don't change the exit status: a list of any length has some.
    """
    from frameflex.console import progress
    from frameflex.data.quarantine import read_quarantine
    from frameflex.deploy.batch import BatchOptions, digest_of, predict_manifest
    from frameflex.deploy.recognizer import Recognizer

    if isinstance(args.out, Path):
        check_place(args.out, name="--out")
    num_workers = num_cores() if args.workers is None else max(1, args.workers)
    with engine_of(args, num_workers) as engine, progress(console, "recognising") as on_progress:
        digest = digest_of(args.checkpoint)
        elsewhere = _elsewhere(args, engine, digest) if args.ray else None
        recognizer = Recognizer.from_checkpoint(
            args.checkpoint,
            device="cpu" if elsewhere else args.device,
            precision=None if elsewhere else args.precision,
            limits=limits_of(args),
        )
        say_precision(console, args.precision, elsewhere.precision if elsewhere else recognizer.precision)
        report = predict_manifest(
            recognizer,
            args.manifest,
            args.out,
            checkpoint_digest=digest,
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
            engine=engine,
            elsewhere=elsewhere,
            batch_size=args.batch_size or 8,
            on_progress=on_progress,
        )
    if report.num_parts_kept:
        console.print(f"{report.num_parts_kept} parts were there already")
    console.print(
        f"{report.num_recognised} of {report.num_rows} videos recognised, {report.num_bad} bad, in "
        f"{report.num_parts} parts in {args.out}",
        markup=False,
    )
    for reason, times in sorted(report.reasons.items(), key=lambda item: -item[1])[:10]:
        console.print(f"  {times} x {reason}", markup=False, style="red")
    if report.num_bad:
        console.print(f"each with its reason: {args.out}/_bad.jsonl", markup=False)
    return 0


def _elsewhere(args: argparse.Namespace, cluster: Any, digest: str) -> Any:
    """The recognizers of a cluster's machines, which see the same files as this one.

    Raises:
        ValueError: if they don't, or can't compute as asked.
    """
    from frameflex.deploy.answering import Elsewhere, load_same, precision_of_same
    from frameflex.deploy.batch import Listed

    checkpoint = str(args.checkpoint)
    if args.checkpoint.exists():
        checkpoint = os.path.abspath(checkpoint)
    start = Listed.of(args.manifest, args.video_dir).start
    video_dir = os.path.abspath(start) if isinstance(start, Path) else str(start)
    rows = Listed.of(args.manifest, video_dir).rows()
    cluster.check_paths([checkpoint, video_dir, *paths_of(rows)])
    device = args.device or ("cuda" if cluster.num_gpus else "cpu")
    load = partial(load_same, checkpoint, digest, device=device, limits=limits_of(args))
    num_gpus = int(device.startswith("cuda"))
    precision = args.precision
    if precision == "auto":  # as their hardware is, not this one's
        precision = cluster.ask(partial(precision_of_same, load), num_gpus=num_gpus)
    return Elsewhere(partial(load, precision=precision), precision, num_gpus)
