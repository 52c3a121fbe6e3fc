"""Checkpoints that describe themselves."""

from frameflex.checkpoint.format import (
    FORMAT_VERSION,
    MAX_FRAME_COUNT,
    MAX_HEADER_BYTES,
    MAX_NUMBER,
    MAX_SIDE,
    WEIGHTS_NAME,
    Checkpoint,
    CheckpointError,
    NewerFormatError,
    TrainingState,
    fetch,
    load_checkpoint,
    model_card,
    remove_leftovers,
    save_checkpoint,
)

__all__ = [
    "FORMAT_VERSION",
    "MAX_FRAME_COUNT",
    "MAX_HEADER_BYTES",
    "MAX_NUMBER",
    "MAX_SIDE",
    "WEIGHTS_NAME",
    "Checkpoint",
    "CheckpointError",
    "NewerFormatError",
    "TrainingState",
    "fetch",
    "load_checkpoint",
    "model_card",
    "remove_leftovers",
    "save_checkpoint",
]
