"""A causal network one frame at a time: from a state and a frame to logits and the next state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from frameflex.arguments import checked_num_frames, shown, whole
from frameflex.models.precision import classified
from frameflex.models.temporal_shift import TemporalShift, at_num_frames, shallow_copy, shifted_channels
from frameflex.models.tsm import TSM

State = tuple[Tensor, ...]
"""What a stream has left behind: for each shift its last frame's ``fold`` channels, ``(B, fold, h, w)``."""


class CausalStep(nn.Module):
    """One frame of a causal `TSM`, which costs what one frame of the plain 2D network costs.

    Frame t of a video gets the logits that `TSM.forward_frames` gives it in a clip, from the first frame on, and the
    mean over frames is the clip's. All that a stream is lies in its state, a tuple of tensors: the module holds none,
    takes many streams in one batch, and threads may share it. States are never written to, so an old one can be
    kept and gone back to; streams are joined with ``torch.cat`` and picked by index along the first axis.

    Args:
        model: a `TSM` with ``shift="causal"`` (or "none", whose state is empty).
        num_frames: of a frame-flexible model, whose norms and scales serve: those for clips of this T; by default
            the largest trained count. Choose it, and the time between frames, so that T frames span as much time as
            the videos of the training did. No meaning for a model with one set of weights.

    Raises:
        ValueError: if the model's shift is bidirectional.

    Example::

        step = CausalStep(model)
        state = step.init_state(batch=2, size=224)
        for frames in stream:  # (2, 3, 224, 224), normalised
            logits, state = step(state, frames)  # (2, K)

    Weights are the model's own until one of the two is moved or converted; training doesn't go through a step.
    """

    def __init__(self, model: TSM, *, num_frames: int | None = None) -> None:
        super().__init__()
        if not isinstance(model, TSM):
            raise ValueError(f"model is {shown(model)}; expected a TSM, such as the model of a Checkpoint")
        shift = model.config["shift"]
        if shift not in ("causal", "none"):
            raise ValueError(
                f"the model's shift is {shift!r}, so its frames depend on later ones and can't be classified as they "
                "come; train it with model.shift: causal (with model.init: this checkpoint it starts from what it "
                "knows), or classify a sliding window of frames"
            )
        if num_frames is not None:
            num_frames = checked_num_frames(num_frames)
        self.num_frames = num_frames or (max(model.frame_counts) if model.frame_counts else 1)
        self.num_classes: int = model.config["num_classes"]
        with torch.no_grad():  # what is blended of two counts' parts is no function of theirs
            served = at_num_frames(model.backbone, self.num_frames)
        self.backbone = _private_copy(served, torch.Tensor.detach)
        self.head = _private_copy(model.head, torch.Tensor.detach)
        self._plan: dict[str, Any] = {}  # tree of names that leads to each shift, with its place in the state
        places = [name for name, module in self.backbone.named_modules() if isinstance(module, TemporalShift)]
        for place, name in enumerate(places):
            *parents, last = name.split(".")
            branch = self._plan
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = place
            module = self.backbone.get_submodule(name)
            setattr(self.backbone.get_submodule(".".join(parents)), last, _ShiftStep(module))
        self.num_states = len(places)
        self.eval().requires_grad_(False)

    def init_state(self, batch: int = 1, size: int | tuple[int, int] = 224) -> State:
        """The state of ``batch`` streams before their first frame: zeros.

        Args:
            batch: B, how many streams.
            size: of the frames that the network sees, after preprocessing: pixels ``(height, width)``, or the side
                of a square.
        """
        batch = whole(batch, "batch", least=1)
        sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2:
            raise ValueError(f"size is {shown(size)}; expected (height, width), or the side of a square")
        height, width = (whole(side, "size", least=1) for side in sides)
        # On the meta device, which knows shapes and computes nothing.
        abstract = _private_copy(self, lambda tensor: torch.empty_like(tensor, device="meta"))
        frame = torch.empty(1, 3, height, width, device="meta", dtype=self.head.weight.dtype)
        with torch.inference_mode():
            _, shapes = abstract._run((None,) * self.num_states, frame)
        like = self.head.weight
        return tuple(
            torch.zeros(batch, *kept.shape[1:], dtype=like.dtype, device=like.device) for kept in shapes
        )

    def forward(self, state: Sequence[Tensor], frame: Tensor) -> tuple[Tensor, State]:
        """Take one frame of each stream.

        Args:
            state: of the streams, from `init_state` or the last call; never written to.
            frame: RGB, float ``(B, 3, H, W)``, normalised as in the checkpoint's preprocessing.

        Returns:
            logits: of these frames alone, ``(B, K)``.
            state: for the next call.

        Raises:
            ValueError: if ``frame`` is not RGB, or ``state`` is of another network, batch or size.
        """
        if not isinstance(frame, Tensor):
            raise ValueError(f"frame is {shown(frame)}; expected a tensor (B, 3, H, W), behind the state")
        if not frame.is_floating_point():
            raise ValueError(
                f"frame is {str(frame.dtype).removeprefix('torch.')}; expected float, normalised as in the "
                "checkpoint's preprocessing. A StreamingRecognizer takes pictures as they are"
            )
        if frame.ndim != 4 or frame.shape[1] != 3:
            raise ValueError(
                f"frame has shape {tuple(frame.shape)}; expected (B, 3, H, W). For one stream add a batch axis: "
                "frame[None]"
            )
        if not isinstance(state, (tuple, list)):
            raise ValueError(f"state is {shown(state)}; expected what init_state or the last call gave")
        if len(state) != self.num_states:
            raise ValueError(
                f"state has {len(state)} tensors; this network's has {self.num_states}. Make it with init_state"
            )
        return self._run(state, frame)

    def split_convolutions(self) -> None:
        """Change, in place, how the shift is computed: not by a copy of the features but as a sum of convolutions.

        The same logits. For OpenVINO, where the copy of a ResNet-50 costs more than the sum
        (docs/experiments/streaming.md).
        """
        for module in self.modules():
            if isinstance(module, _ShiftStep):
                module.split()

    def _run(self, state: Sequence[Tensor | None], frame: Tensor) -> tuple[Tensor, State]:
        kept: list[Any] = [None] * self.num_states
        logits = classified(self.head, _bound(self.backbone, self._plan, state, kept)(frame))
        return logits, tuple(kept)


