"""Stopping and going on: what a run has to remember, and whether what goes on is the same run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frameflex.checkpoint import Checkpoint, TrainingState
from frameflex.engine.recipe import Data, Recipe, RecipeError
from frameflex.engine.run_folder import RunFolder
from frameflex.models import TSM

if TYPE_CHECKING:
    from frameflex.engine.run import Run

logger = logging.getLogger(__name__)

_RAW = "raw/"  # before the names of weights that are not those of the average


def state_of(run: Run) -> TrainingState:
    """What resuming needs: the step and the optimizer's tensors, by parameter name."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, slots in run.optimizer.state.items():
        for slot, value in slots.items():
            if value is not None:
                tensors[f"{slot}/{names[id(parameter)]}"] = torch.as_tensor(value)
    if run.average:
        tensors |= {f"{_RAW}{name}": value for name, value in run.model.state_dict().items()}
    scaler = run.accelerator.scaler
    return TrainingState({**run.values, "scaler": scaler.state_dict() if scaler else {}}, tensors)


def restore(run: Run, training: TrainingState) -> None:
    """Take up the state of a former run; the model's weights are loaded already."""
    parameters = dict(run.model.named_parameters())
    for key, value in training.tensors.items():
        if key.startswith(_RAW):
            continue  # loaded already
        slot, name = key.split("/", 1)
        parameter = parameters[name]
        if value.shape == parameter.shape:  # laid out as the parameter is, so that one kernel takes both
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        run.optimizer.state[parameter][slot] = value  # the number of steps stays on the CPU
    if run.accelerator.scaler and training.values.get("scaler"):
        run.accelerator.scaler.load_state_dict(training.values["scaler"])


def load_raw(model: TSM, training: TrainingState) -> None:
    raw = {key.removeprefix(_RAW): value for key, value in training.tensors.items() if key.startswith(_RAW)}
    model.load_state_dict(raw)


_FREE = {  # what may change without changing the result
    "output",
    "data.num_workers",
    "training.tensorboard",
    "training.keep_checkpoints",
    "training.checkpoint_minutes",
    "training.checkpoint_steps",
}


def check_same_recipe(former: Checkpoint, recipe: Recipe, folder: RunFolder) -> None:
    before, now = _flat(Recipe(Data("")).to_dict()) | _flat(former.recipe), _flat(recipe.to_dict())
    changed = sorted(key for key in now if before.get(key) != now[key] and key not in _FREE)
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed)
        longer = (
            f". To train for longer, begin a run with these weights: --model.init {folder.last} and another --output"
            if "training.epochs" in changed
            else ""
        )
        raise RecipeError(f"can't resume {folder.path} with another recipe: {listed}{longer}")
    former.model.train()


def check_same_data(
    former: Checkpoint, folder: RunFolder, classes: Sequence[str], made_of: Mapping[str, int | str]
) -> None:
    assert former.training is not None
    before = dict(former.training.values)
    if before.get("best_top1", -1) < 0:  # nothing was validated: a broken file may be taken out of the set
        before.pop("validation_videos", None)
    changed = [
        f"{name.replace('_', ' ')} are not the same, by name, label or order"
        if isinstance(now, str)
        else f"{name.removeprefix('num_')} were {before[name]} and are {now}"
        for name, now in made_of.items()
        if before.get(name, now) != now
    ]
    if former.class_names != list(classes):
        changed.append(f"classes were {former.class_names[:5]} … and are {list(classes)[:5]} …")
    if changed:
        raise RecipeError(
            f"can't resume {folder.path} with other data: {'; '.join(changed)}. To train on from its weights "
            f"give {folder.last} as model.init of a new run"
        )


def processes_begun_with(former: Checkpoint | None, now: int) -> int:
    """How many processes a run began with, which its steps are made for."""
    if former is None or former.training is None:
        return now
    return int(former.training.values.get("num_processes", now))


def tell_processes(recipe: Recipe, begun_with: int, now: int) -> None:
    """Say what another number of processes keeps, and what it changes."""
    if now == begun_with:
        return
    training = recipe.training
    size = training.batch_size * begun_with
    share = math.ceil(size / now)
    in_parts = now < begun_with and not training.sync_norms
    at_once = f", {math.ceil(share / math.ceil(begun_with / now))} at once" if in_parts else ""
    logger.warning(
        "the run began with %d processes and goes on with %d: its steps stay the same, %d videos at the same "
        "learning rate, %d of each batch in a process%s; dropout is drawn anew%s",
        begun_with,
        now,
        size * training.accumulate,
        share,
        at_once,
        ""
        if training.sync_norms or (now < begun_with and begun_with % now == 0)
        else ". Batch norms see other numbers of videos at once than before, which training.sync_norms avoids",
    )


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat
