"""Clips on their way into a network, an exported one too: what they must be, and their views' common answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frameflex.models.finite import finite


def classify_views(
    model: nn.Module, clips: Tensor, *, names: Sequence[str] = (), batch_size: int | None = None
) -> Tensor:
    """Logits ``(B, K)`` of videos, float32, averaged over their views, clips ``(B, V, 3, T, H, W)``.

    The one way from clips to an answer: validation, ``evaluate`` and ``predict`` all call it.

    Args:
        model: what classifies clips.
        clips: of B videos, V of each.
        names: of the B videos, for the error.
        batch_size: at least B: the network is shown as many, the last one again and again, so that its arithmetic,
            which libraries choose by the shape, doesn't depend on B.

    Raises:
        NotFinite: if the network gives NaN or infinite logits.
    """
    shown = clips.flatten(0, 1)  # (B * V, 3, T, H, W)
    if batch_size is not None and batch_size > len(clips):
        shown = torch.cat(
            [shown, shown[-1:].expand(batch_size * clips.shape[1] - len(shown), -1, -1, -1, -1)]
        )
    logits = model(shown).float()[: len(clips) * clips.shape[1]]  # (B * V, K)
    mean = logits.unflatten(0, clips.shape[:2]).mean(1)
    return finite(mean, num_frames=clips.shape[3], names=names)


def check_clip(clip: Tensor) -> None:
    """Refuse what is no batch of clips, in our words. Raises ValueError."""
    if not isinstance(clip, Tensor):
        raise ValueError(f"clip is {type(clip).__name__}; expected a tensor (B, 3, T, H, W)")
    shape = tuple(clip.shape)
    if clip.ndim != 5:
        advice = " For one clip add a batch axis: clip[None]." if clip.ndim == 4 else ""
        raise ValueError(f"clip has shape {shape}; expected (B, 3, T, H, W).{advice}")
    if shape[1] != 3:
        advice = " The colour axis comes before time: clip.transpose(1, 2)." if shape[2] == 3 else ""
        raise ValueError(
            f"clip has shape {shape}, so {shape[1]} colour channels; expected RGB (B, 3, T, H, W).{advice}"
        )
    if shape[2] < 1:
        raise ValueError(f"clip has shape {shape}, so no frame; expected (B, 3, T, H, W) with T at least 1")
    if shape[3] < 1 or shape[4] < 1:
        raise ValueError(
            f"clip has shape {shape}, so no pixel; expected (B, 3, T, H, W) with H and W at least 1"
        )
    if shape[0] < 1:
        raise ValueError(f"clip has shape {shape}, so no clip; expected (B, 3, T, H, W) with B at least 1")
    if not clip.is_floating_point():
        raise ValueError(
            f"clip is {str(clip.dtype).removeprefix('torch.')}; expected float, normalised as in the checkpoint's "
            "preprocessing: EvalTransform makes it of frames, and a Recognizer takes videos as they are"
        )
