"""The loop: videos and a recipe in, checkpoints out.

Everything random is a pure function of the recipe's seed and of where the run stands: the order of videos of
(seed, epoch), augmentation of (seed, epoch, video), dropout of (seed, step). So a run that is stopped at any
step and resumed equals the run that was never stopped, with nothing but the step to remember.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast, broadcast_object_list, gather_object
from timm.utils import ModelEmaV3
from torch import Tensor

from frameflex.checkpoint import Checkpoint, CheckpointError, TrainingState, load_checkpoint
from frameflex.data.datasets import (
    MAX_BAD_SHARE,
    VideoList,
    VideoRecord,
    find_video_files,
    load_split,
    shielded,
)
from frameflex.data.label_sets import LabelSets, split_label_sets, with_nothing
from frameflex.data.quarantine import quarantined_files
from frameflex.data.transforms import Preprocessing, describe_directions
from frameflex.engine.evaluation import Evaluation, evaluate
from frameflex.engine.finetuning import (
    class_targets,
    class_weights,
    freeze,
    hold_still,
    video_weights,
)
from frameflex.engine.loading import EpochBatches, LoaderClock, build_loader, mix
from frameflex.engine.objective import FrameFlexibleObjective
from frameflex.engine.optimization import build_optimizer, learning_rate_factor
from frameflex.engine.recipe import DEFAULT_BACKBONE, Data, Recipe, RecipeError
from frameflex.engine.run_folder import RunFolder, RunLog
from frameflex.models import TSM, create_model, make_frame_flexible
from frameflex.models.synced_norm import Synced, sync_norms
from frameflex.video.reader import VideoError

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A run was stopped from outside, after its state was saved to ``checkpoint``."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped; {checkpoint} holds the run so far, continue it with --resume")
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class StepReport:
    """One step of the optimizer.

    Attributes:
        epoch: from 0.
        step: from 1, over the whole run.
        num_steps: of the whole run.
        loss: of this step.
        accuracy: top-1 over this epoch's training videos so far, at the largest count, 0 to 1.
        learning_rate: of the backbone's weights.
        clips_per_second: videos a second over this epoch, all processes together.
        seconds_left: estimate for the whole run, validation not counted.
        waiting: share of this epoch's time, 0 to 1, in which the network had no videos and waited for the loader.
    """

    epoch: int
    step: int
    num_steps: int
    loss: float
    accuracy: float
    learning_rate: float
    clips_per_second: float
    seconds_left: float
    waiting: float


@dataclass(frozen=True)
class Watcher:
    """Who wants to know how a run goes. Every callback is optional.

    Attributes:
        on_step: after each step of the optimizer.
        on_validation_progress: with (videos done, videos in all).
        on_validation: after each validation, with the epoch (from 0) and whether it is the best so far.
    """

    on_step: Callable[[StepReport], None] | None = None
    on_validation_progress: Callable[[int, int], None] | None = None
    on_validation: Callable[[int, Evaluation, bool], None] | None = None


def train(recipe: Recipe, *, resume: bool = False, watcher: Watcher | None = None) -> list[Path]:
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

    Returns:
        The best checkpoint, or for the method "separate" that of each frame count, ascending.

    Raises:
        RecipeError: if the recipe doesn't fit its data, or the folder holds a run and ``resume`` is not set.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
        VideoError: if too many training videos, or any validation video, can't be decoded.
        CheckpointError: if there are checkpoints to resume from and none can be read.
        OSError: if the disk is full; the checkpoints before are left whole.
    """
    if recipe.method != "separate":
        return [_train_one(recipe, resume=resume, watcher=watcher or Watcher())]
    together = Path(recipe.output) / "recipe.yaml"  # evaluation reads in it which networks there are to be
    if resume or not together.exists():
        together.parent.mkdir(parents=True, exist_ok=True)
        recipe.save(together)
    paths = []
    for count in sorted(recipe.clip.frame_counts):
        logger.info("separate training at %d frames", count)
        alone = replace(
            recipe,
            method="tsm",
            clip=replace(recipe.clip, frame_counts=(count,)),
            output=str(Path(recipe.output) / f"{count}f"),
        )
        paths += train(alone, resume=resume, watcher=watcher)
    return paths


