"""The network: Temporal Shift Module classifiers over timm's CNNs.

What needs timm is imported when it is first used: an export runs without it, and sooner for that.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from frameflex.models.temporal_shift import TemporalShift, temporal_shift  # a module has the function's name

if TYPE_CHECKING:
    from frameflex.models.causal import CausalStep
    from frameflex.models.frame_flexible import FrameNorm, FrameScale, create_model, make_frame_flexible
    from frameflex.models.tsm import TSM, TSMResNet50

__all__ = [
    "TSM",
    "CausalStep",
    "FrameNorm",
    "FrameScale",
    "TSMResNet50",
    "TemporalShift",
    "create_model",
    "make_frame_flexible",
    "temporal_shift",
]

_HOMES = {
    "CausalStep": "causal",
    **dict.fromkeys(("FrameNorm", "FrameScale", "create_model", "make_frame_flexible"), "frame_flexible"),
    **dict.fromkeys(("TSM", "TSMResNet50"), "tsm"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
