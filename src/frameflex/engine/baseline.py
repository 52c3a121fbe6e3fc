"""What a network has to beat: simple classifiers of frozen features of the network that it started from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from frameflex.checkpoint import Checkpoint
from frameflex.data.clips import ClipDataset
from frameflex.data.loading import read_batches
from frameflex.data.records import BadVideos, VideoList, VideoRecord
from frameflex.data.transforms import EvalTransform
from frameflex.engine.first_answer import LeastSquares, before_last_stage, mean_and_change
from frameflex.engine.recipe import Recipe
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.starting import build_model, image_start
from frameflex.engine.task import find_videos
from frameflex.models import TSM

_PENALTY = 1e-3  # of squared weights of standardised features; never tuned on what is measured


@dataclass(frozen=True)
class Baseline:
    """Top-1, 0 to 1, of logistic regression on each video's features over its frames, and of what knows their order.

    Attributes:
        num_frames: T.
        mean: with the mean of the features, which doesn't know the order of the frames nor how they differ.
        mean_and_deviation: with their standard deviation beside it.
        mean_and_change: least squares on the mean before the last stage and its change over the clip
            (`frameflex.engine.first_answer`).
        num_training: videos that it was fitted to.
    """

    num_frames: int
    mean: float
    mean_and_deviation: float
    mean_and_change: float
    num_training: int


def measure_baseline(
    checkpoint: Checkpoint,
    measured: VideoList,
    *,
    num_frames: int,
    device: torch.device,
    batch_size: int = 8,
    num_workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> Baseline:
    """Fit to the training videos of a checkpoint's run, and measure on the very videos that it was measured on.

    Raises:
        ValueError: if the checkpoint doesn't say how it was trained, started from random weights, or its training
            videos are no longer those of its run.
    """
    if not checkpoint.recipe or checkpoint.multi_label:
        raise ValueError(
            "--baseline needs a checkpoint that frameflex train made, with one label a video; leave it out"
        )
    recipe = _recipe_of(checkpoint)
    if not recipe.model.init and not recipe.model.pretrained:
        raise ValueError(
            "--baseline: the checkpoint's run started from random weights, whose features say nothing; leave it out"
        )
    training = _training_videos(checkpoint, recipe, measured)
    model = build_model(image_start(recipe), checkpoint.class_names).eval().to(device)
    model.head = nn.Identity()  # type: ignore[assignment]  # logits are features now
    total, done = len(training) + len(measured), 0

    def on_video(number: int) -> None:
        nonlocal done
        done += number
        if on_progress:
            on_progress(done, total)

    how = (checkpoint, num_frames, device, batch_size, num_workers, on_bad_video, on_video)
    known, ordered, labels = _features(model, training, *how)
    asked, asked_ordered, truth = _features(model, measured, *how)
    num_classes = len(checkpoint.class_names)
    half = known.shape[1] // 2

    def right(logits: Tensor) -> float:
        return float((logits.argmax(1) == truth).double().mean())

    mean, with_deviation = (
        right(fit_logistic(known[:, :end], labels, num_classes)(asked[:, :end])) for end in (half, 2 * half)
    )
    with_change = right(LeastSquares(ordered, labels, num_classes).scores(asked_ordered))
    return Baseline(num_frames, mean, with_deviation, with_change, len(labels))


def _recipe_of(checkpoint: Checkpoint) -> Recipe:
    """Read as a file would be, so that a checkpoint's is checked as one."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(checkpoint.recipe, allow_unicode=True), encoding="utf-8")
        return parse_recipe([str(path)])[0]


def _training_videos(checkpoint: Checkpoint, recipe: Recipe, measured: VideoList) -> VideoList:
    """Those of the checkpoint's run, found again, without what is measured."""
    training, _ = find_videos(recipe)
    if checkpoint.videos and checkpoint.videos.trained_on(measured):
        raise ValueError(
            "--baseline: measured videos are among those that were trained on, which both would remember; measure "
            "others"
        )
    # By file and stretch: the same name may stand in both splits.
    held_out = {_stretch(video) for video in measured}
    training = training.subset(i for i, video in enumerate(training) if _stretch(video) not in held_out)
    if not training or (
        checkpoint.videos
        and checkpoint.videos.training.keys
        and len(checkpoint.videos.trained_on(training)) < len(training)
    ):
        raise ValueError(
            f"--baseline: {recipe.data.train} doesn't hold the videos that the checkpoint was trained on apart from "
            "those that are measured; run it where they are, without --include-trained"
        )
    return training


def _stretch(video: VideoRecord) -> tuple[str, float | None, float | None]:
    return os.path.realpath(str(video.path)), video.start_seconds, video.end_seconds


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression of standardised features; returns what gives the logits of others.

    Args:
        features: ``(N, F)``.
        labels: ``(N,)``.
        num_classes: K.
    """
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    inputs = ((features - mean) / deviation).double()
    weight = torch.zeros(num_classes, inputs.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        value = (
            nn.functional.cross_entropy(inputs @ weight.T + bias, labels) + _PENALTY * weight.square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    fitted, offset = weight.detach(), bias.detach()
    return lambda others: ((others - mean) / deviation).double() @ fitted.T + offset


@torch.no_grad()
def _features(
    model: TSM,
    videos: VideoList,
    checkpoint: Checkpoint,
    num_frames: int,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    on_bad_video: Literal["error", "skip"],
    on_video: Callable[[int], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation over the frames ``(N, 2 F)``, mean and change before the last stage, and labels."""
    dataset = ClipDataset(
        videos,
        frame_counts=[num_frames],
        transform=EvalTransform(checkpoint.preprocessing),
        training=False,
        **checkpoint.sampling,
        on_bad_video="skip",
    )
    policy = BadVideos(len(dataset), on_bad_video)
    rows, ordered, labels = [], [], []
    with read_batches(dataset, batch_size=batch_size, num_workers=num_workers) as batches:
        for batch in batches:
            policy.add(batch.bad)
            if len(batch.labels):
                with before_last_stage(model) as found:
                    frames = model.forward_frames(
                        batch.clips[num_frames][:, 0].to(device)
                    ).float()  # (B, T, F)
                ordered.append(mean_and_change(found[0], len(frames)))
                rows.append(torch.cat([frames.mean(1), frames.std(1, correction=0)], 1).cpu())
                labels.append(batch.labels)
            on_video(len(batch.labels) + len(batch.bad))
    if not rows:
        raise ValueError(f"--baseline: none of {len(videos)} videos could be decoded")
    return torch.cat(rows), torch.cat(ordered), torch.cat(labels)
