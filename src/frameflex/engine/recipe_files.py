"""Recipes by name or path, with keys changed on a command line."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    import jsonargparse

log = logging.getLogger(__name__)


def parse_recipe(argv: Sequence[str], *, look: bool = False) -> tuple[Any, bool]:
    """``RECIPE.yaml [--key value …] [--resume]`` into a Recipe and whether to resume.

    In the recipe's place there may be a folder or a CSV list of videos, or shards: the recipe is then chosen from
    them and the machine, or with ``--resume`` is that of the run that goes on. ``look`` is that of
    `automatic.automatic_recipe`.

    Raises:
        RecipeError: on an unknown key, with the one that was probably meant, or a value of the wrong kind.
        FileNotFoundError: if there is no such recipe, in the file system or among the bundled ones.
        SystemExit: after --help.
    """
    from frameflex.engine.recipe import Recipe, RecipeError, check_keys, read_yaml

    parser = _parser()
    arguments = _written_out(argv)
    automatic = bool(arguments) and "--recipe" not in arguments and _are_videos(arguments[0])
    if automatic:
        arguments[0:1] = ["--data.train", arguments[0]]
    elif arguments and not arguments[0].startswith("-"):
        arguments[0:1] = ["--recipe", arguments[0]]
    given = _check_given(arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="jsonargparse")
        parsed = parser.parse_args(_with_lists(arguments))
        former = Path(parsed.output) / "recipe.yaml"
        if automatic and parsed.resume and former.is_file():
            automatic = False
            check_keys(read_yaml(former), str(former))
            parsed = parser.parse_args(_with_lists(["--recipe", str(former), *arguments]))
        read = parser.instantiate(parsed)
    recipe = Recipe(**{name: read[name] for name in Recipe.__dataclass_fields__})
    if parsed.precision is not None:
        if "training.precision" in given:
            raise RecipeError("both --precision and --training.precision are given; expected one of them")
        precision = training_precision(parsed.precision)
        recipe = replace(recipe, training=replace(recipe.training, precision=precision))
        given = {*given, "training.precision"}
    if automatic:
        from frameflex.engine.automatic import automatic_recipe
        from frameflex.engine.run_folder import RunFolder, expect_nothing_in

        if not parsed.resume:  # told before a network is loaded to look by it
            expect_nothing_in(RunFolder(Path(recipe.output), keep=1))
        recipe = automatic_recipe(recipe, given, any_frame_count=parsed.any_frame_count, look=look)
    elif parsed.any_frame_count and not parsed.resume:
        raise RecipeError(
            "--any-frame-count goes with a folder of videos; with a recipe give --method ffn and --clip.frame_counts"
        )
    return recipe, bool(parsed.resume)


def _parser() -> jsonargparse.ArgumentParser:
    import jsonargparse

    from frameflex.engine.recipe import Recipe, RecipeError
    from frameflex.models.precision import PRECISIONS

    class RecipeParser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise RecipeError(_in_words(" ".join(message.split())))

    parser = RecipeParser(
        prog="frameflex train",
        usage="frameflex train {VIDEOS,RECIPE.yaml} [--key value ...] [--resume]",
        description="Train a network on VIDEOS, a folder with a sub-folder for each class (or CSV, or shards): "
        "the recipe is chosen from the videos and the machine. Or as a recipe says: RECIPE.yaml is a file, or the "
        "name of a bundled recipe: "
        f"{', '.join(path.name for path in bundled_recipes())}. Any key of it can be given as an option.",
    )
    parser.add_argument("--recipe", action="config", help="the recipe, where it isn't the first argument")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output, or start it")
    parser.add_argument(
        "--group", metavar="COLUMN", help="of a list: whose video it is; short for --data.group"
    )
    parser.add_argument(
        "--folds", type=int, metavar="K", help="cross-validation with K runs; short for --data.folds"
    )
    parser.add_argument(
        "--init",
        metavar="CHECKPOINT",
        help="start from this network instead of ImageNet weights; with --any-frame-count it is made frame-flexible. "
        "Short for --model.init",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="train for so long: the number of epochs is fitted to it; short for --training.minutes",
    )
    parser.add_argument(
        "--any-frame-count",
        action="store_true",
        help="with VIDEOS: one network for T frames, half and a quarter of them (method ffn)",
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="training.precision by the names that other commands have: float32, bfloat16, float16, or auto for what "
        "the hardware does fast",
    )
    parser.add_class_arguments(Recipe)
    return parser


def _check_given(arguments: list[str]) -> set[str]:
    """The keys that are given as options, all of them known; a recipe's name is put in full, in its place."""
    from frameflex.engine.recipe import check_key, check_keys, known_keys, read_yaml

    given = set()
    for i, argument in enumerate(arguments):
        if argument == "--recipe" and i + 1 < len(arguments):
            path = find_recipe(arguments[i + 1])
            arguments[i + 1] = str(path)
            check_keys(read_yaml(path), str(path))
        elif (
            argument.startswith("--")
            and argument
            not in (
                "--recipe",
                "--resume",
                "--help",
                "--any-frame-count",
                "--precision",
            )
            and not argument.startswith("--precision=")
        ):
            key = argument[2:].split("=")[0].rstrip("+")
            if not key.startswith("print_config"):
                check_key(key, [*known_keys(), "resume"], "command line")
                given.add(key)
    return given


