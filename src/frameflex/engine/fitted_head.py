"""A classifier that is fitted before the first step, so that fine-tuning needn't begin with a random one."""

from __future__ import annotations

import logging

import torch
from torch import nn

from frameflex.checkpoint import load_checkpoint
from frameflex.data.clips import ClipDataset
from frameflex.data.loading import read_batches
from frameflex.data.records import VideoList
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.engine.baseline import fit_logistic
from frameflex.engine.recipe import Recipe
from frameflex.models import TSM

logger = logging.getLogger(__name__)


def fit_head(
    model: TSM, recipe: Recipe, videos: VideoList, preprocessing: Preprocessing, device: torch.device
) -> None:
    """Make a network's classifier the logistic regression on its own features of training videos, in place.

    A random classifier first pulls the features about that it is given; a fitted one leaves them what they know
    (linear probing, then fine-tuning: Kumar et al., ICLR 2022). A classifier whose rows are all kept, because
    `model.init` knows the classes, is left alone. So is one whose training videos can't be decoded: training says so.

    Args:
        model: of the recipe; ends up on the device, in evaluation mode.
        recipe: of the run.
        videos: the training videos, one label each; every one is decoded once.
        preprocessing: of their pixels.
        device: to compute on.
    """
    assert recipe.model.init
    if set(videos.classes) <= set(load_checkpoint(recipe.model.init).class_names):
        return
    dataset = ClipDataset(
        videos,
        frame_counts=recipe.trained_counts,
        transform=EvalTransform(preprocessing),
        training=False,
        sampling=recipe.clip.sampling,
        window=recipe.clip.window,
        on_bad_video="skip",  # which training counts
    )
    model.eval().to(device)
    head, model.head = model.head, nn.Identity()  # type: ignore[assignment]  # logits are features now
    rows, labels = [], []
    with read_batches(
        dataset, batch_size=recipe.training.batch_size, num_workers=recipe.data.num_workers
    ) as batches:
        for batch in batches:
            for clips in batch.clips.values() if len(batch) else ():
                with torch.no_grad():
                    rows.append(model(clips[:, 0].to(device)).float().cpu())  # (B, F)
                labels.append(batch.labels)
    model.head = head
    if not rows:
        return
    known, truth = torch.cat(rows), torch.cat(labels)
    logits = fit_logistic(known, truth, len(videos.classes))
    size = known.shape[1]
    bias = logits(torch.zeros(1, size))[0]  # it is affine, so read off
    weight = (logits(torch.eye(size)) - bias).T
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    right = float((logits(known).argmax(1) == truth).double().mean())
    logger.info(
        "the classifier starts as logistic regression on the features of %d training videos (%.0f %% of them right)",
        len(videos),
        100 * right,
    )
