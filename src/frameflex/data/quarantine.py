"""Videos to leave out, each with the reason: read, written, and applied."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frameflex.data.journal import write_whole
from frameflex.storage import Place, place_of

__all__ = ["in_quarantine", "quarantined_files", "read_quarantine", "write_quarantine"]


def read_quarantine(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a quarantine list: path -> reason.

    Text has one video a line, `path`, or `path`, a tab and the reason; lines that begin with `#` are comments, and
    a path that begins with `"` is a JSON string. A `.json` is a list of `{"path": ..., "reason": ...}`, or an
    object with such a list as `quarantine`: the report of `frameflex data check`. Relative paths start at the
    list's folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is neither.
    """
    file = place_of(path)
    if isinstance(file, Path) and not file.is_file():
        raise FileNotFoundError(
            f"quarantine {file}: there is no such file. Write one with `frameflex data check`."
        )
    with file.open("rb") if isinstance(file, Path) else file.open() as opened:
        content = opened.read()
    try:
        text = content.decode("utf-8-sig", "surrogateescape")
        pairs = (
            _from_json(json.loads(text)) if file.name.lower().endswith(".json") else list(_from_text(text))
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"quarantine {file}: {error}; expected one path a line with a tab and the reason behind it, or the "
            "JSON of `frameflex data check`."
        ) from error
    home = os.path.abspath(file.parent) if isinstance(file, Path) else file.address.rpartition("/")[0]
    return {_normal(name, home): reason for name, reason in pairs}


def _from_json(content: Any) -> list[tuple[str, str]]:
    items = content["quarantine"] if isinstance(content, Mapping) else content
    pairs = [(item["path"], item.get("reason", "")) for item in items]
    if any(not isinstance(path, str) or not path for path, _ in pairs):
        raise ValueError("a path is not a text")
    return [(path, str(reason)) for path, reason in pairs]


def _from_text(text: str) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("#"):
            continue
        path, _, reason = line.partition("\t")
        if path.startswith('"'):
            try:
                path = json.loads(path)
            except ValueError as error:
                raise ValueError(f"line {number} begins with a quote but is no JSON string") from error
        if not path or "\0" in path:
            raise ValueError(f"line {number} has no path")
        yield path, reason.strip()


def write_quarantine(path: Path, videos: Mapping[str, str]) -> None:
    """Write path -> reason as text that `read_quarantine` reads."""
    lines = ["# one video a line: path, tab, reason\n"]
    for name, reason in videos.items():
        plain = not (set(name) & set('\t\n\r"') or name.startswith("#"))
        lines.append(f"{name if plain else json.dumps(name)}\t{' '.join(reason.split())}\n")
    write_whole(path, "".join(lines).encode("utf-8", "surrogateescape"))


def in_quarantine(reasons: Mapping[str, str], path: object) -> str | None:
    """The reason for which a list of `read_quarantine` names a path; None where it doesn't."""
    return reasons.get(_normal(str(path))) if reasons else None


def quarantined_files(
    files: Iterable[Place], quarantine: str | os.PathLike[str] | None
) -> tuple[list[Place], dict[Place, str]]:
    """Divide files into those to use and those that a quarantine list names, with the reasons."""
    if quarantine is None:
        return list(files), {}
    reasons = read_quarantine(quarantine)
    known = {file: in_quarantine(reasons, file) for file in files}
    return (
        [file for file, reason in known.items() if reason is None],
        {file: reason for file, reason in known.items() if reason is not None},
    )


def _normal(path: str, home: str | None = None) -> str:
    if "://" in path:
        return path
    if home is not None and "://" in home and not os.path.isabs(path):
        return f"{home}/{os.path.normpath(path)}"
    return os.path.normpath(os.path.join(home or os.getcwd(), path))
