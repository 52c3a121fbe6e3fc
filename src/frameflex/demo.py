"""The whole story in one command: render, train, measure at every frame count, recognise one video."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from frameflex import report
from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.console import only_warnings, progress, results_console, training_progress
from frameflex.data.datasets import load_split
from frameflex.data.records import VideoList
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.evaluation import Evaluation, evaluate
from frameflex.engine.recipe import Recipe
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.training import train
from frameflex.motion.rendering import render
from frameflex.tuning import tune_process

VIDEOS = 1200
QUICK_VIDEOS, QUICK_COUNTS = 480, (2, 4, 8)
QUICK_EPOCHS = {"tsm": 11, "ffn": 19}  # 88 and 89 frames of each video


@only_warnings("frameflex.data", "frameflex.engine")  # which flips there are, and the like, is for who trains
def demo(output: Path, *, quick: bool, seed: int, console: Console) -> dict[str, Evaluation]:
    """Render the bundled benchmark, train on it, measure at the trained frame count, half and a quarter of it.

    Args:
        output: folder for everything; where it holds files, a free name beside it is taken.
        quick: less of everything.
        seed: of data and training.
        console: for progress; results go to standard output.

    Returns:
        The measurements, by the name of the network.

    Raises:
        OSError: if the folder can't be written.
    """
    output = _free_name(output)
    results = results_console()
    if quick:
        console.print(
            "quick demo: few videos and epochs, so its numbers are rough; frameflex demo gives better ones"
        )
    with progress(console, "rendering videos") as on_progress:
        data = render(
            output / "videos",
            num_videos=QUICK_VIDEOS if quick else VIDEOS,
            seed=seed,
            on_progress=on_progress,
        )
    console.print(f"rendered {QUICK_VIDEOS if quick else VIDEOS} videos of moving things into {data}")
    measured: dict[str, Evaluation] = {}
    for method, what in (("tsm", "TSM"), ("ffn", "FFN")):
        recipe = _recipe(method, data, output / method, quick=quick, seed=seed)
        trained_at = ", ".join(map(str, recipe.trained_counts))
        console.print()
        console.print(
            f"training {what} at {trained_at} frames: {recipe.training.epochs} epochs, "
            f"{recipe.frames_a_video} frames of each video in all"
        )
        with training_progress(console, recipe.training.epochs) as watcher:
            [path] = train(recipe, watcher=watcher)
        # The last epoch's weights, not the best on the very videos that are measured next.
        checkpoint = load_checkpoint(path.with_name("last.safetensors"))
        measured[f"{what}({trained_at.replace(' ', '')})"] = _measure(
            checkpoint, load_split(data, "validation"), recipe, console
        )
    results.print()
    results.print(report.accuracy_table(measured))
    report.plot_accuracy(measured, output / "accuracy.png")
    report.write_json(output / "results.json", {name: result.to_dict() for name, result in measured.items()})
    for sentence in _story(measured):
        results.print(sentence)
    _recognise_one(output / "ffn" / "last.safetensors", data, seed, results)
    results.print()
    results.print(f"plot {output / 'accuracy.png'}, numbers {output / 'results.json'}, networks in {output}")
    if quick:
        results.print(
            "These numbers are rough: frameflex demo, without --quick, trains longer on more videos."
        )
    return measured


def _recipe(method: str, data: Path, output: Path, *, quick: bool, seed: int) -> Recipe:
    """The bundled recipe, validated once at the end; the quick one with fewer epochs."""
    recipe, _ = parse_recipe(["motion.yaml" if method == "tsm" else "motion_ffn.yaml"])
    epochs = QUICK_EPOCHS[method] if quick else recipe.training.epochs
    tune_process(num_workers=recipe.data.num_workers)
    return replace(
        recipe,
        clip=replace(recipe.clip, frame_counts=QUICK_COUNTS) if quick else recipe.clip,
        data=replace(recipe.data, train=str(data)),
        output=str(output),
        training=replace(recipe.training, epochs=epochs, validate_every=epochs),
        seed=seed,
    )


def _measure(checkpoint: Checkpoint, videos: VideoList, recipe: Recipe, console: Console) -> Evaluation:
    largest = max(recipe.clip.frame_counts)
    with progress(console, "evaluating") as on_progress:
        return evaluate(
            checkpoint.model,
            videos,
            preprocessing=checkpoint.preprocessing,
            frame_counts=sorted({largest, largest // 2, largest // 4}),
            trained_counts=checkpoint.frame_counts,
            num_workers=recipe.data.num_workers,
            on_progress=on_progress,
            **checkpoint.sampling,
        )


def _story(measured: dict[str, Evaluation]) -> list[str]:
    """Sentences about the numbers of this run, whatever they are."""
    (_, plain), (_, flexible) = measured.items()
    counts = [result.num_frames for result in plain.results]
    quarter, full = counts[0], counts[-1]
    lost = plain.at(full).top1 - plain.at(quarter).top1
    repaired = flexible.at(quarter).top1 - plain.at(quarter).top1
    sentences = [
        f"At {quarter} frames the network trained at {full} scores {100 * plain.at(quarter).top1:.1f} % instead of "
        f"{100 * plain.at(full).top1:.1f} %: it {'loses' if lost > 0 else 'gains'} {100 * abs(lost):.1f} points."
    ]
    if lost <= 0:
        return [*sentences, "No Temporal Frequency Deviation to repair in this run."]
    change = "gains" if repaired > 0 else "loses"
    sentences.append(
        f"One frame-flexible network {change} {100 * abs(repaired):.1f} points there, {100 * repaired / lost:.0f} % "
        f"of that loss, and scores {100 * flexible.at(full).top1:.1f} % at {full} frames, where the plain one has "
        f"{100 * plain.at(full).top1:.1f} %."
    )
    num_videos = len(plain.names)
    sentences.append(
        f"One video of the {num_videos} is {100 / num_videos:.2f} points; another seed gives other numbers."
    )
    return sentences


def _recognise_one(checkpoint: Path, data: Path, seed: int, results: Console) -> None:
    videos = load_split(data, "validation")
    record = videos[random.Random(seed).randrange(len(videos))]
    assert record.label is not None
    assert isinstance(record.path, Path)  # no shard
    recognizer = Recognizer.from_checkpoint(checkpoint)
    results.print()
    results.print(f"{record.path}, in truth: {videos.classes[record.label]}")
    for num_frames in sorted(recognizer.checkpoint.frame_counts, reverse=True):
        best = recognizer(record.path, num_frames=num_frames)[0]
        results.print(f"  {num_frames:2} frames: {best.probability:6.1%}  {best.label}")


def _free_name(output: Path) -> Path:
    """The folder itself, or, where that holds files, the first of name-2, name-3, … that is free."""
    candidate, number = output, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        number += 1
        candidate = output.with_name(f"{output.name}-{number}")
    return candidate
