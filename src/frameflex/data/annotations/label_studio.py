"""Label Studio: video timeline segmentation, as JSON and as JSON-MIN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
from frameflex.data.annotations.videos import names_a_video

_KIND = "timelinelabels"


class LabelStudio:
    """Tasks with regions of `TimelineLabels`.

    It counts frames from 1, ends included, at `frameRate` of its `Video` tag, without decoding them. Written tasks
    carry that as `fps`, for `frameRate="$fps"`.
    """

    name = "label-studio"
    looks_for = 'Label Studio: JSON of tasks with "data" and "annotations", or JSON-MIN with "timelinelabels"'
    suffix = ".json"
    one_video = False

    def matches(self, file: AnnotationFile) -> bool:
        return any(_is_task(task) or any(_regions_of_min(task)) for task in _tasks(file.json))

    def read(self, file: AnnotationFile) -> Marks:
        found = Marks()
        for number, task in enumerate(_tasks(file.json), start=1):
            where = f"{file.path}, task {task.get('id', number)}"
            if _is_task(task):
                regions = _regions(task, where, found)
                data = task["data"]
            else:
                regions, data = list(_regions_of_min(task)), task
            if not regions:
                continue
            rate = None if data.get("fps") is None else number_of(data["fps"], where, "fps")
            if rate is not None and rate <= 0:
                raise ValueError(f"{where}: fps is {rate:g}; expected more than 0")
            counted = next(filter(None, (_counted(region, where) for region in regions)), None)
            for region in regions:
                if _KIND not in region and "ranges" not in region:
                    found.left_out["that are no stretch of time left out"] += 1
                    continue
                video = _video_of(data, where)
                found.marks += _marks_of(region, video, where, rate, counted)
        return found

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        tasks = []
        for number, (video, of_one) in enumerate(by_video(segments).items(), start=1):
            timeline = timelines[video]
            try:
                rate = timeline.clock()
            except ValueError as error:
                raise ValueError(f"video {of_one[0].name}: {error}") from None
            results = []
            for index, segment in enumerate(of_one):
                first, last = timeline.frames(segment.start_seconds, segment.end_seconds)
                start_tick, end_tick = timeline.ticks(first, last, rate)
                ranges = [{"start": start_tick + 1, "end": end_tick}]
                value = {"ranges": ranges, _KIND: [segment.label]}
                results.append(
                    {
                        "id": f"{number}_{index}",
                        "from_name": "videoLabels",
                        "to_name": "video",
                        "type": _KIND,
                        "value": value,
                    }
                )
            data = {"video": f"/data/local-files/?d={quote(of_one[0].name)}", "fps": round(rate, 6)}
            tasks.append({"data": data, "annotations": [{"result": results}]})
        write_json(path, tasks)


def _tasks(value: Any) -> list[dict[str, Any]]:
    tasks = value if isinstance(value, list) else [value]
    return [task for task in tasks if isinstance(task, dict)]


def _is_task(task: Mapping[str, Any]) -> bool:
    return isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list)


def _regions_of_min(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The regions of a JSON-MIN task, in which each lies under the name of its tag."""
    for value in task.values():
        if isinstance(value, list):
            yield from (region for region in value if isinstance(region, dict) and _KIND in region)


def _regions(task: Mapping[str, Any], where: str, found: Marks) -> list[dict[str, Any]]:
    """The values of a task's regions; of several annotators those of the one that is the ground truth."""
    annotations = [
        one for one in task["annotations"] if isinstance(one, dict) and not one.get("was_cancelled")
    ]
    truths = [one for one in annotations if one.get("ground_truth")]
    if len(annotations) > 1 and len(truths) != 1:
        raise ValueError(
            f"{where}: has {len(annotations)} annotations, {len(truths)} of them marked as ground truth; expected "
            "one of either. Mark one as ground truth, or delete the others"
        )
    if not annotations:
        found.left_out["tasks without annotations left out"] += 1
        return []
    results = (truths or annotations)[0].get("result")
    if not isinstance(results, list):
        raise ValueError(f"{where}: its annotation has no list of results; expected it, maybe empty")
    return [one["value"] for one in results if isinstance(one, dict) and isinstance(one.get("value"), dict)]


def _counted(region: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """How many frames the tool saw, and in how many seconds: its regions with boxes say it."""
    if region.get("framesCount") is None or not region.get("duration"):
        return None
    return number_of(region["framesCount"], where, "framesCount"), number_of(
        region["duration"], where, "duration"
    )


def _marks_of(
    region: Mapping[str, Any],
    video: str,
    where: str,
    rate: float | None,
    counted: tuple[float, float] | None,
) -> Iterator[Mark]:
    """A mark for each range and label of a region."""
    ranges, labels = region.get("ranges"), region.get(_KIND, [])
    if not isinstance(ranges, list) or not isinstance(labels, list):
        raise ValueError(f'{where}: expected "ranges" and "{_KIND}" as lists')
    for one in ranges:
        if not isinstance(one, dict):
            raise ValueError(f'{where}: a range is no object; expected {{"start": 1, "end": 25}}')
        start = frame_of(one.get("start"), where, "start", least=0)
        end = frame_of(one.get("end"), where, "end", least=0)
        if end < start:
            raise ValueError(
                f"{where}: a range goes from {start} to {end}; expected an end at its start or after it"
            )
        for label in labels or [""]:
            # From 1, with the last. A 0, which scripts write that count from 0, is the first frame, too.
            ticks = (max(start - 1, 0), max(end, 1))
            yield Mark(video, label_of(label, where), *ticks, where, "ticks", rate, counted)


def _video_of(data: Mapping[str, Any], where: str) -> str:
    """The video of a task, under whatever name its labelling configuration gives to it."""
    named = {key: value for key, value in data.items() if names_a_video(value)}
    if len(named) > 1 and "video" in named:
        return str(named["video"])
    if len(named) != 1:
        raise ValueError(
            f"{where}: its data names {len(named)} videos ({', '.join(named) or 'none'}); expected one, under video"
        )
    return str(next(iter(named.values())))
