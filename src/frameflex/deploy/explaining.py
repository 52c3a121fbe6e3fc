"""Why a network says what it says: where it looked, which frames mattered, what it says of the video backwards."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import functional

from frameflex.deploy.decoded import decode
from frameflex.deploy.inputs import open_input
from frameflex.export.running import ExportedModel

if TYPE_CHECKING:
    from frameflex.deploy.inputs import Video
    from frameflex.deploy.recognizer import Prediction, Recognizer


@dataclass(frozen=True)
class Explanation:
    """Why a video has its label.

    Attributes:
        label: the class that is explained.
        index: of the class among the model's outputs.
        predictions: of the video, best first.
        backwards: of the video played backwards. The same label with the same probability means that the order of the
            frames didn't matter.
        frames: what the network saw, uint8 ``(T, 3, h, w)``.
        frame_numbers: which frames of the video these are.
        maps: how much each place of each frame spoke for the class, 0 to 1, ``(T, h, w)``; 1 is the strongest place
            of the clip.
        importance: of each frame, ``(T,)``: how much less probable the class is without it, -1 to 1.
    """

    label: str
    index: int
    predictions: Sequence[Prediction]
    backwards: Sequence[Prediction]
    frames: Tensor
    frame_numbers: Sequence[int]
    maps: Tensor
    importance: Tensor


def explain(
    recognizer: Recognizer,
    video: Video,
    *,
    num_frames: int | None = None,
    label: str | None = None,
    top: int = 5,
) -> Explanation:
    """As `Recognizer.explain`."""
    names = list(recognizer.checkpoint.class_names)
    if label is not None and label not in names:
        raise ValueError(
            f"label is {label!r}, which is no class of the checkpoint; expected a name of its own"
        )
    rule = recognizer.clip_rule(num_frames)
    [count] = rule.frame_counts
    with open_input(video, limits=recognizer.limits) as reader:
        decoded = decode(reader, rule)
    clip = decoded.clip(count, rule.transform)[0]  # type: ignore[arg-type]
    rows = decoded.shown(count)
    probabilities, backwards = recognizer.probabilities(torch.stack([clip, clip.flip(1)])[:, None])
    index = int(probabilities.argmax()) if label is None else names.index(label)
    lost = [
        probabilities[index] - recognizer.probabilities(without_frame(clip, i)[None, None])[0, index]
        for i in range(count)
    ]
    return Explanation(
        label=names[index],
        index=index,
        predictions=recognizer.best(probabilities, top),
        backwards=recognizer.best(backwards, top),
        frames=torch.from_numpy(decoded.crops[rows, 0]),
        frame_numbers=[decoded.frame_numbers[row] for row in rows],
        maps=activation_maps(recognizer, clip, index),
        importance=torch.stack(lost),
    )


def without_frame(clip: Tensor, index: int) -> Tensor:
    """A clip ``(3, T, h, w)`` in which the frame before (of the first one, after) stands in a frame's place.

    T stays what it was: a shorter clip would be another question to a frame-flexible network, and move the others.
    """
    if clip.shape[1] == 1:
        return torch.zeros_like(clip)  # the mean colour
    return torch.cat([clip[:, :index], clip[:, index - 1 if index else 1][:, None], clip[:, index + 1 :]], 1)


def activation_maps(recognizer: Recognizer, clip: Tensor, index: int) -> Tensor:
    """Grad-CAM (arXiv 1610.02391) of a clip at the last features that have places.

    Where these are averaged and go into the classifier, as in a ResNet, the maps are the class activation maps of
    arXiv 1512.04150.

    Args:
        recognizer: whose network looked.
        clip: normalised, ``(3, T, h, w)``.
        index: of the class.

    Returns:
        ``(T, h, w)`` from 0 to 1, on the CPU.

    Raises:
        ValueError: if the network is an export, or has no such features.
    """
    model = recognizer.model
    if isinstance(model, ExportedModel):
        raise ValueError(
            "an export can't be explained: its graph has no gradients. Load the checkpoint that it is of"
        )
    pool = next((one for one in model.modules() if isinstance(one, SelectAdaptivePool2d)), None)
    if pool is None:
        raise ValueError(
            "the backbone doesn't average over places; maps need one that does, such as a ResNet"
        )
    features, gradient = _features(model, pool, clip.to(recognizer.device), index)
    weights = gradient.mean((2, 3), keepdim=True)
    maps = (weights * features).sum(1).relu()  # (T', h', w')
    maps = maps / maps.amax().clamp(min=1e-12)
    maps = functional.interpolate(maps[:, None], clip.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    # Temporal pooling leaves half of the frames.
    kept = [t * len(maps) // clip.shape[1] for t in range(clip.shape[1])]
    return maps[kept].clamp(0, 1).cpu()  # (T, h, w)


def _features(model: nn.Module, pool: nn.Module, clip: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """What is pooled, ``(T', C, h', w')``, and the gradient of the class's logit with respect to it."""
    mine = threading.get_ident()
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if threading.get_ident() == mine:  # others may use the same network
            found.append(inputs[0])

    handle = pool.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(clip[None].requires_grad_())
            [gradient] = torch.autograd.grad(logits[0, index], found[:1])
    finally:
        handle.remove()
    return found[0].detach().float(), gradient.float()
