"""``frameflex push``: share a checkpoint."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from frameflex.cli.options import check_place, parser_of
from frameflex.printable import printable


def run(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "push",
        "Share a checkpoint: a folder with its weights and a card that says what it is (classes, frame counts,\n"
        "pixels, figures with their protocol, licence, how to use it), uploaded to a repository of the Hugging Face\n"
        'hub, from where frameflex.load("owner/name") takes it. With --folder nothing is uploaded.',
        "frameflex push best.safetensors owner/name --license cc-by-4.0 --results results/results.json",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument("repository", nargs="?", type=_repository, metavar="OWNER/NAME", help="on the hub")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="write it there, to look at or to copy")
    parser.add_argument(
        "--license", metavar="NAME", help="of the weights, such as cc-by-4.0 (default: as recorded)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="results.json of frameflex evaluate --output, to go into the card",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    args = parser.parse_args(argv)
    if args.repository is None and args.folder is None:
        parser.error("nowhere to put it; expected OWNER/NAME, or --folder FOLDER")
    from frameflex.checkpoint import load_checkpoint

    if args.folder:
        check_place(Path(args.folder), name="--folder")
    checkpoint = load_checkpoint(args.checkpoint)
    checkpoint.license = args.license or checkpoint.license
    if args.results:
        checkpoint.metrics["evaluation"] = _results(args.results)
    if not checkpoint.license:
        console.print(
            "no licence is recorded, so that nobody may use these weights; say --license", markup=False
        )
    if args.folder:
        print(printable(checkpoint.save_pretrained(args.folder, repo_id=args.repository)))  # noqa: T201
    if args.repository and not args.folder:
        print(checkpoint.push_to_hub(args.repository, private=args.private or None))  # noqa: T201
    return 0


def _repository(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected owner/name of the Hugging Face hub")
    return text


def _results(path: Path) -> dict[str, Any]:
    """What `frameflex evaluate` measured, without the names of single videos."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        results = [{**row, "num_frames": int(row["num_frames"])} for row in found["results"]]
        rows = [row for row in results if {"top1", "top5", "gflops"} <= row.keys()]
        return {"data": Path(found["data"]).name, "protocol": found["protocol"], "results": rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--results {path}: it isn't results.json of frameflex evaluate --output of one checkpoint ({error!r})"
        ) from error
