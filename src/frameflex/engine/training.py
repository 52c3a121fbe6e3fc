"""The loop: videos and a recipe in, checkpoints out.

Everything random is a pure function of the recipe's seed and of where the run stands: the order of videos of
(seed, epoch), augmentation of (seed, epoch, video), dropout of (seed, step). So a run that is stopped at any
step and resumed equals the run that was never stopped, with nothing but the step to remember.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

from frameflex.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from frameflex.data.directions import describe_directions, describe_reversals
from frameflex.data.problems import data_problems
from frameflex.data.records import VideoList
from frameflex.engine.loading import reversed_labels
from frameflex.engine.recipe import Recipe, RecipeError
from frameflex.engine.run import Run
from frameflex.engine.run_folder import RunFolder, RunLog, expect_nothing_in
from frameflex.engine.run_state import (
    check_same_data,
    check_same_recipe,
    processes_begun_with,
    tell_processes,
)
from frameflex.engine.task import Task, check_videos_open, digest, read_task
from frameflex.engine.watching import Interrupted, Watcher
from frameflex.models import TSM

logger = logging.getLogger(__name__)

_OPENED_FIRST = 1000  # validation videos; more take minutes, which is for `frameflex data check`


def train(
    recipe: Recipe, *, resume: bool = False, watcher: Watcher | None = None, check_data: bool = True
) -> list[Path]:
    """Train as the recipe says.

    Writes into ``recipe.output``: ``recipe.yaml`` (the effective one), ``log.jsonl``, ``last.safetensors`` (with
    the state to resume from; the ones before it are ``step-….safetensors``) and ``best.safetensors`` (highest
    validation top-1, averaged over the trained counts). The method "separate" makes one such folder ``{T}f`` for
    each frame count.

    Args:
        recipe: the whole run.
        resume: continue the run in ``recipe.output`` from its newest complete checkpoint, however it ended; start it
            where there is none.
        watcher: for progress.
        check_data: say before the first step what is odd about the videos; False where that was said already.

    Returns:
        The best checkpoint, or for the method "separate" that of each frame count, ascending.

    Raises:
        RecipeError: if the recipe doesn't fit its data, or the folder holds a run and ``resume`` is not set.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
        VideoError: if too many training videos, or any validation video, can't be decoded.
        CheckpointError: if there are checkpoints to resume from and none can be read.
        OSError: if the disk is full; the checkpoints before are left whole.
    """
    if recipe.data.folds and recipe.data.fold is None:
        raise RecipeError(
            "data.folds without data.fold is several runs: cross_validate trains them one by one"
        )
    if recipe.training.minutes is not None:
        raise RecipeError(
            "training.minutes is a budget; expected epochs. fit_to_minutes (frameflex.engine.budget) makes the recipe"
        )
    if recipe.method != "separate":
        return [_train_one(recipe, resume=resume, watcher=watcher or Watcher(), check_data=check_data)]
    together = Path(recipe.output) / "recipe.yaml"  # evaluation reads in it which networks there are to be
    if resume or not together.exists():
        together.parent.mkdir(parents=True, exist_ok=True)
        recipe.save(together)
    paths: list[Path] = []
    for count in sorted(recipe.clip.frame_counts):
        logger.info("separate training at %d frames", count)
        alone = replace(
            recipe,
            method="tsm",
            clip=replace(recipe.clip, frame_counts=(count,)),
            output=str(Path(recipe.output) / f"{count}f"),
        )
        paths += train(alone, resume=resume, watcher=watcher, check_data=check_data and not paths)
    return paths


def _train_one(recipe: Recipe, *, resume: bool, watcher: Watcher, check_data: bool) -> Path:
    folder = RunFolder(Path(recipe.output), keep=recipe.training.keep_checkpoints)
    accelerator = make_accelerator(recipe)
    make_board = (
        _summary_writer() if recipe.training.tensorboard else None
    )  # missing: told before anything is written
    task = read_task(recipe)
    if recipe.data.reversed:
        reversed_labels(recipe, task.training.classes)  # wrong: told before anything is written
    if not resume:
        expect_nothing_in(folder)
    if check_data and not resume and len(task.validation) <= _OPENED_FIRST:
        check_videos_open(task.validation, "validation measures all or nothing")
    with hold_folder(folder, accelerator):
        former = _find_former(folder, accelerator) if resume else None
        if not resume:
            expect_nothing_in(folder)  # again, now that no other run can begin in it
        # What a step is made of: a run that goes on with others would leave out videos or see some twice. Of the
        # processes it is how many there were: those that there are now share the same steps.
        made_of: dict[str, int | str] = {
            "num_videos": len(task.training),
            "num_processes": processes_begun_with(former, accelerator.num_processes),
            "training_videos": digest(task.training),
            "validation_videos": digest(task.validation),
        }
        if former:
            check_same_recipe(former, recipe, folder)
            check_same_data(former, folder, task.classes, made_of)
            if accelerator.is_main_process:
                tell_processes(recipe, int(made_of["num_processes"]), accelerator.num_processes)
        run = Run(recipe, accelerator, task, folder, former, made_of)
        if accelerator.is_main_process:
            folder.clean()
            if former is None:
                recipe.save(folder.path / "recipe.yaml")
        _log_start(recipe, run.model, task.training, task.validation)
        if check_data and accelerator.is_main_process:
            _tell_problems(task, watcher)
        _run(run, watcher, make_board)
    return folder.best


def _tell_problems(task: Task, watcher: Watcher) -> None:
    lines = data_problems(task.training, task.validation, by_class=task.label_sets is None)
    for line in lines:
        logger.warning("data: %s", line)
    if watcher.on_data_problems:
        watcher.on_data_problems(lines)


@contextlib.contextmanager
def hold_folder(folder: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder of a run; the first of several processes does, and a refusal is raised in all of them."""
    with contextlib.ExitStack() as stack:
        refusal: list[Exception | None] = [None]
        if accelerator.is_main_process:
            try:
                stack.enter_context(folder.held())
            except (RecipeError, OSError) as error:
                refusal = [error]
        broadcast_object_list(refusal)
        if refusal[0]:
            raise refusal[0]
        yield


