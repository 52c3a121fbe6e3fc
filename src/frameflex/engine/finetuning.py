"""What of a network is trained, and how fast: frozen stages and norms, rates by depth, balanced classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from frameflex.models import TSM
from frameflex.models.frame_flexible import NORMS


def parameter_depths(model: TSM, *, stages: bool) -> dict[str, int]:
    """How deep each parameter of the backbone sits: 0 for the stem, then block by block or stage by stage.

    Args:
        model: the network; its parameters' names are the keys.
        stages: count whole stages instead of blocks.
    """
    matcher = model.backbone.group_matcher(coarse=stages)  # type: ignore[operator]  # timm's, of every family
    depths = group_parameters(model.backbone, matcher, reverse=True)
    order = {depth: i for i, depth in enumerate(sorted(set(depths.values())))}
    return {f"backbone.{name}": order[depth] for name, depth in depths.items()}


def freeze(model: TSM, *, frozen_stages: int, norms: str) -> None:
    """Take frozen stages and norms out of training.

    Args:
        model: changed in place: frozen parameters need no gradient.
        frozen_stages: how many, from the input: 1 is the stem, 2 also the first stage, and so on.
        norms: "tuned", "frozen", or "first" for all but the first one, as TSM and TSN call partial batch norm.

    Raises:
        ValueError: if there are fewer stages.
    """
    depths = parameter_depths(model, stages=True)
    number = 1 + max(depths.values())
    if not 0 <= frozen_stages <= number:
        raise ValueError(
            f"training.frozen_stages is {frozen_stages}; expected 0 to {number}, which is the whole backbone of "
            f"{model.config['backbone']}"
        )
    still = {id(p) for norm in _still_norms(model, norms=norms) for p in norm.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in still or depths.get(name, number) < frozen_stages:
            parameter.requires_grad_(False)


def hold_still(model: TSM, *, frozen_stages: int, norms: str) -> None:
    """Let frozen norms keep their statistics; call it after each ``model.train()``. Arguments as in `freeze`."""
    depths = parameter_depths(model, stages=True)
    for norm in _still_norms(model, norms=norms):
        norm.eval()
    for name, module in model.named_modules():
        own = [depths.get(f"{name}.{key}") for key, _ in module.named_parameters(recurse=False)]
        if isinstance(module, NORMS) and any(depth is not None and depth < frozen_stages for depth in own):
            module.eval()


def _still_norms(model: TSM, *, norms: str) -> list[nn.Module]:
    if norms == "tuned":
        return []
    found = [(name, module) for name, module in model.backbone.named_modules() if isinstance(module, NORMS)]
    if norms == "first" and found:
        first = found[0][0].split(".norms.")[0]  # all frame counts' copies of it
        found = [(name, module) for name, module in found if name.split(".norms.")[0] != first]
    return [module for _, module in found]


def rate_factors(model: TSM, layer_decay: float) -> dict[str, float]:
    """What each parameter's rate is multiplied with: ``layer_decay`` once for each block up to the classifier.

    Args:
        model: the network; its parameters' names are the keys.
        layer_decay: above 0, at most 1; 1 for one rate.
    """
    depths = parameter_depths(model, stages=False)
    top = 1 + max(depths.values())
    return {
        name: layer_decay ** (top - depths[name]) if name in depths else 1.0
        for name, _ in model.named_parameters()
    }


def class_targets(labels: Sequence[int], num_classes: int, table: Tensor | None = None) -> Tensor:
    """Which classes each video shows, float ``(N, K)``.

    Args:
        labels: one for each video.
        num_classes: K.
        table: bool ``(S, K)`` where labels stand for sets of classes.
    """
    rows = torch.as_tensor(labels)
    return (torch.eye(num_classes) if table is None else table.float())[rows]


def video_weights(targets: Tensor) -> Tensor:
    """How often to draw each video so that every class is seen as often as any other, ``(N,)``.

    A video of several classes gets the mean of what each asks for; videos of none count as a class.
    """
    empty = (targets.sum(1, keepdim=True) == 0).to(targets)
    shown = torch.cat([targets, empty], 1)
    wanted = 1 / shown.sum(0).clamp(min=1)
    return (shown * wanted).sum(1) / shown.sum(1)


def class_weights(targets: Tensor, *, multi_label: bool) -> Tensor:
    """Weights ``(K,)`` of a loss in which every class counts the same.

    For one label a video: ``N / (K n)``, as n of N videos show the class (0 for a class that none shows). For
    several: the weight of a positive, ``(N - n) / n``, at most 100.
    """
    shown = targets.sum(0)
    if multi_label:
        return ((len(targets) - shown) / shown.clamp(min=1)).clamp(1e-2, 100)
    occurring = int((shown > 0).sum())
    return torch.where(shown > 0, len(targets) / (occurring * shown.clamp(min=1)), torch.zeros_like(shown))