def _train_one(recipe: Recipe, *, resume: bool, watcher: Watcher) -> Path:
    folder = RunFolder(Path(recipe.output), keep=recipe.training.keep_checkpoints)
    accelerator = _make_accelerator(recipe)
    make_board = (
        _summary_writer() if recipe.training.tensorboard else None
    )  # missing: told before anything is written
    task = _read_task(recipe)
    former = _find_former(folder, accelerator) if resume else None
    if not resume and folder.path.is_dir() and any(folder.path.iterdir()):
        raise RecipeError(
            f"output {folder.path} holds files already; expected an empty or new folder. "
            "Continue that run with --resume, or choose another --output"
        )
    # What a step is made of: a run that goes on with others would leave out videos or see some twice.
    made_of = {"num_videos": len(task.training), "num_processes": accelerator.num_processes}
    if former:
        _check_same_recipe(former, recipe, folder)
        _check_same_data(former, folder, task.classes, made_of)
    run = _Run(recipe, accelerator, task, folder, former, made_of)
    if accelerator.is_main_process:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.clean()
        if former is None:
            recipe.save(folder.path / "recipe.yaml")
    _log_start(recipe, run.model, task.training, task.validation)
    with contextlib.ExitStack() as stack:
        log = None
        if accelerator.is_main_process:
            step, epoch = run.values["step"], run.values["epoch"]
            log = stack.enter_context(
                contextlib.closing(RunLog(folder.log, step=step, epoch=epoch, make_board=make_board))
            )
        _loop(run, watcher, log, stack.enter_context(_stop_signals()))
    return folder.best


def _loop(run: _Run, watcher: Watcher, log: RunLog | None, stop: threading.Event) -> None:
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


def _make_accelerator(recipe: Recipe) -> Accelerator:
    AcceleratorState._reset_state()  # a former run in this process may have had another precision
    return Accelerator(
        mixed_precision=recipe.training.precision,
        # Unless told so, accelerate takes each of several processes without a GPU for a run of its own.
        cpu=not torch.accelerator.is_available(),
        # A step that draws its counts leaves the norms of those that it didn't draw without gradients.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=recipe.objective.random_counts)
        ],
    )


@dataclass(frozen=True)
class _Task:
    """What is learnt: videos to train and to validate on, and their classes."""

    training: VideoList
    validation: VideoList
    classes: list[str]
    label_sets: LabelSets | None  # where labels stand for sets of classes


def _read_task(recipe: Recipe) -> _Task:
    training, validation = find_videos(recipe)
    _check_labels(training, validation)
    if not recipe.data.multi_label:
        return _Task(training, validation, list(training.classes), None)
    (training, validation), label_sets = split_label_sets([training, validation])
    return _Task(training, validation, list(label_sets.classes), label_sets)


def find_videos(recipe: Recipe) -> tuple[VideoList, VideoList]:
    """Training and validation videos of a recipe; both with the training videos' classes.

    Raises:
        RecipeError: if there is nothing to train on or to validate on.
    """
    data = recipe.data
    training = load_split(data.train, "train", video_dir=data.video_dir, quarantine=data.quarantine)
    if data.validation:
        source = data.validation
    elif "train" in training.splits:
        source = data.train
    else:
        logger.warning(
            "%s has no validation split: %.0f %% of each class is held out. Videos of one scene or person on both "
            "sides make its accuracy too good; give data.validation for a split of your own",
            data.train,
            100 * data.validation_fraction,
        )
        training, validation = hold_out(training, data.validation_fraction, by_class=not data.multi_label)
        return _with_nothing(training, validation, recipe)
    # Sets of several classes may well occur in one of the two only.
    expected = None if data.multi_label else training.classes
    validation = load_split(
        source, "validation", classes=expected, video_dir=data.video_dir, quarantine=data.quarantine
    )
    return _with_nothing(training, validation, recipe)


