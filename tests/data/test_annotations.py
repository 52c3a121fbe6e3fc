"""Labels of labelling tools: read as their documentation says, and exact to a frame there and back."""

import csv
import itertools
import json
import random
import re
import zipfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import write_video

from frameflex.cli import main
from frameflex.cli.data import ANNOTATIONS
from frameflex.data.annotations import FORMATS, Segment, files, read_annotations, write_annotations
from frameflex.data.annotations.timeline import Timeline, Timelines
from frameflex.data.clips import stretch_of
from frameflex.data.datasets import load_videos
from frameflex.data.records import VideoRecord
from frameflex.video import VideoError, open_video

NUM_FRAMES = 50
UNEVEN = np.cumsum([0, *np.random.default_rng(3).choice([20, 33, 40, 75, 200], NUM_FRAMES - 1)]) / 1000
TIMES = {
    "even.mp4": [Fraction(i, 25) for i in range(NUM_FRAMES)],
    "ntsc.mp4": [Fraction(1001 * i, 30000) for i in range(NUM_FRAMES)],
    "ms.mkv": [Fraction(1001 * i, 30000) for i in range(NUM_FRAMES)],  # which rounds to milliseconds
    "uneven.mp4": [Fraction(round(1000 * t), 1000) for t in UNEVEN],
}


