"""People's own few videos: `frameflex train`, as it comes, beside the simplest thing over the same network.

    python benchmarks/own_videos.py FOLDER runs/own --classes left,right,up,down --fold-column scene --folds 3 \\
        --seeds 0,1 --backbone tf_efficientnet_lite0 --pretrained weights.safetensors

FOLDER holds labels.csv with the columns path and label; whole values of `--fold-column` are held out (a number modulo
the folds, a text dealt by its videos), or with `--split-column` what it calls test. Ways:

- `frameflex`: the command line `frameflex train LIST` with nothing given but the start; measured after its last
  epoch, so that no number is chosen by the held-out videos.
- `plain loop`: forty lines of PyTorch over the same network and the same pixels: AdamW 5e-4, batches of 4, cosine,
  every frame decoded once, the same number of steps, no augmentation but a window of 85 to 100 %.
- `frozen`: what simple classifiers reach on the frozen backbone's features of the frames: the best of the three of
  `evaluate --baseline`.

What is in OUTPUT already is not repeated. Prints top-1 at T, mean ± deviation over folds and seeds, and minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def divide(rows: list[dict[str, str]], column: str, folds: int) -> list[set[str]]:
    """The values of a column that each fold holds out."""
    values = sorted({row[column] for row in rows})
    if all(value.isdigit() for value in values):
        return [{value for value in values if int(value) % folds == fold} for fold in range(folds)]
    sizes = {value: sum(row[column] == value for row in rows) for value in values}
    parts: list[set[str]] = [set() for _ in range(folds)]
    totals = [0] * folds
    for value in sorted(values, key=lambda value: (-sizes[value], value)):
        smallest = totals.index(min(totals))
        parts[smallest].add(value)
        totals[smallest] += sizes[value]
    return parts


def few(rows: list[dict[str, str]], held_out: list[bool], clips: int, seed: int) -> list[int]:
    """Places of the rows that are held out, and of some of each class that are not."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    taken: dict[str, list[int]] = {}
    for place in order:
        of_class = taken.setdefault(rows[place]["label"], [])
        if not held_out[place] and len(of_class) < clips:
            of_class.append(place)
    return sorted(
        {place for part in taken.values() for place in part} | {i for i, h in enumerate(held_out) if h}
    )


def write_list(path: Path, folder: Path, rows: list[dict[str, str]], held_out: list[bool]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "label", "split"])
        for row, held in zip(rows, held_out, strict=True):
            out.writerow([folder.resolve() / row["path"], row["label"], "validation" if held else "train"])


