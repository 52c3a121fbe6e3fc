"""A run that fits into so many minutes: its first steps are timed, the schedule is as long as there is time."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from frameflex.engine.recipe import Recipe, RecipeError
from frameflex.engine.task import read_task
from frameflex.engine.training import train
from frameflex.engine.watching import StepReport, Watcher

logger = logging.getLogger(__name__)

_TIMED_STEPS = 8
_TIMED_SHARE = 0.1  # of the budget, at most, goes into timing
_MARGIN = 0.9  # of the budget is planned: the machine may be busier later on
_FORWARD_SHARE = 0.4  # of a step's time, a video: what it costs to validate one
_VALIDATION_SHARE = 0.2  # of the budget, at most, goes into validations


def fit_to_minutes(recipe: Recipe) -> Recipe:
    """The recipe with as many epochs as its `training.minutes` leave time for, and that key done.

    A throwaway run on the recipe's own videos says what a step takes, decoding included. With `data.folds` the budget
    is that of all folds together.

    Raises:
        RecipeError: if there is no time for one epoch, naming the shortest budget, or as `train` does.
    """
    training = recipe.training
    if training.minutes is None:
        return recipe
    started = time.monotonic()
    num_runs = recipe.data.folds if recipe.data.folds and recipe.data.fold is None else 1
    single = replace(recipe, data=replace(recipe.data, fold=1)) if num_runs > 1 else recipe
    task = read_task(single)
    step_seconds, start_seconds = _time_steps(single, 60 * training.minutes * _TIMED_SHARE)
    timing = time.monotonic() - started
    left = (60 * training.minutes * _MARGIN - timing) / num_runs - start_seconds
    batch = training.batch_size * training.accumulate
    epoch_seconds = math.ceil(len(task.training) / batch) * step_seconds
    validation_seconds = _FORWARD_SHARE * step_seconds * len(task.validation) / batch
    epochs = int((left - validation_seconds) / epoch_seconds)
    if epochs < 1:
        least = (timing + num_runs * (start_seconds + epoch_seconds + validation_seconds)) / _MARGIN / 60
        raise RecipeError(
            f"training.minutes {training.minutes:g} is too short for one pass over {len(task.training)} videos"
            f"{f' in each of {num_runs} runs' if num_runs > 1 else ''}; expected {math.ceil(10 * least) / 10:g} or "
            "more, or fewer videos or frames"
        )
    affordable = max(1, int(_VALIDATION_SHARE * left / validation_seconds))
    every = max(math.ceil(epochs / affordable), math.ceil(epochs * training.validate_every / training.epochs))
    epochs = max(1, int((left - math.ceil(epochs / every) * validation_seconds) / epoch_seconds))
    logger.info(
        "%g minutes: a step takes %.2f s, so that there is time for %d epochs, validated every %d",
        training.minutes,
        step_seconds,
        epochs,
        min(every, epochs),
    )
    fitted = replace(
        training,
        minutes=None,
        epochs=epochs,
        warmup_epochs=round(training.warmup_epochs * epochs / training.epochs, 2),
        validate_every=min(every, epochs),
    )
    return replace(recipe, training=fitted)


class _Timed(Exception):
    """Enough steps are timed."""


def _time_steps(recipe: Recipe, seconds: float) -> tuple[float, float]:
    """Seconds of a step, and of what comes before the first one: a run takes the latter once more."""
    times: list[float] = []
    started = time.monotonic()

    def on_step(report: StepReport) -> None:
        times.append(time.monotonic())
        enough = len(times) > _TIMED_STEPS or (len(times) > 1 and times[-1] - started > seconds)
        if enough or report.step == report.num_steps:
            raise _Timed

    with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
        training = replace(recipe.training, minutes=None, tensorboard=False)
        probe = replace(recipe, training=training, output=str(Path(folder) / "probe"))
        with contextlib.suppress(_Timed):
            train(probe, watcher=Watcher(on_step=on_step), check_data=False)
    first = times[0] - started
    if len(times) < 2:
        return first, first
    step = (times[-1] - times[0]) / (len(times) - 1)
    return step, max(first - step, 0.0)
