"""The moving parts of a run: epochs, steps, validation and what is saved of them."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from frameflex.checkpoint import Checkpoint
from frameflex.data.label_sets import LabelSets
from frameflex.data.loading import end_workers, shielded
from frameflex.data.records import BadVideos, check_bad_share
from frameflex.engine.confidence import fit_temperature
from frameflex.engine.evaluation import Evaluation, evaluate
from frameflex.engine.finetuning import class_targets, class_weights, freeze, hold_still, video_weights
from frameflex.engine.fitted_head import fit_head
from frameflex.engine.loading import (
    EpochBatches,
    LoaderClock,
    build_cache,
    build_loader,
    build_transform,
    mix,
)
from frameflex.engine.objective import FrameFlexibleObjective
from frameflex.engine.optimization import build_optimizer, learning_rate_factor
from frameflex.engine.recipe import Recipe, RecipeError
from frameflex.engine.reversal_check import doubtful_reversals
from frameflex.engine.run_folder import RunFolder
from frameflex.engine.run_state import load_raw, restore, state_of
from frameflex.engine.starting import build_model, preprocessing_of
from frameflex.engine.task import Task, division_of
from frameflex.engine.watching import StepReport
from frameflex.models import TSM
from frameflex.models.frame_flexible import spread_parts
from frameflex.models.synced_norm import Synced, sync_norms

logger = logging.getLogger(__name__)


class Run:
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
        task: Task,
        folder: RunFolder,
        former: Checkpoint | None,
        made_of: Mapping[str, int | str],
    ) -> None:
        self.recipe, self.accelerator, self.task, self.folder = recipe, accelerator, task, folder
        training = recipe.training
        torch.manual_seed(recipe.seed)
        self.model = former.model if former else build_model(recipe, task.classes)
        self.model.to(memory_format=torch.channels_last)  # a quarter less time on a CPU
        self.preprocessing = former.preprocessing if former else preprocessing_of(recipe, self.model)
        if former is None and recipe.model.head == "fitted":
            fit_head(self.model, recipe, task.training, self.preprocessing, accelerator.device)
        self.average = _average_of(self.model, training.ema_decay) if training.ema_decay else None
        if former and former.training and self.average:
            load_raw(self.model, former.training)  # a checkpoint's own weights are the average
        freeze(self.model, frozen_stages=training.frozen_stages, norms=training.norms)
        if training.grad_checkpointing:
            _checkpoint_gradients(self.model)
        if training.precision == "bf16" and accelerator.device.type == "cpu":
            _depthwise_in_float32(self.model)
        if training.sync_norms and accelerator.num_processes > 1:
            sync_norms(self.model)
        targets = class_targets(
            task.training.labels, len(task.classes), task.label_sets.table if task.label_sets else None
        )
        objective = _build_objective(recipe, self.model, targets, task.label_sets)
        self.batches = _build_batches(recipe, task, targets, accelerator, int(made_of["num_processes"]))
        optimizer = build_optimizer(recipe, self.model, self.batches.begun_with)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        transform = build_transform(recipe, task.training, self.preprocessing)
        self.cache = build_cache(recipe, transform, accelerator.num_processes)
        if self.cache and accelerator.is_main_process:
            self.cache.clean(task.training)
        self.loader = build_loader(
            recipe,
            task.training,
            transform,
            self.batches,
            cache=self.cache,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.steps_per_epoch = math.ceil(self.batches.num_batches() / training.accumulate)
        self.num_steps = self.steps_per_epoch * training.epochs
        self.videos = former.videos if former and former.videos else division_of(recipe, task)
        self.saved = time.monotonic()
        self.clock = LoaderClock(recipe.data.num_workers)
        self.memory_told = False  # once a run, not each epoch
        self.filling = False  # the cache of frames, by a thread, in the first epoch
        self.values = _at_the_start(made_of)
        if former and former.training:
            self.values |= {**former.training.values, **made_of}
            restore(self, former.training)

    def epoch(self, epoch: int) -> Iterator[StepReport]:
        """Run the steps of an epoch that are left, reporting each."""
        training, step, values = self.recipe.training, self.values["step"], self.values
        accumulate, end = training.accumulate, (epoch + 1) * self.steps_per_epoch
        if step == epoch * self.steps_per_epoch and epoch == self.recipe.first_phase_epochs > 0:
            self._spread_parts()
            self.memory_told = False
            values["best_top1"] = -1.0  # the best checkpoint is to be one of all counts
            logger.info(
                "from here on %s frames are trained together",
                " and ".join(map(str, self.recipe.trained_counts)),
            )
        self.batches.epoch = epoch
        self.batches.first_batch = (step - epoch * self.steps_per_epoch) * accumulate
        self.objective.train()
        hold_still(self.model, frozen_stages=training.frozen_stages, norms=training.norms)
        if step == end:
            return  # stopped while it was validated
        if step == epoch * self.steps_per_epoch:
            values |= {"seen": 0, "right": 0.0}
        first_step, seen_before = step, values["seen"]
        if self.cache and self.recipe.data.num_workers == 0 and not self.filling:
            self.filling = True
            order = [video for batch in self.batches for video, *_ in batch]
            videos = self.task.training
            self.cache.fill((videos[video] for video in order), limits=videos.limits)
        batches = self.clock.start(shielded(self.loader))
        while step < end:
            left = self.batches.num_batches() - (step - epoch * self.steps_per_epoch) * accumulate
            # Dropout and random counts of this step, whatever ran before it in this process.
            torch.manual_seed(mix(self.recipe.seed, step, self.accelerator.process_index))
            kept = self._unwrapped().kept_bytes = None if self.memory_told else {}
            loss, seen, right = self._step(batches, step, min(accumulate, left))
            if kept and (
                max(kept) == self.recipe.trained_counts[-1]
            ):  # what needs most, where counts are drawn
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
                seconds_left=seconds / self._frames(first_step, step) * self._frames(step, self.num_steps),
                waiting=self.clock.waiting(),
            )

    def validate(self, epoch: int, on_progress: Callable[[int, int], None]) -> tuple[Evaluation, bool]:
        """Measure the network after an epoch; also whether it is the best so far."""
        recipe, task, network = self.recipe, self.task, self.network
        if self.recipe.first_phase_epochs and self._in_first_phase():
            self._spread_parts()
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
        if task.label_sets is None:
            fitted = {
                str(t): fit_temperature(logits, measured.labels) for t, logits in measured.logits.items()
            }
            self.values["temperatures"] = fitted
        improved = top1 > self.values["best_top1"]
        if improved:
            self.values["best_top1"] = top1
        return measured, improved

    def doubtful_reversals(self, measured: Evaluation) -> list[str]:
        """What the network says of classes that were played backwards, once it is trained."""
        return doubtful_reversals(
            self.network,
            measured,
            self.recipe,
            preprocessing=self.preprocessing,
            accelerator=self.accelerator,
        )

    def _frames(self, start: int, end: int) -> float:
        """Frames that one video stands for from a step to another: what the time goes with."""
        counts, border = self.recipe.trained_counts, self.recipe.first_phase_epochs * self.steps_per_epoch
        alone = max(min(end, border) - start, 0)
        together = sum(counts) / (len(counts) if self.recipe.draws_counts else 1)
        return alone * counts[-1] + (end - start - alone) * together

    def _in_first_phase(self) -> bool:
        return self.values["step"] <= self.recipe.first_phase_epochs * self.steps_per_epoch

    def _spread_parts(self) -> None:
        """Until the other counts are trained, the largest one's norms and scales are theirs."""
        for network in {id(network): network for network in (self.model, self.network)}.values():
            spread_parts(network, self.recipe.trained_counts[-1])

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
            if recipe.first_phase_epochs and self._in_first_phase():
                self._spread_parts()
            checkpoint = Checkpoint(
                model=self.network,
                class_names=list(self.task.classes),
                preprocessing=self.preprocessing,
                frame_counts=recipe.trained_counts,
                sampling={"sampling": recipe.clip.sampling, "window": recipe.clip.window},
                recipe=recipe.to_dict(),
                metrics=self.values.get("metrics", {}),
                training=None if best else state_of(self),
                multi_label=recipe.data.multi_label,
                temperatures={int(t): value for t, value in self.values.get("temperatures", {}).items()},
                videos=self.videos,
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
        first = (step % self.steps_per_epoch) * self.recipe.training.accumulate
        planned = self.batches.num_videos_of(first, num_batches)
        parts = self.batches.parts
        for i in range(num_batches * parts):
            batch = next(batches)
            self._note_bad(batch.bad)
            counts = self.batches.counts(first + i // parts)
            last = i + 1 == num_batches * parts
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                totals += self._backward(batch.to(self.accelerator.device), counts, planned)
        loss, seen, right = self.accelerator.reduce(totals, "sum").tolist()
        if not math.isfinite(loss):
            raise RecipeError(
                f"the loss is {loss} at step {step + 1}; lower training.learning_rate, or train with "
                "training.precision bf16 or no instead of fp16"
            )
        if 0 < seen < planned:  # some can't be decoded: the mean is that of the others
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= planned / seen
        if seen and self.recipe.training.clip_grad_norm is not None:
            # accelerate takes the loss scaling of fp16 off first, so that the norm means the same at every precision
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.training.clip_grad_norm)
        if seen:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return loss / max(seen, 1), int(seen), right

    def _backward(self, batch: Any, counts: Sequence[int], planned: int) -> Tensor:
        """Add a batch's gradients: each video counts 1 / planned, however a step is split."""
        size = len(batch.labels)
        if size == 0:
            if self.accelerator.num_processes > 1:
                self._take_part(counts)
            return torch.zeros(3, device=self.accelerator.device)
        clips = batch.clips
        with self.accelerator.autocast():
            loss, logits = self.objective(clips, batch.labels)
        # The mean over this batch becomes a part of the step's; gradients are averaged over processes.
        self._backpropagate(loss * (size * self.accelerator.num_processes / planned))
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

    def _take_part(self, counts: Sequence[int]) -> None:
        """Zero gradients of a process whose videos can't be decoded: the others wait for some from each."""
        height, width = self.preprocessing.size
        device = self.accelerator.device
        clips = {count: torch.zeros(1, 3, count, height, width, device=device) for count in counts}
        synced = [module for module in self.model.modules() if isinstance(module, Synced)]
        modules = [m for m in self.objective.modules() if m.training and not isinstance(m, Synced)]
        for module in modules:
            module.training = False  # no norm takes statistics of this clip
        for norm in synced:
            norm.counts = False  # takes part in the other processes' sums and adds nothing
        with self.accelerator.autocast():
            loss, _ = self.objective(clips, torch.zeros(1, dtype=torch.long, device=device))
        self._backpropagate(loss * 0)
        for module in modules:
            module.training = True
        for norm in synced:
            norm.counts = True

    def close(self) -> None:
        """End what decodes, which lives from epoch to epoch."""
        end_workers(self.loader._iterator)
        if self.cache:
            finished = self.values["epoch"] == self.recipe.training.epochs
            self.cache.close(remove=finished and self.accelerator.is_main_process)

    def _note_bad(self, bad: list[Any]) -> None:
        if self.recipe.data.on_bad_video == "error":
            BadVideos(self.batches.num_videos, "error").add(bad)
        for video in bad:
            if video.name not in self.values["bad"]:
                self.values["bad"][video.name] = video.reason
                logger.warning("left out of training: %s: %s", video.name, video.reason)
        check_bad_share(list(self.values["bad"]), self.batches.num_videos, "training videos")


def _at_the_start(made_of: Mapping[str, int | str]) -> dict[str, Any]:
    """`Run.values` before the first step."""
    return {
        "epoch": 0,
        "step": 0,
        "best_top1": -1.0,
        "seen": 0,  # in this epoch, with `right`
        "right": 0.0,
        "bad": {},  # why, by the name of a video that can't be decoded
        **made_of,
    }


def _build_batches(
    recipe: Recipe, task: Task, targets: Tensor, accelerator: Accelerator, begun_with: int
) -> EpochBatches:
    """Which videos of an epoch go together, and at which frame counts."""
    return EpochBatches(
        len(task.training),
        batch_size=recipe.training.batch_size,
        seed=recipe.seed,
        frame_counts=recipe.trained_counts,
        draws_counts=recipe.draws_counts,
        first_phase_epochs=recipe.first_phase_epochs,
        random_counts=recipe.objective.random_counts,
        weights=video_weights(targets) if recipe.objective.class_balance == "sampling" else None,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        begun_with=begun_with,
        whole=recipe.training.sync_norms,
    )


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
        student_cross_entropy=recipe.students_learn_labels,
        reverse_kl=options.reverse_kl,
        class_weights=weights,
        label_sets=label_sets.table if label_sets else None,
        compile=recipe.training.compile,
    )


