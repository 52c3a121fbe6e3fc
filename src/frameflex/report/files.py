"""What was measured, as files for other programs: each is complete or not there."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from frameflex.engine.evaluation import Evaluation
from frameflex.new_files import new_file
from frameflex.printable import to_json, writable


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, complete or not at all."""
    write_whole(path, lambda file: file.write(to_json(values, indent=2) + "\n"))


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write a CSV row for each video and frame count: true label, best guess, its probability, right or not."""

    def write(file: IO[str]) -> None:
        rows = csv.writer(file)
        rows.writerow(["video", "num_frames", "label", "prediction", "probability", "right"])
        for num_frames in evaluation.logits:
            best = evaluation.calibrated(num_frames).softmax(1).max(1)
            for name, label, guess, probability in zip(
                evaluation.names,
                evaluation.labels.tolist(),
                best.indices.tolist(),
                best.values.tolist(),
                strict=True,
            ):
                classes = evaluation.class_names
                rows.writerow(
                    [
                        writable(name),
                        num_frames,
                        writable(classes[label]),
                        writable(classes[guess]),
                        f"{probability:.6f}",
                        int(guess == label),
                    ]
                )

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Any], object], *, binary: bool = False) -> None:
    """Fill a file under a temporary name and rename it, so that no half-written one is ever found."""
    with (
        new_file(path) as temporary,
        open(temporary, "wb") if binary else open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        write(file)
