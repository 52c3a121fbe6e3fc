"""FiftyOne: temporal detections, as `FiftyOneTemporalDetectionDataset` and as `samples.json` of a whole data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frameflex.data.annotations.annotation import (
    Mark,
    Marks,
    Segment,
    by_video,
    frame_of,
    label_of,
    number_of,
)
from frameflex.data.annotations.files import AnnotationFile, write_json
from frameflex.data.annotations.timeline import Timelines


class FiftyOne:
    """Detections with `support`, the numbers of their first and last frames, from 1 as they decode."""

    name = "fiftyone"
    looks_for = 'FiftyOne: JSON with "labels" of temporal detections for each video, or "samples"'
    suffix = ".json"
    one_video = False

    def matches(self, file: AnnotationFile) -> bool:
        value = file.json
        return isinstance(value, dict) and (
            isinstance(value.get("labels"), dict) or isinstance(value.get("samples"), list)
        )

    def read(self, file: AnnotationFile) -> Marks:
        found = Marks()
        if isinstance(file.json.get("labels"), dict):
            classes = file.json.get("classes")
            for video, detections in file.json["labels"].items():
                if not detections:
                    found.left_out["videos without annotations left out"] += 1
                    continue
                if not isinstance(detections, list):
                    raise ValueError(f"{file.path}, {video}: expected a list of detections")
                for number, detection in enumerate(detections, start=1):
                    where = f"{file.path}, {video}, detection {number}"
                    found.marks.append(_mark(detection, video, where, classes, None))
            return found
        for number, sample in enumerate(file.json["samples"], start=1):
            where = f"{file.path}, sample {number}"
            if not isinstance(sample, dict) or not isinstance(sample.get("filepath"), str):
                raise ValueError(f"{where}: has no filepath; expected the path of its video")
            detections = list(_detections(sample))
            if not detections:
                found.left_out["videos without annotations left out"] += 1
            counted = _counted(sample.get("metadata"), where)
            found.marks += [
                _mark(detection, sample["filepath"], where, None, counted) for detection in detections
            ]
        return found

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        labels: dict[str, list[dict[str, Any]]] = {}
        for video, of_one in by_video(segments).items():
            name = os.path.splitext(of_one[0].name)[0]
            if name in labels:
                raise ValueError(
                    f"{path}: two videos are called {name} without their ending, which is how FiftyOne names them; "
                    "rename one"
                )
            labels[name] = []
            for segment in of_one:
                first, last = timelines[video].frames(segment.start_seconds, segment.end_seconds)
                labels[name].append({"label": segment.label, "support": [first + 1, last + 1]})
        write_json(path, {"labels": labels})


def _detections(sample: Mapping[str, Any]) -> Iterator[Any]:
    """The temporal detections of a sample, in whatever field they are."""
    for value in sample.values():
        if isinstance(value, dict) and value.get("_cls") == "TemporalDetection":
            yield value
        elif isinstance(value, dict) and value.get("_cls") == "TemporalDetections":
            detections = value.get("detections")
            yield from detections if isinstance(detections, list) else []


def _mark(detection: Any, video: str, where: str, classes: Any, counted: tuple[float, float] | None) -> Mark:
    if not isinstance(detection, dict):
        raise ValueError(f"{where}: expected an object with label and support")
    label = detection.get("label")
    if isinstance(label, int) and isinstance(classes, list):
        if not 0 <= label < len(classes):
            raise ValueError(f"{where}: label is {label}; expected one of the {len(classes)} classes")
        label = classes[label]
    for key in ("support", "timestamps"):
        ends = detection.get(key)
        if isinstance(ends, list) and len(ends) == 2:
            if key == "support":
                first, last = (frame_of(end, where, "support", least=1) - 1 for end in ends)
                return Mark(video, label_of(label, where), first, last, where, "frames", None, counted)
            start, end = (number_of(end, where, "timestamps") for end in ends)
            return Mark(video, label_of(label, where), start, end, where)
    raise ValueError(f"{where}: has neither support nor timestamps; expected the first and the last")


def _counted(metadata: Any, where: str) -> tuple[float, float] | None:
    """How many frames FiftyOne saw in how many seconds, where its metadata was computed."""
    if not isinstance(metadata, dict):
        return None
    count, seconds = metadata.get("total_frame_count"), metadata.get("duration")
    if count is None or not seconds:
        return None
    return number_of(count, where, "total_frame_count"), number_of(seconds, where, "duration")
