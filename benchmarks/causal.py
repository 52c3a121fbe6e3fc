"""What seeing only the past costs on the bundled benchmark, and how early a stream knows.

    frameflex data render motion --videos 1200 --validation-fraction 0.4
    OMP_NUM_THREADS=1 python benchmarks/causal.py motion runs/causal --epochs 12 \
        --plot docs/experiments/streaming-accuracy.png

Trains the bidirectional and the causal TSM of recipes/motion.yaml at 8 frames, with the same videos, epochs and
augmentation, and measures the networks of the last epoch: on clips of 8 frames, and while each validation video is
pushed through a `StreamingRecognizer` frame by frame. Runs that are in OUTPUT already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

NUM_FRAMES = 8
STRIDE = 5  # the videos have 24 to 48 frames, 38 on average: what 8 of them lie apart
FRACTIONS = tuple(i / 10 for i in range(1, 11))
SHIFTS = ("bidirectional", "causal")
CURVES = {
    "causal, mean since the start": "causal",
    "causal, mean of the last 4 frames": "causal",
    "causal, last frame alone": "causal",
    "bidirectional, sliding window of 8": "bidirectional",
}


def run(shift: str, seed: int, data: Path, output: Path, epochs: int | None) -> None:
    """Train one network and measure it; writes ``results.json`` last."""
    import torch

    torch.set_num_threads(1)
    folder = output / f"{shift}-seed{seed}"
    if (folder / "results.json").exists():
        return
    trained = folder / "trained.safetensors"
    if not trained.exists():
        _train(shift, seed, data, folder, epochs)
        shutil.copy(folder / "run" / "last.safetensors", trained)
    values = {"shift": shift, "seed": seed, **_measure(trained, data)}
    (folder / "results.json").write_text(json.dumps(values))


def _train(shift: str, seed: int, data: Path, folder: Path, epochs: int | None) -> None:
    from frameflex.engine.recipe_files import parse_recipe
    from frameflex.engine.training import train

    recipe, _ = parse_recipe(["motion.yaml"])
    recipe = replace(
        recipe,
        data=replace(recipe.data, train=str(data), num_workers=0),
        output=str(folder / "run"),
        clip=replace(recipe.clip, frame_counts=(NUM_FRAMES,)),
        model=replace(recipe.model, shift=shift),
        training=replace(recipe.training, epochs=epochs or recipe.training.epochs, validate_every=1000),
        seed=seed,
    )
    train(recipe, resume=True)


def _measure(path: Path, data: Path) -> dict[str, Any]:
    """Accuracies on clips, and for every curve at each fraction of the video."""
    import torch

    from frameflex.checkpoint import load_checkpoint
    from frameflex.data.datasets import load_split
    from frameflex.data.sampling import eval_indices
    from frameflex.data.transforms import EvalTransform
    from frameflex.deploy.live.streaming import StreamingRecognizer
    from frameflex.video import open_video

    checkpoint = load_checkpoint(path)
    transform = EvalTransform(checkpoint.preprocessing)
    causal = checkpoint.model.config["shift"] == "causal"
    options: dict[str, Any] = {} if causal else {"window": NUM_FRAMES}
    recognizer = StreamingRecognizer(checkpoint, stride=STRIDE, device="cpu", **options)
    videos = load_split(data, "validation")
    right: dict[str, list[int]] = {
        name: [0] * len(FRACTIONS) for name in CURVES if causal == ("causal" in name)
    }
    offline, by_frame = 0, [0] * NUM_FRAMES
    for record in videos:
        with open_video(record.path) as reader:
            frames = list(reader)
        clip = transform(torch.stack([frames[i] for i in eval_indices(len(frames), NUM_FRAMES)]))
        with torch.inference_mode():
            logits = checkpoint.model.forward_frames(clip)[0]  # (T, K)
        offline += int(logits.mean(0).argmax()) == record.label
        for t, row in enumerate(logits):
            by_frame[t] += int(row.argmax()) == record.label
        recognizer.reset()
        answers: list[tuple[int, Any]] = []
        for number, frame in enumerate(frames, 1):
            prediction = recognizer.push(frame, number / reader.fps)
            if prediction:
                answers.append((number, prediction.logits))
        for place, fraction in enumerate(FRACTIONS):
            seen = [row for number, row in answers if number <= max(1, round(fraction * len(frames)))]
            for name, counts in right.items():
                last = 1 if "last frame" in name or not causal else 4 if "last 4" in name else len(seen)
                counts[place] += int(torch.stack(seen[-last:]).mean(0).argmax()) == record.label
    total = len(videos)
    return {
        "num_videos": total,
        "clips": offline / total,
        "clips_by_frame": [count / total for count in by_frame],
        "streams": {name: [count / total for count in counts] for name, counts in right.items()},
    }


def tables(results: list[dict[str, Any]]) -> str:
    """Markdown, in percent, mean ± sample deviation over seeds."""
    rows = [f"| on clips of {NUM_FRAMES} frames | top-1 % | by seed |", "|---|---|---|"]
    accuracy = {
        shift: {r["seed"]: 100 * r["clips"] for r in results if r["shift"] == shift} for shift in SHIFTS
    }
    for shift, by_seed in accuracy.items():
        rows.append(
            f"| {shift} | {_text(by_seed.values())} | {', '.join(f'{v:.1f}' for v in by_seed.values())} |"
        )
    pairs = sorted(accuracy["causal"].keys() & accuracy["bidirectional"].keys())
    if pairs:
        differences = [accuracy["causal"][seed] - accuracy["bidirectional"][seed] for seed in pairs]
        rows.append(f"| difference | {_text(differences)} | {', '.join(f'{v:+.1f}' for v in differences)} |")
    rows += ["", f"| frame of the clip | {' | '.join(str(t + 1) for t in range(NUM_FRAMES))} |"]
    rows.append("|---" * (NUM_FRAMES + 1) + "|")
    for shift in SHIFTS:
        frames = [r["clips_by_frame"] for r in results if r["shift"] == shift]
        cells = [f"{100 * statistics.mean(column):.1f}" for column in zip(*frames, strict=True)]
        rows.append(f"| {shift}, this frame alone | {' | '.join(cells)} |")
    rows += ["", f"| share of the video seen | {' | '.join(f'{100 * f:.0f} %' for f in FRACTIONS)} |"]
    rows.append("|---" * (len(FRACTIONS) + 1) + "|")
    for name in CURVES:
        curves = [r["streams"][name] for r in results if name in r["streams"]]
        cells = [_text([100 * value for value in column]) for column in zip(*curves, strict=True)]
        rows.append(f"| {name} (n={len(curves)}) | {' | '.join(cells)} |")
    return "\n".join(rows)


def _text(values: Any) -> str:
    values = list(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over the fraction of the video seen; the bidirectional network on whole clips as a line."""
    from frameflex.report import save_figure

    def draw(axes: Any) -> None:
        for name in CURVES:
            curves = [r["streams"][name] for r in results if name in r["streams"]]
            columns = [[100 * value for value in column] for column in zip(*curves, strict=True)]
            spread = [statistics.stdev(column) if len(column) > 1 else 0 for column in columns]
            means = [statistics.mean(column) for column in columns]
            shares = [100 * fraction for fraction in FRACTIONS]
            axes.errorbar(shares, means, yerr=spread, marker="o", markersize=4, capsize=2, label=name)
        whole = [100 * r["clips"] for r in results if r["shift"] == "bidirectional"]
        axes.axhline(
            statistics.mean(whole), color="grey", linestyle="--", label="bidirectional, offline, whole video"
        )
        axes.set_xlabel("share of the video seen, %")
        axes.set_ylabel("top-1 accuracy, %")
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    save_figure(path, draw, size=(7.0, 4.6))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--plot", type=Path, help="default: accuracy.png in OUTPUT")
    args = parser.parse_args()
    jobs = [(shift, int(seed)) for seed in args.seeds.split(",") for shift in SHIFTS]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(run, *job, args.data, args.output, args.epochs) for job in jobs]:
            future.result()
    results = [
        json.loads((args.output / f"{shift}-seed{seed}" / "results.json").read_text()) for shift, seed in jobs
    ]
    plot(results, args.plot or args.output / "accuracy.png")
    text = tables(results)
    (args.output / "tables.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
