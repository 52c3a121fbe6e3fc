"""The network: Temporal Shift Module classifiers over timm's CNNs."""

from frameflex.models.temporal_shift import TemporalShift, temporal_shift
from frameflex.models.tsm import TSM, TSMResNet50, create_model

__all__ = ["TSM", "TSMResNet50", "TemporalShift", "create_model", "temporal_shift"]
