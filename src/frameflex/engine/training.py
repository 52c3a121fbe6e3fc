"""The loop: videos and a recipe in, checkpoints out.

Everything random is a pure function of the recipe's seed and of where the run stands: the order of videos of
(seed, epoch), augmentation of (seed, epoch, video), dropout of (seed, step). So a run that is stopped at any
step and resumed equals the run that was never stopped, with nothing but the step to remember.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frameflex.checkpoint import Checkpoint, TrainingState, load_checkpoint, save_checkpoint
from frameflex.data.datasets import (
    ClipDataset,
    VideoList,
    VideoRecord,
    collate,
    find_video_files,
    load_split,
    shielded,
)
from frameflex.data.label_sets import split_label_sets, with_nothing
from frameflex.data.transforms import Preprocessing, TrainTransform, describe_directions, exchange_directions
from frameflex.data.video import VideoError
from frameflex.engine.evaluation import Evaluation, evaluate
from frameflex.engine.finetuning import (
    class_targets,
    class_weights,
    freeze,
    hold_still,
    rate_factors,
    video_weights,
)
from frameflex.engine.objective import FrameFlexibleObjective
from frameflex.engine.recipe import DEFAULT_BACKBONE, Recipe, RecipeError
from frameflex.models import TSM, create_model, make_frame_flexible

logger = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.01  # more undecodable training videos than this stop a run that skips them


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
    """

    epoch: int
    step: int
    num_steps: int
    loss: float
    accuracy: float
    learning_rate: float
    clips_per_second: float
    seconds_left: float


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
    the state to resume from) and ``best.safetensors`` (highest validation top-1, averaged over the trained
    counts). The method "separate" makes one such folder ``{T}f`` for each frame count.

    Args:
        recipe: the whole run.
        resume: continue the run in ``recipe.output`` from its last checkpoint; start it where there is none.
        watcher: for progress.

    Returns:
        The best checkpoint, or for the method "separate" that of each frame count, ascending.

    Raises:
        RecipeError: if the recipe doesn't fit its data, or the folder holds a run and ``resume`` is not set.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
        VideoError: if too many training videos, or any validation video, can't be decoded.
    """
    if recipe.method != "separate":
        return [_train_one(recipe, resume=resume, watcher=watcher or Watcher())]
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
    output = Path(recipe.output)
    last, best = output / "last.safetensors", output / "best.safetensors"
    AcceleratorState._reset_state()  # a former run in this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=recipe.training.precision,
        # Unless told so, accelerate takes each of several processes without a GPU for a run of its own.
        cpu=not torch.accelerator.is_available(),
        # A step that draws its counts leaves the norms of those that it didn't draw without gradients.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=recipe.objective.random_counts)
        ],
    )
    if recipe.training.tensorboard:
        _summary_writer()  # a missing package is told before anything is written
    training_videos, validation_videos = find_videos(recipe)
    _check_labels(training_videos, validation_videos)
    classes, label_sets = training_videos.classes, None
    if recipe.data.multi_label:
        (training_videos, validation_videos), label_sets = split_label_sets(
            [training_videos, validation_videos]
        )
        classes = label_sets.classes
    former = _former_run(recipe, last) if resume and last.exists() else None
    if former is None and output.is_dir() and any(output.iterdir()) and not (resume and not last.exists()):
        raise RecipeError(
            f"output {output} holds files already; expected an empty or new folder. "
            "Continue that run with --resume, or choose another --output"
        )
    # What a step is made of: a run that goes on with others would leave out videos or see some twice.
    made_of = {"num_videos": len(training_videos), "num_processes": accelerator.num_processes}
    if former:
        _check_same_data(former, last, classes, made_of)
    torch.manual_seed(recipe.seed)
    model = former.model if former else build_model(recipe, classes)
    model.to(memory_format=torch.channels_last)  # a quarter less time on a CPU
    preprocessing = former.preprocessing if former else _preprocessing(recipe, model)
    freeze(model, frozen_stages=recipe.training.frozen_stages, norms=recipe.training.norms)
    targets = class_targets(training_videos.labels, len(classes), label_sets.table if label_sets else None)
    objective = FrameFlexibleObjective(
        model,
        label_smoothing=recipe.objective.label_smoothing,
        kl_weight=recipe.objective.kl_weight,
        temperature=recipe.objective.temperature,
        student_cross_entropy=recipe.objective.student_cross_entropy,
        reverse_kl=recipe.objective.reverse_kl,
        class_weights=class_weights(targets, multi_label=recipe.data.multi_label)
        if recipe.objective.class_balance == "loss"
        else None,
        label_sets=label_sets.table if label_sets else None,
    )
    batches = EpochBatches(
        len(training_videos),
        batch_size=recipe.training.batch_size,
        seed=recipe.seed,
        frame_counts=recipe.trained_counts,
        random_counts=recipe.objective.random_counts,
        weights=video_weights(targets) if recipe.objective.class_balance == "sampling" else None,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    optimizer = build_optimizer(recipe, model, accelerator.num_processes)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    run = _Run(recipe, accelerator, model, wrapped, optimizer, batches)
    state: dict[str, Any] = {"epoch": 0, "step": 0, "best_top1": -1.0, **made_of}
    if former:
        assert former.training is not None
        state |= former.training.values
        run.restore(former.training)
    elif accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        recipe.save(output / "recipe.yaml")
    _log_start(recipe, model, training_videos, validation_videos)
    dataset = ClipDataset(
        training_videos,
        frame_counts=recipe.trained_counts,
        transform=TrainTransform(
            preprocessing,
            multi_scale_crop=recipe.clip.multi_scale_crop,
            flip=recipe.clip.flip,
            flip_label=exchange_directions(training_videos.classes),
            color_jitter=recipe.clip.color_jitter,
            rand_augment=recipe.clip.rand_augment,
        ),
        sampling=recipe.clip.sampling,
        window=recipe.clip.window,
        training=True,
        seed=recipe.seed,
        on_error=recipe.data.on_bad_video,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=recipe.data.num_workers,
        collate_fn=collate,
        persistent_workers=recipe.data.num_workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )

    def checkpoint(metrics: dict[str, Any], training: TrainingState | None = None) -> Checkpoint:
        return Checkpoint(
            model=model,
            class_names=list(classes),
            preprocessing=preprocessing,
            frame_counts=recipe.trained_counts,
            sampling={"sampling": recipe.clip.sampling, "window": recipe.clip.window},
            recipe=recipe.to_dict(),
            metrics=metrics,
            training=training,
            multi_label=recipe.data.multi_label,
        )

    def save_last() -> None:
        if accelerator.is_main_process:
            save_checkpoint(last, checkpoint(state.get("metrics", {}), run.state(state)))
        accelerator.wait_for_everyone()  # none goes on, or resumes, before the file is there

    with _Log(output, recipe, accelerator.is_main_process) as log, _stop_signals() as stop:

        def while_validating(done: int, total: int) -> None:
            if stop.is_set():
                raise Interrupted(last)
            if watcher.on_validation_progress:
                watcher.on_validation_progress(done, total)

        for epoch in range(state["epoch"], recipe.training.epochs):
            for report in run.epoch(loader, epoch, state["step"]):
                state["step"] = report.step
                log.write("step", vars(report))
                if watcher.on_step:
                    watcher.on_step(report)
                if _in_any(accelerator, stop.is_set()):
                    save_last()
                    raise Interrupted(last)
            final = epoch + 1 == recipe.training.epochs
            if final or (epoch + 1) % recipe.training.validate_every == 0:
                # Whatever stops validation. The epoch is not counted as done yet: resuming validates it first.
                save_last()
                measured = evaluate(
                    model,
                    validation_videos,
                    preprocessing=preprocessing,
                    frame_counts=recipe.clip.frame_counts,
                    trained_counts=recipe.trained_counts,
                    sampling=recipe.clip.sampling,
                    window=recipe.clip.window,
                    batch_size=recipe.training.batch_size,
                    num_workers=recipe.data.num_workers,
                    accelerator=accelerator,
                    label_sets=label_sets,
                    on_progress=while_validating,
                )
                results = [measured.at(count) for count in recipe.trained_counts]
                precisions = [result.mean_average_precision for result in results]
                top1 = sum(  # what the best checkpoint has most of: mAP where a video shows several classes
                    result.top1 if precision is None else precision
                    for result, precision in zip(results, precisions, strict=True)
                ) / len(results)
                state["metrics"] = {"validation": {"epoch": epoch + 1, **measured.to_dict()}}
                improved = top1 > state["best_top1"]
                if improved:
                    state["best_top1"] = top1
                    if accelerator.is_main_process:
                        save_checkpoint(best, checkpoint(state["metrics"]))
                log.write("validation", {"epoch": epoch, "best": improved, **measured.to_dict()})
                if watcher.on_validation:
                    watcher.on_validation(epoch, measured, improved)
            state["epoch"] = epoch + 1
            save_last()
            if not final and _in_any(accelerator, stop.is_set()):
                raise Interrupted(last)
    return best


def find_videos(recipe: Recipe) -> tuple[VideoList, VideoList]:
    """Training and validation videos of a recipe; both with the training videos' classes.

    Raises:
        RecipeError: if there is nothing to train on or to validate on.
    """
    data = recipe.data
    training = load_split(data.train, "train", video_dir=data.video_dir)
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
    validation = load_split(source, "validation", classes=expected, video_dir=data.video_dir)
    return _with_nothing(training, validation, recipe)


def _with_nothing(training: VideoList, validation: VideoList, recipe: Recipe) -> tuple[VideoList, VideoList]:
    """Add the videos in which none of the classes happens, held out as others are where nothing is divided."""
    if not recipe.data.nothing:
        return training, validation
    files = find_video_files([recipe.data.nothing])
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


def build_optimizer(recipe: Recipe, model: TSM, num_processes: int = 1) -> torch.optim.Optimizer:
    """SGD or AdamW over the recipe's parameter groups; each group remembers its rate as ``base_lr``."""
    training = recipe.training
    rate = training.learning_rate
    if training.reference_batch_size:
        rate *= training.batch_size * training.accumulate * num_processes / training.reference_batch_size
    published = training.parameter_groups == "published"
    groups = parameter_groups(model, published=published, layer_decay=training.layer_decay)
    for group in groups:
        group["lr"] = group["base_lr"] = rate * group.pop("rate")
        group["weight_decay"] = training.weight_decay * group.pop("decay")
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=training.momentum, nesterov=training.nesterov)


