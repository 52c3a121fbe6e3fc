"""Which videos a step sees, who decodes them, and whether they come in time."""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frameflex.data.cache import FrameCache
from frameflex.data.clips import ClipDataset, collate
from frameflex.data.directions import exchange_directions, reverse_directions
from frameflex.data.loading import end_with_parent
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing, TrainTransform
from frameflex.engine.recipe import Recipe, RecipeError

logger = logging.getLogger(__name__)

_NEVER = 1_000_003  # epochs
MEMORY_SHARE = 0.25  # of what is free, for frames that are kept


class EpochBatches:
    """Batches of ``(video, epoch, frame counts)``, in an order that is a pure function of seed and epoch.

    Every video is dealt to exactly one process each epoch, and every process makes as many batches as the
    others; where the videos don't divide, some make smaller ones.

    What a batch of all processes together holds depends on `begun_with` alone, not on how many there are now: a run
    goes on with fewer, each taking its share in several parts, or with more.

    Args:
        num_videos: of the data set.
        batch_size: for each process of those that the run began with.
        seed: of the run.
        frame_counts: the T's of every clip.
        draws_counts: each batch is seen at one of the counts, drawn for it.
        first_phase_epochs: epochs with clips of the largest count alone, at the start.
        random_counts: each batch draws the counts below the largest from the range that they span.
        weights: ``(num_videos,)``; an epoch draws as many videos as there are, each as often as its weight says.
            One that is drawn again in an epoch gets other frames and another augmentation.
        rank: this process.
        world: number of processes.
        begun_with: number of processes when the run began; by default as now.
        whole: a process takes its share of a batch at once however large, for norms that look at all of it.

    Attributes:
        parts: in how many each batch comes, so that a process holds no more videos at once than at the beginning.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_size: int,
        seed: int,
        frame_counts: Sequence[int],
        draws_counts: bool = False,
        first_phase_epochs: int = 0,
        random_counts: bool = False,
        weights: Tensor | None = None,
        rank: int = 0,
        world: int = 1,
        begun_with: int | None = None,
        whole: bool = False,
    ) -> None:
        if num_videos < world:
            raise RecipeError(f"{num_videos} training videos are too few for {world} processes")
        self.begun_with = begun_with or world
        if batch_size * self.begun_with < world:
            raise RecipeError(
                f"the run began with steps of {batch_size * self.begun_with} videos ({self.begun_with} processes); "
                f"expected no more processes than that to go on with it, and there are {world}"
            )
        self.parts = 1 if whole else math.ceil(self.begun_with / world)
        self.num_videos, self.batch_size, self.seed = num_videos, batch_size, seed
        self.frame_counts, self.random_counts = tuple(sorted(frame_counts)), random_counts
        self.draws_counts, self.first_phase_epochs = draws_counts, first_phase_epochs
        self.weights = weights
        self.rank, self.world = rank, world
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        return (self.num_batches() - self.first_batch) * self.parts

    def num_batches(self) -> int:
        """Batches of a whole epoch, each of one part or several."""
        return math.ceil(self.num_videos / (self.batch_size * self.begun_with))

    def num_videos_of(self, first: int, number: int) -> int:
        """Videos of some batches of an epoch, in all processes together."""
        start, end = (self._bounds(batch)[side] for batch, side in ((first, 0), (first + number - 1, 1)))
        return end - start

    def _bounds(self, batch: int) -> tuple[int, int]:
        """The videos of a batch in an epoch's order: as equal as they can be dealt, over all processes."""
        total = self.num_batches()
        return self.num_videos * batch // total, self.num_videos * (batch + 1) // total

    def __iter__(self) -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_videos, generator=generator).tolist()
        else:
            order = torch.multinomial(self.weights, self.num_videos, True, generator=generator).tolist()
        times: Counter[int] = Counter()
        # Augmentation is drawn for (video, epoch): a repeated video asks for that of an epoch that never comes.
        draws = []
        for video in order:
            draws.append((video, self.epoch + times[video] * _NEVER))
            times[video] += 1
        for batch in range(self.first_batch, self.num_batches()):
            start, end = self._bounds(batch)
            counts = self.counts(batch)
            mine = [(video, epoch, counts) for video, epoch in draws[start:end][self.rank :: self.world]]
            for part in range(self.parts):
                yield mine[part :: self.parts]

    def counts(self, batch: int) -> tuple[int, ...]:
        """The T's of a batch of this epoch, ascending; the same in every process."""
        if self.epoch < self.first_phase_epochs:
            return self.frame_counts[-1:]
        if not (self.random_counts or self.draws_counts) or len(self.frame_counts) == 1:
            return self.frame_counts
        # The same in every process.
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, batch))
        if self.draws_counts:
            return (self.frame_counts[int(torch.randint(len(self.frame_counts), (), generator=generator))],)
        smallest, largest = self.frame_counts[0], self.frame_counts[-1]
        drawn = (
            smallest + torch.randperm(largest - smallest, generator=generator)[: len(self.frame_counts) - 1]
        )
        return (*sorted(drawn.tolist()), largest)


