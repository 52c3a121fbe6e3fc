"""Cross-validation: as many runs as folds, and every video recognised once, by the network that never saw it."""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from frameflex.checkpoint import load_checkpoint
from frameflex.data.leaks import find_leaks
from frameflex.data.problems import class_problems, notes_of
from frameflex.data.records import VideoList
from frameflex.data.splits import groups_of
from frameflex.engine.confidence import wilson_interval
from frameflex.engine.evaluation import CountResult, Evaluation, accuracies, evaluate
from frameflex.engine.recipe import Recipe, RecipeError
from frameflex.engine.run_folder import RunFolder, expect_nothing_in
from frameflex.engine.task import check_videos_open, find_folds
from frameflex.engine.training import hold_folder, make_accelerator, train
from frameflex.engine.watching import Watcher

logger = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True)
class FoldedAccuracy:
    """Top-1 at one frame count, over all folds.

    Attributes:
        num_frames: T.
        top1: of all videos together, each recognised by the network that it was held out of.
        right: how many of them were right.
        number: how many there are.
        interval: Wilson's 95 % interval of `top1`, as if videos were drawn one by one.
        of_folds: top-1 of each fold.
        mean: of those.
        deviation: of those, the sample's.
    """

    num_frames: int
    top1: float
    right: int
    number: int
    interval: tuple[float, float]
    of_folds: list[float]
    mean: float
    deviation: float


