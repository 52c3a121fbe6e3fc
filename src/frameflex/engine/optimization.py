"""How fast each parameter learns, and when."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from frameflex.engine.finetuning import rate_factors
from frameflex.engine.recipe import Recipe
from frameflex.models import TSM
from frameflex.models.frame_flexible import NORMS


def build_optimizer(recipe: Recipe, model: TSM, num_processes: int = 1) -> torch.optim.Optimizer:
    """SGD or AdamW over the recipe's parameter groups; each group remembers its rate as ``base_lr``."""
    training = recipe.training
    rate = training.learning_rate
    if training.reference_batch_size:
        rate *= training.batch_size * training.accumulate * num_processes / training.reference_batch_size
    published = training.parameter_groups == "published"
    groups = parameter_groups(model, published=published, layer_decay=training.layer_decay)
    for group in groups:
        group["lr"] = group["base_lr"] = rate * group.pop("rate")
        group["weight_decay"] = training.weight_decay * group.pop("decay")
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=training.momentum, nesterov=training.nesterov)


def parameter_groups(model: TSM, *, published: bool, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters by how fast they learn and decay, relative to the recipe (TSM's and TSN's published policies).

    Published: weights 1 × with decay; biases of convolutions 2 × without; norms 1 × without; the classifier's
    weight 5 × with decay and its bias 10 × without. Plain: 1 ×, decay on matrices and filters only. Scales of
    a frame-flexible network count as norms. With ``layer_decay`` below 1 each of these is divided by depth.
    """
    kinds: dict[str, dict[str, Any]] = {
        "weights": {"rate": 1, "decay": 1},
        "biases": {"rate": 2 if published else 1, "decay": 0},
        "norms and scales": {"rate": 1, "decay": 0},
        "classifier weight": {"rate": 5 if published else 1, "decay": 1},
        "classifier bias": {"rate": 10 if published else 1, "decay": 0},
    }
    factors = rate_factors(model, layer_decay) if layer_decay != 1 else {}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head."):
            kind = "classifier weight" if name.endswith("weight") else "classifier bias"
        elif parameter.ndim > 1:
            kind = "weights"
        elif name.endswith("bias") and not _is_norm(model, name):
            kind = "biases"
        else:
            kind = "norms and scales"
        factor = factors.get(name, 1.0)
        label = kind if factor == 1 else f"{kind} x {factor:.3g}"
        start = {"name": label, **kinds[kind], "rate": kinds[kind]["rate"] * factor, "params": []}
        groups.setdefault(label, start)["params"].append(parameter)
    order = list(kinds)
    return sorted(
        groups.values(), key=lambda group: (order.index(group["name"].split(" x ")[0]), -group["rate"])
    )


def learning_rate_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """What the base rate is multiplied with at a step, from 0: a pure function, so that resuming needs no state."""
    training = recipe.training
    epoch = step / steps_per_epoch
    if epoch < training.warmup_epochs:
        return (step + 1) / (training.warmup_epochs * steps_per_epoch + 1)
    if training.schedule == "steps":
        return 0.1 ** sum(epoch >= milestone for milestone in training.milestones)
    done = (epoch - training.warmup_epochs) / max(training.epochs - training.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * done))


def _is_norm(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), NORMS)