def build_loader(
    recipe: Recipe,
    videos: VideoList,
    transform: TrainTransform,
    batches: EpochBatches,
    *,
    cache: FrameCache | None = None,
    pin_memory: bool,
) -> DataLoader:
    """What decodes and augments the training videos of a recipe, in the order of ``batches``."""
    clip, workers = recipe.clip, recipe.data.num_workers
    dataset = ClipDataset(
        videos,
        frame_counts=recipe.trained_counts,
        transform=transform,
        sampling=clip.sampling,
        window=clip.window,
        reversed_labels=reversed_labels(recipe, videos.classes) if recipe.reverses else None,
        training=True,
        seed=recipe.seed,
        on_bad_video="skip",  # which the policy, in this process, decides on
        open_record=cache.open if cache else VideoRecord.open,
    )
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=end_with_parent,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )


def reversed_labels(recipe: Recipe, classes: Sequence[str]) -> list[int]:
    """For each class the one that its videos show backwards, by names and by `data.reversed`.

    Raises:
        RecipeError: if `data.reversed` names an unknown class, or contradicts itself.
    """
    try:
        return reverse_directions(classes, recipe.data.reversed)
    except ValueError as error:
        raise RecipeError(f"data.reversed: {error}") from error


def build_transform(recipe: Recipe, videos: VideoList, preprocessing: Preprocessing) -> TrainTransform:
    """How the training clips of a recipe are cut out and augmented."""
    clip = recipe.clip
    return TrainTransform(
        preprocessing,
        multi_scale_crop=clip.multi_scale_crop,
        flip=clip.flip,
        flip_label=exchange_directions(videos.classes),
        color_jitter=clip.color_jitter,
        rand_augment=clip.rand_augment,
    )


def build_cache(recipe: Recipe, transform: TrainTransform, num_processes: int) -> FrameCache | None:
    """Where the frames of a recipe's training videos are kept; None where they aren't.

    In memory where one process uses them; what several need, they share in files, which the system keeps in memory as
    far as it can.
    """
    if not recipe.data.cache_frames:
        return None
    shared = num_processes > 1 or recipe.data.num_workers > 0
    memory_bytes = 0 if shared else int(MEMORY_SHARE * psutil.virtual_memory().available)
    return FrameCache(transform.smallest, memory_bytes=memory_bytes, folder=Path(recipe.output) / "frames")


class LoaderClock:
    """How long the network waits for videos, from the first batch of an epoch on."""

    STARVED = 0.2  # more of the time than this is worth a word
    AFTER_SECONDS = 20.0

    def __init__(self, num_workers: int) -> None:
        self.num_workers, self.told = num_workers, False
        self.started = self.first = time.perf_counter()
        self.waited = 0.0

    def start(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches of an epoch. The wait for the first one is the start of the workers and isn't counted."""
        self.started, self.waited = time.perf_counter(), 0.0
        for number in itertools.count():
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            now = time.perf_counter()
            if number:
                self.waited += now - asked
            else:
                self.first = now
            yield batch

    def seconds(self) -> float:
        """Of this epoch."""
        return time.perf_counter() - self.started

    def waiting(self) -> float:
        """Share of the time, 0 to 1; says once where it is large, and what to do."""
        seconds = time.perf_counter() - self.first
        share = self.waited / seconds if seconds > 0 else 0.0
        if share > self.STARVED and seconds > self.AFTER_SECONDS and not self.told:
            self.told = True
            cores = os.cpu_count() or 1
            advice = (
                f"give data.num_workers more than {self.num_workers} (this machine has {cores} cores)"
                if self.num_workers < cores
                else f"all {cores} cores decode already: make decoding cheaper with frameflex data prepare, or train "
                "at fewer frames"
            )
            logger.warning("the network waits for videos %.0f %% of the time; %s", 100 * share, advice)
        return share


def mix(*numbers: int) -> int:
    """One seed out of several numbers, so that neighbouring ones give unrelated streams."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
