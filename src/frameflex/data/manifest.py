"""A list of videos to be recognised, of any length, read a row at a time: text, CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from frameflex.storage import Place, StoredFile, is_stored, join, place_of

__all__ = ["MANIFEST_SUFFIXES", "MAX_ROWS", "ManifestRow", "path_inside", "read_manifest"]

MANIFEST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")

MAX_ROWS = 10**9
"""Most rows of a manifest: a file can claim more than anyone will wait for."""

_MAX_LINE = 1 << 20  # bytes; a file without line ends must not fill the memory
_MAX_PATH = 4096  # bytes, Linux's own limit
_MAX_COLUMN = 1 << 30  # bytes of paths in one row group of Parquet
_PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "file_name", "filepath")


class ManifestRow(NamedTuple):
    """One video of a manifest.

    Attributes:
        number: of the row, from 0.
        video: the path as the manifest has it.
        path: where the file should be.
    """

    number: int
    video: str
    path: Place


def read_manifest(
    path: str | os.PathLike[str], *, video_dir: str | os.PathLike[str] | None = None
) -> Iterator[ManifestRow]:
    """Read the videos of a manifest one at a time; memory doesn't grow with their number.

    Args:
        path: `.txt` with a path a line; `.csv` or `.tsv` with a header that has a column path (or video, file,
            filename); `.jsonl` with such a key in each object; `.parquet` with such a column of text (needs
            pyarrow). Other columns are ignored. Paths may be addresses of object storage.
        video_dir: where relative paths start, here or in object storage; by default at the manifest's folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the manifest is of another kind, has no video, or has a row that names none: an empty path,
            or one that leaves `video_dir` by "..". The message names the row.
        ImportError: if it is Parquet and pyarrow is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ValueError(
            f"manifest {file}: expected a name that ends in one of {', '.join(MANIFEST_SUFFIXES)}."
        )
    if not file.is_file():
        raise FileNotFoundError(f"manifest {file}: there is no such file.")
    return _rows(file, file.parent if video_dir is None else place_of(video_dir))


def _rows(file: Path, home: Place) -> Iterator[ManifestRow]:
    readers = {".txt": _from_text, ".jsonl": _from_json_lines, ".parquet": _from_parquet}
    number = -1
    for number, (where, video) in enumerate(readers.get(file.suffix.lower(), _from_table)(file)):
        if number >= MAX_ROWS:
            raise ValueError(f"manifest {file}: has more than {MAX_ROWS} rows. Divide it.")
        yield ManifestRow(number, video, path_inside(home, video, f"manifest {file}, {where}"))
    if number < 0:
        raise ValueError(f"manifest {file}: names no video.")


def path_inside(home: Place, video: str, where: str) -> Place:
    """Where the file of a manifest's row should be.

    Args:
        home: where relative paths start, and which they may not leave.
        video: the path as the row has it.
        where: the row, for messages.

    Raises:
        ValueError: if it is no path, or leaves `home` by "..".
    """
    if not video or "\0" in video or len(video.encode("utf-8", "surrogatepass")) > _MAX_PATH:
        raise ValueError(f"{where}: path is {video[:80]!r}; expected the path of a video.")
    if any("\ud800" <= letter <= "\udfff" for letter in video):
        raise ValueError(f"{where}: path {video[:80]!r} is not Unicode text.")
    if is_stored(video):
        return StoredFile(video)
    path = os.path.normpath(video)
    if not os.path.isabs(path) and path.split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"{where}: path {video[:200]!r} leaves the folder {home}; expected one inside of it. Pass a --video-dir "
            "that holds all videos, or use an absolute path."
        )
    if isinstance(home, StoredFile) and not os.path.isabs(path):
        return StoredFile(join(home.address, path))
    return Path(home, path)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as source:
        yield from _lines_of(file, source)


