"""One way to search a folder for videos: what is a video, what is hidden, and no circles."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from frameflex.storage import Place, StoredFile, address_of, files_below, is_stored, is_stored_folder

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Search",
    "find_video_files",
    "is_video_file",
    "listing",
    "missing_files",
]

logger = logging.getLogger(__name__)

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".ts", ".webm", ".wmv",
})
# fmt: on
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def find_video_files(sources: Sequence[str | os.PathLike[str]]) -> list[Place]:
    """Files, folders (searched for videos, sub-folders too) and patterns such as ``clips/*.mp4`` into files.

    Raises:
        FileNotFoundError: naming the first source that matches nothing.
        StorageError: if object storage can't be listed.
    """
    files: dict[Place, None] = {}  # each once, in the order given
    found: Sequence[Place]
    for source in [os.fspath(source) for source in sources]:
        if is_stored(source):
            found = _find_stored(address_of(source))
        elif os.path.isdir(source):
            search = Search(Path(source))
            found = sorted(search.video_files())
            for circle in search.circles:
                logger.warning("%s", circle)
        elif os.path.lexists(source):  # a link that leads nowhere is a video that can't be opened
            found = [Path(source)]
        else:
            found = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if os.path.isfile(name)]
        if not found:
            raise FileNotFoundError(f"{source}: no video file there. Give files, folders or quoted patterns.")
        files.update(dict.fromkeys(found))
    return list(files)


def _find_stored(address: str) -> list[StoredFile]:
    """The same of an address. A name that is one file is not asked for: who opens it hears whether it is there."""
    folder, wild, _ = address.partition("*")
    if wild:
        pattern = _matcher(address)
        listed = files_below(folder.rpartition("/")[0])
        return [file for file in listed if pattern.fullmatch(file.address)]
    if is_video_file(address):
        return [StoredFile(address)]
    if not address.endswith("/") and not is_stored_folder(address):
        return [StoredFile(address)]
    within = len(address.rstrip("/")) + 1
    return [
        file
        for file in files_below(address)
        if is_video_file(file.name) and not any(map(_is_hidden, file.address[within:].split("/")))
    ]


def _matcher(pattern: str) -> re.Pattern[str]:
    """As the shell's: ``*`` within a folder, ``**/`` any number of them."""
    rules = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    return re.compile("".join(rules.get(part, re.escape(part)) for part in parts))


class Search:
    """A search below one folder.

    What is hidden (``.name``, ``__MACOSX``) is passed over. Links to folders are followed, but for those that lead
    back to a folder that they lie in.

    Args:
        root: the folder.

    Attributes:
        circles: the links that were not followed, a line each.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.circles: list[str] = []

    def subfolders(self, folder: Path) -> list[Path]:
        """The folders in a folder, sorted."""
        return [folder / name for name, is_folder in self._inside(folder) if is_folder]

    def files(self, folder: Path) -> list[str]:
        """Names of the video files in a folder itself."""
        return [name for name, is_folder in self._inside(folder) if not is_folder and is_video_file(name)]

    def video_files(self, folder: Path | None = None) -> Iterator[Path]:
        """Video files in a folder and below, those in it first."""
        folder = self.root if folder is None else folder
        inside = self._inside(folder)
        yield from (folder / name for name, is_folder in inside if not is_folder and is_video_file(name))
        for name, is_folder in inside:
            if is_folder:
                yield from self.video_files(folder / name)

    def videos(self, folder: Path, *, is_class: bool = True) -> Iterator[Path]:
        """Videos of a class's folder and below: files, and folders of images that are one video's frames."""
        inside = self._inside(folder)
        suffixes = {os.path.splitext(name)[1].lower() for name, is_folder in inside if not is_folder}
        if not is_class and suffixes & IMAGE_SUFFIXES and not suffixes & VIDEO_SUFFIXES:
            yield folder
            return
        for name, is_folder in inside:
            if is_folder:
                yield from self.videos(folder / name, is_class=False)
            elif is_video_file(name):
                yield folder / name

    def has_videos(self, folder: Path) -> bool:
        """Whether a class's folder holds a video; looks no further than the first."""
        return next(self.videos(folder), None) is not None

    def _inside(self, folder: Path) -> list[tuple[str, bool]]:
        """Names in a folder, sorted, each with whether it is a folder to search."""
        found = []
        with os.scandir(folder) as scan:
            for entry in scan:
                if _is_hidden(entry.name):
                    continue
                is_folder = os.path.isdir(entry.path)  # False, too, where links lead in a circle of their own
                if not (is_folder and entry.is_symlink() and self._leads_back(entry.path)):
                    found.append((entry.name, is_folder))
        return sorted(found)

    def _leads_back(self, link: str) -> bool:
        """Whether a link leads to a folder that it lies in: a circle."""
        real = os.path.realpath(link)
        folders = [Path(link).parent, *Path(link).parent.parents]
        within = folders[: folders.index(self.root) + 1]
        if f"{os.path.realpath(self.root)}{os.sep}".startswith(f"{real}{os.sep}") or any(
            os.path.realpath(folder) == real for folder in within
        ):
            line = f"{link}: leads back to {real}, which it lies in; not followed"
            if line not in self.circles:
                self.circles.append(line)
            return True
        return False


def is_video_file(name: str) -> bool:
    """Whether a name ends as videos' do."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _is_hidden(name: str) -> bool:
    """What programs put beside videos: ``._clip.mp4``, ``.ipynb_checkpoints``, ``__MACOSX`` of a Mac's archives."""
    return name.startswith(".") or name == "__MACOSX"


def listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def missing_files(paths: Iterable[str]) -> set[str]:
    """Return the paths without a file, by listing each folder once: asking for 169k files takes minutes on NFS."""
    folders: dict[str, set[str]] = {}
    missing = set()
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder or "."))
            except (FileNotFoundError, NotADirectoryError):
                folders[folder] = set()
        # A second look: a file system may know a name by another spelling (capitals, Unicode normal forms).
        if name not in folders[folder] and not os.path.exists(path):
            missing.add(path)
    return missing