def write_frames(path: Path, times: list[Fraction]) -> Path:
    """Small pictures that are shown at given times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, 30000)
    with av.open(str(path), "w") as container:
        rate = 1 / (times[1] - times[0])  # of the last frame, which no other one ends
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt, stream.time_base = 32, 48, "yuv420p", base
        stream.codec_context.time_base = base
        for number, time in enumerate(times):
            picture = np.full((32, 48, 3), 4 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, times in TIMES.items():
        write_frames(folder / name, times)
    return folder


@pytest.fixture
def one(tmp_path) -> Path:
    """A folder with ``clip.mp4``: 50 frames, 25 a second."""
    write_frames(tmp_path / "videos/clip.mp4", TIMES["even.mp4"])
    return tmp_path / "videos"


def import_as_list(path: Path, folder: Path, *options: str) -> list[tuple[str, float, float]]:
    """What ``data import`` makes of a file: labels and seconds."""
    output = path.with_name("imported.csv")
    assert (
        main(["data", "import", str(path), "--videos", str(folder), "--output", str(output), *options]) == 0
    )
    with output.open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    return [(row["label"], float(row["start_seconds"]), float(row["end_seconds"])) for row in rows]


def refused(capsys, path: Path, folder: Path, *options: str) -> str:
    """The one error of an import, after which there is no output, whole or half."""
    before = sorted(path.parent.iterdir())
    output = path.with_name("refused.csv")
    capsys.readouterr()
    assert (
        main(["data", "import", str(path), "--videos", str(folder), "--output", str(output), *options]) == 1
    )
    assert sorted(path.parent.iterdir()) == before
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


def write_text(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# Exact to a frame


@pytest.mark.parametrize("video", TIMES)
@pytest.mark.parametrize("name", ANNOTATIONS)
def test_segments_come_back_from_every_format_exact_to_a_frame(videos, tmp_path, name, video):
    path = videos / video
    timelines = Timelines()
    timeline = timelines[path]
    np.testing.assert_allclose(timeline.timestamps, [float(t) for t in TIMES[video]], atol=6e-4)
    wanted = [(0, 0), (0, 9), (5, 12), (10, 10), (11, 49), (49, 49), (0, 49), (20, 33), (33, 34)]
    segments = [
        Segment(path, video, f"label {i % 3}", *timeline.seconds(first, last))
        for i, (first, last) in enumerate(wanted)
    ]
    form = next(one for one in FORMATS if one.name == name)
    [written] = write_annotations(tmp_path / f"out{form.suffix}", name, segments, timelines=timelines)
    back, notes = read_annotations([written], videos, timelines=timelines)
    assert not notes
    with open_video(path) as reader:
        found = []
        for one in back:
            record = VideoRecord(one.path, None, "", one.start_seconds, one.end_seconds)
            first, end = stretch_of(record, reader, reader.num_frames)
            found.append((first, end - 1, one.label))
            assert one.start_seconds == pytest.approx(timeline.timestamps[first], abs=2e-6)
    assert sorted(found) == sorted((*ends, one.label) for ends, one in zip(wanted, segments, strict=True))


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_training_takes_the_frames_that_were_labelled(videos, tmp_path, name):
    timelines = Timelines()
    path = videos / "ntsc.mp4"
    segment = Segment(path, path.name, "wave", *timelines[path].seconds(2, 7))
    suffix = next(one.suffix for one in FORMATS if one.name == name)
    [written] = write_annotations(tmp_path / f"a{suffix}", name, [segment], timelines=timelines)
    output = tmp_path / "list.csv"
    assert main(["data", "import", str(written), "--videos", str(videos), "--output", str(output)]) == 0
    [record] = load_videos(str(output))
    with record.open() as reader:
        assert stretch_of(record, reader, reader.num_frames) == (2, 8)


def test_a_timeline_takes_the_frames_that_training_takes(videos):
    for video in TIMES:
        timeline = Timelines()[videos / video]
        with open_video(videos / video) as reader:
            for start in np.linspace(0, timeline.end_seconds - 1e-3, 37):
                for length in (1e-4, 0.02, 0.3, 9.0):
                    record = VideoRecord(videos / video, None, "", start, start + length)
                    first, end = stretch_of(record, reader, reader.num_frames)
                    assert timeline.frames(start, start + length) == (first, end - 1)


def test_a_clock_of_an_uneven_video_tells_all_its_frames_apart(videos):
    timeline = Timelines()[videos / "uneven.mp4"]
    rate = timeline.clock()
    assert rate > timeline.fps
    assert len({timeline.ticks(i, i, rate) for i in range(NUM_FRAMES)}) == NUM_FRAMES
    assert Timelines()[videos / "ntsc.mp4"].clock() == pytest.approx(30000 / 1001, abs=0.01)
    with pytest.raises(ValueError, match="too near"):
        Timeline([0.0, 0.00001, 1.0], 3.0, 32, 32).clock()


# As the tools' documentation says


def label_studio(*ranges, video="/data/upload/1/8d1f0c2a-clip.mp4", labels=("Moving",), **data):
    values = [{"ranges": [{"start": a, "end": b}], "timelinelabels": list(labels)} for a, b in ranges]
    results = [{"type": "timelinelabels", "value": value, "to_name": "video"} for value in values]
    return {"id": 7, "data": {"video": video, **data}, "annotations": [{"result": results}]}


def test_label_studio_counts_frames_from_one_and_includes_the_last(one, tmp_path):
    task = label_studio((3, 5), (1, 50))
    assert import_as_list(write_text(tmp_path / "a.json", [task]), one) == [
        ("Moving", 0.0, 2.0),
        ("Moving", 0.08, 0.2),
    ]


def test_label_studio_min_puts_the_regions_under_the_name_of_their_tag(one, tmp_path):
    region = {"ranges": [{"start": 3, "end": 5}], "timelinelabels": ["wave", "smile"]}
    task = {"video": "/data/upload/1/8d1f0c2a-clip.mp4", "id": 1, "videoLabels": [region]}
    assert import_as_list(write_text(tmp_path / "a.json", [task]), one) == [
        ("smile", 0.08, 0.2),
        ("wave", 0.08, 0.2),
    ]


def test_label_studio_counts_at_the_rate_that_it_was_set_to(one, tmp_path, capsys):
    slower = write_text(tmp_path / "a.json", [label_studio((6, 10), fps=10)])
    assert import_as_list(slower, one) == [
        ("Moving", 0.48, 1.0)
    ]  # frames 12, shown at 0.5 s, to 24, shown before 1 s
    unsaid = write_text(tmp_path / "b.json", [label_studio((6, 10))])
    assert import_as_list(unsaid, one, "--fps", "10") == [("Moving", 0.48, 1.0)]
    capsys.readouterr()
    assert import_as_list(unsaid, one) == [("Moving", 0.2, 0.4)]
    assert "1 placed at the video's frame rate" in capsys.readouterr().err
    late = write_text(tmp_path / "c.json", [label_studio((61, 70))])
    assert "give that rate as --fps" in refused(capsys, late, one)
    assert import_as_list(late, one, "--fps", "50") == [("Moving", 1.2, 1.4)]


def test_label_studio_that_counted_other_frames_than_the_video_has_is_an_error(one, tmp_path, capsys):
    task = label_studio((3, 5))
    box = {"framesCount": 48, "duration": 2.0, "sequence": [], "labels": ["hand"]}
    task["annotations"][0]["result"].append({"type": "videorectangle", "value": box})
    path = write_text(tmp_path / "a.json", [task])
    assert "counted 48 frames in 2 s, 24 a second, but the video has 25. Give --fps 24" in refused(
        capsys, path, one
    )
    assert import_as_list(path, one, "--fps", "24") == [("Moving", 0.08, 0.2)]
    assert "1 that are no stretch of time left out" in " ".join(capsys.readouterr().err.split())
    box["framesCount"] = 51  # rounded up
    assert import_as_list(write_text(path, [task]), one) == [("Moving", 0.08, 0.2)]


def test_label_studio_takes_the_ground_truth_of_several_annotators_alone(one, tmp_path, capsys):
    task = label_studio((3, 5))
    other = label_studio((1, 2), labels=["Other"])["annotations"][0]
    task["annotations"].append(other)
    path = write_text(
        tmp_path / "a.json", [task, {"id": 8, "data": {"video": "clip.mp4"}, "annotations": []}]
    )
    assert "task 7: has 2 annotations, 0 of them marked as ground truth" in refused(capsys, path, one)
    other["ground_truth"] = True
    empty = {"id": 8, "data": {"video": "clip.mp4"}, "annotations": []}
    assert import_as_list(write_text(path, [task, empty]), one) == [("Other", 0.0, 0.08)]
    assert "1 tasks without annotations left out" in capsys.readouterr().err
    del other["ground_truth"]
    other["was_cancelled"] = True
    assert import_as_list(write_text(path, [task]), one) == [("Moving", 0.08, 0.2)]


def box(frame, outside, kind="box"):
    return f'<{kind} frame="{frame}" keyframe="1" outside="{outside}" occluded="0" z_order="0"></{kind}>'


def cvat(*tracks, meta="<task><id>1</id><mode>interpolation</mode><source>clip.mp4</source></task>", rest=""):
    body = "".join(
        f'<track id="{i}" label="{label}" source="manual">{"".join(shapes)}</track>'
        for i, (label, *shapes) in enumerate(tracks)
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta>{meta}</meta>'
        f"{body}{rest}</annotations>"
    )


def test_a_track_of_cvat_is_a_segment_wherever_it_is_to_be_seen(one, tmp_path):
    text = cvat(
        ("keys", box(5, 0), box(10, 1), box(20, 0), box(22, 1)),
        ("every", *(box(f, 0) for f in range(3, 6)), box(6, 1)),
        ("to the end", box(40, 0)),
        ("form", box(1, 0, "polygon"), box(2, 1, "polygon")),
        (
            "skeleton",
            '<skeleton frame="7"><points label="1" outside="0"/></skeleton>',
            '<skeleton frame="9"><points label="1" outside="1"/></skeleton>',
        ),
        ("never", box(3, 1)),
    )
    assert import_as_list(write_text(tmp_path / "a.xml", text), one) == [
        ("form", 0.04, 0.08),
        ("every", 0.12, 0.24),
        ("keys", 0.2, 0.4),
        ("skeleton", 0.28, 0.36),
        ("keys", 0.8, 0.88),
        ("to the end", 1.6, 2.0),
    ]


def test_tags_of_cvat_are_segments_of_frames_that_follow_each_other(one, tmp_path):
    frames = {3: ["a"], 4: ["a", "b"], 5: ["a"], 9: ["a"]}
    images = "".join(
        f'<image id="{f}" name="frame_{f:06}">{"".join(f"<tag label={chr(34)}{t}{chr(34)}/>" for t in tags)}</image>'
        for f, tags in frames.items()
    )
    path = write_text(tmp_path / "a.xml", cvat(rest=images))
    assert import_as_list(path, one) == [("a", 0.12, 0.24), ("b", 0.16, 0.2), ("a", 0.36, 0.4)]
    meta = "<task><id>1</id><stop_frame>49</stop_frame><frame_filter>step=4</frame_filter></task>"
    spaced = "".join(f'<image id="{f}" name="{f}"><tag label="a"/></image>' for f in (4, 8, 48))
    path = write_text(tmp_path / "b.xml", cvat(meta=meta, rest=spaced))
    assert import_as_list(path, one) == [("a", 0.16, 0.48), ("a", 1.92, 2.0)]


def test_a_job_of_cvat_that_names_no_video_is_of_the_only_one(one, tmp_path, capsys):
    meta = "<job><id>4344203</id><stop_frame>30</stop_frame></job>"
    path = write_text(tmp_path / "job.xml", cvat(("a", box(5, 0)), meta=meta))
    assert import_as_list(path, one) == [("a", 0.2, 1.24)]
    write_frames(one / "other.mp4", TIMES["even.mp4"])
    assert "1 found more than once: (no name in job.xml) is clip.mp4 or other.mp4" in refused(
        capsys, path, one
    )
    assert import_as_list(path, one / "clip.mp4") == [("a", 0.2, 1.24)]


def test_tracks_of_a_cvat_project_belong_to_their_tasks(one, tmp_path):
    write_frames(one / "other.mp4", TIMES["even.mp4"])
    tasks = "".join(
        f"<task><id>{n}</id><source>{name}</source></task>"
        for n, name in ((11, "clip.mp4"), (12, "other.mp4"))
    )
    text = cvat(
        ("a", box(5, 0), box(6, 1)),
        ("b", box(7, 0), box(8, 1)),
        meta=f"<project><tasks>{tasks}</tasks></project>",
    )
    text = text.replace('id="0" label', 'id="0" task_id="12" label').replace(
        'id="1" label', 'id="1" task_id="11" label'
    )
    path = write_text(tmp_path / "a.xml", text)
    segments, _ = read_annotations([path], one, timelines=Timelines())
    assert {(s.name, s.label) for s in segments} == {("other.mp4", "a"), ("clip.mp4", "b")}


def via(segments, attribute=None, name="clip.mp4"):
    choice = {
        "aname": "Activity",
        "anchor_id": "FILE1_Z2_XY0",
        "type": 4,
        "options": {"1": "Break Egg", "2": "Mix"},
    }
    return {
        "project": {"pid": "x", "data_format_version": "3.1.1", "vid_list": ["1"]},
        "attribute": attribute or {"1": choice},
        "file": {"1": {"fid": "1", "fname": name, "type": 4, "loc": 1, "src": ""}},
        "view": {"1": {"fid_list": ["1"]}},
        "metadata": {f"1_{i}": {"vid": "1", "flg": 0, "xy": [], **one} for i, one in enumerate(segments)},
    }


def test_via_says_times_in_seconds_and_labels_as_options_or_text(one, tmp_path, capsys):
    project = via(
        [
            {"z": [0.2, 0.4], "av": {"1": "1"}},
            {"z": [0.3, 1.2], "av": {"1": "Mix"}},
            {"z": [0.5], "xy": [2, 10, 20, 40, 50], "av": {"1": "1"}},
            {"z": [0.5, 0.7], "av": {}},
        ]
    )
    path = write_text(tmp_path / "a.json", project)
    assert import_as_list(path, one) == [("Break Egg", 0.2, 0.4), ("Mix", 0.3, 1.2)]
    said = capsys.readouterr().err
    assert "1 that are no stretch of time left out" in said
    assert "1 without a label left out" in said


def test_every_attribute_of_a_via_segment_is_a_label(one, tmp_path):
    text = {"aname": "who", "anchor_id": "FILE1_Z2_XY0", "type": 1, "options": {}}
    several = {"aname": "what", "anchor_id": "FILE1_Z2_XY0", "type": 2, "options": {"0": "run", "1": "jump"}}
    project = via([{"z": [0, 1], "av": {"1": "anna, of all", "2": "0,1"}}], {"1": text, "2": several})
    found = import_as_list(write_text(tmp_path / "a.json", project), one)
    assert {label for label, _, _ in found} == {"anna, of all", "run", "jump"}


ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/sound.wav" MIME_TYPE="audio/x-wav"/>
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/clip.mp4" MIME_TYPE="video/mp4" ORIGIN/>
  </HEADER>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="440"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="960"/>
    <TIME_SLOT TIME_SLOT_ID="ts3"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="1001"/>
  </TIME_ORDER>
  <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="hand">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
      <ANNOTATION_VALUE>wave &amp; go</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3">
      <ANNOTATION_VALUE>part</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="head">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE>nod</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a4" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE/></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  <TIER LINGUISTIC_TYPE_REF="translation" TIER_ID="words" PARENT_REF="hand">
    <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a5" ANNOTATION_REF="a1">
      <ANNOTATION_VALUE>hello</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
  </TIER>
</ANNOTATION_DOCUMENT>"""