def _with_nothing(training: VideoList, validation: VideoList, recipe: Recipe) -> tuple[VideoList, VideoList]:
    """Add the videos in which none of the classes happens, held out as others are where nothing is divided."""
    if not recipe.data.nothing:
        return training, validation
    files, _ = quarantined_files(find_video_files([recipe.data.nothing]), recipe.data.quarantine)
    records = [VideoRecord(file, 0, str(file)) for file in files]
    first, second = hold_out(VideoList(records, ["nothing"]), recipe.data.validation_fraction)
    name = "" if recipe.data.multi_label else "nothing"
    return with_nothing(training, first, name), with_nothing(validation, second, name)


def _check_labels(training: VideoList, validation: VideoList) -> None:
    """Refuse what would else show only after the first epoch, or never."""
    for what, videos in (("training", training), ("validation", validation)):
        unlabelled = videos.labels.count(-1)
        if unlabelled:
            raise RecipeError(
                f"{unlabelled} of {len(videos)} {what} videos have no label; expected one for each. Give another "
                f"split as data.{'train' if what == 'training' else what}, or leave those videos out of the list"
            )
    if len(training.classes) < 2:
        raise RecipeError(
            f"all training videos are of one class, {training.classes[0]!r}; expected at least 2. Is data.train "
            "the folder with a sub-folder for each class?"
        )


def hold_out(videos: VideoList, fraction: float, *, by_class: bool = True) -> tuple[VideoList, VideoList]:
    """Divide videos into training and validation, the same share of each class, at least one of each on both sides.

    Which ones are held out depends on their names alone, so that it is the same in every run.

    Args:
        videos: to divide.
        fraction: of those held out, above 0 and below 1.
        by_class: False takes the share of all videos together.
    """
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(videos.labels):
        groups.setdefault(label if by_class else 0, []).append(index)
    held_out: set[int] = set()
    for label, members in groups.items():
        if len(members) < 2:
            raise RecipeError(
                f"class {videos.classes[label]!r} has {len(members)} video; expected at least 2, one to train on and "
                "one to validate on. Add videos, or give data.validation"
            )
        order = sorted(members, key=lambda index: hashlib.sha256(videos[index].name.encode()).digest())
        held_out.update(order[: min(max(round(fraction * len(members)), 1), len(members) - 1)])
    everything = range(len(videos))
    return (
        videos.subset(index for index in everything if index not in held_out),
        videos.subset(sorted(held_out)),
    )


def build_model(recipe: Recipe, classes: Sequence[str]) -> TSM:
    """The network of a recipe, its weights loaded or drawn from torch's global generator.

    Args:
        recipe: of the run.
        classes: a logit for each.

    Raises:
        RecipeError: if the recipe's network is not that of ``model.init``.
    """
    options = recipe.model
    if options.init:
        return _start_from(load_checkpoint(options.init), recipe, classes)
    return create_model(
        options.backbone or DEFAULT_BACKBONE,
        num_classes=len(classes),
        dropout=options.dropout,
        shift=options.shift,
        shift_div=options.shift_div,
        backbone_options=options.backbone_options,
        pretrained=options.pretrained,
        frame_counts=recipe.trained_counts if recipe.method == "ffn" else (),
        frame_norms=options.frame_norms,
        frame_scales=options.frame_scales,
    )


_RAW = "raw/"  # before the names of weights that are not those of the average


