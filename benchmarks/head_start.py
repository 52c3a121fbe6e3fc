"""A few clips a class: frozen features of a network that knows motion, beside fine-tuning it, at equal clips.

    python benchmarks/head_start.py FOLDER runs/head --classes left,right,up,down --held-out scene --folds 3 \\
        --init start.safetensors --backbone tf_efficientnet_lite0 --pretrained weights.safetensors --clips 1,2,3,5,10

FOLDER holds labels.csv with the columns path and label. Whole values of `--held-out` are held out (a number modulo
the folds, a text dealt by its videos); of `split` it is what the list calls test. A draw takes one of these
divisions in turn and so many clips of each class from its training part (0: all), more always with the fewer among
them. Ways:

- `frozen`: features of `--init` and of ImageNet's network (without a shift), each with the nearest neighbour, a vote
  of the five nearest, the nearest class mean and logistic regression. Features are taken of every frame before the
  last stage and behind it, and then the mean over frames, mean and deviation, mean and difference of the halves, or
  four parts of the clip one behind the other. "first answer": what the page and `evaluate --baseline` make of them.
  "own statistics": batch norms measure the clips that are taught first. "backwards": clips count a second time,
  played backwards, where names tell of which class they are then.
- `init`, `fitted`, `imagenet`: `frameflex train LIST` as it comes, from `--init`, from it with a classifier that is
  logistic regression on its own frozen features, or from ImageNet; after the last epoch.

What is in OUTPUT already is not repeated. Prints top-1, mean ± deviation over the draws.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from own_videos import divide, write_list
from torch import Tensor, nn

Row = dict[str, str]


def draws_of(rows: list[Row], args: argparse.Namespace) -> Iterator[tuple[int, int, list[int], list[int]]]:
    """(draw, clips a class, rows to teach, rows to ask), as far as there are clips enough."""
    for draw in range(args.draws):
        if args.held_out == "split":
            held = [row["split"] == "test" for row in rows]
        else:
            part = divide(rows, args.held_out, args.folds)[draw % args.folds]
            held = [row[args.held_out] in part for row in rows]
        order = list(range(len(rows)))
        random.Random(draw).shuffle(order)
        of_class = {
            name: [i for i in order if rows[i]["label"] == name and not held[i]] for name in args.classes
        }
        for number in args.clips:
            if number <= min(map(len, of_class.values())):
                taught = [i for found in of_class.values() for i in found[: number or None]]
                yield draw, number, taught, [i for i in range(len(rows)) if held[i]]


# Frozen features


def clips_of(rows: list[Row], args: argparse.Namespace, checkpoint_pixels: Any, num_frames: int) -> Tensor:
    """Clips ``(N, 3, T, h, w)`` as evaluation makes them."""
    from frameflex.data.clips import ClipDataset
    from frameflex.data.records import VideoList, VideoRecord
    from frameflex.data.transforms import EvalTransform

    records = [
        VideoRecord(args.folder / row["path"], args.classes.index(row["label"]), row["path"]) for row in rows
    ]
    dataset = ClipDataset(
        VideoList(records, args.classes),
        frame_counts=[num_frames],
        transform=EvalTransform(checkpoint_pixels),
        training=False,
    )
    return torch.cat([dataset[i].clips[num_frames] for i in range(len(dataset))])


@torch.no_grad()
def features_of(model: Any, clips: Tensor) -> dict[str, Tensor]:
    """Of every frame before the last stage and behind it, pooled: ``{tap: (N, T, F)}``."""
    from frameflex.engine.first_answer import before_last_stage

    last: list[Tensor] = []
    handle = model.backbone.register_forward_hook(lambda _, __, output: last.append(output.float()))
    with before_last_stage(model) as before:
        for part in clips.split(16):
            model(part)
    handle.remove()
    taps = {"before last": before, "last": last}
    return {name: torch.cat(found).unflatten(0, (len(clips), -1)) for name, found in taps.items()}


POOLINGS = ("mean", "mean, deviation", "mean, halves", "4 parts")


def poolings(frames: Tensor) -> dict[str, Tensor]:
    """``(N, T, F)`` as one row a clip."""
    half = frames.shape[1] // 2
    parts = [part.mean(1) for part in frames.chunk(4, dim=1)]
    return {
        "mean": frames.mean(1),
        "mean, deviation": torch.cat([frames.mean(1), frames.std(1, correction=0)], 1),
        "mean, halves": torch.cat([frames.mean(1), frames[:, half:].mean(1) - frames[:, :half].mean(1)], 1),
        "4 parts": torch.cat(parts, 1),
    }


def answers(known: Tensor, labels: Tensor, asked: Tensor, num_classes: int) -> dict[str, Tensor]:
    """What each simple classifier says of the rows that are asked."""
    from frameflex.engine.baseline import fit_logistic

    mean, deviation = known.mean(0), known.std(0, correction=0).clamp(min=1e-6)
    near, far = (nn.functional.normalize((some - mean) / deviation, dim=1) for some in (known, asked))
    likeness = far @ near.T
    best = likeness.topk(min(5, len(known)))
    votes = torch.zeros(len(asked), num_classes).scatter_add(
        1, labels[best.indices], (10 * best.values).softmax(1)
    )
    means = torch.stack([near[labels == label].mean(0) for label in range(num_classes)])
    return {
        "nearest": labels[likeness.argmax(1)],
        "5 nearest": votes.argmax(1),
        "class mean": (far @ nn.functional.normalize(means, dim=1).T).argmax(1),
        "logistic": fit_logistic(known, labels, num_classes)(asked).argmax(1),
    }


def own_statistics(model: nn.Module, clips: Tensor) -> None:
    """Batch norms take the statistics of these clips, in one pass."""
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        model(clips)
    model.eval()


def frozen(rows: list[Row], args: argparse.Namespace) -> dict[str, Any]:
    """Top-1 of every frozen way: ``{way: {clips a class: [a draw each]}}``, and seconds of a whole answer."""
    from frameflex.checkpoint import load_checkpoint
    from frameflex.data.directions import reverse_directions
    from frameflex.data.transforms import Preprocessing
    from frameflex.engine.first_answer import LeastSquares
    from frameflex.models import create_model

    labels = torch.tensor([args.classes.index(row["label"]) for row in rows])
    reverse = torch.tensor(reverse_directions(args.classes))[labels]
    found: dict[str, Any] = {}
    networks: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {}
    if args.init:
        start = load_checkpoint(args.init)
        clips = clips_of(rows, args, start.preprocessing, start.num_frames)
        networks["init"] = (lambda: load_checkpoint(args.init).model.eval(), clips)
    if args.pretrained:
        plain = create_model(args.backbone, num_classes=2, shift="none", pretrained=args.pretrained).eval()
        expected = plain.backbone.pretrained_cfg
        pixels = Preprocessing(
            short_side=args.size[0],
            crop_size=args.size,
            fit="whole",
            mean=expected["mean"],
            std=expected["std"],
        )
        networks["ImageNet"] = (lambda: plain, clips_of(rows, args, pixels, 8))

    def measure(name: str, number: int, taught: list[int], asked: list[int], forth: Any, back: Any) -> None:
        def add(way: str, guessed: Tensor) -> None:
            top1 = float((guessed == labels[asked]).double().mean())
            found.setdefault(f"{name} | {way}", {}).setdefault(number, []).append(top1)

        for tap, pooling in itertools.product(forth, POOLINGS):
            features = poolings(forth[tap])[pooling]
            for backwards in (False, True) if args.backwards else (False,):
                known, of = features[taught], labels[taught]
                if backwards:
                    turned = [i for i in taught if reverse[i] >= 0]
                    known = torch.cat([known, poolings(back[tap])[pooling][turned]])
                    of = torch.cat([of, reverse[turned]])
                for head, guessed in answers(known, of, features[asked], len(args.classes)).items():
                    add(f"{tap} | {pooling}{' | backwards' if backwards else ''} | {head}", guessed)
        features = poolings(forth["before last"])["mean, halves"]
        fit = LeastSquares(features[taught], labels[taught], len(args.classes))
        add("first answer", fit.scores(features[asked]).argmax(1))

    for name, (make, clips) in networks.items():
        model = make()
        forth = features_of(model, clips)
        back = features_of(model, clips.flip(2)) if args.backwards else {}
        for _, number, taught, asked in draws_of(rows, args):
            measure(name, number, taught, asked, forth, back)
            if name == "init" and args.statistics:
                changed = make()
                own_statistics(changed, clips[taught])
                measure(
                    "init, own statistics",
                    number,
                    taught,
                    asked,
                    features_of(changed, clips),
                    features_of(changed, clips.flip(2)) if args.backwards else {},
                )
    return found


# Fine-tuning


def fine_tuned(rows: list[Row], args: argparse.Namespace, way: str) -> dict[str, Any]:
    """Top-1 of `frameflex train` after its last epoch: ``{clips a class: [a draw each]}``."""
    from frameflex.checkpoint import load_checkpoint

    start = ["--init", args.init]
    if way == "imagenet":
        start = [
            "--model.backbone",
            args.backbone,
            "--model.pretrained",
            args.pretrained,
            "--clip.crop_size",
            f"[{args.size[0]}, {args.size[1]}]",
        ]
    found: dict[str, Any] = {"top1": {}, "cpu_minutes": []}
    for draw, number, taught, asked in draws_of(rows, args):
        if number not in args.tuned_clips[way]:
            continue
        folder = args.output / f"{way}-{number}-{draw}"
        kept = folder / "result.json"
        if not kept.exists():
            chosen = [rows[i] for i in (*taught, *asked)]
            write_list(
                folder / "list.csv", args.folder, chosen, [i >= len(taught) for i in range(len(chosen))]
            )
            if way == "fitted":
                start = [
                    "--init",
                    str(with_fitted_head(chosen[: len(taught)], folder / "start.safetensors", args)),
                ]
            command = [
                sys.executable,
                "-m",
                "frameflex",
                "train",
                str(folder / "list.csv"),
                *start,
                *args.keys,
            ]
            command += ["--output", str(folder / "run"), "--seed", str(draw)]
            command += ["--training.validate_every", "100000", "--resume"]
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.monotonic()
            with (folder / "train.txt").open("w") as log:
                subprocess.run(command, check=True, stdout=log, stderr=log)
            cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            measured = load_checkpoint(folder / "run" / "last.safetensors").metrics["validation"]
            top1 = max(measured["results"], key=lambda row: row["num_frames"])["top1"]
            result = {"top1": top1, "cpu_minutes": cpu / 60, "minutes": (time.monotonic() - started) / 60}
            kept.write_text(json.dumps(result))
        result = json.loads(kept.read_text())
        print(f"{way}, {number} clips a class, draw {draw}: {result}", file=sys.stderr, flush=True)
        found["top1"].setdefault(number, []).append(result["top1"])
        found["cpu_minutes"].append(result["cpu_minutes"])
    return found


def with_fitted_head(rows: list[Row], path: Path, args: argparse.Namespace) -> Path:
    """`--init`, its classifier the logistic regression of these clips."""
    from frameflex.checkpoint import load_checkpoint, save_checkpoint
    from frameflex.engine.baseline import fit_logistic

    start = load_checkpoint(args.init)
    model = start.model.eval()
    clips = clips_of(rows, args, start.preprocessing, start.num_frames)
    mean = features_of(model, clips)["last"].mean(1)
    labels = torch.tensor([args.classes.index(row["label"]) for row in rows])
    logits = fit_logistic(mean, labels, len(args.classes))
    bias = logits(torch.zeros(1, mean.shape[1]))
    head = nn.Linear(mean.shape[1], len(args.classes))
    with torch.no_grad():
        head.bias.copy_(bias[0])
        head.weight.copy_((logits(torch.eye(mean.shape[1])) - bias).T)
    model.head = head
    model.config["num_classes"] = len(args.classes)
    save_checkpoint(path, replace(start, class_names=args.classes))
    return path


def table(ways: dict[str, dict[int, list[float]]], clips: list[int]) -> str:
    """Markdown: a row a way, the best mean first."""
    lines = [f"| top-1 %, clips a class | {' | '.join(map(str, clips))} |", "|---" * (len(clips) + 1) + "|"]

    def worth(way: str) -> float:
        return statistics.mean(statistics.mean(values) for values in ways[way].values())

    for way in sorted(ways, key=worth, reverse=True):
        cells = []
        for number in clips:
            values = [100 * value for value in ways[way].get(number, [])]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {way.replace(' | ', ', ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return list(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("keys", nargs="*", help="further options of frameflex train, behind --")
    parser.add_argument("--classes", type=lambda text: text.split(","), required=True)
    parser.add_argument("--only", action="append", default=[], help="COLUMN=VALUE,VALUE: rows that take part")
    parser.add_argument("--without", action="append", default=[], help="COLUMN=VALUE,VALUE: rows that don't")
    parser.add_argument("--held-out", default="scene")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--clips", type=numbers, default=[1, 2, 3, 5, 10])
    parser.add_argument("--init", help="checkpoint that knows motion")
    parser.add_argument(
        "--init-clips", type=numbers, default=[], help="at which clips a class to fine-tune it"
    )
    parser.add_argument(
        "--fitted-clips", type=numbers, default=[], help="likewise, its classifier fitted first"
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--pretrained", help="file of its ImageNet weights")
    parser.add_argument("--imagenet-clips", type=numbers, default=[], help="likewise")
    parser.add_argument("--size", type=lambda text: tuple(numbers(text)), default=(96, 128))
    parser.add_argument("--backwards", action="store_true", help="also with clips played backwards")
    parser.add_argument("--statistics", action="store_true", help="also with own statistics")
    parser.add_argument("--rows", type=int, default=40, help="of the frozen ways' table")
    args = parser.parse_args()
    args.tuned_clips = {"init": args.init_clips, "fitted": args.fitted_clips, "imagenet": args.imagenet_clips}
    torch.set_num_threads(1)
    rows = list(csv.DictReader((args.folder / "labels.csv").open(encoding="utf-8")))
    rows = [row for row in rows if row["label"] in args.classes]
    for text, wanted in itertools.chain(((t, True) for t in args.only), ((t, False) for t in args.without)):
        column, _, values = text.partition("=")
        rows = [row for row in rows if (row[column] in values.split(",")) == wanted]
    args.output.mkdir(parents=True, exist_ok=True)
    kept = args.output / "frozen.json"
    if not kept.exists():
        kept.write_text(json.dumps(frozen(rows, args)))
    ways = {
        way: {int(number): values for number, values in of.items()}
        for way, of in json.loads(kept.read_text()).items()
    }
    print("\n".join(table(ways, args.clips).splitlines()[: args.rows + 2]))
    tuned = {way: fine_tuned(rows, args, way) for way in args.tuned_clips if args.tuned_clips[way]}
    if tuned:
        print(table({f"fine-tuned from {way}": one["top1"] for way, one in tuned.items()}, args.clips))
    for way, one in tuned.items():
        print(f"{way}: {statistics.mean(one['cpu_minutes']):.1f} minutes of one core a run")


if __name__ == "__main__":
    main()