def test_elan_annotations_of_all_tiers_are_segments_in_milliseconds(one, tmp_path, capsys):
    path = write_text(tmp_path / "a.eaf", ELAN.replace("ORIGIN", ""))
    assert import_as_list(path, one) == [("wave & go", 0.44, 0.96), ("nod", 0.96, 1.001)]
    said = capsys.readouterr().err
    assert "2 without a time of their own left out" in said
    assert "1 without a label left out" in said
    moved = write_text(tmp_path / "b.eaf", ELAN.replace("ORIGIN", 'TIME_ORIGIN="200"'))
    assert import_as_list(moved, one) == [("wave & go", 0.64, 1.16), ("nod", 1.16, 1.201)]
    frames = write_text(tmp_path / "c.eaf", ELAN.replace("ORIGIN", "").replace("milliseconds", "PAL-frames"))
    assert "its times are in PAL-frames; expected milliseconds" in refused(capsys, frames, one)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [(1, 1.0), (1.5, 1.5), ("1.5", 1.5), ("00:01", 1.0), ("00:01.25", 1.25), ("00:00:01", 1.0)],
)
def test_create_ml_says_times_in_seconds_or_minutes(one, tmp_path, time, seconds):
    rows = [
        {"video": "clip.mp4", "label": "jump", "start": time, "end": 2},
        {"video": "clip.mp4", "label": "whole"},
    ]
    found = import_as_list(write_text(tmp_path / "a.json", rows), one)
    assert sorted(found) == [("jump", seconds, 2.0), ("whole", 0.0, 2.0)]
    table = write_text(tmp_path / "a.csv", f"video,label,start,end\nclip.mp4,jump,{time},2\n")
    assert import_as_list(table, one) == [("jump", seconds, 2.0)]