def with_frameflex(data: Path, output: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    from frameflex.checkpoint import load_checkpoint

    command = [sys.executable, "-m", "frameflex", "train", str(data), "--output", str(output / "run")]
    command += ["--seed", str(seed), *start(args), *args.keys]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.monotonic()
    with (output / "train.txt").open("w") as log:
        subprocess.run([*command, "--resume"], check=True, stdout=log, stderr=log)
    minutes = (time.monotonic() - started) / 60
    cpu = (resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before) / 60
    measured = load_checkpoint(output / "run" / "last.safetensors").metrics["validation"]
    top1 = {row["num_frames"]: row["top1"] for row in measured["results"]}
    return {
        "top1": top1,
        "minutes": minutes,
        "cpu_minutes": cpu,
        "num_videos": measured["protocol"]["num_videos"],
    }


def start(args: argparse.Namespace) -> list[str]:
    if args.init:
        return ["--init", args.init]
    if args.backbone:
        return ["--model.backbone", args.backbone, "--model.pretrained", args.pretrained or "true"]
    return []


def with_a_plain_loop(data: Path, output: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The network, the pixels and the number of steps that `frameflex` chose for the same list; the rest is plain."""
    import torch
    from torch.nn import functional as F
    from torchvision.transforms.v2.functional import resize

    from frameflex.data.datasets import load_videos
    from frameflex.data.sampling import eval_indices, train_indices
    from frameflex.engine.automatic import automatic_recipe
    from frameflex.engine.recipe import Data, Model, Recipe
    from frameflex.engine.starting import build_model, preprocessing_of

    torch.manual_seed(seed)
    training, held_out = (load_videos(data, split=split) for split in ("train", "validation"))
    model = Model(backbone=args.backbone, pretrained=args.pretrained or True, init=args.init)
    asked = Recipe(data=Data(train=str(data)), output=str(output), model=model)
    recipe = automatic_recipe(asked, {"model.backbone", "model.pretrained"})
    network = build_model(recipe, training.classes)
    pixels = preprocessing_of(recipe, network)
    num_frames, (height, width) = recipe.clip.frame_counts[-1], pixels.size
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (pixels.mean, pixels.std))

    def decoded(videos: Any) -> list[Any]:
        frames = []
        for record in videos:
            with record.open() as reader:
                frames.append(
                    resize(reader.frames(range(reader.num_frames)), [round(height / 0.9), round(width / 0.9)])
                )
        return frames

    def clip(frames: Any, indices: list[int], top: int, left: int, high: int, wide: int) -> Any:
        cut = resize(frames[indices, :, top : top + high, left : left + wide], [height, width])
        return (cut.float().div(255).transpose(0, 1) - mean) / std  # (3, T, h, w)

    def windowed(frames: Any) -> Any:
        high, wide = (round(side * (1 - 0.15 * float(torch.rand(())))) for side in frames.shape[-2:])
        top = int(torch.randint(frames.shape[-2] - high + 1, ()))
        left = int(torch.randint(frames.shape[-1] - wide + 1, ()))
        return clip(frames, train_indices(len(frames), num_frames), top, left, high, wide)

    started, used = time.monotonic(), time.process_time()
    videos, labels = decoded(training), torch.tensor(training.labels)
    steps_an_epoch = -(-len(videos) // 4)
    num_steps = recipe.training.epochs * steps_an_epoch
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=num_steps, pct_start=0.05)
    network.train().to(memory_format=torch.channels_last)
    for _ in range(recipe.training.epochs):
        for batch in torch.randperm(len(videos)).split(4):
            logits = network(torch.stack([windowed(videos[i]) for i in batch]))
            F.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    network.eval()
    right = 0
    with torch.inference_mode():
        for frames, label in zip(decoded(held_out), held_out.labels, strict=True):
            shown = clip(frames, eval_indices(len(frames), num_frames), 0, 0, *frames.shape[-2:])
            right += int(network(shown[None]).argmax()) == label
    return {
        "top1": {num_frames: right / len(held_out)},
        "minutes": (time.monotonic() - started) / 60,
        "cpu_minutes": (time.process_time() - used) / 60,
        "num_videos": len(held_out),
    }


def frozen(data: Path, output: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """From the run of the way `frameflex`, which says where its network started."""
    import torch

    from frameflex.checkpoint import load_checkpoint
    from frameflex.data.datasets import load_videos
    from frameflex.engine.baseline import measure_baseline

    trained = output.with_name(output.name.replace("frozen", "frameflex")) / "run" / "last.safetensors"
    checkpoint, held_out = load_checkpoint(trained), load_videos(data, split="validation")
    num_frames, started = checkpoint.num_frames, time.monotonic()
    measured = measure_baseline(checkpoint, held_out, num_frames=num_frames, device=torch.device("cpu"))
    top1 = {
        "mean": measured.mean,
        "mean and deviation": measured.mean_and_deviation,
        "mean and change": measured.mean_and_change,
    }
    return {
        "top1": {num_frames: max(top1.values())},  # the best of its three, so a bar that is a little too high
        "of_each": top1,
        "minutes": (time.monotonic() - started) / 60,
        "num_videos": len(held_out),
    }


WAYS = {"frameflex": with_frameflex, "plain loop": with_a_plain_loop, "frozen": frozen}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("keys", nargs="*", help="further options of frameflex train, behind --")
    parser.add_argument("--classes", type=lambda text: set(text.split(",")), help="default: all")
    parser.add_argument("--only", help="COLUMN=VALUE: rows of labels.csv that take part")
    parser.add_argument("--fold-column", default="scene")
    parser.add_argument("--split-column", help="one division by this column, instead of folds")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--fold", type=int, help="this one alone, from 0; others may run beside it")
    parser.add_argument("--clips", type=int, help="train on so many of each class, drawn by the seed")
    parser.add_argument("--seeds", type=lambda text: list(map(int, text.split(","))), default=[0])
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--backbone")
    parser.add_argument("--pretrained", help="file of ImageNet weights; default: download them")
    parser.add_argument("--init", help="checkpoint to start from")
    args = parser.parse_args()
    rows = list(csv.DictReader((args.folder / "labels.csv").open(encoding="utf-8")))
    if args.classes:
        rows = [row for row in rows if row["label"] in args.classes]
    if args.only:
        column, _, value = args.only.partition("=")
        rows = [row for row in rows if row[column] == value]
    if args.split_column:
        divisions = [[row[args.split_column] == "test" for row in rows]]
    else:
        parts = divide(rows, args.fold_column, args.folds)
        divisions = [[row[args.fold_column] in part for row in rows] for part in parts]
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    for seed in args.seeds:
        for fold, held_out in enumerate(divisions):
            if args.fold not in (None, fold):
                continue
            data, places = args.output / f"fold{fold}.csv", list(range(len(rows)))
            if args.clips:
                data, places = data.with_stem(f"fold{fold}-draw{seed}"), few(rows, held_out, args.clips, seed)
            write_list(data, args.folder, [rows[i] for i in places], [held_out[i] for i in places])
            for way in args.ways:
                if way == "frozen" and seed != args.seeds[0] and not args.clips:
                    continue  # nothing in it is drawn
                output = args.output / f"{way.replace(' ', '_')}-fold{fold}-seed{seed}"
                output.mkdir(exist_ok=True)
                kept = output / "result.json"
                if not kept.exists():
                    result = WAYS[way](data, output, seed, args)
                    kept.write_text(json.dumps(result))
                results[way].append(json.loads(kept.read_text()))
                print(f"{way}, fold {fold}, seed {seed}: {results[way][-1]}", file=sys.stderr, flush=True)
    print(table(results))


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row a way."""
    lines = ["| way | runs | top-1 % at T | minutes a run |", "|---|---|---|---|"]
    for way, runs in results.items():
        cells = []
        for count in runs[0]["top1"]:
            values = [100 * run["top1"][count] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread} at {count}")
        minutes = statistics.mean(run["minutes"] for run in runs)
        lines.append(f"| {way} | {len(runs)} | {', '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning")
    main()
