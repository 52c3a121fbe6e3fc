"""What the published TSM can have besides the shift: non-local blocks and temporal pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from frameflex.models.temporal_shift import at_num_frames, frames_left, shallow_copy

NON_LOCALS = ("embedded_gaussian", "dot_product", "gaussian")


class NonLocal(nn.Module):
    """A residual block followed by attention over all positions of all frames (arXiv 1711.07971, section 3.3).

    As TSM publishes it: half the channels inside, keys and values max-pooled 2 x 2 in space, no scale under the
    softmax, a norm behind the last convolution that starts at zero. 1 x 1 x 1 convolutions of a clip are
    1 x 1 convolutions of its frames, so only the attention itself needs T.

    Args:
        block: the residual block, whose output has ``num_channels``.
        num_channels: C.
        mode: how two positions are compared: "embedded_gaussian" (a softmax over products of two embeddings),
            "dot_product" (the products, divided by the number of keys) or "gaussian" (a softmax over products of
            the features themselves, without embeddings).
        time_stride: see `TemporalShift`.

    Attributes:
        num_frames: T when the module is used on its own; inside a `TSM` the model sets it.
    """

    def __init__(
        self,
        block: nn.Module,
        num_channels: int,
        *,
        mode: str = "embedded_gaussian",
        time_stride: int = 1,
        num_frames: int = 16,
    ) -> None:
        super().__init__()
        inner = max(num_channels // 2, 1)
        self.block = block
        self.value = nn.Conv2d(num_channels, inner, 1)
        self.query = None if mode == "gaussian" else nn.Conv2d(num_channels, inner, 1)
        self.key = None if mode == "gaussian" else nn.Conv2d(num_channels, inner, 1)
        self.out = nn.Conv2d(inner, num_channels, 1)
        self.norm = nn.BatchNorm2d(num_channels)
        nn.init.zeros_(self.norm.weight)
        self.mode = mode
        self.time_stride = time_stride
        self.num_frames = num_frames

    def at_num_frames(self, num_frames: int) -> NonLocal:
        """This module for clips of ``num_frames``, sharing its weights."""
        children = {name: at_num_frames(child, num_frames) for name, child in self.named_children()}
        view = shallow_copy(self, children)
        view.num_frames = num_frames
        return view

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B * T, C, H, W)`` through the block, plus what each position finds in its clip."""
        x = self.block(x)
        query = self._positions(x if self.query is None else self.query(x))  # (B, T·H·W, C')
        key = self._positions(functional.max_pool2d(x if self.key is None else self.key(x), 2))
        value = self._positions(functional.max_pool2d(self.value(x), 2))  # (B, T·H/2·W/2, C')
        weights = query @ key.transpose(1, 2)  # (B, T·H·W, T·H/2·W/2)
        weights = weights / weights.shape[-1] if self.mode == "dot_product" else weights.softmax(-1)
        found = weights @ value  # (B, T·H·W, C')
        height, width = x.shape[-2:]
        found = found.unflatten(1, (-1, height, width)).permute(0, 1, 4, 2, 3).flatten(0, 1)  # (N, C', H, W)
        return x + self.norm(self.out(found))

    def _positions(self, x: Tensor) -> Tensor:
        """``(B * T, C, H, W)`` to ``(B, T * H * W, C)``."""
        clips = x.unflatten(0, (-1, frames_left(self.num_frames, self.time_stride)))  # (B, T, C, H, W)
        return clips.permute(0, 1, 3, 4, 2).flatten(1, 3)

    def extra_repr(self) -> str:
        return f"mode={self.mode}, time_stride={self.time_stride}"


class TemporalPool(nn.Module):
    """Halve the frames of a clip, then apply ``net``: of each three neighbours the largest value, every second one.

    Args:
        net: sees the features of ``ceil(T / 2)`` frames.

    Attributes:
        num_frames: T when the module is used on its own; inside a `TSM` the model sets it.
    """

    def __init__(self, net: nn.Module, num_frames: int = 16) -> None:
        super().__init__()
        self.net = net
        self.num_frames = num_frames

    def at_num_frames(self, num_frames: int) -> TemporalPool:
        """This module for clips of ``num_frames``, sharing its weights."""
        view = shallow_copy(self, {"net": at_num_frames(self.net, num_frames)})
        view.num_frames = num_frames
        return view

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B * T, C, H, W)`` pooled to ``(B * ceil(T / 2), C, H, W)`` and through ``net``."""
        clips = x.unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # (B, C, T, H, W)
        pooled = functional.max_pool3d(clips, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
        return self.net(pooled.transpose(1, 2).flatten(0, 1))  # (B * ceil(T / 2), C, H, W)