class _ShiftStep(nn.Module):
    """A `TemporalShift` of one frame; `_bound` gives it the last frame's channels and where this one's go."""

    def __init__(self, shift: TemporalShift) -> None:
        super().__init__()
        self.shift_div = shift.shift_div
        self.net = shift.net
        self.gain: Tensor | None
        gain = None if shift.scale is None else (1 + shift.scale.weight.detach()).view(-1, 1, 1)  # type: ignore[operator]
        if gain is not None and type(shift.net) in (nn.Conv2d, Conv2dSame):
            self.net, gain = _scaled(shift.net, gain), None  # type: ignore[arg-type]
        self.register_buffer("gain", gain)
        self.moved: nn.Module | None = None  # after `split`: what the state goes through

    def split(self) -> None:
        """Do without shifted features, where ``net`` is a convolution: one of x without the moved channels, plus one
        of the state. An eighth more arithmetic there, but no copy of x."""
        if type(self.net) is not nn.Conv2d or self.net.groups != 1 or self.gain is not None:
            return
        fold = shifted_channels(self.net.in_channels, self.shift_div)
        weight = self.net.weight.detach().clone()
        moved = copy.copy(self.net)
        moved._parameters = {"weight": nn.Parameter(weight[:, fold : 2 * fold].clone(), False), "bias": None}
        moved.in_channels = fold
        weight[:, fold : 2 * fold] = 0
        stays = copy.copy(self.net)
        stays._parameters = {**self.net._parameters, "weight": nn.Parameter(weight, False)}
        self.net, self.moved = stays, moved

    def bind(self, before: Tensor | None, kept: list[Any], place: int) -> _ShiftStep:
        view = shallow_copy(self, {})
        view.__dict__.update(before=before, kept=kept, place=place)
        return view

    def forward(self, x: Tensor) -> Tensor:
        before, kept, place = self.__dict__["before"], self.__dict__["kept"], self.__dict__["place"]
        fold = shifted_channels(x.shape[1], self.shift_div)
        now = x[:, fold : 2 * fold]
        if before is None:
            before = torch.zeros_like(now)
        if before.shape != now.shape:
            raise ValueError(
                f"state[{place}] has shape {tuple(before.shape)}; these frames need {tuple(now.shape)}. A state is "
                "for one number of streams and one size: make it with init_state(batch, size)"
            )
        kept[place] = now.clone()  # a view would keep all of x alive
        if self.moved is not None:
            return self.net(x) + self.moved(before)
        if torch.compiler.is_compiling():
            shifted = torch.cat([x[:, :fold], before, x[:, 2 * fold :]], 1)
        else:  # of a ResNet-50 frame on a CPU 1.01 times the unshifted one's time, where concatenation takes 1.05
            shifted = x.clone()
            shifted[:, fold : 2 * fold] = before
        return self.net(shifted if self.gain is None else shifted * self.gain)


def _scaled(conv: nn.Conv2d, gain: Tensor) -> nn.Module:
    """``conv`` of ``gain * x``, the gain multiplied into the weights of each input channel."""
    scaled = copy.copy(conv)
    groups, weight = conv.groups, conv.weight.detach()
    grouped = weight.unflatten(0, (groups, -1)) * gain.view(
        groups, 1, -1, 1, 1
    )  # (G, C_out / G, C_in / G, h, w)
    scaled._parameters = {
        **conv._parameters,
        "weight": nn.Parameter(grouped.flatten(0, 1), requires_grad=False),
    }
    return scaled


def _bound(module: Any, plan: dict[str, Any], state: Sequence[Tensor | None], kept: list[Any]) -> nn.Module:
    """A view of the network that holds one call's state, so that calls in other threads have theirs."""
    children = {
        name: module._modules[name].bind(state[branch], kept, branch)
        if isinstance(branch, int)
        else _bound(module._modules[name], branch, state, kept)
        for name, branch in plan.items()
    }
    return shallow_copy(module, children)


def _private_copy(module: Any, convert: Any) -> Any:
    """Modules of its own over converted tensors; those are all that weighs anything."""
    memo: dict[int, Any] = {}
    for inner in module.modules():
        for tensor in (*inner._parameters.values(), *inner._buffers.values()):
            if tensor is not None and id(tensor) not in memo:
                converted = convert(tensor)
                if isinstance(tensor, nn.Parameter):
                    converted = nn.Parameter(converted, requires_grad=False)
                memo[id(tensor)] = converted
    return copy.deepcopy(module, memo)