class _Run:
    """The moving parts of a run: what a step changes, and what resuming restores.

    Args:
        recipe: of the run.
        accelerator: devices, precision and processes.
        task: its videos and classes.
        folder: where its checkpoints go.
        former: where it stands, to continue it.
        made_of: what must stay the same for that.

    Attributes:
        values: where the run stands, in numbers that JSON can hold.
        average: the running average of the network's weights and statistics, None where there is none.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        task: _Task,
        folder: RunFolder,
        former: Checkpoint | None,
        made_of: Mapping[str, int],
    ) -> None:
        self.recipe, self.accelerator, self.task, self.folder = recipe, accelerator, task, folder
        training = recipe.training
        torch.manual_seed(recipe.seed)
        self.model = former.model if former else build_model(recipe, task.classes)
        self.model.to(memory_format=torch.channels_last)  # a quarter less time on a CPU
        self.preprocessing = former.preprocessing if former else _preprocessing(recipe, self.model)
        self.average = _average_of(self.model, training.ema_decay) if training.ema_decay else None
        if former and former.training and self.average:
            _load_raw(self.model, former.training)  # a checkpoint's own weights are the average
        freeze(self.model, frozen_stages=training.frozen_stages, norms=training.norms)
        if training.grad_checkpointing:
            _checkpoint_gradients(self.model)
        if training.sync_norms and accelerator.num_processes > 1:
            sync_norms(self.model)
        targets = class_targets(
            task.training.labels, len(task.classes), task.label_sets.table if task.label_sets else None
        )
        objective = _build_objective(recipe, self.model, targets, task.label_sets)
        self.batches = EpochBatches(
            len(task.training),
            batch_size=training.batch_size,
            seed=recipe.seed,
            frame_counts=recipe.trained_counts,
            random_counts=recipe.objective.random_counts,
            weights=video_weights(targets) if recipe.objective.class_balance == "sampling" else None,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        optimizer = build_optimizer(recipe, self.model, accelerator.num_processes)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.loader = build_loader(
            recipe,
            task.training,
            self.preprocessing,
            self.batches,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.steps_per_epoch = math.ceil(self.batches.num_batches() / training.accumulate)
        self.num_steps = self.steps_per_epoch * training.epochs
        self.saved = time.monotonic()
        self.clock = LoaderClock(recipe.data.num_workers)
        self.memory_told = False  # once a run, not each epoch
        self.values: dict[str, Any] = {
            "epoch": 0,
            "step": 0,
            "best_top1": -1.0,
            "seen": 0,  # in this epoch, with `right`
            "right": 0.0,
            "bad": {},  # why, by the name of a video that can't be decoded
            **made_of,
        }
        if former and former.training:
            self.values |= former.training.values
            self._restore(former.training)

    def epoch(self, epoch: int) -> Iterator[StepReport]:
        """Run the steps of an epoch that are left, reporting each."""
        training, step, values = self.recipe.training, self.values["step"], self.values
        accumulate, end = training.accumulate, (epoch + 1) * self.steps_per_epoch
        self.batches.epoch = epoch
        self.batches.first_batch = (step - epoch * self.steps_per_epoch) * accumulate
        self.objective.train()
        hold_still(self.model, frozen_stages=training.frozen_stages, norms=training.norms)
        if step == end:
            return  # stopped while it was validated
        if step == epoch * self.steps_per_epoch:
            values |= {"seen": 0, "right": 0.0}
        first_step, seen_before = step, values["seen"]
        batches = self.clock.start(shielded(self.loader))
        while step < end:
            left = self.batches.num_batches() - (step - epoch * self.steps_per_epoch) * accumulate
            # Dropout and random counts of this step, whatever ran before it in this process.
            torch.manual_seed(mix(self.recipe.seed, step, self.accelerator.process_index))
            kept = self._unwrapped().kept_bytes = None if self.memory_told else {}
            loss, seen, right = self._step(batches, step, min(accumulate, left))
            if kept:
                _log_kept(kept, training.batch_size)
            self.memory_told = True
            if self.average:
                self.average.update(self.model, step)
            step += 1
            values |= {"step": step, "seen": values["seen"] + seen, "right": values["right"] + right}
            seconds = self.clock.seconds()
            yield StepReport(
                epoch=epoch,
                step=step,
                num_steps=self.num_steps,
                loss=loss,
                accuracy=values["right"] / max(values["seen"], 1),
                learning_rate=self.optimizer.param_groups[0]["lr"],
                clips_per_second=(values["seen"] - seen_before) / seconds,
                seconds_left=seconds / (step - first_step) * (self.num_steps - step),
                waiting=self.clock.waiting(),
            )

    def validate(self, epoch: int, on_progress: Callable[[int, int], None]) -> tuple[Evaluation, bool]:
        """Measure the network after an epoch; also whether it is the best so far."""
        recipe, task, network = self.recipe, self.task, self.network
        if self.accelerator.num_processes > 1:
            # Each process has statistics of its own videos; what counts, and is saved, are the first one's.
            for buffer in network.buffers():
                buffer.copy_(broadcast(buffer))
        measured = evaluate(
            network,
            task.validation,
            preprocessing=self.preprocessing,
            frame_counts=recipe.clip.frame_counts,
            trained_counts=recipe.trained_counts,
            sampling=recipe.clip.sampling,
            window=recipe.clip.window,
            batch_size=recipe.training.batch_size,
            num_workers=recipe.data.num_workers,
            accelerator=self.accelerator,
            label_sets=task.label_sets,
            on_progress=on_progress,
        )
        results = [measured.at(count) for count in recipe.trained_counts]
        precisions = [result.mean_average_precision for result in results]
        top1 = sum(  # what the best checkpoint has most of: mAP where a video shows several classes
            result.top1 if precision is None else precision
            for result, precision in zip(results, precisions, strict=True)
        ) / len(results)
        self.values["metrics"] = {
            "validation": {"epoch": epoch + 1, **measured.to_dict()},
            "training": {"undecodable": dict(self.values["bad"])},
        }
        improved = top1 > self.values["best_top1"]
        if improved:
            self.values["best_top1"] = top1
        return measured, improved

    @property
    def network(self) -> TSM:
        """What is validated and saved: the averaged network, or the network itself."""
        return self.average.module if self.average else self.model

    def checkpoint_is_due(self) -> bool:
        """Whether a checkpoint inside an epoch is wanted now; of several processes the first one's clock counts."""
        training, step = self.recipe.training, self.values["step"]
        if training.checkpoint_steps and step % training.checkpoint_steps == 0:
            return True
        minutes = (time.monotonic() - self.saved) / 60
        return (
            self.accelerator.is_main_process
            and training.checkpoint_minutes is not None
            and minutes >= training.checkpoint_minutes
        )

    def save(self, *, best: bool = False) -> None:
        """Write the newest checkpoint, or the best; none of several processes goes on before it is there."""
        if self.accelerator.num_processes > 1:
            for bad in gather_object([self.values["bad"]]):
                self.values["bad"] |= bad
        if self.accelerator.is_main_process:
            recipe = self.recipe
            checkpoint = Checkpoint(
                model=self.network,
                class_names=list(self.task.classes),
                preprocessing=self.preprocessing,
                frame_counts=recipe.trained_counts,
                sampling={"sampling": recipe.clip.sampling, "window": recipe.clip.window},
                recipe=recipe.to_dict(),
                metrics=self.values.get("metrics", {}),
                training=None if best else self._state(),
                multi_label=recipe.data.multi_label,
            )
            if best:
                self.folder.save_best(checkpoint)
            else:
                self.folder.save(checkpoint, step=self.values["step"])
        self.saved = time.monotonic()
        self.accelerator.wait_for_everyone()

    def in_any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process; the same in all of them, so that they stop at the same step."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        mine = torch.tensor([float(flag) for flag in flags], device=self.accelerator.device)
        return [bool(flag) for flag in self.accelerator.reduce(mine, "sum").tolist()]

    def _step(self, batches: Iterator[Any], step: int, num_batches: int) -> tuple[float, int, float]:
        factor = learning_rate_factor(self.recipe, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        totals = torch.zeros(3, device=self.accelerator.device)  # loss · videos, videos, right ones
        for i in range(num_batches):
            batch = next(batches)
            self._note_bad(batch.bad)
            counts = self.batches.counts((step % self.steps_per_epoch) * self.recipe.training.accumulate + i)
            last = i + 1 == num_batches
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                totals += self._backward(batch.to(self.accelerator.device), counts, num_batches)
        loss, seen, right = self.accelerator.reduce(totals, "sum").tolist()
        if not math.isfinite(loss):
            raise RecipeError(
                f"the loss is {loss} at step {step + 1}; lower training.learning_rate, or train with "
                "training.precision bf16 or no instead of fp16"
            )
        if seen and self.recipe.training.clip_grad_norm is not None:
            # accelerate takes the loss scaling of fp16 off first, so that the norm means the same at every precision
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.training.clip_grad_norm)
        if seen:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return loss / max(seen, 1), int(seen), right

    def _backward(self, batch: Any, counts: Sequence[int], num_batches: int) -> Tensor:
        size = len(batch.labels)
        share = self._share(size)
        if size == 0:
            if self.accelerator.num_processes > 1:
                self._take_part(counts, num_batches)
            return torch.zeros(3, device=self.accelerator.device)
        clips = batch.clips
        with self.accelerator.autocast():
            loss, logits = self.objective(clips, batch.labels)
        self._backpropagate(loss * share / num_batches)
        guesses = logits.argmax(1)
        label_sets = self._unwrapped().label_sets
        if label_sets is None:
            right = (guesses == batch.labels).sum()
        else:
            right = label_sets[batch.labels].gather(1, guesses[:, None]).sum()
        return torch.stack([loss.detach() * size, torch.tensor(float(size), device=loss.device), right])

    def _unwrapped(self) -> FrameFlexibleObjective:
        return cast(FrameFlexibleObjective, getattr(self.objective, "module", self.objective))

    def _backpropagate(self, loss: Tensor) -> None:
        if not self.recipe.training.grad_checkpointing:
            self.accelerator.backward(loss)
            return
        # What is computed again would enter the norms' running statistics a second time.
        once = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.accelerator.backward(loss)
        for buffer, value in once:
            buffer.copy_(value)

    def _share(self, size: int) -> Tensor | float:
        """What makes the mean over processes one over videos, where batches of one step differ in size."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return 1.0
        mine = torch.tensor(float(size), device=self.accelerator.device)
        return mine * processes / self.accelerator.reduce(mine, "sum").clamp(min=1)

    def _take_part(self, counts: Sequence[int], num_batches: int) -> None:
        """Zero gradients of a process whose videos can't be decoded: the others wait for some from each."""
        size = self.recipe.clip.crop_size
        device = self.accelerator.device
        clips = {count: torch.zeros(1, 3, count, size, size, device=device) for count in counts}
        synced = [module for module in self.model.modules() if isinstance(module, Synced)]
        modules = [m for m in self.objective.modules() if m.training and not isinstance(m, Synced)]
        for module in modules:
            module.training = False  # no norm takes statistics of this clip
        for norm in synced:
            norm.counts = False  # takes part in the other processes' sums and adds nothing
        with self.accelerator.autocast():
            loss, _ = self.objective(clips, torch.zeros(1, dtype=torch.long, device=device))
        self._backpropagate(loss * 0 / num_batches)
        for module in modules:
            module.training = True
        for norm in synced:
            norm.counts = True

    def _note_bad(self, bad: list[Any]) -> None:
        for video in bad:
            if video.name not in self.values["bad"]:
                self.values["bad"][video.name] = video.reason
                logger.warning("left out of training: %s: %s", video.name, video.reason)
        if len(self.values["bad"]) > MAX_BAD_SHARE * self.batches.num_videos + 1:
            listed = "; ".join(list(self.values["bad"])[:10])
            raise VideoError(
                f"{len(self.values['bad'])} of {self.batches.num_videos} training videos can't be decoded, more than "
                f"{MAX_BAD_SHARE:.0%}: {listed}. Mend them, or leave them out: `frameflex data check` writes a list "
                "for data.quarantine"
            )

    def _state(self) -> TrainingState:
        """What resuming needs: the step and the optimizer's tensors, by parameter name."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        tensors: dict[str, Tensor] = {}
        for parameter, slots in self.optimizer.state.items():
            for slot, value in slots.items():
                if value is not None:
                    tensors[f"{slot}/{names[id(parameter)]}"] = torch.as_tensor(value)
        if self.average:
            tensors |= {f"{_RAW}{name}": value for name, value in self.model.state_dict().items()}
        scaler = self.accelerator.scaler
        return TrainingState({**self.values, "scaler": scaler.state_dict() if scaler else {}}, tensors)

    def _restore(self, training: TrainingState) -> None:
        """Take up the state of a former run; the model's weights are loaded already."""
        parameters = dict(self.model.named_parameters())
        for key, value in training.tensors.items():
            if key.startswith(_RAW):
                continue  # loaded already
            slot, name = key.split("/", 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:  # laid out as the parameter is, so that one kernel takes both
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            self.optimizer.state[parameter][slot] = value  # the number of steps stays on the CPU
        if self.accelerator.scaler and training.values.get("scaler"):
            self.accelerator.scaler.load_state_dict(training.values["scaler"])


def _build_objective(
    recipe: Recipe, model: TSM, targets: Tensor, label_sets: LabelSets | None
) -> FrameFlexibleObjective:
    options = recipe.objective
    weights = None
    if options.class_balance == "loss":
        weights = class_weights(targets, multi_label=recipe.data.multi_label)
    return FrameFlexibleObjective(
        model,
        label_smoothing=options.label_smoothing,
        kl_weight=options.kl_weight,
        temperature=options.temperature,
        student_cross_entropy=options.student_cross_entropy,
        reverse_kl=options.reverse_kl,
        class_weights=weights,
        label_sets=label_sets.table if label_sets else None,
        compile=recipe.training.compile,
    )


def _average_of(model: TSM, decay: float) -> ModelEmaV3:
    """A running average of weights and statistics; a pure function of the steps, so that resuming needs no state."""
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=2 / 3)


