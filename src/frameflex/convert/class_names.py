"""Names of classes from files, as people and data sets keep them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from frameflex.convert.reading import ConversionError


def read_class_names(path: str | Path) -> list[str]:
    """Class names from a file: a text file with one a line, or JSON: a list, or names with their numbers.

    Raises:
        ConversionError: if numbers don't count from 0 without a gap.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"class names {path}: no such file")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConversionError(f"class names {path} are not JSON: {error}") from error
        if isinstance(values, Mapping):  # Something-Something's {"name": "0"}, or {"0": "name"}
            turned = (
                values
                if not all(str(key).isdecimal() for key in values)
                else {v: k for k, v in values.items()}
            )
            try:
                numbered = {int(number): str(name) for name, number in turned.items()}
            except (TypeError, ValueError) as error:
                raise ConversionError(
                    f"class names {path}: expected a list, or names with their numbers"
                ) from error
            if sorted(numbered) != list(range(len(values))):
                raise ConversionError(
                    f"class names {path}: expected numbers from 0 to {len(values) - 1}, each once"
                )
            return [numbered[i] for i in range(len(numbered))]
        if not isinstance(values, list):
            raise ConversionError(f"class names {path}: expected a list, or names with their numbers")
        return [str(value) for value in values]
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_class_names(names: Sequence[str], num_classes: int) -> None:
    if len(names) != num_classes:
        raise ConversionError(
            f"{len(names)} class names for {num_classes} logits; expected one for each, in their order"
        )
