"""CVAT for video 1.1; and tags of frames, which CVAT exports of a video as CVAT for images 1.1."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from frameflex.data.annotations.annotation import (
    Mark,
    Marks,
    Segment,
    by_video,
    frame_of,
    labels_in,
)
from frameflex.data.annotations.files import AnnotationFile, write_xml
from frameflex.data.annotations.timeline import Timelines

_SHAPES = {"box", "cuboid", "ellipse", "mask", "points", "polygon", "polyline", "skeleton"}


class CVAT:
    """Tracks: a label is a segment where its track is to be seen, wherever in the picture that is.

    Frames are numbered from 0 as they decode. A written segment is a track with a box around the whole picture.
    """

    name = "cvat"
    looks_for = "CVAT for video 1.1: XML of <annotations> with <track>s, or <image>s with <tag>s"
    suffix = ".xml"
    one_video = True

    def matches(self, file: AnnotationFile) -> bool:
        return file.xml is not None and file.xml.tag == "annotations"

    def read(self, file: AnnotationFile) -> Marks:
        root = file.xml
        assert root is not None
        found = Marks()
        videos = _videos(root, file.path)
        for track in root.iter("track"):
            where = f"{file.path}, track {track.get('id', '?')}"
            video, stop, _ = _video_of(track, videos, where)
            for first, last in _visible(track, where):
                end = stop if last is None else last
                found.marks.append(Mark(video, track.get("label", ""), first, end, where, "frames"))
        found.marks += _tagged(root, videos, file.path)
        spatial = sum(image.find(shape) is not None for image in root.iter("image") for shape in _SHAPES)
        if spatial:
            found.left_out["shapes of single frames left out"] += spatial
        return found

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        [(video, of_one)] = by_video(segments).items()
        timeline = timelines[video]
        root = ElementTree.Element("annotations")
        _text(root, "version", "1.1")
        task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
        name = of_one[0].name
        _text(task, "name", name)
        _text(task, "size", str(timeline.num_frames))
        _text(task, "mode", "interpolation")
        _text(task, "start_frame", "0")
        _text(task, "stop_frame", str(timeline.num_frames - 1))
        labels = ElementTree.SubElement(task, "labels")
        for label in labels_in(segments):
            one = ElementTree.SubElement(labels, "label")
            _text(one, "name", label)
            ElementTree.SubElement(one, "attributes")
        size = ElementTree.SubElement(task, "original_size")
        _text(size, "width", str(timeline.width))
        _text(size, "height", str(timeline.height))
        _text(task, "source", name)
        corners = {
            "xtl": "0.00",
            "ytl": "0.00",
            "xbr": f"{timeline.width:.2f}",
            "ybr": f"{timeline.height:.2f}",
        }
        for number, segment in enumerate(of_one):
            first, last = timeline.frames(segment.start_seconds, segment.end_seconds)
            track = ElementTree.SubElement(
                root, "track", {"id": str(number), "label": segment.label, "source": "manual"}
            )
            for frame, outside in ((first, "0"), (last + 1, "1")):
                if frame < timeline.num_frames:
                    keys = {"frame": str(frame), "keyframe": "1", "outside": outside, "occluded": "0"}
                    ElementTree.SubElement(track, "box", {**keys, **corners, "z_order": "0"})
        write_xml(path, root)


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _videos(root: ElementTree.Element, path: Path) -> dict[str, tuple[str, int | None, int]]:
    """The video, last frame and frame step of each task, by its number."""
    meta = root.find("meta")
    tasks = [] if meta is None else [*meta.iter("task"), *meta.iter("job")]
    found = {}
    for task in tasks:
        where = f"{path}, task {task.findtext('id', '?')}"
        stop = task.findtext("stop_frame")
        source = task.findtext("source") or (meta.findtext("source") if meta is not None else None) or ""
        step = re.search(r"step\s*=\s*(\d+)", task.findtext("frame_filter") or "")
        found[task.findtext("id", "")] = (
            source,
            frame_of(stop, where, "stop_frame", least=0) if stop else None,
            max(1, int(step[1])) if step else 1,
        )
    return found or {"": ("", None, 1)}


def _video_of(
    element: ElementTree.Element, videos: dict[str, tuple[str, int | None, int]], where: str
) -> tuple[str, int | None, int]:
    task = next(iter(videos)) if len(videos) == 1 else element.get("task_id", "")
    if task not in videos:
        raise ValueError(
            f"{where}: is of task {task or 'without a number'}; expected one of {', '.join(videos)}"
        )
    return videos[task]


def _visible(track: ElementTree.Element, where: str) -> Iterator[tuple[int, int | None]]:
    """The first and last frames of each time that a track is to be seen; None for the video's end.

    A shape holds until the next one of the track, and one that is outside ends it.
    """
    shapes = sorted(
        (frame_of(shape.get("frame"), where, "frame", least=0), not _is_outside(shape))
        for shape in track
        if shape.tag in _SHAPES
    )
    first = None
    for frame, is_seen in shapes:
        if is_seen and first is None:
            first = frame
        elif not is_seen and first is not None:
            if frame > first:
                yield first, frame - 1
            first = None
    if first is not None:
        yield first, None


def _is_outside(shape: ElementTree.Element) -> bool:
    """Whether a shape is not to be seen; a skeleton is where one of its points is."""
    if shape.tag == "skeleton" and shape.get("outside") is None and len(shape):
        return all(point.get("outside") == "1" for point in shape)
    return shape.get("outside") == "1"


def _tagged(
    root: ElementTree.Element, videos: dict[str, tuple[str, int | None, int]], path: Path
) -> Iterator[Mark]:
    """Stretches of frames that have the same tag."""
    runs: dict[tuple[str, str, int | None, int], list[int]] = {}
    for image in root.iter("image"):
        where = f"{path}, image {image.get('id', '?')}"
        for tag in image.iter("tag"):
            video, stop, step = _video_of(image, videos, where)
            frame = frame_of(image.get("id"), where, "id", least=0)
            runs.setdefault((tag.get("label", ""), video, stop, step), []).append(frame)
    for (label, video, stop, step), frames in runs.items():
        ordered = sorted(set(frames))
        starts = [f for i, f in enumerate(ordered) if i == 0 or f - ordered[i - 1] > step]
        ends = [f for i, f in enumerate(ordered) if i == len(ordered) - 1 or ordered[i + 1] - f > step]
        for first, last in zip(starts, ends, strict=True):
            end = last + step - 1  # a tag holds until the next frame that was looked at
            end = end if stop is None else max(last, min(end, stop))
            yield Mark(video, label, first, end, f"{path}, image {first}", "frames")
