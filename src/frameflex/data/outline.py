"""Data sets in object storage, as layouts see them: on this disk, with their lists, and empty files for videos."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from frameflex.data.layouts.layout import Found
from frameflex.data.layouts.tables import LIST_SUFFIXES
from frameflex.data.shards import is_shards
from frameflex.storage import (
    StorageError,
    StoredFile,
    address_of,
    copy_to,
    files_below,
    is_stored,
    is_stored_folder,
    look,
)

__all__ = ["Outline", "outlined"]

_LISTS = (*LIST_SUFFIXES, ".json")
_LISTS_DEPTH = 2  # folders below a data set in which layouts have lists, itself included
_FEW = 32  # files of one folder that are asked for one by one; for more the folder is listed


@dataclass
class Outline:
    """Where a data set lies for the layouts, and what that stands for.

    Attributes:
        place: the data set, or an outline of it.
        video_dir: likewise.
        homes: outline -> address.
    """

    place: str
    video_dir: Path | None
    homes: dict[str, str] = field(default_factory=dict)
    _known: dict[str, StoredFile] = field(default_factory=dict)

    def of_storage(self, found: Found) -> Found:
        """What a layout has found, with addresses in the place of the outline's paths.

        Raises:
            ValueError: if a video is a folder of pictures, which object storage is too slow for.
        """
        entries = []
        for entry in found.entries:
            path = self.said(entry.path)
            if path != entry.path and os.path.isdir(entry.path):
                raise ValueError(
                    f"{path}: is a folder of pictures; in object storage expected video files. Make shards of them "
                    "with `frameflex data prepare`, and upload those."
                )
            entries.append(entry._replace(path=path, where=self.said(entry.where)))
        found.entries = entries
        found.classes_from = self.said(found.classes_from)
        found.notes = [self.said(note) for note in found.notes]
        stored = {entry.path for entry in entries if is_stored(entry.path)} - found.members.keys()
        if stored:
            found.members = {**found.members, **_existing(stored, self._known)}
        return found

    def said(self, text: str) -> str:
        """A path or a message with addresses in the place of the outline's paths."""
        for home, address in self.homes.items():
            text = text.replace(home, address)
        return text

    def add(self, folder: Path, address: str) -> Path:
        """Outline a folder, or take over a list, into an empty folder; returns what stands for it."""
        name = PurePosixPath(address).name
        if PurePosixPath(name).suffix.lower() in _LISTS and not is_stored_folder(address):
            copy_to(address, folder / name)
            self.homes[str(folder)] = address.rpartition("/")[0]
            return folder / name
        files = files_below(address)
        if [file.address for file in files] == [address]:  # one that is no list: a layout says so
            (folder / name).touch()
            self.homes[str(folder)] = address.rpartition("/")[0]
            return folder / name
        if not files:
            raise FileNotFoundError(f"{address}: there is no such file or folder. Check the address.")
        home = folder / name
        home.mkdir()
        self.homes[str(home)] = address
        for file in files:
            self._known[file.address] = file
            parts = file.address.removeprefix(f"{address}/").split("/")
            if "" in parts or ".." in parts or "." in parts or "\0" in file.address:
                raise StorageError(f"{file}: is no path of a file. Rename it, or name the videos in a list.")
            path = home.joinpath(*parts)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if len(parts) <= _LISTS_DEPTH and path.suffix.lower() in _LISTS:
                    copy_to(file.address, path)
                else:
                    path.touch()
            except OSError as error:
                raise StorageError(
                    f"{file}: can't be a file here ({error.strerror or error}). Name the videos in a list instead."
                ) from error
        return home


@contextmanager
def outlined(source: str, video_dir: str | os.PathLike[str] | None) -> Iterator[Outline]:
    """A data set that may be in object storage, for as long as layouts read it; a local one as it is.

    Args:
        source: path or address of a folder or list.
        video_dir: path or address of the folder of its videos.

    Raises:
        FileNotFoundError: if there is nothing at an address.
        StorageError: if it can't be read or listed.
    """
    outline = Outline(source, None if video_dir is None else Path(video_dir))
    if not (is_stored(source) or is_stored(video_dir)) or is_shards(source):
        yield outline
        return
    with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
        if is_stored(source):
            (Path(folder) / "data").mkdir()
            outline.place = str(outline.add(Path(folder) / "data", address_of(source).rstrip("/")))
        if video_dir is not None and is_stored(video_dir):
            (Path(folder) / "videos").mkdir()
            outline.video_dir = outline.add(Path(folder) / "videos", address_of(video_dir).rstrip("/"))
        try:
            yield outline
        except (ValueError, OSError) as error:
            error.args = tuple(outline.said(one) if isinstance(one, str) else one for one in error.args)
            raise


def _existing(addresses: Iterable[str], known: dict[str, StoredFile]) -> dict[str, StoredFile]:
    """Those of some addresses at which there is a file, with its size and version."""
    found = {address: known[address] for address in addresses if address in known}
    rest = [address for address in addresses if address not in known]
    in_folder = Counter(address.rpartition("/")[0] for address in rest)
    for folder, number in in_folder.items():
        if number > _FEW:
            listed = {file.address: file for file in files_below(folder, deep=False)}
            found |= {address: listed[address] for address in rest if address in listed}
    for address in rest:
        if in_folder[address.rpartition("/")[0]] <= _FEW:
            try:
                found[address] = look(address)
            except FileNotFoundError:
                continue
    return found