def _are_videos(name: str) -> bool:
    """Whether what stands in the recipe's place is a data set; a bundled recipe's name is the recipe."""
    from frameflex.data.shards import is_shards
    from frameflex.storage import is_address

    if name.startswith("-") or name in {path.stem for path in bundled_recipes()}:
        return False
    return (
        Path(name).is_dir()
        or Path(name).suffix.lower() in (".csv", ".tsv")
        or is_address(name)
        or is_shards(name)
    )


_SHORT = {
    "--folds": "--data.folds",
    "--group": "--data.group",
    "--minutes": "--training.minutes",
    "--init": "--model.init",
}


def _written_out(arguments: Sequence[str]) -> list[str]:
    """The short names of keys as the keys."""
    words = (argument.partition("=") for argument in arguments)
    return [f"{_SHORT.get(name, name)}{equals}{value}" for name, equals, value in words]


_LISTS = ("clip.frame_counts", "clip.crop_size", "clip.multi_scale_crop", "training.milestones")


def _with_lists(arguments: Sequence[str]) -> list[str]:
    """``--clip.frame_counts 8`` and ``4,8`` as ``[8]`` and ``[4,8]``, which is what YAML calls a list."""
    words: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if words and words[-1] in {f"--{name}" for name in _LISTS}:
            key, equals, value = "", "", argument
        elif not (equals and key.removeprefix("--") in _LISTS):
            words.append(argument)
            continue
        square = "," not in value and "crop_size" in (key or words[-1])
        if re.fullmatch(r"\s*\d+(\.\d+)?(\s*,\s*\d+(\.\d+)?)*\s*", value) and not square:
            value = f"[{value}]"
        words.append(f"{key}{equals}{value}")
    return words


def _in_words(message: str) -> str:
    """jsonargparse's message of a value of another kind, without Python's names of kinds."""
    message = message.replace("Parser key", "key")
    if found := re.match(r'key "data\.reversed".*Given value: (.*)', message):
        from frameflex.engine.recipe import NAMES_EXPECTED

        return f"data.reversed holds {found[1]}; {NAMES_EXPECTED}"
    found = re.fullmatch(r"(.*): Expected a <class '(\w+)'>\. Got value: (.*)", message)
    if not found:
        return message
    key, kind, value = found.groups()
    kinds = {
        "tuple": f"a list such as [{value}]",
        "int": "a whole number",
        "float": "a number",
        "dict": "a table such as {name: value}",
    }
    return f"{key} is {value}; expected {kinds.get(kind, 'true or false' if kind == 'bool' else f'a {kind}')}"


def training_precision(precision: str) -> Literal["no", "bf16", "fp16"]:
    """`Training.precision` that stands for a precision as other commands name it, on the device of a run.

    Raises:
        RecipeError: if networks can't be trained in it here.
    """
    import torch

    from frameflex.engine.recipe import RecipeError
    from frameflex.models.precision import chosen_precision, possible_precisions

    names: dict[str, Literal["no", "bf16", "fp16"]] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision != "auto" and precision not in possible_precisions(device):
        raise RecipeError(
            f"--precision {precision}: networks can't be trained in that on {device}; expected auto, "
            f"{', '.join(possible_precisions(device))}"
        )
    chosen = chosen_precision(precision, device)
    if precision == "auto":
        log.info("training in %s, by what this hardware does fast", chosen)
    return names[chosen]


def bundled_recipes() -> list[Path]:
    """The recipes that come with frameflex, sorted by name."""
    installed = Path(__file__).parents[1] / "recipes"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"  # a source tree
    return sorted(folder.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """A recipe's path: a file, or one of the bundled recipes by name, with or without ``.yaml``."""
    if Path(name).is_file():
        return Path(name)
    bundled = {path.name: path for path in bundled_recipes()}
    for candidate in (name, f"{name}.yaml"):
        if candidate in bundled:
            return bundled[candidate]
    close = get_close_matches(name, bundled, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Bundled ones are {', '.join(bundled)}"
    if Path(name).suffix:
        raise FileNotFoundError(f"recipe {name}: no such file. {hint}")
    raise FileNotFoundError(f"{name}: there is no such folder of videos and no such recipe. {hint}")