def test_fiftyone_supports_are_frames_from_one_with_the_last(one, tmp_path, capsys):
    detections = [
        {"label": 1, "support": [3, 5], "confidence": 0.9},
        {"label": 0, "timestamps": [0.4, 1.2]},
    ]
    data = {"classes": ["run", "jump"], "labels": {"clip": detections, "other": None}}
    path = write_text(tmp_path / "labels.json", data)
    assert import_as_list(path, one) == [("jump", 0.08, 0.2), ("run", 0.4, 1.2)]
    assert "1 videos without annotations left out" in capsys.readouterr().err
    detections[0]["label"] = 2
    assert "label is 2; expected one of the 2 classes" in refused(capsys, write_text(path, data), one)


def test_fiftyone_samples_are_read_whatever_their_field_is_called(one, tmp_path, capsys):
    detections = [{"_cls": "TemporalDetection", "label": "jump", "support": [3, 5]}]
    sample = {
        "filepath": "/home/me/fiftyone/data/clip.mp4",
        "metadata": {"_cls": "VideoMetadata", "total_frame_count": 50, "duration": 2.0},
        "events": {"_cls": "TemporalDetections", "detections": detections},
    }
    path = write_text(tmp_path / "samples.json", {"samples": [sample]})
    assert import_as_list(path, one) == [("jump", 0.08, 0.2)]
    sample["metadata"]["total_frame_count"] = 60
    assert "counted 60 frames, and the video has 50" in refused(
        capsys, write_text(path, {"samples": [sample]}), one
    )