def _load_raw(model: TSM, training: TrainingState) -> None:
    raw = {key.removeprefix(_RAW): value for key, value in training.tensors.items() if key.startswith(_RAW)}
    model.load_state_dict(raw)


def _checkpoint_gradients(model: TSM) -> None:
    try:
        model.set_grad_checkpointing()
    except (AssertionError, AttributeError) as error:  # how timm says it
        raise RecipeError(
            f"training.grad_checkpointing: timm's {model.config['backbone']} can't compute stages again; leave it off"
        ) from error


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


_FREE = {  # what may change without changing the result
    "output",
    "data.num_workers",
    "training.tensorboard",
    "training.keep_checkpoints",
    "training.checkpoint_minutes",
    "training.checkpoint_steps",
}


def _check_same_recipe(former: Checkpoint, recipe: Recipe, folder: RunFolder) -> None:
    before, now = _flat(Recipe(Data("")).to_dict()) | _flat(former.recipe), _flat(recipe.to_dict())
    changed = sorted(key for key in now if before.get(key) != now[key] and key not in _FREE)
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise RecipeError(f"can't resume {folder.path} with another recipe: {listed}")
    former.model.train()


def _check_same_data(
    former: Checkpoint, folder: RunFolder, classes: Sequence[str], made_of: Mapping[str, int]
) -> None:
    assert former.training is not None
    before = former.training.values
    changed = [
        f"{name.removeprefix('num_')} were {before[name]} and are {now}"
        for name, now in made_of.items()
        if before.get(name, now) != now
    ]
    if former.class_names != list(classes):
        changed.append(f"classes were {former.class_names[:5]} … and are {list(classes)[:5]} …")
    if changed:
        raise RecipeError(
            f"can't resume {folder.path} with other data or processes: {'; '.join(changed)}. To train on from its "
            f"weights give {folder.last} as model.init of a new run"
        )


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def _preprocessing(recipe: Recipe, model: TSM) -> Preprocessing:
    """Sizes, mean and std of the recipe, or else what ``model.init`` or the backbone's ImageNet weights expect."""
    if recipe.model.init:
        known = load_checkpoint(recipe.model.init).preprocessing
    else:
        expected: Any = model.backbone.pretrained_cfg  # timm's
        known = Preprocessing(mean=expected["mean"], std=expected["std"])
    return replace(
        known,
        short_side=recipe.clip.short_side,
        crop_size=recipe.clip.crop_size,
        mean=recipe.clip.mean or known.mean,
        std=recipe.clip.std or known.std,
    )


