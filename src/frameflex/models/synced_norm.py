"""Batch normalisation whose statistics are those of the videos of all processes."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


def sync_norms(network: nn.Module) -> int:
    """Let every batch norm of a network, in place, take its statistics over all processes; returns how many.

    Names, weights and evaluation stay as they are. torch's own SyncBatchNorm needs CUDA; this one is made of
    ordinary operations and two sums over processes a norm, so it works with gloo on a CPU, too. Every process must
    call the network equally often, with the same T's in the same order.

    Raises:
        ValueError: if the network has other norms with statistics of a batch, or none.
    """
    found = [module for module in network.modules() if getattr(module, "running_var", None) is not None]
    for norm in found:
        if type(norm) not in _SYNCED:
            raise ValueError(
                f"training.sync_norms knows BatchNorm; the network has {type(norm).__name__}, whose statistics it "
                "can't synchronise. Leave it off"
            )
    for norm in found:
        norm.__class__ = _SYNCED[type(norm)]
        setattr(norm, "counts", True)  # noqa: B010  # mypy doesn't follow the change of class
    if not found:
        raise ValueError(
            "training.sync_norms is on, but no norm of the network looks at the batch; leave it off"
        )
    return len(found)


class Synced(_BatchNorm):
    """What the two classes below share.

    Attributes:
        counts: False for a process that has no video in this step: it takes part in the sums and adds nothing.
    """

    counts: bool

    def normalise(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        wide = x.float()  # sums over many pixels
        dims = [0, *range(2, x.ndim)]
        share = 1.0 if self.counts else 0.0
        number = torch.full((1,), share * x.numel() / x.shape[1], device=x.device)
        sums = _sum_over_processes(torch.cat([wide.sum(dims) * share, number]))
        total = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / total  # (C,)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        centred = wide - mean.view(shape)
        variance = _sum_over_processes(centred.square().sum(dims) * share) / total  # (C,)
        self._remember(mean.detach(), variance.detach(), sums[-1].detach())
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        unbiased = variance * total / (total - 1).clamp(min=1)
        weight = momentum * (total > 0).to(self.running_mean)  # 0 where no process has a video
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_(unbiased.to(self.running_var), weight)


class SyncedBatchNorm2d(Synced, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with the statistics of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, C, H, W)``."""
        return self.normalise(x)


class SyncedBatchNormAct2d(Synced, BatchNormAct2d):
    """timm's batch norm with the activation behind it, with the statistics of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, C, H, W)``."""
        return self.act(self.drop(self.normalise(x)))


_SYNCED: dict[type, type] = {nn.BatchNorm2d: SyncedBatchNorm2d, BatchNormAct2d: SyncedBatchNormAct2d}


def _sum_over_processes(x: Tensor) -> Tensor:
    return _Sum.apply(x)


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs, because what each gives reaches every loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        if distributed.is_initialized():
            distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Sum.forward(ctx, grad)
