"""The generated pages of docs/reference: every verb's --help, and every key of a recipe. `make docs` runs it.

python tools/reference_pages.py docs/reference
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser

from frameflex.cli import VERBS, main
from frameflex.engine.recipe import Recipe
from frameflex.engine.recipe_files import bundled_recipes

DATA_COMMANDS = "data"  # the one verb that has verbs of its own


def write_pages(folder: Path) -> None:
    """Write ``commands/index.md``, a page a verb beside it, and ``recipes.md``."""
    commands = folder / "commands"
    commands.mkdir(parents=True, exist_ok=True)
    for old in commands.glob("*.md"):
        old.unlink()
    rows = [f"| [`frameflex {verb}`]({verb}.md) | {summary} |" for verb, summary in VERBS.items()]
    text = "\n".join(["# Commands", "", "| command | what it does |", "|---|---|", *rows, ""])
    (commands / "index.md").write_text(f"{text}\n{_exit_statuses()}", encoding="utf-8")
    for verb, summary in VERBS.items():
        (commands / f"{verb}.md").write_text(_command_page(verb, summary), encoding="utf-8")
    (folder / "recipes.md").write_text(_recipes_page(), encoding="utf-8")


def _exit_statuses() -> str:
    return (
        "The exit status is 0 only where a command did what it said. 1: the work could not be done, and one line\n"
        "on standard error says why. 2: the command line could not be understood. 130: stopped by Ctrl-C, and a\n"
        "training that SIGTERM stopped and that was saved. 143: stopped by SIGTERM. 141: nobody reads the output.\n"
        "`--debug`, anywhere, shows tracebacks. Results go to standard output, all else to standard error.\n"
    )


def _command_page(verb: str, summary: str) -> str:
    parts = [f"# frameflex {verb}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{_help(verb)}\n```\n"]
    for command in _subcommands(verb):
        parts.append(f"## frameflex {verb} {command}\n\n```text\n{_help(verb, command)}\n```\n")
    if verb == "train":
        parts.append("What each key means: [recipes](../recipes.md).\n")
    return "\n".join(parts)


def _subcommands(verb: str) -> list[str]:
    """The commands that the help of ``data`` lists, each on a line of its own below "commands:"."""
    if verb != DATA_COMMANDS:
        return []
    listed = _help(verb).split("commands:\n", 1)[1].split("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]


def _help(*argv: str) -> str:
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main([*argv, "--help"])
    if status != 0:
        raise RuntimeError(f"frameflex {' '.join(argv)} --help ends with status {status}; expected 0")
    return printed.getvalue().strip()


def _recipes_page() -> str:
    lines = [
        "# Recipes",
        "",
        "A recipe is a YAML file of these keys; each is an option of `frameflex train`: `--training.epochs 10`.",
        "The whole effective recipe is written into the folder of a run. What is not given has the default.",
        "",
    ]
    for prefix, kind in _tables(Recipe, ""):
        lines += [f"## {prefix or 'The run'}", "", _first_paragraph(kind), ""]
        lines += ["| key | default | what |", "|---|---|---|"]
        lines += [f"| `{key}` | {default} | {what} |" for key, default, what in _keys(kind, prefix)]
        lines.append("")
    lines += ["## Bundled recipes", "", "Each is a name that `frameflex train` takes.", ""]
    for path in bundled_recipes():
        comment = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        lines += [f"**`{path.name}`**", "", "```text", *comment, "```", ""]
    return "\n".join(lines)


def _tables(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """A dataclass and those within it, with the prefix of their keys."""
    yield prefix, kind
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _tables(hint, f"{prefix}.{name}".lstrip("."))


def _keys(kind: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of every plain field.

    Raises:
        ValueError: for a field that its dataclass's docstring doesn't explain.
    """
    described = {p.arg_name: p.description or "" for p in docstring_parser.parse(kind.__doc__).params}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        if not described.get(field.name):
            raise ValueError(
                f"{kind.__name__}.{field.name} is not among the Attributes of its docstring; add it"
            )
        yield f"{prefix}.{field.name}".lstrip("."), _default(field), _prose(described[field.name])


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "to be given"
    value = list(value) if isinstance(value, tuple) else value
    words = {None: "null", True: "true", False: "false"}
    plain = words[value] if value is None or isinstance(value, bool) else value
    return f"`{plain}`"


def _first_paragraph(kind: Any) -> str:
    return _prose(docstring_parser.parse(kind.__doc__).short_description or "")


def _prose(text: str) -> str:
    """One line that a Markdown table takes; code between backticks stays as it is."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [part.replace("|", "\\|").replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_pages(parser.parse_args().folder)
    sys.exit(0)