def _start_from(source: Checkpoint, recipe: Recipe, classes: Sequence[str]) -> TSM:
    """The network of another checkpoint with its weights; rows of its classifier go to classes of the same name."""
    options, counts = recipe.model, recipe.trained_counts
    config = dict(source.model.config)
    flexible = source.model.frame_counts
    if options.backbone not in (None, config["backbone"]):
        raise RecipeError(
            f"model.init has {config['backbone']}, but model.backbone is {options.backbone}; set that to "
            "null, or leave model.init out"
        )
    if flexible and (recipe.method != "ffn" or flexible != counts):
        raise RecipeError(
            f"model.init has {config['backbone']} with parts for {', '.join(map(str, flexible))} frames; set "
            f"method to ffn and clip.frame_counts to [{', '.join(map(str, flexible))}]"
        )
    if config["shift"] == "none" and options.shift != "none":
        config["shift_div"] = options.shift_div
    config |= {"num_classes": len(classes), "dropout": options.dropout, "shift": options.shift}
    model = create_model(**config)
    given = source.model.state_dict()
    if options.shift != source.model.config["shift"]:  # the shift has no weights, but a name
        places = {name.replace(".net.", "."): name for name in model.state_dict()}
        given = {places.get(name.replace(".net.", "."), name): tensor for name, tensor in given.items()}
    rows = {name: row for row, name in enumerate(source.class_names)}
    kept = [(row, rows[name]) for row, name in enumerate(classes) if name in rows]
    for key in ("head.weight", "head.bias"):
        head = model.state_dict()[key].clone()
        for row, origin in kept:
            head[row] = given[key][origin]
        given[key] = head
    model.load_state_dict(given)
    if recipe.method == "ffn" and not flexible:
        make_frame_flexible(model, counts, norms=options.frame_norms, scales=options.frame_scales)
    new = sorted(set(classes) - rows.keys())
    logger.info(
        "started from a checkpoint: %d of %d classes keep their classifier row%s",
        len(kept),
        len(classes),
        f"; new: {', '.join(new[:10])}{', …' if new[10:] else ''}" if new else "",
    )
    return model


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
    if recipe.clip.flip:
        for line in describe_directions(training.classes):
            logger.info(line)
    else:
        logger.info("no horizontal flips (clip.flip is off)")


def _log_kept(kept: Mapping[int, int], batch_size: int) -> None:
    """Say what the backward pass of a step needs, from what its first forward pass kept for each T."""
    logger.info(
        "kept for the backward pass, a video: %s; %.0f MB for a batch of %d",
        ", ".join(f"{num_bytes / 1e6:.1f} MB at {count} frames" for count, num_bytes in sorted(kept.items())),
        batch_size * sum(kept.values()) / 1e6,
        batch_size,
    )
