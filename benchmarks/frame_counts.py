"""One checkpoint for every frame count: the ways to get it, at equal compute, on one data set.

    frameflex data render motion --videos 1200 --validation-fraction 0.4
    OMP_NUM_THREADS=1 python benchmarks/frame_counts.py motion runs/study --jobs 2

Every way gets the same number of frames forward and backward (`--frames` for each training video), in its own
schedule to the end; separate networks get it each. Networks are measured after their last epoch, never picked by
their accuracy, at T = 1 to 20. What is in OUTPUT already is not repeated. DATA is a data set with a train and a
validation split, measured on the latter; further arguments `key=value` change the recipe (`motion.yaml`) for all
ways alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FRAMES = tuple(range(1, 21))


@dataclass(frozen=True)
class Way:
    """How a network is trained; `share` of the frames of a whole training, from the end of the way `start`."""

    counts: tuple[int, ...]
    method: str = "ffn"
    start: str | None = None
    share: float = 1.0
    first_phase: float = 0.0
    model: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frames_a_video(self) -> float:
        """Frames of a video that one epoch sends forward and backward, on average."""
        drawn = self.objective.get("counts") == "drawn"
        together = sum(self.counts) / (len(self.counts) if drawn else 1)
        return self.first_phase * self.counts[-1] + (1 - self.first_phase) * together


def ways(counts: tuple[int, ...]) -> dict[str, Way]:
    """Name -> way, those that others start from first."""
    largest = counts[-1]
    shared = {"frame_norms": False, "frame_scales": False}
    drawn, published = {"counts": "drawn"}, {"counts": "all"}
    both = {"counts": "all", "student_cross_entropy": True}
    half = {"start": "half", "share": 0.5}
    return {
        "half": Way((largest,), "tsm", share=0.5),
        f"TSM({largest})": Way((largest,), "tsm"),
        "T drawn, own norms": Way(counts, objective=drawn),
        "T drawn": Way(counts, model=shared, objective=drawn),
        **{f"ST({count})": Way((count,), "tsm") for count in reversed(counts[:-1])},
        "one schedule, half of the epochs alone": Way(counts, objective=both, first_phase=0.5),
        "one schedule, two thirds alone": Way(counts, objective=both, first_phase=0.67),
        "two phases, cross-entropy too": Way(counts, objective=both, **half),
        "two phases": Way(counts, objective=published, **half),
        "FFN from scratch": Way(counts, objective=published),
        "half, then T drawn, own norms": Way(counts, objective=drawn, **half),
        "half, then T drawn": Way(counts, model=shared, objective=drawn, **half),
        f"T drawn, own norms, {(1, 2, *counts)}": Way((1, 2, *counts), objective=drawn),
    }


def run(
    name: str, seed: int, data: Path, output: Path, frames: float, counts: tuple[int, ...], keys: list[str]
) -> None:
    """Train one network and measure it; writes ``results.json`` last."""
    import torch

    from frameflex.checkpoint import load_checkpoint
    from frameflex.data.datasets import load_split
    from frameflex.engine.calibration import calibrate
    from frameflex.engine.evaluation import evaluate
    from frameflex.engine.recipe_files import parse_recipe
    from frameflex.engine.training import train

    torch.set_num_threads(1)
    way = ways(counts)[name]
    folder = output / f"{name.replace(' ', '_')}-seed{seed}"
    if (folder / "results.json").exists():
        return
    recipe, _ = parse_recipe(["motion.yaml", *keys])
    start = output / f"{way.start}-seed{seed}" / "run" / "last.safetensors" if way.start else None
    second = start is not None
    begin = {"init": str(start), "backbone": None, "backbone_options": {}} if second else {}
    epochs = max(round(way.share * frames / way.frames_a_video), 1)
    recipe = replace(
        recipe,
        data=replace(recipe.data, train=str(data), num_workers=0),
        output=str(folder / "run"),
        method=way.method,
        clip=replace(recipe.clip, frame_counts=way.counts),
        model=replace(recipe.model, **way.model, **begin),
        objective=replace(recipe.objective, **way.objective),
        training=replace(
            recipe.training,
            epochs=epochs,
            first_phase=way.first_phase,
            learning_rate=recipe.training.learning_rate / (2 if second else 1),
            warmup_epochs=0.5 if second else recipe.training.warmup_epochs,
            validate_every=10_000,
        ),
        seed=seed,
    )
    hold_decoded_videos()
    train(recipe, resume=True)
    checkpoint = load_checkpoint(folder / "run" / "last.safetensors")
    videos = load_split(data, "validation")

    def measure(how: str) -> dict[str, Any]:
        measured = evaluate(
            checkpoint.model,
            videos,
            preprocessing=checkpoint.preprocessing,
            frame_counts=FRAMES,
            trained_counts=checkpoint.frame_counts,
            batch_size=16,
        )
        torch.save(
            {"labels": measured.labels, "logits": measured.logits}, folder / f"{how.replace(' ', '_')}.pt"
        )
        return {"how": how, "top1": {result.num_frames: result.top1 for result in measured.results}}

    results = [measure("as trained")]
    if way.method == "tsm" and way.counts == (counts[-1],):
        training_videos = load_split(data, "train")
        order = torch.randperm(len(training_videos), generator=torch.Generator().manual_seed(0)).tolist()
        calibrate(checkpoint, training_videos.subset(order[:96]), [t for t in FRAMES if t != counts[-1]])
        results.append(measure("re-estimated"))
    values = {"name": name, "seed": seed, "epochs": epochs, "results": results}
    (folder / "results.json").write_text(json.dumps(values))


def hold_decoded_videos() -> None:
    """Decode every video once a process, not once an epoch: the same frames in half of the time."""
    import numpy as np

    from frameflex.data.records import VideoRecord
    from frameflex.video import Limits, VideoReader

    class Held(VideoReader):
        def __init__(self, reader: VideoReader) -> None:
            self.name, self.num_frames, self.fps = reader.name, reader.num_frames, reader.fps
            self.height, self.width, self._limits = reader.height, reader.width, Limits()
            frames = reader.frames(range(reader.num_frames))
            self.num_frames = reader.num_frames
            self.times = list(reader.timestamps)
            self.pictures = np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())

        @property
        def timestamps(self) -> list[float]:
            return self.times

        def close(self) -> None:
            pass

        def _read(self, wanted: list[int]) -> np.ndarray:
            return self.pictures[wanted]

    held: dict[Any, Held] = {}
    open_file = VideoRecord.open

    def open_held(self: VideoRecord, **options: Any) -> VideoReader:
        if self.path not in held:
            with open_file(self, **options) as reader:
                held[self.path] = Held(reader)
        return held[self.path]

    VideoRecord.open = open_held  # type: ignore[method-assign]


def collect(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by curve, a list over seeds."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(output.glob("*-seed*/results.json")):
        values = json.loads(path.read_text())
        for result in values["results"]:
            name = values["name"] + ("" if result["how"] == "as trained" else f", {result['how']}")
            top1 = {int(count): value for count, value in result["top1"].items()}
            curves.setdefault(name, []).append({"seed": values["seed"], "top1": top1})
    return curves


def separate(curves: dict[str, list[dict[str, Any]]], counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """The ST curve: at each T the network trained at the nearest count, ties to the larger, seed by seed."""
    from frameflex.models.counts import nearest_count

    members = {count: f"ST({count})" for count in counts[:-1]} | {counts[-1]: f"TSM({counts[-1]})"}
    by_seed = {
        count: {result["seed"]: result["top1"] for result in curves.get(name, [])}
        for count, name in members.items()
    }
    seeds = set.intersection(*(set(results) for results in by_seed.values()))
    return [
        {"seed": seed, "top1": {t: by_seed[nearest_count(members, t)][seed][t] for t in FRAMES}}
        for seed in sorted(seeds)
    ]


def table(curves: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a row a curve, top-1 in percent, mean ± sample deviation over seeds."""
    shown = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20)
    rows = [f"| frames | {' | '.join(map(str, shown))} | mean 1-20 |", "|---" * (len(shown) + 2) + "|"]
    for name, results in curves.items():
        cells = []
        for values in [
            *([100 * result["top1"][count] for result in results] for count in shown),
            [100 * statistics.mean(result["top1"].values()) for result in results],
        ]:
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        rows.append(f"| {name} (n={len(results)}) | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("keys", nargs="*", help="--key value pairs of the recipe, as key=value")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--counts", type=lambda text: tuple(map(int, text.split(","))), default=(4, 8, 16))
    parser.add_argument("--frames", type=float, default=448, help="forward and backward, a training video")
    parser.add_argument("--only", help="names of ways, separated by semicolons")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    args = parser.parse_args()
    names = args.only.split(";") if args.only else list(ways(args.counts))
    keys = [part for pair in args.keys for part in ("--" + pair.split("=", 1)[0], pair.split("=", 1)[1])]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for seed in map(int, args.seeds.split(",")):
            pending = [
                pool.submit(run, name, seed, args.data, args.output, args.frames, args.counts, keys)
                for name in names
            ]
            for future in pending:
                future.result()
    curves = collect(args.output)
    if {f"TSM({args.counts[-1]})", *(f"ST({count})" for count in args.counts[:-1])} <= curves.keys():
        curves["ST"] = separate(curves, args.counts)
    text = table(curves)
    (args.output / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
