"""Kill a training run again and again, go on with it, and compare what comes out with a run never stopped.

    python benchmarks/soak.py runs/soak --kills 20

Half of the kills come at a random moment, half of them right while a checkpoint is being written: the script watches
the folder of the run for the temporary file that a writer fills. Every kill is SIGKILL, in turn to the training
process alone and to it and its workers together. At the end the weights, the averaged ones, the optimizer's tensors
and the log must equal those of the run that was never stopped, bit for bit. Exit status 0 only then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main as frameflex_main
from frameflex.engine.recipe import Clip, Data, Model, Recipe, Training
from frameflex.motion.rendering import render

NEVER_COMPARED = ("time", "clips_per_second", "seconds_left", "waiting", "results")  # clocks; see compare()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--backbone", default="resnet10t", help="larger ones are written longer")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    folder, draw = args.folder, random.Random(args.seed)
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} holds files already; expected a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    render(folder / "data", num_videos=60, size=32)
    started = time.monotonic()
    whole = start(recipe(folder, "whole", args.epochs, args.backbone))
    whole.join()
    if whole.exitcode:
        raise SystemExit(f"the run failed; {folder / 'whole.txt'} says why")
    print(f"never stopped: {time.monotonic() - started:.0f} s", flush=True)
    killed = recipe(folder, "killed", args.epochs, args.backbone)
    kills: list[dict[str, object]] = []
    while True:
        process = start(killed)
        while_writing = len(kills) % 2 == 1
        moment = None
        if len(kills) < args.kills:
            moment = kill(process, folder / "killed", draw, while_writing, alone=len(kills) % 4 < 2)
        if moment is None:  # it came to its end
            process.join()
            if process.exitcode:
                raise SystemExit(f"the run failed after {len(kills)} kills; {folder / 'killed.txt'} says why")
            break
        kills.append(moment)
        print(f"kill {len(kills)}: {json.dumps(moment)}", flush=True)
    differences = compare(folder / "whole", folder / "killed")
    leftovers = [path.name for path in (folder / "killed").glob(".*")]
    halves = sum(bool(moment["half_written"]) for moment in kills)
    print(
        f"{len(kills)} kills, {halves} of them left a half-written checkpoint; "
        f"leftovers at the end: {leftovers or 'none'}"
    )
    print("bit for bit equal" if not differences else f"DIFFERENT: {', '.join(differences)}")
    return 0 if not differences and not leftovers and len(kills) == args.kills else 1


def recipe(folder: Path, name: str, epochs: int, backbone: str) -> Path:
    """A run with everything that has a state: average, momentum, dropout, augmentation, several frame counts."""
    made = Recipe(
        data=Data(train=str(folder / "data"), num_workers=2),
        output=str(folder / name),
        method="ffn",
        clip=Clip(frame_counts=(2, 4), short_side=32, crop_size=32, color_jitter=0.3),
        model=Model(backbone=backbone, pretrained=False),
        training=Training(
            epochs=epochs,
            batch_size=4,
            optimizer="adamw",
            learning_rate=1e-4,
            reference_batch_size=None,
            warmup_epochs=0.5,
            ema_decay=0.99,
            checkpoint_steps=3,
            keep_checkpoints=2,
        ),
    )
    path = folder / f"{name}.yaml"
    made.save(path)
    return path


def start(path: Path) -> ForkServerProcess:
    """The training command in a process of its own; a server that has imported everything makes it, to save time."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["frameflex.engine.recipe_files", "frameflex.console", "frameflex.engine.training"]
    )
    process = server.Process(target=train_command, args=(str(path),))
    process.start()
    return process


def train_command(path: str) -> None:
    os.setsid()  # a group of its own, with its workers
    with Path(path).with_suffix(".txt").open("ab") as messages:
        os.dup2(messages.fileno(), 1)
        os.dup2(messages.fileno(), 2)
    sys.exit(frameflex_main(["train", path, "--resume"]))


def kill(
    process: ForkServerProcess, output: Path, draw: random.Random, while_writing: bool, *, alone: bool
) -> dict[str, object] | None:
    """SIGKILL at a moment; None if the run ended before it came."""
    begun = time.monotonic()
    # Every fourth random kill hits the start: importing, loading, the first batches. The others come steps later.
    early = draw.random() < 0.25
    more_steps, more_seconds = draw.randint(0, 10), draw.uniform(0.0, 8.0 if early else 0.5)
    writes_to_skip = draw.randint(0, 2)
    steps, writing = _steps(output / "log.jsonl"), False
    while process.exitcode is None:
        if while_writing:
            now_writing = any(name.endswith(".tmp") for name in _names(output))
            if now_writing and not writing:
                if writes_to_skip == 0:
                    time.sleep(draw.uniform(0.0, 0.1))  # somewhere in its writing, flushing or renaming
                    break
                writes_to_skip -= 1
            writing = now_writing
            time.sleep(0.001)
        else:
            if early or _steps(output / "log.jsonl") >= steps + more_steps:
                time.sleep(more_seconds)
                break
            time.sleep(0.02)
    else:
        return None
    if process.exitcode is not None:
        return None
    assert process.pid is not None
    if alone:
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()
    if alone:  # its workers see that and end; until then they hold nothing of the run
        deadline = time.monotonic() + 30
        while _alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    return {
        "after_seconds": round(time.monotonic() - begun, 1),
        "aimed_at": "writing" if while_writing else "start" if early else "any moment",
        "signal_to": "process" if alone else "group",
        "half_written": [name for name in _names(output) if name.endswith(".tmp")],
        "steps_in_log": _steps(output / "log.jsonl"),
    }


def compare(first: Path, second: Path) -> list[str]:
    """What differs between two runs: tensors of the last and the best checkpoint, where they stand, their logs."""
    differences = []
    for name in ("last.safetensors", "best.safetensors"):
        one, other = (load_checkpoint(folder / name, training=True) for folder in (first, second))
        tensors = [
            {**saved.model.state_dict(), **(saved.training.tensors if saved.training else {})}
            for saved in (one, other)
        ]
        differences += sorted(tensors[0].keys() ^ tensors[1].keys())
        differences += [
            f"{name}: {key}"
            for key in tensors[0]
            if key in tensors[1] and not _same_bits(tensors[0][key], tensors[1][key])
        ]
    lines = [
        [_timeless(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (first, second)
    ]
    print(f"{len(tensors[0])} tensors of {name}, {len(lines[0])} lines of log compared")
    return differences + (["log.jsonl"] if lines[0] != lines[1] else [])


def _timeless(event: dict[str, object]) -> dict[str, object]:
    results = event.get("results")
    kept = {key: value for key, value in event.items() if key not in NEVER_COMPARED}
    if isinstance(results, list):
        kept["top1"] = [(row["num_frames"], row["top1"], row["top5"]) for row in results]
    return kept


def _same_bits(one: object, other: object) -> bool:
    assert isinstance(one, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(
            one.reshape(-1).contiguous().view(torch.uint8), other.reshape(-1).contiguous().view(torch.uint8)
        )
    )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _steps(log: Path) -> int:
    return log.read_bytes().count(b'"event": "step"') if log.exists() else 0


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
