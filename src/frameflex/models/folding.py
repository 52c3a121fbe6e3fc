"""Batch norms folded into the convolutions before them: the same answers with one pass over memory less each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from frameflex.models.temporal_shift import at_num_frames, replace_module
from frameflex.models.tsm import TSM


def fold_norms(model: TSM, *, num_frames: int | None = None, size: int = 64) -> TSM:
    """A copy of a model for inference, whose batch norms are part of the convolutions before them.

    Args:
        model: left as it is.
        num_frames: of a frame-flexible model, which has norms for each count: the T whose norms and scales the
            copy has, whatever the T of its clips; by default the largest trained count. No meaning for others.
        size: of the square clip that shows which norm follows which convolution, pixels; at least what the
            network can take.

    Returns:
        A model in evaluation mode that answers like the original, to float tolerance. It can't be trained, nor be
        loaded again from a state dict of the original.
    """
    counted = num_frames or max(model.frame_counts, default=1)
    folded = copy.copy(model)
    folded._modules = dict(model._modules)
    folded.config = dict(model.config)
    with torch.no_grad():
        folded.backbone = copy.deepcopy(at_num_frames(model.backbone, counted))
        folded.head = copy.deepcopy(model.head)
        folded.frame_counts = ()
        folded.eval().requires_grad_(False)
        like = model.head.weight
        fold_batch_norms(folded, torch.zeros(1, 3, counted, size, size, dtype=like.dtype, device=like.device))
    return folded


def fold_batch_norms(network: nn.Module, *example: Tensor) -> None:
    """Fold, in place, every batch norm that directly follows a plain convolution, as one forward shows."""
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the tensors, so that no id is used twice
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(conv: nn.Module, _: Any, out: Tensor) -> None:
        calls[conv] = calls.get(conv, 0) + 1
        made[id(out)] = conv, out

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], norm))  # type: ignore[arg-type]

    handles = []
    for module in network.modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            handles.append(module.register_forward_pre_hook(before))
    try:
        network(*example)
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        if calls[conv] == calls[norm] == 1 and norm.running_mean is not None and norm.running_var is not None:
            conv.weight, conv.bias = nn.utils.fusion.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            replace_module(network, names[norm], rest.train(network.training))
