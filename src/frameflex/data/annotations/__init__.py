"""Annotations of labelling tools: which stretch of which video has which label, one file a format.

A new one is a file here, with a `Format`, and a row in `FORMATS`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from frameflex.data.annotations.annotation import Format, Mark, Segment, by_video, file_names
from frameflex.data.annotations.createml import CreateML
from frameflex.data.annotations.cvat import CVAT
from frameflex.data.annotations.elan import ELAN
from frameflex.data.annotations.events import Events
from frameflex.data.annotations.fiftyone import FiftyOne
from frameflex.data.annotations.files import read_annotation_file
from frameflex.data.annotations.label_studio import LabelStudio
from frameflex.data.annotations.placing import place
from frameflex.data.annotations.segments import Segments
from frameflex.data.annotations.timeline import Timelines
from frameflex.data.annotations.via import VIA
from frameflex.data.annotations.videos import FolderOfVideos, ListedVideos
from frameflex.new_files import new_folder

__all__ = ["FORMATS", "Segment", "read_annotations", "write_annotations"]

FORMATS: tuple[Format, ...] = (
    LabelStudio(),
    CVAT(),
    VIA(),
    ELAN(),
    CreateML(),
    FiftyOne(),
    Events(),
    Segments(),
)
"""All that are known; the first that matches reads."""


def read_annotations(
    files: Sequence[Path], videos: Path | None = None, *, timelines: Timelines, fps: float | None = None
) -> tuple[list[Segment], Counter[str]]:
    """Read files of annotations, in whatever formats they are.

    Args:
        files: what the tools exported.
        videos: the folder that holds the videos, found by their names, or one video; None for lists of ours, whose
            videos are where they say.
        timelines: of the videos.
        fps: frames a second that the tool counted with, if neither the video's nor said in the file.

    Returns:
        the segments, and how many annotations were cut or left out, by what was wrong with them.

    Raises:
        ValueError: if a file is in no known format, or says what can't be; it names the place.
        FileNotFoundError: if a file isn't there.
        VideoError: if a video can't be read.
    """
    found: list[tuple[Mark, Path]] = []
    notes: Counter[str] = Counter()
    kinds = set()
    for path in files:
        file = read_annotation_file(path)
        matching = next((one for one in FORMATS if one.matches(file)), None)
        if matching is None:
            known = "\n".join(f"  {one.looks_for}" for one in FORMATS)
            raise ValueError(f"annotations {path}: no known format. What was looked for:\n{known}")
        kinds.add(matching.name)
        marks = matching.read(file)
        notes += marks.left_out
        found += [(mark, path) for mark in marks.marks]
    if videos is None:
        if kinds != {Segments.name} or len({path.parent for path in files}) > 1:
            raise ValueError(
                f"annotations {files[0]}: of {', '.join(sorted(kinds))}, and --videos isn't given; expected the "
                "folder that holds the videos as --videos, or lists of path,label in one folder"
            )
        listed: FolderOfVideos | ListedVideos = ListedVideos(files[0].parent)
    else:
        listed = FolderOfVideos(videos)
    segments, more = place(found, listed, timelines, fps=fps)
    if not segments:
        left_out = "".join(f"; {count} {what}" for what, count in (notes + more).items())
        raise ValueError(
            f"annotations {files[0]}: no labelled stretch of a video{left_out}. Label some first"
        )
    return segments, notes + more


def write_annotations(
    path: Path, name: str, segments: Sequence[Segment], *, timelines: Timelines
) -> list[Path]:
    """Write segments for a tool.

    Args:
        path: of the file; of formats with a file for each video that of a new folder, where there are several videos.
        name: of the format.
        segments: at least one.
        timelines: of the videos.

    Returns:
        the files.

    Raises:
        ValueError: if the format can't hold them, or there are several videos and the path is a file's.
        VideoError: if a video can't be read.
    """
    wanted = next(one for one in FORMATS if one.name == name)
    parts = by_video(segments)
    if not wanted.one_video or len(parts) == 1:
        if path.is_dir():
            raise ValueError(
                f"output {path}: is a folder; expected a file's name, such as {path.name}{wanted.suffix}"
            )
        wanted.write(path, segments, timelines)
        return [path]
    if path.is_file() or path.suffix.lower() == wanted.suffix:
        raise ValueError(
            f"output {path}: {name} has a file for each video, and there are {len(parts)}; expected the name of a "
            "new folder"
        )
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"output {path}: the folder isn't empty; expected a new one for {len(parts)} files")
    stems = {video: os.path.splitext(called)[0] for video, called in file_names(segments).items()}
    names = {video: stem.strip("/").replace("/", "_") + wanted.suffix for video, stem in stems.items()}
    if len(set(names.values())) < len(names):
        twice = next(one for one, count in Counter(names.values()).items() if count > 1)
        raise ValueError(f"output {path}: two videos would get the file {twice}; rename one of them")
    with new_folder(path) as folder:
        for video, of_one in parts.items():
            wanted.write(folder / names[video], of_one, timelines)
    return [path / one for one in names.values()]
