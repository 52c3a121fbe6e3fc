"""TSM, separate training, FFN and its ablations on the bundled benchmark, at every frame count.

    frameflex data render motion --videos 1200 --validation-fraction 0.4
    OMP_NUM_THREADS=1 python benchmarks/temporal_frequency_deviation.py motion runs/tfd --epochs 12 --jobs 2

Every network gets the same videos, epochs and augmentation, and is measured after its last epoch, never picked by
its accuracy. Runs that are in OUTPUT already are not repeated. Prints the tables of
docs/experiments/temporal-frequency-deviation.md and writes them, with plots, into OUTPUT.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FRAMES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20)
CALIBRATED = "calibrated"
Runs = dict[str, tuple[str, tuple[int, ...], dict[str, Any], dict[str, Any]]]


def all_runs(counts: tuple[int, ...]) -> Runs:
    """Name -> method, frame counts, changes to model, changes to objective."""
    largest = counts[-1]
    separate = {f"ST({count})": ("tsm", (count,), {}, {}) for count in reversed(counts[:-1])}
    return {
        f"TSM({largest})": ("tsm", (largest,), {}, {}),
        "FFN": ("ffn", counts, {}, {}),
        **separate,
        "FFN reverse KL": ("ffn", counts, {}, {"reverse_kl": True}),
        "FFN random counts": ("ffn", counts, {}, {"random_counts": True}),
        "FFN norms only": ("ffn", counts, {"frame_scales": False}, {}),
        "FFN cross-entropy too": ("ffn", counts, {}, {"student_cross_entropy": True}),
        "FFN scales only": ("ffn", counts, {"frame_norms": False}, {}),
        "FFN temperature 2": ("ffn", counts, {}, {"temperature": 2.0}),
        "no shift": ("tsm", (largest,), {"shift": "none"}, {}),
    }


CALIBRATION_VIDEOS = 96


def run(
    name: str, seed: int, data: Path, output: Path, epochs: int | None, counts_of_all: tuple[int, ...]
) -> None:
    """Train one network and measure it in every way; writes ``results.json`` last."""
    from frameflex.checkpoint import load_checkpoint
    from frameflex.data.datasets import load_split
    from frameflex.engine.calibration import calibrate
    from frameflex.engine.evaluation import evaluate
    from frameflex.engine.recipe_files import parse_recipe
    from frameflex.engine.training import train
    from frameflex.models.frame_flexible import serve_untrained

    method, counts, model, objective = all_runs(counts_of_all)[name]
    folder = output / f"{name.replace(' ', '_')}-seed{seed}"
    if (folder / "results.json").exists():
        return
    recipe, _ = parse_recipe(["motion.yaml"])
    recipe = replace(
        recipe,
        data=replace(recipe.data, train=str(data), num_workers=0),
        output=str(folder / "run"),
        method=method,
        clip=replace(recipe.clip, frame_counts=counts),
        model=replace(recipe.model, **model),
        objective=replace(recipe.objective, counts="all", **objective),
        training=replace(recipe.training, epochs=epochs or recipe.training.epochs, validate_every=1000),
        seed=seed,
    )
    train(recipe, resume=True)
    checkpoint = load_checkpoint(folder / "run" / "last.safetensors")
    videos = load_split(data, "validation")

    def measure(how: str, frames: tuple[int, ...] = FRAMES) -> dict[str, Any]:
        measured = evaluate(
            checkpoint.model,
            videos,
            preprocessing=checkpoint.preprocessing,
            frame_counts=frames,
            trained_counts=checkpoint.frame_counts,
            batch_size=16,
        )
        return {
            "how": how,
            "top1": {result.num_frames: result.top1 for result in measured.results},
            "gflops": {result.num_frames: result.gflops for result in measured.results},
            "num_parameters": measured.num_parameters,
            "num_videos": len(measured.names),
            "adaptive": [
                _adaptive(measured, chosen_from)
                for chosen_from in (counts, tuple(t for t in frames if counts[0] <= t <= counts[-1]))
                if method == "ffn"
            ],
        }

    results = [measure("as trained")]
    if name == "FFN":
        serve_untrained(checkpoint.model, "blend")
        results.append(measure("blended"))
        serve_untrained(checkpoint.model, "nearest")
    if name == "FFN" or name.startswith("TSM"):
        training_videos = load_split(data, "train")
        others = [count for count in FRAMES if count not in checkpoint.frame_counts]
        number = min(CALIBRATION_VIDEOS, len(training_videos))
        spread = [i * len(training_videos) // number for i in range(number)]  # of every class
        calibrate(checkpoint, training_videos.subset(spread), others)
        results.append(measure(CALIBRATED))
    values = {"name": name, "seed": seed, "epochs": recipe.training.epochs, "results": results}
    (folder / "results.json").write_text(json.dumps(values))


def _adaptive(measured: Any, counts: tuple[int, ...]) -> dict[str, Any]:
    from frameflex.engine.adaptive import adaptive_report

    found = adaptive_report(measured, counts, max_drop=0.005)
    return {
        "chosen_from": counts,
        "frame_counts": found.frame_counts,
        "top1": found.chosen.top1,
        "full_top1": found.full_top1,
        "gflops": found.chosen.gflops,
        "full_gflops": found.full_gflops,
        "confidence": found.chosen.confidence,
    }


def collect(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by curve, "name" or "name, how", a list over seeds."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(output.glob("*-seed*/results.json")):
        values = json.loads(path.read_text())
        for result in values["results"]:
            name = values["name"] + ("" if result["how"] == "as trained" else f", {result['how']}")
            result["top1"] = {int(count): top1 for count, top1 in result["top1"].items()}
            curves.setdefault(name, []).append(result | {"seed": values["seed"], "epochs": values["epochs"]})
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
    rows = [f"| frames | {' | '.join(map(str, FRAMES))} |", "|---" * (len(FRAMES) + 1) + "|"]
    for name, results in curves.items():
        cells = []
        for count in FRAMES:
            values = [100 * result["top1"][count] for result in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        rows.append(f"| {name} (n={len(results)}) | {' | '.join(cells)} |")
    return "\n".join(rows)


def differences(curves: dict[str, list[dict[str, Any]]], name: str, base: str) -> str:
    """One row: ``name`` minus ``base`` at each count, paired by seed."""
    ours = {result["seed"]: result["top1"] for result in curves[name]}
    theirs = {result["seed"]: result["top1"] for result in curves[base]}
    cells = []
    for count in FRAMES:
        values = [
            100 * (ours[seed][count] - theirs[seed][count]) for seed in sorted(ours.keys() & theirs.keys())
        ]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):+.1f}{spread}")
    return f"| {name} − {base} | {' | '.join(cells)} |"


def plot(curves: dict[str, list[dict[str, Any]]], names: list[str], path: Path) -> None:
    """Mean and deviation over seeds of some curves."""
    from frameflex.report import save_figure

    def draw(axes: Any) -> None:
        for name in names:
            results = curves[name]
            values = [[100 * result["top1"][t] for result in results] for t in FRAMES]
            means = [statistics.mean(at_t) for at_t in values]
            spread = [statistics.stdev(at_t) if len(at_t) > 1 else 0 for at_t in values]
            axes.errorbar(FRAMES, means, yerr=spread, marker="o", markersize=4, capsize=2, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(FRAMES, [str(t) for t in FRAMES])
        axes.minorticks_off()
        axes.set_xlabel("frames at evaluation")
        axes.set_ylabel("top-1 accuracy, %")
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
    parser.add_argument("--counts", type=lambda text: tuple(map(int, text.split(","))), default=(2, 4, 8))
    parser.add_argument("--only", help="names of runs, separated by commas")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(all_runs(args.counts))
    seeds = [int(seed) for seed in args.seeds.split(",")]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        pending = [
            pool.submit(run, name, seed, args.data, args.output, args.epochs, args.counts)
            for seed in seeds
            for name in names
        ]
        for future in pending:
            future.result()
    curves = collect(args.output)
    plain = f"TSM({args.counts[-1]})"
    if {plain, *(f"ST({count})" for count in args.counts[:-1])} <= curves.keys():
        curves["ST"] = separate(curves, args.counts)
    text = table(curves)
    if "ST" in curves:
        paired = [name for name in curves if name.startswith("FFN")]
        header = f"\n| frames | {' | '.join(map(str, FRAMES))} |\n" + "|---" * (len(FRAMES) + 1) + "|\n"
        text += "\n" + header + "\n".join(differences(curves, name, "ST") for name in paired)
        plot(curves, [n for n in (plain, "ST", "FFN") if n in curves], args.output / "curves.png")
        plot(curves, [n for n in curves if n.startswith("FFN")], args.output / "ablations.png")
    for name, results in curves.items():
        if "," in name or name == "ST":
            continue
        for dials in zip(*(result["adaptive"] for result in results), strict=True):

            def mean(key: str, dials: tuple[dict[str, Any], ...] = dials) -> float:
                return statistics.mean(dial[key] for dial in dials)

            chosen = ", ".join(f"{dial['frame_counts']} at {dial['confidence']}" for dial in dials)
            text += (
                f"\n\n{name}, adaptive over {dials[0]['chosen_from']}: {100 * mean('top1'):.1f} % against "
                f"{100 * mean('full_top1'):.1f} % at the largest count, at "
                f"{100 * mean('gflops') / mean('full_gflops'):.0f} % of its GFLOPs ({chosen})"
            )
    (args.output / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
