"""Features in two tensors, the channels that move in time and those that stay, in graphs for other runtimes.

No runtime lets a convolution read some channels of a tensor in place, so a shift that is written with slices copies
what stays as well. In a residual network features are sums of convolutions, through activations: these can give
their result in two tensors to begin with, and whatever reads it can read two. Then only what moves is copied.
docs/experiments/speed.md has what that brings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from frameflex.models.temporal_shift import replace_module

# Names of torch's functions and methods; activations work on each channel alone.
_ADDITIONS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})
_ACTIVATIONS = frozenset(
    {
        "relu",
        "relu_",
        "relu6",
        "silu",
        "silu_",
        "hardswish",
        "hardtanh",
        "gelu",
        "leaky_relu",
        "elu",
        "dropout",
    }
)


class Divided:
    """Features ``(N, C, H, W)`` in two tensors, which the rest of a network may take for one.

    Additions and activations are done on each; anything else sees them concatenated.

    Attributes:
        moved: the first channels.
        rest: the others.
    """

    def __init__(self, moved: Tensor, rest: Tensor) -> None:
        self.moved, self.rest = moved, rest

    def whole(self) -> Tensor:
        return torch.cat([self.moved, self.rest], 1)

    def __add__(self, other: Any) -> Any:
        return torch.add(self, other)  # type: ignore[call-overload]

    __radd__ = __add__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, operands = func.__name__, 2 if func.__name__ in _ADDITIONS else 1
        alike = len(args) >= operands and all(isinstance(value, cls) for value in args[:operands])
        if alike and name in _ADDITIONS | _ACTIVATIONS:
            parts = ([value.moved for value in args[:operands]], [value.rest for value in args[:operands]])
            return cls(*(func(*part, *args[operands:], **kwargs) for part in parts))
        whole = [value.whole() if isinstance(value, cls) else value for value in args]
        return func(*whole, **kwargs)


class DividedConv(nn.Module):
    """A convolution that reads its features, gives them, or both, in two tensors.

    Args:
        conv: with one group.
        in_at: how many input channels are in the first tensor; None where the input is one tensor.
        out_at: the same of the output.
    """

    def __init__(self, conv: nn.Conv2d, in_at: int | None, out_at: int | None) -> None:
        super().__init__()
        self.reads_two = in_at is not None
        self.outputs = nn.ModuleList(
            nn.ModuleList(_part(conv, inputs, outputs) for inputs in _halves(conv.in_channels, in_at))
            for outputs in _halves(conv.out_channels, out_at)
        )

    def forward(self, x: Tensor | Divided) -> Tensor | Divided:
        if isinstance(x, Divided) and not self.reads_two:
            x = x.whole()
        inputs = [x.moved, x.rest] if isinstance(x, Divided) else [x]
        results = []
        for convs in self.outputs.children():
            # The larger one first: runtimes add the other to it in place.
            *first, last = (conv(part) for conv, part in zip(convs.children(), inputs, strict=True))
            results.append(last + first[0] if first else last)
        return Divided(*results) if len(results) == 2 else results[0]


def divide_features(network: nn.Module, shifts: Iterable[nn.Module], example: Tensor) -> list[nn.Module]:
    """Divide, in place, the features in front of shifts, wherever they come from plain convolutions alone.

    Args:
        network: in evaluation mode, with norms folded.
        shifts: modules of it with ``num_moved``, how many of the first channels move (0 where none may be divided
            off). They must take a `Divided`.
        example: an input, which is run once.

    Returns:
        The shifts that now get a `Divided`.
    """
    plan = _Plan(network, list(shifts))
    with torch.no_grad(), plan:
        network(example)
    plan.finish()
    names = {module: name for name, module in network.named_modules()}
    for weight, conv in plan.convs.items():
        in_at = plan.division(plan.read_by[weight]) if conv.kernel_size == (1, 1) else None
        if in_at or weight in plan.out_at:
            replace_module(network, names[conv], DividedConv(conv, in_at, plan.out_at.get(weight)))
    return plan.divided


# ------------------------------------------------------------------------------------------------- the plan


class _Plan(TorchFunctionMode):
    """Watches one forward, and finds the convolutions whose sums are the features in front of a shift.

    Attributes:
        convs: the plain convolutions that ran, by the id of their weight, as all below.
        read_by: the convolutions whose sum each one reads; none where it reads anything else.
        out_at: where the output of a convolution is to be divided.
        divided: shifts whose input will be.
    """

    def __init__(self, network: nn.Module, shifts: list[nn.Module]) -> None:
        super().__init__()
        own = {id(module) for shift in shifts for module in shift.modules()}
        self.convs = {
            id(module.weight): module
            for module in network.modules()
            if type(module) is nn.Conv2d and module.groups == 1 and id(module) not in own
        }
        self.read_by: dict[int, frozenset[int]] = {}
        self.out_at: dict[int, int] = {}
        self.divided: list[nn.Module] = []
        self._wanted: list[tuple[nn.Module, frozenset[int]]] = []
        self._sums = WeakTensorKeyDictionary()  # by identity
        self._hooks = [shift.register_forward_pre_hook(self._see) for shift in shifts]

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        sums = [self._sum(value) for value in args[:2] if isinstance(value, Tensor)]
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        found: frozenset[int] = frozenset()
        name = getattr(func, "__name__", "")
        if name == "conv2d" and id(args[1]) in self.convs:
            self.read_by[id(args[1])] = sums[0]
            found = frozenset({id(args[1])})
        elif name in _ACTIVATIONS or (name in _ADDITIONS and len(sums) == 2 and all(sums)):
            found = frozenset().union(*sums)
        self._sums[result] = found
        return result

    def _sum(self, value: Tensor) -> frozenset[int]:
        """The convolutions that a tensor is the sum of; empty where it is anything else."""
        return self._sums.get(value, frozenset())

    def _see(self, shift: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._wanted.append((shift, self._sum(inputs[0])))

    def finish(self) -> None:
        """Decide, once the forward has run."""
        for hook in self._hooks:
            hook.remove()
        self.convs = {weight: conv for weight, conv in self.convs.items() if weight in self.read_by}
        for shift, sources in self._wanted:
            at = int(shift.num_moved)  # type: ignore[arg-type]
            if at and sources and all(self.out_at.get(weight, at) == at for weight in sources):
                self.out_at |= dict.fromkeys(sources, at)
                self.divided.append(shift)

    def division(self, sources: frozenset[int]) -> int | None:
        """Where a sum of these convolutions is divided."""
        places = {self.out_at.get(weight) for weight in sources}
        return places.pop() if len(places) == 1 else None


def _halves(channels: int, at: int | None) -> list[slice]:
    return [slice(0, channels)] if at is None else [slice(0, at), slice(at, channels)]


def _part(conv: nn.Conv2d, inputs: slice, outputs: slice) -> nn.Conv2d:
    """Some input and output channels of a convolution; the bias goes with the last inputs."""
    part = copy.deepcopy(conv).requires_grad_(False)
    part.in_channels, part.out_channels = inputs.stop - inputs.start, outputs.stop - outputs.start
    part.weight = nn.Parameter(conv.weight.detach()[outputs, inputs].contiguous(), requires_grad=False)
    if conv.bias is not None:
        bias = conv.bias.detach()[outputs].contiguous()
        part.bias = nn.Parameter(bias, requires_grad=False) if inputs.stop == conv.in_channels else None
    return part
