"""How much memory a forward pass keeps for the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass
class Saved:
    """What autograd kept: bytes by address, so that what two operations keep is counted once."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(self.storages.values())


@contextlib.contextmanager
def saved_for_backward(weights: Iterable[Tensor]) -> Iterator[Saved]:
    """Count what is kept for the backward pass inside the block.

    Args:
        weights: parameters and buffers, which are there anyway and don't count.
    """
    saved = Saved()
    there = {weight.untyped_storage().data_ptr() for weight in weights}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            saved.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved
