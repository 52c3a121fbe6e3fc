"""ELAN: .eaf files, whose annotations lie in tiers between slots of time."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from frameflex.data.annotations.annotation import Mark, Marks, Segment, by_video, number_of
from frameflex.data.annotations.files import AnnotationFile, write_xml
from frameflex.data.annotations.timeline import Timelines
from frameflex.data.annotations.videos import names_a_video

_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"


class ELAN:
    """Annotations that have times of their own, of all tiers; what is written in one is its label.

    Times are milliseconds. Within a tier annotations can't overlap: segments that do are written to further tiers.
    """

    name = "elan"
    looks_for = "ELAN: XML of <ANNOTATION_DOCUMENT> (.eaf)"
    suffix = ".eaf"
    one_video = True

    def matches(self, file: AnnotationFile) -> bool:
        return file.xml is not None and file.xml.tag == "ANNOTATION_DOCUMENT"

    def read(self, file: AnnotationFile) -> Marks:
        root = file.xml
        assert root is not None
        found = Marks()
        video, origin = _video_of(root, file.path, found)
        slots = {}
        for slot in root.iter("TIME_SLOT"):
            if (value := slot.get("TIME_VALUE")) is not None:
                key = slot.get("TIME_SLOT_ID", "")
                slots[key] = number_of(value, f"{file.path}, time slot {key}", "TIME_VALUE")
        known = {slot.get("TIME_SLOT_ID", "") for slot in root.iter("TIME_SLOT")}
        for tier in root.iter("TIER"):
            for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
                where = (
                    f"{file.path}, tier {tier.get('TIER_ID')}, annotation {annotation.get('ANNOTATION_ID')}"
                )
                ends = [annotation.get(f"TIME_SLOT_REF{number}", "") for number in (1, 2)]
                if unknown := [end for end in ends if end not in known]:
                    raise ValueError(f"{where}: there is no time slot {unknown[0]!r}; is the file whole?")
                if not all(end in slots for end in ends):
                    found.left_out["without a time of their own left out"] += 1
                    continue
                start, end = ((slots[end] + origin) / 1000 for end in ends)
                label = annotation.findtext("ANNOTATION_VALUE") or ""
                found.marks.append(Mark(video, label, start, end, where))
            if count := sum(1 for _ in tier.iter("REF_ANNOTATION")):
                found.left_out["without a time of their own left out"] += count
        return found

    def write(self, path: Path, segments: Sequence[Segment], timelines: Timelines) -> None:
        del timelines
        [(video, of_one)] = by_video(segments).items()
        root = ElementTree.Element(
            "ANNOTATION_DOCUMENT",
            {
                "AUTHOR": "",
                "DATE": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "FORMAT": "3.0",
                "VERSION": "3.0",
                f"{{{_INSTANCE}}}noNamespaceSchemaLocation": _SCHEMA,
            },
        )
        header = ElementTree.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
        beside = os.path.relpath(video.resolve(), path.resolve().parent)
        media = {
            "MEDIA_URL": video.resolve().as_uri(),
            "MIME_TYPE": mimetypes.guess_type(video.name)[0] or "video/*",
            "RELATIVE_MEDIA_URL": f"./{Path(beside).as_posix()}",
        }
        ElementTree.SubElement(header, "MEDIA_DESCRIPTOR", media)
        order = ElementTree.SubElement(root, "TIME_ORDER")
        tiers: list[tuple[float, ElementTree.Element]] = []  # each with the end of its last annotation
        spans = [_milliseconds(segment) for segment in of_one]
        slots = {time: f"ts{number}" for number, time in enumerate(sorted({t for s in spans for t in s}), 1)}
        for time, slot in slots.items():
            ElementTree.SubElement(order, "TIME_SLOT", {"TIME_SLOT_ID": slot, "TIME_VALUE": str(time)})
        for number, (segment, (start, end)) in enumerate(zip(of_one, spans, strict=True), start=1):
            free = next((i for i, (busy_until, _) in enumerate(tiers) if busy_until <= start), len(tiers))
            if free == len(tiers):
                name = "labels" if free == 0 else f"labels {free + 1}"
                keys = {"LINGUISTIC_TYPE_REF": "default-lt", "TIER_ID": name}
                tiers.append((0, ElementTree.SubElement(root, "TIER", keys)))
            tier = tiers[free][1]
            tiers[free] = (end, tier)
            keys = {
                "ANNOTATION_ID": f"a{number}",
                "TIME_SLOT_REF1": slots[start],
                "TIME_SLOT_REF2": slots[end],
            }
            annotation = ElementTree.SubElement(
                ElementTree.SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", keys
            )
            ElementTree.SubElement(annotation, "ANNOTATION_VALUE").text = segment.label
        kind = {
            "GRAPHIC_REFERENCES": "false",
            "LINGUISTIC_TYPE_ID": "default-lt",
            "TIME_ALIGNABLE": "true",
        }
        ElementTree.SubElement(root, "LINGUISTIC_TYPE", kind)
        write_xml(path, root)


def _milliseconds(segment: Segment) -> tuple[int, int]:
    start = round(segment.start_seconds * 1000)
    return start, max(round(segment.end_seconds * 1000), start + 1)


def _video_of(root: ElementTree.Element, path: Path, found: Marks) -> tuple[str, float]:
    """The first video of a document, which its times are of, and where those start in it, in milliseconds."""
    header = root.find("HEADER")
    units = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
    if units != "milliseconds":
        raise ValueError(f"{path}: its times are in {units}; expected milliseconds. Save it again in ELAN")
    videos = []
    for media in root.iter("MEDIA_DESCRIPTOR"):
        name = media.get("MEDIA_URL") or media.get("RELATIVE_MEDIA_URL") or ""
        if (media.get("MIME_TYPE") or "").startswith("video/") or names_a_video(name):
            origin = number_of(media.get("TIME_ORIGIN", "0"), str(path), "TIME_ORIGIN")
            videos.append((name, origin))
    if len(videos) > 1:
        found.left_out["further videos of the same scene left out"] += len(videos) - 1
    if not videos:
        return "", 0
    return videos[0]
