"""``frameflex train``: train on a folder of videos, or as a recipe says."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.options import check_place
from frameflex.engine.recipe_files import parse_recipe

if TYPE_CHECKING:
    from frameflex.engine.evaluation import Evaluation


def run(argv: list[str], console: Any) -> int:
    from frameflex.console import training_progress
    from frameflex.engine.training import train
    from frameflex.tuning import tune_process

    # One of several processes of torchrun or accelerate launch: the first one talks.
    silent = os.environ.get("RANK", "0") != "0"
    if silent:
        logging.getLogger("frameflex").setLevel(logging.WARNING)
    recipe, resume = parse_recipe(argv)
    check_place(Path(recipe.output))
    tune_process(num_workers=recipe.data.num_workers)
    if silent:
        train(recipe, resume=resume)
        _leave_processes()
        return 0
    # By trained counts: the method "separate" trains a network at each.
    measured: dict[tuple[int, ...], tuple[Evaluation, int, bool]] = {}
    with training_progress(console, recipe.training.epochs) as watcher:

        def on_validation(epoch: int, evaluation: Evaluation, best: bool) -> None:
            _, _, has_best = measured.get(evaluation.trained_counts, (None, 0, False))
            if best or not has_best:
                measured[evaluation.trained_counts] = evaluation, epoch, best
            if watcher.on_validation:
                watcher.on_validation(epoch, evaluation, best)

        paths = train(recipe, resume=resume, watcher=replace(watcher, on_validation=on_validation))
    _leave_processes()
    for path in paths:
        print(path)  # noqa: T201
    command = shlex.join(["frameflex", "train", *argv])
    for counts, (evaluation, epoch, best) in measured.items():
        folder = Path(recipe.output, *([f"{counts[0]}f"] if recipe.method == "separate" else []))
        _write_report(folder, evaluation, epoch, best, command)
    return 0


def _leave_processes() -> None:
    """End the talk between processes in order, together: one that just exits can be killed by its own threads."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _write_report(folder: Path, evaluation: Evaluation, epoch: int, best: bool, command: str) -> None:
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
    )
    write_report(folder / "report.html", {name: part}, title=f"Training in {folder}", command=command)
