"""What is taught: a folder for each class, with a clip a file, as ``frameflex train`` takes it."""

from __future__ import annotations

import secrets
import shutil
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from frameflex.data.finding import Search
from frameflex.data.layouts.layout import looks_like_a_split

THROWN_OUT = ".thrown-out"  # hidden: no class; what lies in it can be put back
_LONGEST_NAME = 80
_FORBIDDEN = set('/\\<>:"|?*')  # of paths, here or on another system that the folder may go to


@dataclass(frozen=True, order=True)
class Clip:
    """One file.

    Attributes:
        label: its class.
        file: below the class's folder, with ``/``.
    """

    label: str
    file: str


class Lessons:
    """The folder, and nothing beside it: names that lead elsewhere are refused.

    Args:
        folder: made with the first class.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def classes(self) -> dict[str, list[Clip]]:
        """The clips of each class, both in their order."""
        if not self.folder.is_dir():
            return {}
        search = Search(self.folder)
        return {
            folder.name: sorted(
                Clip(folder.name, path.relative_to(folder).as_posix()) for path in search.videos(folder)
            )
            for folder in sorted(search.subfolders(self.folder))
        }

    def clips(self) -> list[Clip]:
        """All of them."""
        return [clip for clips in self.classes().values() for clip in clips]

    def add_class(self, name: str) -> str:
        """Make a class; returns its name as it is written.

        Raises:
            ValueError: if it is no name for a folder and a class, or is there.
        """
        name = checked_name(name)
        for other in self.classes():
            if other.casefold() == name.casefold():
                raise ValueError(f"there is a class {other!r} already; choose another name")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).mkdir()
        return name

    def new_path(self, label: str) -> Path:
        """A name for a new clip of a class; no two tabs or programs get the same one.

        Raises:
            ValueError: if there is no such class.
        """
        folder = self._class_folder(label)
        return folder / f"clip-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}.mp4"

    def path(self, clip: Clip) -> Path:
        """Where a clip is.

        Raises:
            ValueError: if there is no such clip.
        """
        if clip not in self.classes().get(clip.label, ()):
            raise ValueError(f"there is no clip {clip.file!r} of {clip.label!r} any more")
        return self.folder / clip.label / clip.file

    def throw_out(self, clip: Clip) -> None:
        """Take a clip out of its class; it can be put back. Raises ValueError as `path`."""
        path = self.path(clip)
        target = self.folder / THROWN_OUT / clip.label / clip.file
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)

    def put_back(self, clip: Clip) -> None:
        """Undo `throw_out`. Raises ValueError if it isn't there."""
        label = checked_name(clip.label)
        thrown = self.folder / THROWN_OUT / label
        files = {path.relative_to(thrown).as_posix(): path for path in thrown.rglob("*") if path.is_file()}
        if clip.file not in files:
            raise ValueError(f"{clip.file!r} of {label!r} was not thrown out")
        target = self.folder / label / clip.file
        if target.exists():
            raise ValueError(f"there is another clip {clip.file!r} of {label!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        files[clip.file].replace(target)

    def throw_out_class(self, label: str) -> None:
        """Take a class out, its clips to where `throw_out` puts them. Raises ValueError if there is none."""
        folder = self._class_folder(label)
        for clip in self.classes()[label]:
            self.throw_out(clip)
        left = [path for path in folder.rglob("*") if not path.is_dir()]
        if left:
            raise ValueError(f"{folder} holds other files, such as {left[0].name}; take them out first")
        shutil.rmtree(folder)

    def _class_folder(self, label: str) -> Path:
        if label not in self.classes():
            raise ValueError(f"there is no class {label!r}; add it first")
        return self.folder / label


def checked_name(name: str) -> str:
    """A class's name that is a folder's on any system, and nothing else. Raises ValueError."""
    name = unicodedata.normalize("NFC", " ".join(str(name).split()))
    bad = sorted({c for c in name if c in _FORBIDDEN or unicodedata.category(c).startswith("C")})
    if not name:
        raise ValueError("the class has no name; expected one such as waving")
    if bad:
        raise ValueError(f"the class's name {name!r} has {bad[0]!r}, which no folder's name may have")
    if name.startswith(".") or name.endswith("."):
        raise ValueError(f"the class's name {name!r} begins or ends with a dot; expected letters or numbers")
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"the class's name has {len(name)} characters; expected at most {_LONGEST_NAME}")
    if looks_like_a_split(name):
        raise ValueError(
            f"{name!r} is the name of a part of a data set, and frameflex train would take it for one; choose another"
        )
    return name
