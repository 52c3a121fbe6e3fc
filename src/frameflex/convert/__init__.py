"""Checkpoints of other code bases into ours."""

from frameflex.convert.converting import (
    Conversion,
    ConversionError,
    convert,
    fingerprint,
    read_class_names,
    read_file,
)

__all__ = ["Conversion", "ConversionError", "convert", "fingerprint", "read_class_names", "read_file"]
