"""Checkpoints that describe themselves."""

from frameflex.checkpoint.card import model_card
from frameflex.checkpoint.downloading import cache_folder
from frameflex.checkpoint.errors import CheckpointError, NewerFormatError
from frameflex.checkpoint.format import (
    FORMAT_VERSION,
    MAX_FRAME_COUNT,
    MAX_HEADER_BYTES,
    MAX_NUMBER,
    MAX_SIDE,
    Checkpoint,
    TrainingState,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from frameflex.checkpoint.hub import WEIGHTS_NAME, fetch

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
    "cache_folder",
    "fetch",
    "load_checkpoint",
    "model_card",
    "remove_leftovers",
    "save_checkpoint",
]
