"""The network: Temporal Shift Module classifiers over timm's CNNs.

What needs timm is imported when it is first used: an export runs without it, and sooner for that.
"""

from typing import TYPE_CHECKING

from frameflex.late import late_names
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


__getattr__ = late_names(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