# Names of videos


@pytest.mark.parametrize(
    "called",
    [
        "/data/upload/1/8d1f0c2a-my_clip_1.mp4",
        "/data/local-files/?d=takes/my%20clip%20%281%29.mp4",
        "https://example.org/takes/my%20clip%20(1).mp4?signature=abc",
        "s3://bucket/takes/my clip (1).mp4",
        "C:\\Users\\me\\my clip (1).mp4",
        "file:///home/me/my%20clip%20(1).mp4",
        "8d1f0c2a-my clip (1).mp4",
        "./my clip (1).mp4",
    ],
)
def test_a_video_is_found_by_its_name_whatever_a_tool_did_to_it(tmp_path, called):
    write_frames(tmp_path / "videos/takes/my clip (1).mp4", TIMES["even.mp4"])
    write_frames(tmp_path / "videos/takes/my clip.mp4", TIMES["even.mp4"])
    path = write_text(tmp_path / "a.json", [label_studio((3, 5), video=called)])
    [segment], _ = read_annotations([path], tmp_path / "videos", timelines=Timelines())
    assert segment.name == "takes/my clip (1).mp4"


@pytest.mark.parametrize("called", ["deface-clip.mp4", "my clip.mp4", "clip.mov", "clip/other", "lip.mp4"])
def test_a_video_of_nearly_the_same_name_is_another_one(tmp_path, called):
    write_frames(tmp_path / "videos/my_clip.mp4", TIMES["even.mp4"])
    if called != "my clip.mp4":
        (tmp_path / "videos/my_clip.mp4").rename(tmp_path / "videos/clip.mp4")
    path = write_text(tmp_path / "a.json", {"labels": {called: [{"label": "a", "support": [1, 2]}]}})
    with pytest.raises(ValueError, match="1 not found"):
        read_annotations([path], tmp_path / "videos", timelines=Timelines())