@dataclass(frozen=True)
class CrossValidation:
    """What the folds of one recipe measured.

    Attributes:
        evaluation: every video once; its logits are those of the network of its fold, at that one's temperature.
        folds: indices into `evaluation` of each fold's videos.
        num_training: videos that each fold's network was trained on.
        num_groups: of the videos; as many as videos where none is named.
        problems: what is odd about the videos, a line each.
    """

    evaluation: Evaluation
    folds: list[list[int]]
    num_training: list[int]
    num_groups: int
    problems: list[str]

    @property
    def grouped(self) -> bool:
        """Whether groups of videos were held out together."""
        return self.num_groups < len(self.evaluation.names)

    def accuracies(self) -> list[FoldedAccuracy]:
        """One for each frame count, ascending."""
        found = []
        for num_frames, logits in self.evaluation.logits.items():
            right = logits.argmax(1) == self.evaluation.labels
            of_folds = [float(right[fold].double().mean()) for fold in self.folds]
            found.append(
                FoldedAccuracy(
                    num_frames,
                    top1=float(right.double().mean()),
                    right=int(right.sum()),
                    number=len(right),
                    interval=wilson_interval(int(right.sum()), len(right)),
                    of_folds=of_folds,
                    mean=statistics.mean(of_folds),
                    deviation=statistics.stdev(of_folds),
                )
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON; accuracies from 0 to 1, and each video's held-out answer at the largest frame count."""
        evaluation = self.evaluation
        num_frames = max(evaluation.logits)
        probabilities = evaluation.calibrated(num_frames).softmax(1)
        best = probabilities.max(1)
        fold_of = {index: number for number, fold in enumerate(self.folds, start=1) for index in fold}
        assert evaluation.videos is not None
        return {
            "num_folds": len(self.folds),
            "num_videos": len(evaluation.names),
            "num_groups": self.num_groups if self.grouped else None,
            "results": [{**vars(one), "interval": list(one.interval)} for one in self.accuracies()],
            "folds": [
                {"fold": number, "num_training": training, "num_validation": len(fold)}
                for number, (training, fold) in enumerate(
                    zip(self.num_training, self.folds, strict=True), start=1
                )
            ],
            "data_problems": self.problems,
            "num_frames_of_videos": num_frames,
            "videos": [
                {
                    "name": name,
                    "group": evaluation.videos[index].group or None,
                    "fold": fold_of[index],
                    "label": evaluation.class_names[label],
                    "prediction": evaluation.class_names[int(best.indices[index])],
                    "probability": float(best.values[index]),
                    "probability_of_label": float(probabilities[index, label]),
                }
                for index, (name, label) in enumerate(
                    zip(evaluation.names, evaluation.labels.tolist(), strict=True)
                )
            ],
        }


def cross_validate(
    recipe: Recipe,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
    on_fold: Callable[[int, Evaluation], None] | None = None,
) -> CrossValidation:
    """Train as many networks as the recipe has folds, into ``fold1``, ``fold2`` … of its output, and measure each.

    Each is measured after its last epoch: choosing the best epoch by the held-out videos would make the number too
    good. Groups of videos stand in one fold; classes are spread evenly.

    Args:
        recipe: with `data.folds`, and no `data.fold`.
        resume: go on where a former one stopped; folds that are done are only measured.
        watcher: for progress, of each fold's run.
        on_fold: called with each fold's number, from 1, and its measurements.

    Raises:
        RecipeError: if the videos can't be divided so, or the output holds files and ``resume`` is not set.
        VideoError: if videos can't be opened: each has to be held out once.
        Interrupted: as from `train`; what is done stays.
    """
    if recipe.data.folds is None or recipe.data.fold is not None:
        raise RecipeError("cross-validation needs data.folds, and no data.fold")
    videos, folds = find_folds(recipe)
    _log_division(recipe, videos)
    folder = RunFolder(Path(recipe.output), keep=1)
    if not resume:
        expect_nothing_in(folder)
    elif folder.resumable():
        raise RecipeError(f"output {folder.path} holds a run without folds; choose another --output")
    watcher = watcher or Watcher()
    accelerator = make_accelerator(recipe)
    with hold_folder(folder, accelerator):
        check_videos_open(videos, "in cross-validation each is held out once")
        problems = _problems(videos, folds) if accelerator.is_main_process else []
        for line in problems:
            logger.warning("data: %s", line)
        if watcher.on_data_problems:
            watcher.on_data_problems(problems)
        if accelerator.is_main_process and not (folder.path / "recipe.yaml").exists():
            recipe.save(folder.path / "recipe.yaml")
        measured = []
        for number in range(1, len(folds) + 1):
            measured.append(_fold(recipe, number, videos, folds, watcher))
            if on_fold:
                on_fold(number, measured[-1])
    return CrossValidation(
        _together(measured, videos),
        _places(measured),
        [len(videos) - len(fold) for fold in folds],
        len(groups_of(videos)),
        problems,
    )


def _log_division(recipe: Recipe, videos: VideoList) -> None:
    num_groups = len(groups_of(videos))
    lines = [f"{len(videos)} videos in {recipe.data.folds} folds"]
    if num_groups < len(videos):
        lines[0] += f", {num_groups} groups of them whole"
    else:
        lines.append(
            "no groups are named: if videos of one scene or person are in different folds, the accuracy is too good "
            "(CLASS/GROUP/video.mp4, or a list's column group)"
        )
    if recipe.data.validation or "validation" in videos.splits:
        lines.append("training and validation videos are divided anew")
    if "test" in videos.splits:
        lines.append("the test split is left for frameflex evaluate")
    logger.info("%s", "; ".join(lines))


def _fold(
    recipe: Recipe, number: int, videos: VideoList, folds: Sequence[Sequence[int]], watcher: Watcher
) -> Evaluation:
    """Train the network of one fold, or what is left of that, and measure it on the videos that it never saw."""
    held_out = folds[number - 1]
    logger.info(
        "fold %d of %d: %d videos to train on, %d held out",
        number,
        len(folds),
        len(videos) - len(held_out),
        len(held_out),
    )
    output = Path(recipe.output) / f"fold{number}"
    of_fold = replace(recipe, data=replace(recipe.data, fold=number), output=str(output))
    train(of_fold, resume=True, watcher=replace(watcher, on_data_problems=None), check_data=False)
    checkpoint = load_checkpoint(output / "last.safetensors")
    accelerator = make_accelerator(recipe)
    return evaluate(
        checkpoint.model.to(accelerator.device),
        videos.subset(held_out),
        preprocessing=checkpoint.preprocessing,
        frame_counts=recipe.clip.frame_counts,
        trained_counts=recipe.trained_counts,
        **checkpoint.sampling,
        batch_size=recipe.training.batch_size,
        num_workers=recipe.data.num_workers,
        accelerator=accelerator,
        temperature=checkpoint.temperature,
    )


def _together(measured: Sequence[Evaluation], videos: VideoList) -> Evaluation:
    first = measured[0]
    labels = torch.cat([one.labels for one in measured])
    logits = {count: torch.cat([one.calibrated(count) for one in measured]) for count in first.logits}
    costs = {result.num_frames: result for result in first.results}
    records = [record for one in measured if one.videos is not None for record in one.videos]
    return replace(
        first,
        results=[
            CountResult(
                count,
                **accuracies(answers, labels),
                gflops=costs[count].gflops,
                clips_per_second=costs[count].clips_per_second,
            )
            for count, answers in logits.items()
        ],
        names=[name for one in measured for name in one.names],
        labels=labels,
        logits=logits,
        temperatures={},
        trained_on=[],
        videos=VideoList(
            records, videos.classes, layout=videos.layout, left_out=videos.left_out, limits=videos.limits
        ),
    )


def _places(measured: Sequence[Evaluation]) -> list[list[int]]:
    """Where each fold's videos are when all stand one behind the other."""
    places, start = [], 0
    for one in measured:
        places.append(list(range(start, start + len(one.names))))
        start += len(one.names)
    return places


def _problems(videos: VideoList, folds: Sequence[Sequence[int]]) -> list[str]:
    sizes = Counter(videos.labels)
    few = [name for label, name in enumerate(videos.classes) if 0 < sizes[label] < len(folds)]
    leaks = find_leaks([videos.subset(fold) for fold in folds])
    cut_short = leaks.cut_short()
    lines = [*notes_of(videos), *class_problems(videos)]
    if few:
        named = ", ".join(map(repr, few[:_NAMED])) + (", …" if len(few) > _NAMED else "")
        lines.append(f"fewer videos than folds, so that not every fold measures them: {named}")
    return [*lines, *leaks.lines("different folds"), *([cut_short] if cut_short else ())]
