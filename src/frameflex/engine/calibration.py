"""Statistics of normalisation re-estimated at other frame counts, from unlabelled videos; weights untouched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from frameflex.checkpoint import Checkpoint
from frameflex.data.datasets import (
    BadVideo,
    BadVideos,
    ClipDataset,
    VideoList,
    collate,
    end_with_parent,
    read_ahead,
)
from frameflex.data.transforms import EvalTransform
from frameflex.models import FrameNorm, make_frame_flexible
from frameflex.models.frame_flexible import add_norms
from frameflex.models.tsm import classify_views


def calibrate(
    checkpoint: Checkpoint,
    videos: VideoList,
    frame_counts: Sequence[int],
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[BadVideo]:
    """Give a checkpoint's network batch statistics of its own at further frame counts, in place.

    A network that meets another T than it was trained at normalises with the wrong mean and variance (FFN,
    section 3.2). Here they are measured anew, as the average over batches of the videos, evaluated as in any
    test. No weight and no statistic of a trained count changes; a plain TSM becomes frame-flexible, with norms
    that share its weights' values.

    Args:
        checkpoint: its model is changed.
        videos: some tens at least, labels not looked at.
        frame_counts: the T's, none of them trained or calibrated already.
        batch_size: most videos whose statistics are taken together.
        num_workers: processes that decode.
        on_bad_video: "error" stops at the first that can't be decoded; "skip" leaves it out, and stops when more
            than 1 % are bad.
        on_progress: called with (videos done, videos in all).

    Returns:
        The videos that were left out.

    Raises:
        ValueError: if there are no videos, a count has norms of its own already, or the network has no norm
            with batch statistics.
        VideoError: if a video can't be decoded, or too many can't.
        NotFinite: if the network gives NaN or infinite logits.
    """
    model, counts = checkpoint.model, sorted(set(frame_counts))
    taken = {*checkpoint.frame_counts, *model.frame_counts, *model.config.get("calibrated_counts", [])}
    if not videos or not counts or counts[0] < 1:
        raise ValueError(f"{len(videos)} videos and frame counts {counts}; expected at least one of each")
    if taken & set(counts):
        raise ValueError(
            f"{sorted(taken & set(counts))} frames have norms of their own already; calibrate other counts "
            f"than {sorted(taken)}"
        )
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ValueError("the network has no batch normalisation, so there are no statistics to re-estimate")
    if not model.frame_counts:
        make_frame_flexible(model, checkpoint.frame_counts, scales=False)
    elif not model.config["frame_norms"]:
        raise ValueError(
            "the network shares its norms between frame counts; there is none to give to one count"
        )
    add_norms(model, counts)
    fresh = [
        (module, momentum)
        for norm in model.modules()
        if isinstance(norm, FrameNorm)
        for count in counts
        for module in norm.norms[str(count)].modules()
        if isinstance(module, _BatchNorm)
        for momentum in [module.momentum]
    ]
    loader = DataLoader(
        ClipDataset(
            videos,
            frame_counts=counts,
            transform=EvalTransform(checkpoint.preprocessing),
            training=False,
            on_bad_video=on_bad_video,
            **checkpoint.sampling,
        ),
        batch_size=math.ceil(
            len(videos) / math.ceil(len(videos) / batch_size)
        ),  # a small last one counts too much
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=end_with_parent,
    )
    device = next(model.parameters()).device
    model.eval()
    try:
        for module, _ in fresh:
            module.reset_running_stats()
            module.momentum = None  # every batch counts the same
            nn.Module.train(module)
        done, policy = 0, BadVideos(len(videos), on_bad_video)
        with torch.inference_mode(False), torch.no_grad():
            for batch in read_ahead(loader):
                policy.add(batch.bad)
                names = [videos[index].name for index in batch.indices.tolist()]
                for count in counts if len(batch) else ():
                    classify_views(model, batch.clips[count].to(device), names=names)
                done += len(batch) + len(batch.bad)
                if on_progress:
                    on_progress(done, len(videos))
    finally:
        for module, momentum in fresh:
            module.momentum = momentum
            nn.Module.eval(module)
    return policy.found