def test_names_that_are_not_found_or_found_twice_are_all_in_one_error(one, tmp_path, capsys):
    for folder in ("a", "b"):
        write_frames(one / folder / "same.mp4", TIMES["even.mp4"])
    names = ["gone.mp4", "same.mp4", "away.mp4", "../../etc/passwd.mp4", "clip.mp4"]
    path = write_text(tmp_path / "a.json", [label_studio((3, 5), video=name) for name in names])
    said = refused(capsys, path, one)
    assert "3 not found: gone.mp4, away.mp4, ../../etc/passwd.mp4" in said
    assert "1 found more than once: same.mp4 is a/same.mp4 or b/same.mp4" in said
    path = write_text(tmp_path / "a.json", [label_studio((3, 5), video="/data/b/same.mp4")])
    [segment], _ = read_annotations([path], one, timelines=Timelines())
    assert segment.name == "b/same.mp4"


# What is odd


def test_a_segment_past_the_end_is_cut_and_counted(one, tmp_path, capsys):
    rows = [{"video": "clip.mp4", "label": "long", "start": 1, "end": 9}]
    rows += [{"video": "clip.mp4", "label": "rounded", "start": 1, "end": 2.03}]
    rows += [{"video": "clip.mp4", "label": "point", "start": 1, "end": 1}]
    assert import_as_list(write_text(tmp_path / "a.json", rows), one) == [
        ("long", 1.0, 2.0),
        ("rounded", 1.0, 2.0),
    ]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 that went past the end of the video cut there" in said
    assert "1 without a length left out" in said
    frames = write_text(tmp_path / "b.json", {"labels": {"clip": [{"label": "a", "support": [26, 90]}]}})
    assert import_as_list(frames, one) == [("a", 1.0, 2.0)]
    rows = [{"video": "clip.mp4", "label": "late", "start": 2.5, "end": 3}]
    assert "1 annotations start after the end of the video" in refused(
        capsys, write_text(tmp_path / "c.json", rows), one
    )


def test_overlapping_segments_go_to_further_tiers_of_elan(one, tmp_path):
    spans = [(0.0, 1.0), (0.4, 0.8), (0.6, 1.2), (0.8, 1.0), (1.0, 1.4)]
    segments = [Segment(one / "clip.mp4", "clip.mp4", "x", *span) for span in spans]
    [path] = write_annotations(tmp_path / "a.eaf", "elan", segments, timelines=Timelines())
    root = files.read_annotation_file(path).xml
    slots = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")}
    assert list(slots.values()) == sorted(set(slots.values()))
    assert len(root.findall("TIER")) == 3
    for tier in root.findall("TIER"):
        ends = [
            (slots[a.get("TIME_SLOT_REF1")], slots[a.get("TIME_SLOT_REF2")])
            for a in tier.iter("ALIGNABLE_ANNOTATION")
        ]
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))
    back, _ = read_annotations([path], one, timelines=Timelines())
    assert sorted((round(s.start_seconds, 6), round(s.end_seconds, 6)) for s in back) == spans


@pytest.mark.parametrize("label", ['say "hi", then; go', "a\tb\n c", "🙂 café", "-5", "1"])
@pytest.mark.parametrize("name", ANNOTATIONS)
def test_labels_of_any_text_come_back_on_one_line(one, tmp_path, label, name):
    rows = [{"video": "clip.mp4", "label": label, "start": 0, "end": 1}]
    source = write_text(tmp_path / "a.json", rows)
    suffix = next(form.suffix for form in FORMATS if form.name == name)
    output = tmp_path / f"b{suffix}"
    options = ["--videos", str(one), "--format", name, "--output", str(output)]
    assert main(["data", "export", str(source), *options]) == 0
    [(back, _, _)] = import_as_list(output, one)
    assert back == " ".join(label.split())


def test_a_label_that_a_list_or_xml_cannot_hold_is_one_error(one, tmp_path, capsys):
    minus = write_text(tmp_path / "a.json", [{"video": "clip.mp4", "label": "-1", "start": 0, "end": 1}])
    assert "stands for no label" in refused(capsys, minus, one)
    odd = write_text(tmp_path / "b.json", [{"video": "clip.mp4", "label": "a\x01b", "start": 0, "end": 1}])
    for name in ("cvat", "elan"):
        options = ["--videos", str(one), "--format", name, "--output", str(tmp_path / "out")]
        assert main(["data", "export", str(odd), *options]) == 1
        assert "XML can't hold the character" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    # In more than half of the lines a tab or semicolon would be taken for what separates the columns.
    rows = [{"video": "clip.mp4", "label": "a;b", "start": i, "end": 2} for i in (0, 1)]
    many = write_text(tmp_path / "c.json", rows)
    assert "a list can't hold these names" in refused(capsys, many, one)


