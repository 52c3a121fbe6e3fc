"""No function and no file of the package grows past what is read in a sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
MOST_LINES_OF_A_FUNCTION = 60  # without its docstring
MOST_LINES_OF_A_FILE = 520

# What is longer, by its name as the tests below say it, and why. A row whose reason is gone has to go, too.
ALLOWED = {
    "frameflex/engine/recipe.py": "a recipe's keys, their defaults and their checks: looked up, not read through",
}


def functions_of(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """Every function's name, with the classes and functions that it is in, and its lines without the docstring."""
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{node.name}" if inside else node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield name, lines
        yield from functions_of(node, name)


def too_long(source: Path) -> dict[str, int]:
    """Files and functions that are longer than they may be, and their lines."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        file = path.relative_to(source).as_posix()
        if (lines := len(text.splitlines())) > MOST_LINES_OF_A_FILE:
            found[file] = lines
        for name, lines in functions_of(ast.parse(text)):
            if lines > MOST_LINES_OF_A_FUNCTION:
                found[f"{file}: {name}"] = lines
    return found


def test_no_function_and_no_file_is_longer_than_is_read_in_a_sitting() -> None:
    assert SOURCE.is_dir()
    found = {name: lines for name, lines in too_long(SOURCE).items() if name not in ALLOWED}
    assert not found, (
        f"longer than {MOST_LINES_OF_A_FUNCTION} lines without docstring (functions) or {MOST_LINES_OF_A_FILE} "
        f"(files): {', '.join(f'{name} ({lines})' for name, lines in found.items())}. Give a part a name of its own"
    )


def test_what_is_allowed_to_be_longer_still_is() -> None:
    assert set(ALLOWED) <= set(too_long(SOURCE))


def test_lengths_are_counted_without_docstrings_and_with_what_is_nested(tmp_path: Path) -> None:
    docstring = '    """First.\n' + "\n    More.\n" * 40 + '    """\n'
    long = "".join(f"        a{i} = {i}\n" for i in range(MOST_LINES_OF_A_FUNCTION))
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "short.py").write_text(f"def short():\n{docstring}    return 1\n")
    (tmp_path / "room" / "long.py").write_text(f"class Thing:\n    def run(self):\n{long}")
    (tmp_path / "room" / "nested.py").write_text(
        "async def outer():\n" + "    def inner():\n" + long + "    return inner\n"
    )
    (tmp_path / "table.py").write_text("a = 1\n" * (MOST_LINES_OF_A_FILE + 1))
    assert too_long(tmp_path) == {
        "room/long.py: Thing.run": MOST_LINES_OF_A_FUNCTION + 1,
        "room/nested.py: outer": MOST_LINES_OF_A_FUNCTION + 3,
        "room/nested.py: outer.inner": MOST_LINES_OF_A_FUNCTION + 1,
        "table.py": MOST_LINES_OF_A_FILE + 1,
    }