def _depthwise_in_float32(model: nn.Module) -> None:
    """Leave depthwise convolutions out of autocast on a CPU.

    Their gradients in bfloat16 take twice the time of float32 there; everything else takes half. A training step of
    EfficientNet-Lite0, 8 frames of 96 x 128: 161 ms a video in float32, 206 in bfloat16, 124 so (one thread of an AMD
    EPYC with AVX512-BF16).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.forward = partial(_convolved_in_float32, module)  # type: ignore[method-assign]


def _convolved_in_float32(conv: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(conv).forward(conv, x.float())  # timm's pad by themselves


def _average_of(model: TSM, decay: float) -> ModelEmaV3:
    """A running average of weights and statistics; a pure function of the steps, so that resuming needs no state."""
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=2 / 3)


def _checkpoint_gradients(model: TSM) -> None:
    try:
        model.set_grad_checkpointing()
    except (AssertionError, AttributeError) as error:  # how timm says it
        raise RecipeError(
            f"training.grad_checkpointing: timm's {model.config['backbone']} can't compute stages again; leave it off"
        ) from error


def _log_kept(kept: Mapping[int, int], batch_size: int) -> None:
    """Say what the backward pass of a step needs, from what its first forward pass kept for each T."""
    logger.info(
        "kept for the backward pass, a video: %s; %.0f MB for a batch of %d",
        ", ".join(f"{num_bytes / 1e6:.1f} MB at {count} frames" for count, num_bytes in sorted(kept.items())),
        batch_size * sum(kept.values()) / 1e6,
        batch_size,
    )