# What is wrong


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;&x;">]><annotations>&z;</annotations>'
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"some": "thing"}', "no known format. What was looked for: Label Studio"),
        ("<other/>", "no known format. What was looked for: Label Studio"),
        ("a,b\nc,d\n", "no known format. What was looked for: Label Studio"),
        (BOMB, "it has a DOCTYPE"),
        ("<a>" * 200, "deep in each other"),
        ("[" * 100000, "deep in each other"),
        ('[{"video": "clip.mp4", "label": "a", "start": NaN, "end": 1}]', "NaN is no number"),
        (
            '[{"video": "clip.mp4", "label": "a", "start": 1e999, "end": 1}]',
            "start is inf; expected a number",
        ),
        ('[{"video": "clip.mp4", "label": "a", "start": 1, "end": 0.5}]', "it goes from 1 to 0.5; expected"),
        ('[{"video": "clip.mp4", "label": ["a"], "start": 1}]', "the label is ['a']; expected text"),
        (json.dumps([label_studio((3, 5.5))]), "end is 5.5; expected a frame's number"),
        (json.dumps([label_studio((9, 5))]), "a range goes from 9 to 5; expected"),
        (json.dumps([label_studio((3, 5), fps=0)]), "fps is 0; expected more than 0"),
        (json.dumps([label_studio((3, 5), video="no name")]), "its data names 0 videos (none); expected one"),
        (json.dumps(via([{"z": ["x", 2], "av": {}}])), "a time is 'x'; expected a number"),
        (json.dumps({**via([{"z": [1, 2]}]), "view": {}}), "is of no file or several"),
        (json.dumps({"labels": {"clip": [{"label": "a"}]}}), "neither support nor timestamps"),
        (
            json.dumps({"labels": {"clip": []}}),
            "no labelled stretch of a video; 1 videos without annotations",
        ),
        (cvat(("a", '<box frame="x" outside="0"/>')), "frame is 'x'; expected a number"),
        (ELAN.replace("ORIGIN", "").replace('REF2="ts2"', 'REF2="ts9"'), "there is no time slot 'ts9'"),
        ("", "the list is empty"),
    ],
)
def test_what_is_no_annotation_is_one_error_and_nothing_is_written(one, tmp_path, capsys, content, said):
    assert said in refused(capsys, write_text(tmp_path / "bad.json", content), one)


@pytest.mark.parametrize("name", [name for name in ANNOTATIONS if name != "segments"])
def test_a_half_written_file_is_one_error(one, tmp_path, capsys, name):
    segments = [Segment(one / "clip.mp4", "clip.mp4", "x", 0.0, 1.0)]
    [path] = write_annotations(tmp_path / "whole", name, segments, timelines=Timelines())
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        half = tmp_path / "half"
        half.write_bytes(content[: int(share * len(content))])
        assert "not whole" in refused(capsys, half, one)
        half.unlink()


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_mutated_annotations_are_read_or_refused_in_a_line(one, tmp_path, name):
    timelines = Timelines()
    segments = [Segment(one / "clip.mp4", "clip.mp4", f"x{i}", i / 10, 1.5) for i in range(4)]
    suffix = next(form.suffix for form in FORMATS if form.name == name)
    [path] = write_annotations(tmp_path / f"whole{suffix}", name, segments, timelines=timelines)
    content = path.read_text(encoding="utf-8")
    values = [
        "null",
        "[]",
        "{}",
        "-1",
        "1e400",
        "true",
        '""',
        "",
        "9" * 5000,
        "NaN",
        '"a"',
        "[1,2]",
        "<a/>",
        "\x00",
        "é",
    ]
    pieces = re.findall(r'"[^"]*"|[\w.]+|.', content, flags=re.DOTALL)
    rng = random.Random(0)
    outcomes = Counter()
    for _ in range(150):
        mutated = list(pieces)
        for _ in range(rng.randint(1, 3)):
            mutated[rng.randrange(len(mutated))] = rng.choice([*values, rng.choice(pieces)])
        try:
            read_annotations([write_text(path, "".join(mutated))], one, timelines=timelines)
            outcomes["read"] += 1
        except (ValueError, VideoError) as error:
            outcomes["refused" if str(error) else "refused without a word"] += 1
    assert outcomes["refused"] > 10
    assert not outcomes["refused without a word"]


