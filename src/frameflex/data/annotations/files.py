"""Files of annotations as documents: JSON, XML or a table, read within limits, since they come from anybody."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from frameflex.data.layouts.tables import Table, read_table
from frameflex.new_files import new_file
from frameflex.printable import to_json

MAX_BYTES = 128 * 2**20
"""Largest file that is read: what it holds takes about ten times its size in memory."""

MAX_DEPTH = 100

_TEXT_OF_OTHERS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16, which XML may be in


@dataclass(frozen=True)
class AnnotationFile:
    """A file of annotations, read once: one of its last three attributes holds what is in it.

    Attributes:
        path: of the file.
        json: of a JSON file, its value.
        xml: of an XML file, its root.
        table: of a list, its cells.
    """

    path: Path
    json: Any = None
    xml: ElementTree.Element | None = None
    table: Table | None = None


def read_annotation_file(path: Path) -> AnnotationFile:
    """Read a file, whatever of the three it is.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is too large, half-written, or nothing of the three; naming the line.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"annotations {path}: {what}; expected the file that the tool exported")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"annotations {path}: has {size >> 20} MiB; expected at most {MAX_BYTES >> 20}. Export it in parts"
        )
    content = path.read_bytes()
    begin = content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(
            f"annotations {path}: is a ZIP archive; unpack it and give the file of annotations in it"
        )
    if begin in (b"{", b"["):
        return AnnotationFile(path, json=_json_of(path, content))
    if begin == b"<" or content.startswith(_TEXT_OF_OTHERS):
        return AnnotationFile(path, xml=_xml_of(path, content))
    return AnnotationFile(path, table=read_table(path))


def _json_of(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"), parse_constant=_no_number)
    except json.JSONDecodeError as error:
        reason = f", line {error.lineno}, column {error.colno}: not whole JSON ({error.msg})"
    except UnicodeDecodeError as error:
        reason = f": not UTF-8 text ({error.reason})"
    except RecursionError:
        reason = ": its values lie too deep in each other"
    except ValueError as error:
        reason = f": not JSON ({error})"
    raise ValueError(f"annotations {path}{reason}. Export it again")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


class _Refused(Exception):
    """An XML file that asks for more than elements and text."""


def _xml_of(path: Path, content: bytes) -> ElementTree.Element:
    """Elements and text, and nothing that XML has beside: no DOCTYPE, so no entities and no other files."""
    builder = ElementTree.TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _Refused(f"its elements lie more than {MAX_DEPTH} deep in each other")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def doctype(*_: object) -> None:
        raise _Refused("it has a DOCTYPE, which can define entities; no tool here writes one. Remove it")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        what = expat.errors.messages.get(error.code, "unknown error")
        raise ValueError(
            f"annotations {path}, line {error.lineno}, column {error.offset + 1}: not whole XML ({what}). Export it "
            "again"
        ) from error
    except (LookupError, ValueError) as error:  # an encoding that nobody knows
        raise ValueError(f"annotations {path}: not XML ({error}). Save it as UTF-8") from error
    except _Refused as error:
        raise ValueError(f"annotations {path}: {error}") from None
    return builder.close()


def write_json(path: Path, values: Any) -> None:
    """Write JSON; the file gets its name when it is complete."""
    with new_file(path) as temporary:
        temporary.write_text(to_json(values, indent=1) + "\n", encoding="utf-8")


def write_xml(path: Path, root: ElementTree.Element) -> None:
    """Write XML; the file gets its name when it is complete.

    Raises:
        ValueError: if a name or a label has a character that XML can't hold.
    """
    for element in root.iter():
        for text in (element.text or "", *element.attrib.values()):
            if bad := [c for c in text if not _fits_xml(c)]:
                raise ValueError(
                    f"{path}: XML can't hold the character {bad[0]!r} of {text!r}; rename the label or file"
                )
    ElementTree.indent(root)
    with new_file(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _fits_xml(character: str) -> bool:
    code = ord(character)
    return character in "\t\n\r" or 0x20 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or code >= 0x10000
