"""How names are shown and written: those of files and of classes are anybody's, and may hold anything."""

from __future__ import annotations

import json
import re
from typing import Any

# Bytes of a file's name that are no UTF-8 are surrogates in Python: no file and no terminal takes those.
_NO_TEXT = re.compile("[\ud800-\udfff]")
# What moves a terminal's cursor, ends a line, or turns the direction of the text around it.
_NO_PRINT = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def printable(text: object) -> str:
    r"""A text as people are shown it, on one line, with escapes for all that would not stay there.

    >>> printable("caf\udce9\x1b[31m\n.mp4")
    'caf\\xe9\\x1b[31m\\n.mp4'
    """
    return _NO_PRINT.sub(_escape, str(text))


def writable(text: object) -> str:
    r"""A text as files hold it, CSV and HTML too: as it is, but for what is no Unicode.

    >>> writable("caf\udce9\n.mp4")
    'caf\\xe9\n.mp4'
    """
    return _NO_TEXT.sub(_escape, str(text))


def in_figure(text: object) -> str:
    r"""A text as matplotlib is given it, for which what is between dollars is a formula and ``_x`` is hidden.

    >>> in_figure("_from $5 to $6")
    ' _from \\$5 to \\$6'
    """
    shown = printable(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def to_json(values: Any, *, indent: int | None = None) -> str:
    r"""JSON in UTF-8 that every reader takes and a terminal can show: names as by `writable`, the rest escaped.

    >>> print(to_json({"video": "caf\udce9\x9b.mp4"}))
    {"video": "caf\\xe9\u009b.mp4"}
    """

    def in_string(found: re.Match[str]) -> str:
        if found[0] in "\n\r\t":  # of the indent: json has escaped those of strings
            return found[0]
        if _NO_TEXT.match(found[0]):
            return _escape(found).replace("\\", r"\\")
        return f"\\u{ord(found[0]):04x}"

    return _NO_PRINT.sub(in_string, json.dumps(values, indent=indent, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
