"""``frameflex train``: train on a folder of videos, or as a recipe says."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.options import check_place
from frameflex.engine.recipe_files import parse_recipe
from frameflex.printable import printable

if TYPE_CHECKING:
    from frameflex.engine.evaluation import Evaluation
    from frameflex.engine.recipe import Recipe


def run(argv: list[str], console: Any) -> int:
    from frameflex.tuning import tune_process

    # One of several processes of torchrun or accelerate launch: the first one talks.
    silent = os.environ.get("RANK", "0") != "0"
    if silent:
        logging.getLogger("frameflex").setLevel(logging.WARNING)
    recipe, resume = parse_recipe(argv, look=True)
    check_place(Path(recipe.output))
    tune_process(num_workers=recipe.data.num_workers)
    if recipe.training.minutes is not None:
        if resume and (Path(recipe.output) / "recipe.yaml").exists():
            recipe = replace(recipe, training=replace(recipe.training, minutes=None))
        else:
            from frameflex.engine.budget import fit_to_minutes

            recipe = fit_to_minutes(recipe)
    several = recipe.data.folds is not None and recipe.data.fold is None
    if silent:
        _train_silently(recipe, resume, several)
    elif several:
        _cross_validate(recipe, resume, shlex.join(["frameflex", "train", *argv]), console)
    else:
        _train(recipe, resume, shlex.join(["frameflex", "train", *argv]), console)
    return 0


def _train_silently(recipe: Recipe, resume: bool, several: bool) -> None:
    from frameflex.engine.cross_validation import cross_validate
    from frameflex.engine.training import train

    if several:
        cross_validate(recipe, resume=resume)
    else:
        train(recipe, resume=resume)
    _leave_processes()


def _train(recipe: Recipe, resume: bool, command: str, console: Any) -> None:
    from frameflex.console import training_progress
    from frameflex.engine.training import train
    from frameflex.report import top1_sentence

    # By trained counts: the method "separate" trains a network at each.
    measured: dict[tuple[int, ...], tuple[Evaluation, int, bool]] = {}
    problems: list[str] = []
    started = time.monotonic()
    with training_progress(console, recipe.training.epochs) as watcher:

        def on_validation(epoch: int, evaluation: Evaluation, best: bool) -> None:
            _, _, has_best = measured.get(evaluation.trained_counts, (None, 0, False))
            if best or not has_best:
                measured[evaluation.trained_counts] = evaluation, epoch, best
            if watcher.on_validation:
                watcher.on_validation(epoch, evaluation, best)

        watcher_of_both = replace(watcher, on_validation=on_validation, on_data_problems=problems.extend)
        paths = train(recipe, resume=resume, watcher=watcher_of_both)
    _leave_processes()
    for path in paths:
        print(printable(path))  # noqa: T201
    for counts, (evaluation, epoch, best) in measured.items():
        chosen = "; the epoch was chosen by these videos: expect somewhat less on others" if best else ""
        console.print(
            f"epoch {epoch + 1}: validation {top1_sentence(evaluation)}{chosen}", markup=False, soft_wrap=True
        )
        folder = Path(recipe.output, *([f"{counts[0]}f"] if recipe.method == "separate" else []))
        _write_report(folder, evaluation, epoch, best, command, problems)
    _show_gain(recipe, paths[0], time.monotonic() - started, console)


def _show_gain(recipe: Recipe, path: Path, seconds: float, console: Any) -> None:
    """A table of the checkpoint that was made frame-flexible, before and after."""
    from frameflex import report
    from frameflex.console import progress, results_console
    from frameflex.engine.gain import measure_gain

    with progress(console, "before and after") as on_progress:
        evaluations = measure_gain(recipe, path, on_progress=on_progress)
    if not evaluations:
        return
    results_console().print(report.accuracy_table(evaluations))
    report.write_json(path.parent / "gain.json", {n: e.to_dict() for n, e in evaluations.items()})
    console.print(f"made frame-flexible in {seconds / 60:.1f} minutes", markup=False, soft_wrap=True)


def _cross_validate(recipe: Recipe, resume: bool, command: str, console: Any) -> None:
    from frameflex import report
    from frameflex.console import results_console, training_progress
    from frameflex.engine.cross_validation import cross_validate

    with training_progress(console, recipe.training.epochs) as watcher:

        def on_fold(number: int, evaluation: Evaluation) -> None:
            console.print(
                f"fold {number}: {report.top1_sentence(evaluation)}, after the last epoch",
                markup=False,
                soft_wrap=True,
            )

        validated = cross_validate(recipe, resume=resume, watcher=watcher, on_fold=on_fold)
    _leave_processes()
    output = Path(recipe.output)
    report.write_json(output / "folds.json", validated.to_dict())
    report.write_predictions(validated.evaluation, output / "predictions.csv")
    part = report.Measured(
        validated.evaluation,
        **_as_seen_by(output / "fold1" / "last.safetensors"),
        note="Measured by cross-validation, each network after its last epoch: no number was chosen by these videos.",
        problems=validated.problems,
        cross_validation=validated,
    )
    name = f"{len(validated.folds)} folds"
    report.write_report(output / "report.html", {name: part}, title=f"{name} in {output}", command=command)
    results_console().print(report.folds_table(validated))
    print(printable(output / "folds.json"))  # noqa: T201
    console.print(
        f"wrote folds.json, predictions.csv and report.html into {output}. The networks of the folds are for this "
        "number; train the one to use on all videos: the same without --folds, into another --output",
        markup=False,
        soft_wrap=True,
    )


def _as_seen_by(path: Path) -> dict[str, Any]:
    """Which pixels and frames a checkpoint takes."""
    from frameflex.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    return {"preprocessing": checkpoint.preprocessing, **checkpoint.sampling}


def _leave_processes() -> None:
    """End the talk between processes in order, together: one that just exits can be killed by its own threads."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _write_report(
    folder: Path, evaluation: Evaluation, epoch: int, best: bool, command: str, problems: Sequence[str]
) -> None:
    """``report.html`` of a run that has ended: its best validation, or the last one where it had the best before."""
    from frameflex.checkpoint import load_checkpoint
    from frameflex.report import Measured, write_report

    name = "best.safetensors" if best else "last.safetensors"
    checkpoint = load_checkpoint(folder / name)
    note = f"Measured on the validation videos after epoch {epoch + 1}"
    if best:
        note += (
            ", the best of this run. The checkpoint was chosen by these numbers: on videos that it was not chosen "
            "by, expect somewhat lower ones."
        )
    else:
        note += (
            "; the best epoch was before the run was resumed (frameflex evaluate measures best.safetensors)."
        )
    known = None
    if checkpoint.videos and evaluation.videos:
        known = [evaluation.names[i] for i in checkpoint.videos.trained_on(evaluation.videos)]
    temperatures = {t: checkpoint.temperature(t) for t in evaluation.logits}
    part = Measured(
        replace(evaluation, temperatures=temperatures, trained_on=known),
        checkpoint.preprocessing,
        **checkpoint.sampling,
        log=folder / "log.jsonl",
        training_bad=checkpoint.metrics.get("training", {}).get("undecodable", {}),
        note=note,
        problems=problems,
    )
    write_report(folder / "report.html", {name: part}, title=f"Training in {folder}", command=command)
