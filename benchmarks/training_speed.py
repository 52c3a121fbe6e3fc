"""Videos a second of training on this machine: as `frameflex train` chooses it, as it was, as a plain loop has it.

    git worktree add ../before c2be74b
    python benchmarks/training_speed.py FOLDER --before ../before/src --backbone tf_efficientnet_lite0 --size 112

FOLDER is a data set that `frameflex train` takes. Every way trains the same network from random weights on the same
videos at the same pixels, T and batch, two epochs a turn; they take turns, so that a busy machine is busy for all.

- `now`: the command line, with nothing given but the network and the pixels.
- `now, float32` and `now, not kept`: the same without one of what it chooses (`training.precision`,
  `data.cache_frames`); `now, half frozen` with the first stages of the network frozen (`training.frozen_stages 3`).
- `before`: the sources of an earlier commit, float32 and as many loader processes as its fine-tuning recipe has.
- `plain loop`: PyTorch alone, float32, every frame decoded once before the first step, which is not counted.

Prints videos a second in the second epoch, and in the first, in which frames that are kept are decoded: medians over
the turns, and ratios to `before`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NOW = ["--training.epochs", "2", "--training.validate_every", "1000", "--training.warmup_epochs", "0.1"]


def command_line(
    args: argparse.Namespace, keys: list[str], sources: Path | None = None
) -> tuple[float, float]:
    """Videos a second in the first and in the second epoch of `frameflex train`."""
    with tempfile.TemporaryDirectory(prefix="frameflex-speed-") as folder:
        command = [sys.executable, "-m", "frameflex", "train", *keys, *NOW]
        command += [
            "--output",
            f"{folder}/run",
            "--model.backbone",
            args.backbone,
            "--model.pretrained",
            "false",
        ]
        command += ["--clip.frame_counts", f"[{args.frames}]", "--training.batch_size", str(args.batch)]
        environment = os.environ | ({"PYTHONPATH": str(sources.resolve())} if sources else {})
        log = Path(folder) / "said.txt"
        with log.open("w") as said:
            if subprocess.run(command, stdout=said, stderr=said, env=environment).returncode:
                raise RuntimeError(log.read_text()[-2000:])
        lines = (Path(folder) / "run" / "log.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    rates = []
    for epoch in (0, 1):
        times = [event["time"] for event in steps if event["epoch"] == epoch]
        rates.append(args.batch * (len(times) - 1) / (times[-1] - times[0]))
    return rates[0], rates[1]


def now(args: argparse.Namespace, *keys: str) -> tuple[float, float]:
    size = f"[{args.size}, {args.size}]"
    return command_line(args, [str(args.folder), "--clip.crop_size", size, "--clip.fit", "whole", *keys])


def before(args: argparse.Namespace) -> tuple[float, float]:
    keys = ["--data.train", str(args.folder), "--clip.crop_size", str(args.size)]
    return command_line(args, [*keys, "--clip.short_side", str(round(args.size / 0.875))], args.before)


def plain_loop(args: argparse.Namespace) -> tuple[float, float]:
    import torch
    from torch.nn import functional as F
    from torchvision.transforms.v2.functional import resize

    from frameflex.data.datasets import load_videos
    from frameflex.data.sampling import train_indices
    from frameflex.models.tsm import TSM

    videos = load_videos(args.folder, split="train")
    decoded = []
    for record in videos:
        with record.open() as reader:
            decoded.append(resize(reader.frames(range(reader.num_frames)), [args.size, args.size]))
    network = TSM(args.backbone, num_classes=len(videos.classes)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)
    labels, rates = torch.tensor(videos.labels), []
    for _ in range(2):
        started = time.monotonic()
        for batch in torch.randperm(len(videos)).split(args.batch):
            clips = [decoded[i][train_indices(len(decoded[i]), args.frames)] for i in batch]
            logits = network(torch.stack(clips).float().div(255).transpose(1, 2))
            F.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
        rates.append(len(videos) / (time.monotonic() - started))
    return rates[0], rates[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, help="sources of an earlier commit")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(";"), help="ways, separated by semicolons")
    args = parser.parse_args()
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "now": lambda: now(args),
        "now, float32": lambda: now(args, "--training.precision", "no"),
        "now, not kept": lambda: now(args, "--data.cache_frames", "false", "--data.num_workers", "1"),
        "now, half frozen": lambda: now(args, "--training.frozen_stages", "3"),
        "plain loop": lambda: plain_loop(args),
    }
    if args.before:
        ways["before"] = lambda: before(args)
    ways = {name: way for name, way in ways.items() if not args.only or name in args.only}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(args.turns):
        for name, way in ways.items():
            rates[name].append(way())
            first, second = rates[name][-1]
            print(
                f"turn {turn + 1}: {name} {first:.1f}, then {second:.1f} videos/s",
                file=sys.stderr,
                flush=True,
            )
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)]
        for name, found in rates.items()
    }
    against = medians.get("before")
    print("| way | first epoch, videos/s | then | ratio |\n|---|---|---|---|")
    for name, (first, second) in medians.items():
        ratio = f"{second / against[1]:.2f}" if against else ""
        print(f"| {name} | {first:.1f} | {second:.1f} | {ratio} |")


if __name__ == "__main__":
    main()
