"""Checkpoints of other code bases into ours."""

from frameflex.convert.assembling import Conversion
from frameflex.convert.class_names import read_class_names
from frameflex.convert.converting import convert
from frameflex.convert.fingerprints import fingerprint
from frameflex.convert.reading import ConversionError, read_file
from frameflex.convert.unpickling import Record

__all__ = [
    "Conversion",
    "ConversionError",
    "Record",
    "convert",
    "fingerprint",
    "read_class_names",
    "read_file",
]