def parameter_groups(model: TSM, *, published: bool, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters by how fast they learn and decay, relative to the recipe (TSM's and TSN's published policies).

    Published: weights 1 × with decay; biases of convolutions 2 × without; norms 1 × without; the classifier's
    weight 5 × with decay and its bias 10 × without. Plain: 1 ×, decay on matrices and filters only. Scales of
    a frame-flexible network count as norms. With ``layer_decay`` below 1 each of these is divided by depth.
    """
    kinds: dict[str, dict[str, Any]] = {
        "weights": {"rate": 1, "decay": 1},
        "biases": {"rate": 2 if published else 1, "decay": 0},
        "norms and scales": {"rate": 1, "decay": 0},
        "classifier weight": {"rate": 5 if published else 1, "decay": 1},
        "classifier bias": {"rate": 10 if published else 1, "decay": 0},
    }
    factors = rate_factors(model, layer_decay) if layer_decay != 1 else {}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head."):
            kind = "classifier weight" if name.endswith("weight") else "classifier bias"
        elif parameter.ndim > 1:
            kind = "weights"
        elif name.endswith("bias") and not _is_norm(model, name):
            kind = "biases"
        else:
            kind = "norms and scales"
        factor = factors.get(name, 1.0)
        label = kind if factor == 1 else f"{kind} x {factor:.3g}"
        start = {"name": label, **kinds[kind], "rate": kinds[kind]["rate"] * factor, "params": []}
        groups.setdefault(label, start)["params"].append(parameter)
    order = list(kinds)
    return sorted(
        groups.values(), key=lambda group: (order.index(group["name"].split(" x ")[0]), -group["rate"])
    )


def learning_rate_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """What the base rate is multiplied with at a step, from 0: a pure function, so that resuming needs no state."""
    training = recipe.training
    epoch = step / steps_per_epoch
    if epoch < training.warmup_epochs:
        return (step + 1) / (training.warmup_epochs * steps_per_epoch + 1)
    if training.schedule == "steps":
        return 0.1 ** sum(epoch >= milestone for milestone in training.milestones)
    done = (epoch - training.warmup_epochs) / max(training.epochs - training.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * done))


_NEVER = 1_000_003  # epochs


class EpochBatches:
    """Batches of ``(video, epoch, frame counts)``, in an order that is a pure function of seed and epoch.

    Every video is dealt to exactly one process each epoch, and every process makes as many batches as the
    others; where the videos don't divide, some make smaller ones.

    Args:
        num_videos: of the data set.
        batch_size: for each process.
        seed: of the run.
        frame_counts: the T's of every clip.
        random_counts: each batch draws the counts below the largest from the range that they span.
        weights: ``(num_videos,)``; an epoch draws as many videos as there are, each as often as its weight says.
            One that is drawn again in an epoch gets other frames and another augmentation.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_size: int,
        seed: int,
        frame_counts: Sequence[int],
        random_counts: bool = False,
        weights: Tensor | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if num_videos < world:
            raise RecipeError(f"{num_videos} training videos are too few for {world} processes")
        self.num_videos, self.batch_size, self.seed = num_videos, batch_size, seed
        self.frame_counts, self.random_counts = tuple(sorted(frame_counts)), random_counts
        self.weights = weights
        self.rank, self.world = rank, world
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return math.ceil(self.num_videos / (self.batch_size * self.world)) - self.first_batch

    def num_batches(self) -> int:
        """Batches of a whole epoch."""
        return math.ceil(self.num_videos / (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_videos, generator=generator).tolist()
        else:
            order = torch.multinomial(self.weights, self.num_videos, True, generator=generator).tolist()
        total = self.num_batches()
        times: Counter[int] = Counter()
        # Augmentation is drawn for (video, epoch): a repeated video asks for that of an epoch that never comes.
        draws = []
        for video in order:
            draws.append((video, self.epoch + times[video] * _NEVER))
            times[video] += 1
        for batch in range(self.first_batch, total):
            # The videos of a step, as equal as they can be dealt to its batches over all processes.
            start, end = (self.num_videos * i // total for i in (batch, batch + 1))
            counts = self._counts(batch)
            yield [(video, epoch, counts) for video, epoch in draws[start:end][self.rank :: self.world]]

    def _counts(self, batch: int) -> tuple[int, ...]:
        if not self.random_counts or len(self.frame_counts) == 1:
            return self.frame_counts
        smallest, largest = self.frame_counts[0], self.frame_counts[-1]
        generator = torch.Generator().manual_seed(
            _mix(self.seed, self.epoch, batch)
        )  # the same in every process
        drawn = (
            smallest + torch.randperm(largest - smallest, generator=generator)[: len(self.frame_counts) - 1]
        )
        return (*sorted(drawn.tolist()), largest)


class _Run:
    """The moving parts of a run: what a step changes, and what resuming restores."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        model: TSM,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: EpochBatches,
    ) -> None:
        self.recipe, self.accelerator, self.model = recipe, accelerator, model
        self.objective, self.optimizer, self.batches = objective, optimizer, batches
        self.steps_per_epoch = math.ceil(batches.num_batches() / recipe.training.accumulate)
        self.num_steps = self.steps_per_epoch * recipe.training.epochs
        self.bad: dict[str, str] = {}

    def epoch(self, loader: DataLoader, epoch: int, step: int) -> Iterator[StepReport]:
        """Run the steps of an epoch that come after ``step``, reporting each."""
        accumulate = self.recipe.training.accumulate
        self.batches.epoch = epoch
        self.batches.first_batch = (step - epoch * self.steps_per_epoch) * accumulate
        self.objective.train()
        training = self.recipe.training
        hold_still(self.model, frozen_stages=training.frozen_stages, norms=training.norms)
        started, seen, right = time.perf_counter(), 0, 0.0
        first_step = step
        if step == (epoch + 1) * self.steps_per_epoch:
            return  # stopped while it was validated
        batches = shielded(loader)
        while step < (epoch + 1) * self.steps_per_epoch:
            left = self.batches.num_batches() - (step - epoch * self.steps_per_epoch) * accumulate
            # Dropout and random counts of this step, whatever ran before it in this process.
            torch.manual_seed(_mix(self.recipe.seed, step, self.accelerator.process_index))
            loss, step_seen, step_right = self._step(batches, step, min(accumulate, left))
            step += 1
            seen, right = seen + step_seen, right + step_right
            seconds = time.perf_counter() - started
            yield StepReport(
                epoch=epoch,
                step=step,
                num_steps=self.num_steps,
                loss=loss,
                accuracy=right / max(seen, 1),
                learning_rate=self.optimizer.param_groups[0]["lr"],
                clips_per_second=seen / seconds,
                seconds_left=seconds / (step - first_step) * (self.num_steps - step),
            )

    def _step(self, batches: Iterator[Any], step: int, num_batches: int) -> tuple[float, int, float]:
        factor = learning_rate_factor(self.recipe, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        totals = torch.zeros(3, device=self.accelerator.device)  # loss · videos, videos, right ones
        for i in range(num_batches):
            batch = next(batches)
            self._note_bad(batch.bad)
            last = i + 1 == num_batches
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                totals += self._backward(batch.to(self.accelerator.device), num_batches)
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

    def _backward(self, batch: Any, num_batches: int) -> Tensor:
        size = len(batch.labels)
        share = self._share(size)
        if size == 0:
            if self.accelerator.num_processes > 1:
                self._take_part(num_batches)
            return torch.zeros(3, device=self.accelerator.device)
        clips = batch.clips
        with self.accelerator.autocast():
            loss, logits = self.objective(clips, batch.labels)
        self.accelerator.backward(loss * share / num_batches)
        guesses = logits.argmax(1)
        label_sets = self.accelerator.unwrap_model(self.objective).label_sets
        if label_sets is None:
            right = (guesses == batch.labels).sum()
        else:
            right = label_sets[batch.labels].gather(1, guesses[:, None]).sum()
        return torch.stack([loss.detach() * size, torch.tensor(float(size), device=loss.device), right])

    def _share(self, size: int) -> Tensor | float:
        """What makes the mean over processes one over videos, where batches of one step differ in size."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return 1.0
        mine = torch.tensor(float(size), device=self.accelerator.device)
        return mine * processes / self.accelerator.reduce(mine, "sum").clamp(min=1)

    def _take_part(self, num_batches: int) -> None:
        """Zero gradients of a process whose videos can't be decoded: the others wait for some from each."""
        size = self.recipe.clip.crop_size
        device = self.accelerator.device
        clips = {
            count: torch.zeros(1, 3, count, size, size, device=device) for count in self.batches.frame_counts
        }
        modules = [module for module in self.objective.modules() if module.training]
        for module in modules:
            module.training = False  # no norm takes statistics of this clip
        with self.accelerator.autocast():
            loss, _ = self.objective(clips, torch.zeros(1, dtype=torch.long, device=device))
        for module in modules:
            module.training = True
        self.accelerator.backward(loss * 0 / num_batches)

    def _note_bad(self, bad: list[Any]) -> None:
        for video in bad:
            if video.name not in self.bad:
                self.bad[video.name] = video.reason
                logger.warning("left out of training: %s: %s", video.name, video.reason)
        if len(self.bad) > MAX_BAD_SHARE * self.batches.num_videos + 1:
            listed = "; ".join(list(self.bad)[:10])
            raise VideoError(
                f"{len(self.bad)} of {self.batches.num_videos} training videos can't be decoded, more than "
                f"{MAX_BAD_SHARE:.0%}: {listed}. Repair or remove them"
            )

    def state(self, values: dict[str, Any]) -> TrainingState:
        """What resuming needs: the step and the optimizer's tensors, by parameter name."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        tensors: dict[str, Tensor] = {}
        for parameter, slots in self.optimizer.state.items():
            for slot, value in slots.items():
                if value is not None:
                    tensors[f"{slot}/{names[id(parameter)]}"] = torch.as_tensor(value)
        scaler = self.accelerator.scaler
        return TrainingState({**values, "scaler": scaler.state_dict() if scaler else {}}, tensors)

    def restore(self, training: TrainingState) -> None:
        """Take up the state of a former run; the model's weights are loaded already."""
        parameters = dict(self.model.named_parameters())
        for key, value in training.tensors.items():
            slot, name = key.split("/", 1)
            parameter = parameters[name]
            if value.shape == parameter.shape:  # laid out as the parameter is, so that one kernel takes both
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            self.optimizer.state[parameter][slot] = value  # the number of steps stays on the CPU
        if self.accelerator.scaler and training.values.get("scaler"):
            self.accelerator.scaler.load_state_dict(training.values["scaler"])


class _Log:
    """``log.jsonl``: a line for each step and validation; TensorBoard beside it on request."""

    def __init__(self, output: Path, recipe: Recipe, is_main: bool) -> None:
        self.file = (output / "log.jsonl").open("a", encoding="utf-8") if is_main else None
        self.board = (
            _summary_writer()(str(output / "tensorboard"))
            if is_main and recipe.training.tensorboard
            else None
        )
        self.step = 0

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()

    def write(self, event: str, values: dict[str, Any]) -> None:
        self.step = values.get("step", self.step)
        if self.file:
            self.file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
            self.file.flush()
        if self.board and event == "step":
            for name in ("loss", "accuracy", "learning_rate", "clips_per_second"):
                self.board.add_scalar(f"train/{name}", values[name], self.step)
        elif self.board:
            for result in values["results"]:
                self.board.add_scalar(f"validation/top1_{result['num_frames']}f", result["top1"], self.step)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            "training.tensorboard needs the package tensorboard: pip install 'frameflex[tracking]'"
        ) from error
    return SummaryWriter


def _in_any(accelerator: Accelerator, flag: bool) -> bool:
    """Whether a flag is set in any process; the same answer in all of them, so that they stop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    flags = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(flags.item())


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


def _former_run(recipe: Recipe, last: Path) -> Checkpoint:
    former = load_checkpoint(last, training=True)
    if former.training is None:
        raise RecipeError(f"{last} holds no state to resume from; expected the last checkpoint of a run")
    before, now = _flat(former.recipe), _flat(recipe.to_dict())
    free = {"output", "data.num_workers"}  # what may change without changing the result
    changed = sorted(
        key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and key not in free
    )
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed)
        raise RecipeError(f"can't resume {last.parent} with another recipe: {listed}")
    former.model.train()
    return former


def _check_same_data(
    former: Checkpoint, last: Path, classes: Sequence[str], made_of: Mapping[str, int]
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
            f"can't resume {last.parent} with other data or processes: {'; '.join(changed)}. To train on from its "
            f"weights give {last} as model.init of a new run"
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


def _is_norm(model: nn.Module, name: str) -> bool:
    from frameflex.models.frame_flexible import NORMS

    return isinstance(model.get_submodule(name.rpartition(".")[0]), NORMS)


def _mix(*numbers: int) -> int:
    """One seed out of several numbers, so that neighbouring ones give unrelated streams."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
