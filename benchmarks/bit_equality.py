"""Does a change that should move no number move one? Run before and after it, on one machine, and compare.

Everything goes through the command line, so that a change of modules cannot touch this script: a golden checkpoint of
three code bases is drawn by rule, converted and asked for its answers to rendered videos; a frame-flexible network is
trained for 20 seeded steps. Prints SHA-256 digests of every probability and every loss, bit for bit.

    python benchmarks/bit_equality.py > before.txt
    python benchmarks/bit_equality.py | diff before.txt -  # after the change

`--golden DIR` names the reference files of the code bases (`keys` and shapes); without it only the training is run.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import torch

STEPS = 20
VIDEOS = 48
EPOCHS = 4  # of 5 steps each


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--golden", type=Path, help="folder of reference files (*.json with keys)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("data", "render", folder / "motion", "--videos", VIDEOS, "--size", 64, "--seed", 3)
        videos = (
            sorted((folder / "motion").rglob("*.mp4"))[:4] or sorted((folder / "motion").rglob("*.webm"))[:4]
        )
        for reference in sorted(arguments.golden.glob("*.json")) if arguments.golden else []:
            show(reference.stem, converted_answers(reference, folder, videos))
        show("training", losses(folder))
        best = next((folder / "run").rglob("best.safetensors"))
        show("trained", answers(best, videos))


def converted_answers(reference: Path, folder: Path, videos: list[Path]) -> str:
    target = folder / f"{reference.stem}.safetensors"
    if not target.exists():
        keys = json.loads(reference.read_text())["keys"]
        torch.save(drawn(keys), folder / "source.pth")
        counts = [] if "ffn" in reference.stem else ["--frames", 8]  # FFN's file says them itself
        run("convert", folder / "source.pth", "--to", target, *counts)
    return answers(target, videos)


def drawn(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The checkpoint that the references' rule draws: one generator a tensor, seeded by its name."""
    state = {}
    for key, shape in keys.items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.removeprefix("module.").encode()))
        if key.endswith("num_batches_tracked"):
            value = torch.zeros(shape, dtype=torch.long)
        elif key.endswith("running_var"):
            value = torch.rand(shape, generator=generator) * 0.5 + 0.75
        elif key.endswith("running_mean"):
            value = torch.randn(shape, generator=generator) * 0.1
        elif len(shape) == 1 and key.endswith(".weight"):
            value = torch.rand(shape, generator=generator) * 0.5 + 0.5
        elif len(shape) <= 1:
            value = torch.randn(shape, generator=generator) * 0.05
        else:
            value = torch.randn(shape, generator=generator)
            value *= (1.5 / value[0].numel()) ** 0.5
        state[key] = value
    return state


def answers(checkpoint: Path, videos: list[Path]) -> str:
    """All probabilities of a few videos, as `predict --json` writes them: Python's shortest exact decimals."""
    exact = (
        ["--precision", "float32"] if "--precision" in run("predict", "--help") else []
    )  # before it was all there was
    lines = run(
        "predict", checkpoint, *videos, "--json", "--top", 1000, "--frames", 8, "--workers", 0, *exact
    ).splitlines()
    keys = ("predictions", "num_frames")
    return json.dumps([[json.loads(line).get(key) for key in keys] for line in lines])


def losses(folder: Path) -> str:
    """The losses of 20 steps of the benchmark's frame-flexible recipe."""
    run(
        "train", "motion_ffn.yaml", "--data.train", folder / "motion", "--output", folder / "run",
        "--training.epochs", EPOCHS, "--training.batch_size", 8, "--data.num_workers", 0,
    )  # fmt: skip
    logs = sorted((folder / "run").rglob("log.jsonl"))
    entries = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    steps = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(steps) == STEPS, f"{len(steps)} steps were logged"
    return json.dumps(steps)


def show(name: str, values: str) -> None:
    print(f"{name}: {hashlib.sha256(values.encode()).hexdigest()}", flush=True)


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "frameflex", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the order of sums depends on the number of threads
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