def _lines_of(file: Path, source: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while line := source.readline(_MAX_LINE + 1):
        number += 1
        if len(line) > _MAX_LINE:
            raise ValueError(f"manifest {file}, line {number}: longer than {_MAX_LINE} bytes.")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"manifest {file}, line {number}: not UTF-8 text ({error.reason}). Save it as UTF-8."
            ) from error
        yield number, text


def _from_text(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(file):
        if video := line.strip():
            yield f"line {number}", video


def _from_table(file: Path) -> Iterator[tuple[str, str]]:
    reader = csv.reader(
        (line for _, line in _lines(file)), delimiter="\t" if file.suffix.lower() == ".tsv" else ","
    )
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        column = header.index(_column_of(header, file))
        for row in reader:
            if not row:
                continue
            where = f"line {reader.line_num}"
            if len(row) != len(header):
                raise ValueError(
                    f"manifest {file}, {where}: {len(row)} columns; expected {len(header)}. "
                    'Put a field that contains the separator into "quotes".'
                )
            yield where, row[column].strip()
    except csv.Error as error:
        raise ValueError(f"manifest {file}, line {reader.line_num}: {error}.") from error


def _column_of(names: Sequence[str], file: Path) -> str:
    found = next((name for name in _PATH_COLUMNS if name in names), None)
    if found is None:
        raise ValueError(
            f"manifest {file}: columns are {', '.join(names)[:200] or 'none'}; expected one of "
            f"{', '.join(_PATH_COLUMNS)}."
        )
    return found


def _from_json_lines(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        where = f"manifest {file}, line {number}"
        try:
            item: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}).") from error
        if not isinstance(item, Mapping):
            raise ValueError(f'{where}: is a {type(item).__name__}; expected an object: {{"path": …}}.')
        video = item[_column_of(list(item), file)]
        if not isinstance(video, str):
            raise ValueError(f"{where}: path is {str(video)[:80]!r}; expected text.")
        yield f"line {number}", video


def _from_parquet(file: Path) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            f"manifest {file}: Parquet is read by pyarrow. Install it with `pip install frameflex[parquet]`, or give "
            "the manifest as CSV."
        ) from error
    try:
        # Names and counts of the footer are limited; pages are read one after another.
        limits = {"thrift_string_size_limit": 1 << 27, "thrift_container_size_limit": 1 << 20}
        with parquet.ParquetFile(file, **limits) as table:
            names = table.schema_arrow.names
            column = names[
                [name.lower() for name in names].index(_column_of([n.lower() for n in names], file))
            ]
            if table.metadata.num_rows > MAX_ROWS:
                raise ValueError(
                    f"manifest {file}: has {table.metadata.num_rows} rows; at most {MAX_ROWS} are read."
                )
            if not _is_text(arrow, table.schema_arrow.field(column).type):
                kind = table.schema_arrow.field(column).type
                raise ValueError(f"manifest {file}: column {column} has type {kind}; expected text.")
            for group in range(table.metadata.num_row_groups):
                _check_group(table.metadata.row_group(group), column, file)
        # As a dictionary, a long text that is repeated takes its memory once.
        with parquet.ParquetFile(file, read_dictionary=[column], **limits) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0):
                    text = value.as_py()
                    if not isinstance(text, str):
                        raise ValueError(f"manifest {file}, row {number}: path is {text!r}; expected text.")
                    yield f"row {number}", text
                    number += 1
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"manifest {file}: not a sound Parquet file ({' '.join(str(error).split())[:200]})."
        ) from error


def _is_text(arrow: Any, kind: Any) -> bool:
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def _check_group(group: Any, column: str, file: Path) -> None:
    for i in range(group.num_columns):
        chunk = group.column(i)
        if chunk.path_in_schema == column and not 0 <= chunk.total_uncompressed_size <= _MAX_COLUMN:
            raise ValueError(
                f"manifest {file}: column {column} claims {chunk.total_uncompressed_size} bytes in one row group; "
                f"expected at most {_MAX_COLUMN}. Write it with smaller row groups."
            )