def test_archives_and_large_files_are_refused_before_they_are_read(one, tmp_path, capsys, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("annotations.xml", "<annotations/>")
    assert "is a ZIP archive; unpack it" in refused(capsys, tmp_path / "a.zip", one)
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    assert "expected at most" in refused(capsys, write_text(tmp_path / "a.json", [label_studio((3, 5))]), one)
    assert "there is no such file" in refused(capsys, tmp_path / "gone.json", one)


def test_a_rate_for_annotations_that_count_no_ticks_is_an_error(one, tmp_path, capsys):
    path = write_text(tmp_path / "a.xml", cvat(("a", box(5, 0))))
    assert "expected no --fps" in refused(capsys, path, one, "--fps", "30")


# The commands


def test_the_formats_of_the_command_line_are_those_that_are_written():
    assert sorted(ANNOTATIONS) == sorted({form.name for form in FORMATS} - {"events"})


def test_events_of_predict_can_be_corrected_in_a_tool(one, tmp_path, capsys):
    write_frames(one / "other.mp4", TIMES["even.mp4"])
    header = "start_seconds,end_seconds,label,index,probability"
    for name in ("clip", "other"):
        write_text(tmp_path / f"{name}.csv", f"{header}\n0.000,0.480,wave,0,0.9\n1.000,2.000,nod,1,0.8\n")
    event = {"label": "wave", "index": 0, "start_seconds": 0.2, "end_seconds": 0.4, "probability": 0.9}
    write_text(tmp_path / "e.json", {"video": "/elsewhere/clip.mp4", "settings": {}, "events": [event]})
    events = [str(tmp_path / name) for name in ("clip.csv", "other.csv", "e.json")]
    output = tmp_path / "tasks.json"
    options = ["--videos", str(one), "--format", "label-studio", "--output", str(output)]
    assert main(["data", "export", *events, *options]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    tasks = json.loads(output.read_text(encoding="utf-8"))
    assert [task["data"] for task in tasks] == [
        {"video": "/data/local-files/?d=clip.mp4", "fps": 25.0},
        {"video": "/data/local-files/?d=other.mp4", "fps": 25.0},
    ]
    ranges = [one["value"]["ranges"] for one in tasks[0]["annotations"][0]["result"]]
    assert ranges == [[{"start": 1, "end": 12}], [{"start": 6, "end": 10}], [{"start": 26, "end": 50}]]
    assert main(["data", "export", *events, "--format", "via", "--output", str(output)]) == 1
    assert "--videos isn't given" in capsys.readouterr().err


def test_a_list_of_ours_needs_no_folder_of_videos_to_be_exported(one, tmp_path, capsys):
    bars = np.zeros((10, 32, 32, 3), np.uint8)
    (one / "a").mkdir()
    (one / "clip.mp4").rename(one / "a/clip.mp4")
    write_video(one / "b/clip.mp4", bars, fps=10)
    path = write_text(
        one / "list.csv", "path,label,start_seconds,end_seconds\na/clip.mp4,a,0.2,0.4\nb/clip.mp4,b,,\n"
    )
    output = tmp_path / "out"
    assert main(["data", "export", str(path), "--format", "cvat", "--output", str(output)]) == 0
    assert sorted(file.name for file in output.iterdir()) == ["a_clip.xml", "b_clip.xml"]
    assert capsys.readouterr().out.split() == [str(output / "a_clip.xml"), str(output / "b_clip.xml")]
    segments, _ = read_annotations(sorted(output.iterdir()), one, timelines=Timelines())
    assert [(s.name, s.label, s.start_seconds, s.end_seconds) for s in segments] == [
        ("a/clip.mp4", "a", 0.2, 0.4),
        ("b/clip.mp4", "b", 0.0, 1.0),
    ]
    for name, target, said in [
        ("elan", tmp_path / "b.eaf", "elan has a file for each video, and there are 2"),
        ("elan", output, "the folder isn't empty"),
        ("via", output, "is a folder; expected a file's name"),
    ]:
        assert main(["data", "export", str(path), "--format", name, "--output", str(target)]) == 1
        assert said in capsys.readouterr().err


def test_a_conversion_does_not_write_over_what_it_reads(one, tmp_path, capsys):
    path = write_text(one / "list.csv", "path,label,start_seconds,end_seconds\nclip.mp4,a,0.2,0.4\n")
    for output in (path, one / "clip.mp4"):
        before = output.read_bytes()
        assert main(["data", "export", str(path), "--format", "via", "--output", str(output)]) == 1
        assert "would be written over" in capsys.readouterr().err
        assert output.read_bytes() == before


def test_every_split_of_a_list_is_exported(one, tmp_path):
    text = "path,label,start_seconds,end_seconds,split\nclip.mp4,a,0.2,0.4,train\nclip.mp4,b,1,2,val\n"
    path = write_text(one / "list.csv", text)
    output = tmp_path / "a.json"
    assert main(["data", "export", str(path), "--format", "createml", "--output", str(output)]) == 0
    assert [row["label"] for row in json.loads(output.read_text(encoding="utf-8"))] == ["a", "b"]
