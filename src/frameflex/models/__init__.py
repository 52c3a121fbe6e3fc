"""The network: Temporal Shift Module classifiers over timm's CNNs."""

from frameflex.models.causal import CausalStep
from frameflex.models.frame_flexible import FrameNorm, FrameScale, create_model, make_frame_flexible
from frameflex.models.temporal_shift import TemporalShift, temporal_shift
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
