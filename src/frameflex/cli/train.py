"""``frameflex train``: train on a folder of videos, or as a recipe says."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from frameflex.cli.options import check_place
from frameflex.engine.recipe_files import parse_recipe


def run(argv: list[str], console: Any) -> int:
    from frameflex.console import leave_cores_to_workers, training_progress
    from frameflex.engine.training import train

    # One of several processes of torchrun or accelerate launch: the first one talks.
    silent = os.environ.get("RANK", "0") != "0"
    if silent:
        logging.getLogger("frameflex").setLevel(logging.WARNING)
    recipe, resume = parse_recipe(argv)
    check_place(Path(recipe.output))
    leave_cores_to_workers(recipe.data.num_workers)
    if silent:
        train(recipe, resume=resume)
        return 0
    with training_progress(console, recipe.training.epochs) as watcher:
        paths = train(recipe, resume=resume, watcher=watcher)
    for path in paths:
        print(path)  # noqa: T201
    return 0
