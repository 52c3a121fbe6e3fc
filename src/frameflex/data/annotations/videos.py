"""Which file of a folder an annotation means: tools rename uploads, and name addresses and other machines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from frameflex.data.finding import Search, is_video_file
from frameflex.data.layouts.layout import inside, one_form

# What tools put before the name of an upload: Label Studio eight digits, others the whole UUID.
_HASH = re.compile(r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9a-f]{8})-(?=.)")


class FolderOfVideos:
    """The videos that annotations may name: those below a folder, or one file."""

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise FileNotFoundError(
                f"videos {root}: there is no such folder or file; expected that of the videos"
            )
        self.root = root if root.is_dir() else root.parent
        self.files = sorted(Search(root).video_files()) if root.is_dir() else [root]
        self._by_tail: dict[str, list[Path]] = {}
        self._by_upload: dict[str, list[Path]] = {}
        for file in self.files:
            parts = one_form(self.name(file)).split("/")
            for first in range(len(parts)):
                tail = "/".join(parts[first:])
                for known in (tail, os.path.splitext(tail)[0]):
                    self._by_tail.setdefault(known, []).append(file)
            self._by_upload.setdefault(_as_uploaded(parts[-1]), []).append(file)

    def name(self, file: Path) -> str:
        """A video's name in the folder, with slashes."""
        return file.relative_to(self.root).as_posix()

    def find(self, name: str, *, fallback: str = "") -> list[Path]:
        """The files that a name may mean: one where all is well.

        Args:
            name: a path, an address, or a file's name with or without its ending; empty if there is none.
            fallback: where there is no name, one that may be the video's without its ending.
        """
        if not name:
            return self._by_tail.get(one_form(fallback)) or self.files
        for form in _forms(name):
            parts = [part for part in form.split("/") if part not in ("", ".", "..")]
            for first in range(len(parts)):  # the most of the path that is found decides
                if files := self._by_tail.get("/".join(parts[first:])):
                    return files
            upload = _HASH.sub("", parts[-1], count=1) if parts else ""
            if files := self._by_tail.get(upload) or self._by_upload.get(upload):
                return files
        return []


class ListedVideos:
    """The videos that a list of ours names, by their paths."""

    def __init__(self, folder: Path) -> None:
        self.root = folder

    def name(self, file: Path) -> str:
        """A video's name in the list's folder, with slashes; of one that lies elsewhere the path."""
        try:
            return file.relative_to(self.root).as_posix()
        except ValueError:
            return file.as_posix()

    def find(self, name: str, *, fallback: str = "") -> list[Path]:
        """The file of a path, if it is there; an annotation without a name means none."""
        del fallback
        if not name:
            return []
        path = Path(inside(self.root, name, f"list in {self.root}"))
        return [path] if path.exists() else []


def find_all(
    videos: FolderOfVideos | ListedVideos, names: Iterable[tuple[str, Path]]
) -> dict[tuple[str, Path], Path]:
    """Find the video of each name.

    Args:
        videos: where they are.
        names: with the file of annotations that each is in.

    Raises:
        ValueError: listing all names that are not found, and all that are found twice.
    """
    found: dict[tuple[str, Path], Path] = {}
    missing: dict[str, None] = {}
    several: dict[str, list[Path]] = {}
    for name, source in dict.fromkeys(names):
        files = videos.find(name, fallback=source.stem)
        shown = name or f"(no name in {source.name})"
        if len(files) == 1:
            found[name, source] = files[0]
        elif files:
            several[shown] = files
        else:
            missing[shown] = None
    problems = []
    if missing:
        problems.append(f"{len(missing)} not found: {_listed(missing)}")
    if several:
        each = [
            f"{name} is {' or '.join(map(videos.name, files[:3]))}{' or another' * (len(files) > 3)}"
            for name, files in several.items()
        ]
        problems.append(f"{len(several)} found more than once: {_listed(each)}")
    if problems:
        hint = "Give the folder that holds them as --videos"
        if several:
            hint += ", one that holds each once, or one video"
        raise ValueError(f"videos in {videos.root}: {'; '.join(problems)}. {hint}")
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _forms(name: str) -> Iterator[str]:
    """What a name may stand for: itself, and the path of an address, decoded or not."""
    forms = [name, unquote(name)]
    try:
        parts = urlsplit(name)
    except ValueError:  # no address
        parts = None
    if parts is not None and (parts.scheme or parts.query):
        forms += [value for key in ("d", "path", "file") for value in parse_qs(parts.query).get(key, [])]
        forms += [parts.path, unquote(parts.path)]
    yield from dict.fromkeys(one_form(form.replace("\\", "/")) for form in forms)


def _as_uploaded(name: str) -> str:
    """A file's name as web servers store it."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def names_a_video(text: object) -> bool:
    """Whether a value is the path or address of a video, by its ending."""
    return isinstance(text, str) and any(is_video_file(form) for form in _forms(text))
