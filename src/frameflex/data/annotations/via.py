"""VIA 3, the VGG Image Annotator: projects with temporal segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frameflex.data.annotations.annotation import (
    Mark,
    Marks,
    Segment,
    by_video,
    file_names,
    label_of,
    labels_in,
    number_of,
)
from frameflex.data.annotations.files import AnnotationFile, write_json
from frameflex.data.annotations.timeline import Timelines

_SEGMENT = "FILE1_Z2_XY0"  # what an attribute belongs to: one file, two times, no place in the picture
_CHECKBOX, _SELECT = 2, 4
_VIDEO, _LOCAL = 4, 1


class VIA:
    """Temporal segments in seconds; each attribute of one is a label."""

    name = "via"
    looks_for = 'VIA 3: JSON with "metadata", "attribute", "view" and "file"'
    suffix = ".json"
    one_video = False

    def matches(self, file: AnnotationFile) -> bool:
        keys = ("metadata", "attribute", "view", "file")
        return isinstance(file.json, dict) and all(isinstance(file.json.get(key), dict) for key in keys)

    def read(self, file: AnnotationFile) -> Marks:
        project: dict[str, Any] = file.json
        found = Marks()
        for key, entry in project["metadata"].items():
            where = f"{file.path}, segment {key}"
            times = entry.get("z") if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or not isinstance(times, list):
                raise ValueError(f'{where}: expected an object with times under "z"')
            if entry.get("xy") or len(times) != 2:
                found.left_out["that are no stretch of time left out"] += 1
                continue
            start, end = (number_of(time, where, "a time") for time in times)
            video = _video_of(project, entry, where)
            labels = _labels(project["attribute"], entry.get("av"), where)
            found.marks += [Mark(video, label, start, end, where) for label in labels or [""]]
        return found

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        del timelines
        labels = labels_in(segments)
        names = file_names(segments)
        files: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        for number, (video, of_one) in enumerate(by_video(segments).items(), start=1):
            key = str(number)
            files[key] = {"fid": key, "fname": names[video], "type": _VIDEO, "loc": _LOCAL, "src": ""}
            for index, segment in enumerate(of_one):
                metadata[f"{key}_{index:08}"] = {
                    "vid": key,
                    "flg": 0,
                    "z": [round(segment.start_seconds, 6), round(segment.end_seconds, 6)],
                    "xy": [],
                    "av": {"1": str(labels.index(segment.label))},
                }
        attribute = {
            "aname": "label",
            "anchor_id": _SEGMENT,
            "type": _SELECT,
            "desc": "What happens",
            "options": {str(index): label for index, label in enumerate(labels)},
            "default_option_id": "",
        }
        project = {
            "pid": "__VIA_PROJECT_ID__",
            "rev": "__VIA_PROJECT_REV_ID__",
            "rev_timestamp": "__VIA_PROJECT_REV_TIMESTAMP__",
            "pname": path.stem,
            "creator": "frameflex",
            "created": 0,
            "data_format_version": "3.1.1",
            "vid_list": list(files),
        }
        config = {
            "file": {"loc_prefix": {str(place): "" for place in range(1, 5)}},
            "ui": {
                "file_content_align": "center",
                "file_metadata_editor_visible": True,
                "spatial_metadata_editor_visible": True,
                "temporal_segment_metadata_editor_visible": True,
                "spatial_region_label_attribute_id": "",
                "gtimeline_visible_row_count": "4",
            },
        }
        views = {key: {"fid_list": [key]} for key in files}
        write_json(
            path,
            {
                "project": project,
                "config": config,
                "attribute": {"1": attribute},
                "file": files,
                "metadata": metadata,
                "view": views,
            },
        )


def _video_of(project: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> str:
    view = project["view"].get(str(entry.get("vid")))
    files = view.get("fid_list") if isinstance(view, dict) else None
    if not isinstance(files, list) or len(files) != 1:
        raise ValueError(f"{where}: its view {entry.get('vid')!r} is of no file or several; expected one")
    file = project["file"].get(str(files[0]))
    name = (file.get("fname") or file.get("src")) if isinstance(file, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{where}: its file {files[0]!r} has no name; expected it as fname")
    return name


def _labels(attributes: Mapping[str, Any], values: Any, where: str) -> list[str]:
    """The labels of a segment's attributes: of a choice the option's text, of several all."""
    if values is None:
        return []
    if not isinstance(values, dict):
        raise ValueError(f'{where}: expected the values of attributes as an object under "av"')
    labels = []
    for key, value in values.items():
        attribute = attributes.get(key)
        attribute = attribute if isinstance(attribute, dict) else {}
        options = attribute.get("options")
        options = options if isinstance(options, dict) else {}
        text = label_of(value, where)
        chosen = text.split(",") if attribute.get("type") == _CHECKBOX else [text]
        labels += [label_of(options.get(one, one), where) for one in chosen if one]
    return labels
