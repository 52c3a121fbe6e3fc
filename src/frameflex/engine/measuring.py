"""Measuring videos one after another, in the processes of whoever shares them: logits, and what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from frameflex.data.clips import ClipDataset, Crops
from frameflex.data.records import BadVideo
from frameflex.data.transforms import EvalTransform
from frameflex.models.clips import classify_views
from frameflex.models.precision import computing_in
from frameflex.sharing import Engine, Work
from frameflex.video.isolated import Lost

__all__ = ["Shared", "measured_elsewhere", "now"]


@dataclass(frozen=True)
class Shared:
    """Who measures in place of this process.

    Attributes:
        engine: shares the videos.
        load: gives the network in a process of the engine; can be pickled.
        precision: in which they compute.
        device: on which.
    """

    engine: Engine
    load: Callable[[], nn.Module]
    precision: str
    device: str = "cpu"


def measured_elsewhere(shared: Shared, dataset: ClipDataset) -> Generator[tuple[int, Any], None, None]:
    """Have an engine measure every video of an evaluation.

    Yields:
        (index, `BadVideo`, or logits ``(K,)`` and seconds at each count and the shape of the clips), in any order.

    Raises:
        NotFinite: if the network gives NaN or infinite logits.
    """
    assert isinstance(dataset.transform, EvalTransform)
    gpu = shared.device != "cpu"
    work = Work(
        partial(_decode, dataset),
        partial(_network, shared.load, shared.device, shared.precision, dataset.transform),
        separate=gpu,
        num_gpus=int(gpu),
    )
    with closing(shared.engine.run(work, range(len(dataset)))) as answers:
        for index, answer in answers:
            if isinstance(answer, Lost):
                answer = BadVideo(index, dataset.videos[index].name, answer.reason)
            elif isinstance(answer, BadVideo):
                answer = replace(answer, index=index)
            yield index, answer


def _decode(dataset: ClipDataset, index: int) -> Crops | BadVideo:
    return dataset.decode(dataset.videos[index])


def _network(
    load: Callable[[], nn.Module], device: str, precision: str, transform: EvalTransform
) -> Callable[[Sequence[Any]], list[Any]]:
    return partial(_measured, load().to(device).eval(), transform, torch.device(device), precision)


def _measured(
    model: nn.Module, transform: EvalTransform, device: torch.device, precision: str, found: Sequence[Any]
) -> list[Any]:
    """Each video's logits, the network's seconds at each count, and the shape of its clips; a bad one as it is."""
    answers: list[Any] = []
    for video in found:
        if isinstance(video, BadVideo):
            answers.append(video)
            continue
        logits, seconds, shape = {}, {}, ()
        for count, clip in video.clips(transform).items():
            start = now(device)
            with torch.inference_mode(), computing_in(precision, device):
                logits[count] = classify_views(model, clip[None].to(device))[0].cpu().numpy()
            seconds[count], shape = now(device) - start, tuple(clip.shape)
        answers.append((logits, seconds, shape))
    return answers


def now(device: torch.device) -> float:
    """Seconds, when all that a device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
