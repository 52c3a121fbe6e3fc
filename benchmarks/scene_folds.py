"""Shift, no shift and FFN on a few real videos, with whole scenes held out.

    OMP_NUM_THREADS=1 python benchmarks/scene_folds.py FOLDER runs/folds --classes left,right,up,down \\
        --backbone tf_efficientnet_lite0 --pretrained weights.pth --folds 3 --jobs 2

FOLDER holds labels.csv with the columns path, label and scene. Scenes are dealt to folds, so that no background is
on both sides. Every network gets the same epochs and is measured after the last one. Prints top-1 at each frame
count, mean ± deviation over folds and seeds, and the number of videos behind it.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "TSM": ("tsm", {}),
    "no shift": ("tsm", {"shift": "none"}),
    "FFN": ("ffn", {}),
}


def deal(rows: list[dict[str, str]], folds: int) -> list[set[str]]:
    """Scenes of each fold: the largest scene first, each to the fold that has the fewest videos."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["scene"]] = sizes.get(row["scene"], 0) + 1
    parts: list[set[str]] = [set() for _ in range(folds)]
    totals = [0] * folds
    for scene, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        smallest = totals.index(min(totals))
        parts[smallest].add(scene)
        totals[smallest] += size
    return parts


def run(name: str, fold: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one network on one fold."""
    from frameflex.checkpoint import load_checkpoint
    from frameflex.engine.recipe_files import parse_recipe
    from frameflex.engine.training import train

    folder = args.output / f"{name.replace(' ', '_')}-fold{fold}-seed{seed}"
    rows = list(csv.DictReader((args.folder / "labels.csv").open(encoding="utf-8")))
    rows = [row for row in rows if row["label"] in args.classes]
    held_out = deal(rows, args.folds)[fold]
    folder.mkdir(parents=True, exist_ok=True)
    lists = {}
    for split in ("train", "validation"):
        lists[split] = folder / f"{split}.csv"
        chosen = [row for row in rows if (row["scene"] in held_out) == (split == "validation")]
        lines = ["path,label", *(f"{row['path']},{row['label']}" for row in chosen)]
        lists[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe, _ = parse_recipe(["finetune_folder.yaml"])
    method, model = METHODS[name]
    recipe = replace(
        recipe,
        data=replace(
            recipe.data,
            train=str(lists["train"]),
            validation=str(lists["validation"]),
            video_dir=str(args.folder),
            num_workers=0,
        ),
        output=str(folder / "run"),
        method=method,
        clip=replace(
            recipe.clip, frame_counts=args.frames, short_side=args.size * 8 // 7, crop_size=args.size
        ),
        model=replace(recipe.model, backbone=args.backbone, pretrained=args.pretrained or True, **model),
        training=replace(
            recipe.training,
            epochs=args.epochs,
            optimizer=args.optimizer,
            learning_rate=args.learning_rate,
            parameter_groups="published" if args.optimizer == "sgd" else "plain",
            validate_every=1000,
        ),
        seed=seed,
    )
    train(recipe, resume=True)
    metrics = load_checkpoint(folder / "run" / "last.safetensors").metrics["validation"]
    return {
        "name": name,
        "fold": fold,
        "seed": seed,
        "num_videos": metrics["protocol"]["num_videos"],
        "top1": {result["num_frames"]: result["top1"] for result in metrics["results"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--classes", type=lambda text: text.split(","), required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--pretrained", help="file of ImageNet weights; default: download them")
    parser.add_argument("--frames", type=lambda text: tuple(map(int, text.split(","))), default=(2, 4, 8))
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], default="adamw")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=lambda text: list(map(int, text.split(","))), default=[0])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        pending = [
            pool.submit(run, name, fold, seed, args)
            for seed in args.seeds
            for fold in range(args.folds)
            for name in args.methods
        ]
        results = [future.result() for future in pending]
    (args.output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"| frames | {' | '.join(map(str, args.frames))} |")
    print("|---" * (len(args.frames) + 1) + "|")
    for name in args.methods:
        ours = [result for result in results if result["name"] == name]
        cells = []
        for count in args.frames:
            values = [100 * result["top1"][count] for result in ours]
            spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.0f}{spread}")
        print(f"| {name} (n={len(ours)}) | {' | '.join(cells)} |")
    sizes = [result["num_videos"] for result in results if result["name"] == args.methods[0]]
    print(f"\nheld-out videos of each fold: {sizes}; one video is {100 / min(sizes):.1f} points of a fold")


if __name__ == "__main__":
    main()