def _run(run: Run, watcher: Watcher, make_board: Any) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(run))
        log = None
        if run.accelerator.is_main_process:
            step, epoch = run.values["step"], run.values["epoch"]
            log = stack.enter_context(
                contextlib.closing(RunLog(run.folder.log, step=step, epoch=epoch, make_board=make_board))
            )
        _loop(run, watcher, log, stack.enter_context(_stop_signals()))


def _loop(run: Run, watcher: Watcher, log: RunLog | None, stop: threading.Event) -> None:
    """Epoch after epoch from where the run stands: steps, validation, checkpoints."""
    training, folder = run.recipe.training, run.folder

    def while_validating(done: int, total: int) -> None:
        if stop.is_set():
            raise Interrupted(folder.last)
        if watcher.on_validation_progress:
            watcher.on_validation_progress(done, total)

    for epoch in range(run.values["epoch"], training.epochs):
        for report in run.epoch(epoch):
            if log:
                log.write("step", vars(report))
            if watcher.on_step:
                watcher.on_step(report)
            stopped, due = run.in_any(stop.is_set(), run.checkpoint_is_due())
            if stopped or due:
                run.save()
            if stopped:
                raise Interrupted(folder.last)
        final = epoch + 1 == training.epochs
        if final or (epoch + 1) % training.validate_every == 0:
            # Whatever stops validation. The epoch is not counted as done yet: resuming validates it first.
            run.save()
            measured, improved = run.validate(epoch, while_validating)
            if improved:
                run.save(best=True)
            if log:
                log.write("validation", {"epoch": epoch, "best": improved, **measured.to_dict()})
            if watcher.on_validation:
                watcher.on_validation(epoch, measured, improved)
            if final:
                doubtful = run.doubtful_reversals(measured)  # in every process
                for line in doubtful if run.accelerator.is_main_process else ():
                    logger.warning(line)
        run.values["epoch"] = epoch + 1
        run.save()
        if not final and run.in_any(stop.is_set())[0]:
            raise Interrupted(folder.last)


def _find_former(folder: RunFolder, accelerator: Accelerator) -> Checkpoint | None:
    """The newest complete checkpoint, the same one in every process."""
    found: tuple[Path, Checkpoint] | None = None
    path: list[Path | Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            found = folder.newest_complete()
            path = [found[0] if found else None]
        except CheckpointError as error:
            path = [error]  # raised in every process: the others would wait for ever
    broadcast_object_list(path)
    [chosen] = path
    if isinstance(chosen, Exception):
        raise chosen
    if chosen is None:
        return None
    former = found[1] if found else load_checkpoint(chosen, training=True)
    if former.training is None:
        raise RecipeError(f"{chosen} holds no state to resume from; expected the last checkpoint of a run")
    return former


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Devices, precision and processes of a run, or of the measuring that follows it."""
    AcceleratorState._reset_state()  # a former run in this process may have had another precision
    some_unused = recipe.objective.random_counts or recipe.draws_counts or recipe.first_phase_epochs > 0
    return Accelerator(
        mixed_precision=recipe.training.precision,
        # Unless told so, accelerate takes each of several processes without a GPU for a run of its own.
        cpu=not torch.accelerator.is_available(),
        # A step that draws its counts, or sees the largest alone, leaves the norms of the others without gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=some_unused)],
    )


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            "training.tensorboard needs the package tensorboard: pip install 'frameflex[tracking]'"
        ) from error
    return SummaryWriter


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag that is looked at between steps; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        logger.warning("stopping after this step; once more to stop at once, without saving")

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _log_start(recipe: Recipe, model: TSM, training: VideoList, validation: VideoList) -> None:
    logger.info(
        "%d training and %d validation videos, %d classes; %s with %.2f M parameters, trained at %s frames",
        len(training),
        len(validation),
        len(training.classes),
        model.config["backbone"],
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        ", ".join(map(str, recipe.trained_counts)),
    )
    if recipe.first_phase_epochs:
        logger.info(
            "the first %d of %d epochs at %d frames alone",
            recipe.first_phase_epochs,
            recipe.training.epochs,
            recipe.trained_counts[-1],
        )
    if recipe.clip.flip:
        for line in describe_directions(training.classes):
            logger.info(line)
    else:
        logger.info("no horizontal flips (clip.flip is off)")
    if recipe.reverses:
        for line in describe_reversals(training.classes, recipe.data.reversed):
            logger.info(line)
    elif recipe.data.reversed and not recipe.clip.reverse:
        logger.warning(
            "data.reversed is given, but clip.reverse is off: no clip is played backwards. Set clip.reverse to true, "
            "or leave data.reversed out"
        )
