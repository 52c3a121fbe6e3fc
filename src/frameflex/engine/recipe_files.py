"""Recipes by name or path, with keys changed on a command line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn


def parse_recipe(argv: Sequence[str]) -> tuple[Any, bool]:
    """``RECIPE.yaml [--key value …] [--resume]`` into a Recipe and whether to resume.

    Raises:
        RecipeError: on an unknown key, with the one that was probably meant, or a value of the wrong kind.
        FileNotFoundError: if there is no such recipe, in the file system or among the bundled ones.
        SystemExit: after --help.
    """
    import jsonargparse

    from frameflex.engine.recipe import Recipe, RecipeError, check_key, check_keys, known_keys, read_yaml

    class RecipeParser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise RecipeError(_in_words(" ".join(message.split())))

    parser = RecipeParser(
        prog="frameflex train",
        usage="frameflex train RECIPE.yaml [--key value ...] [--resume]",
        description="Train a network as a recipe says. RECIPE.yaml is a file, or the name of a bundled recipe: "
        f"{', '.join(path.name for path in bundled_recipes())}. Any key of it can be given as an option.",
    )
    parser.add_argument("--recipe", action="config", help="the recipe, where it isn't the first argument")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output, or start it")
    parser.add_class_arguments(Recipe)
    arguments = list(argv)
    if arguments and not arguments[0].startswith("-"):
        arguments[0:1] = ["--recipe", arguments[0]]
    for i, argument in enumerate(arguments):
        if argument == "--recipe" and i + 1 < len(arguments):
            path = find_recipe(arguments[i + 1])
            arguments[i + 1] = str(path)
            check_keys(read_yaml(path), str(path))
        elif argument.startswith("--") and argument not in ("--recipe", "--resume", "--help"):
            key = argument[2:].split("=")[0].rstrip("+")
            if not key.startswith("print_config"):
                check_key(key, [*known_keys(), "resume"], "command line")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="jsonargparse")
        parsed = parser.parse_args(_with_lists(arguments))
        recipe = parser.instantiate(parsed)
    values = {name: recipe[name] for name in Recipe.__dataclass_fields__}
    return Recipe(**values), bool(parsed.resume)


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
    found = re.fullmatch(r"(.*): Expected a <class '(\w+)'>\. Got value: (.*)", message)
    if not found:
        return message
    key, kind, value = found.groups()
    kinds = {"tuple": f"a list such as [{value}]", "int": "a whole number", "float": "a number"}
    return f"{key} is {value}; expected {kinds.get(kind, 'true or false' if kind == 'bool' else f'a {kind}')}"


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
    raise FileNotFoundError(f"recipe {name}: no such file. {hint}")
