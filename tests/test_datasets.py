import json
import os
import pickle
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from frameflex.data import datasets
from frameflex.data.datasets import (
    BadVideo,
    BadVideos,
    Batch,
    ClipDataset,
    VideoList,
    VideoRecord,
    collate,
    find_video_files,
    load_videos,
)
from frameflex.data.loading import read_ahead
from frameflex.data.sampling import eval_indices
from frameflex.data.transforms import EvalTransform, Preprocessing, TrainTransform, exchange_directions
from frameflex.video import Limits, VideoError, open_video
from frameflex.video import reader as video

RAW = Preprocessing(short_side=32, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1))
FPS = 10


def write_video(path: Path, frames: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbered(path: Path, num_frames: int = 20, height: int = 32, width: int = 48) -> Path:
    """A video whose frame k is grey of brightness 4 k + 8."""
    grey = (4 * np.arange(num_frames) + 8).astype(np.uint8)
    return write_video(path, np.tile(grey[:, None, None, None], (1, height, width, 3)))


def shown(clip: torch.Tensor) -> list[int]:
    """Read the frame numbers off a clip `(3, T, H, W)` with values from 0 to 1."""
    return ((clip.mean(dim=(0, 2, 3)) * 255 - 8) / 4).round().int().tolist()


def moving(path: Path, *, to_the_right: bool) -> Path:
    """A white square that crosses a black picture."""
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    for k in range(16):
        left = 2 * k if to_the_right else 30 - 2 * k
        frames[k, 10:20, max(0, left - 4) : left + 4] = 255
    return write_video(path, frames)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def seen(videos: VideoList) -> list[tuple[str, str | None]]:
    return [(r.name, None if r.label is None else videos.classes[r.label]) for r in videos.records]


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# The list


def test_packed_records_come_back_as_they_were():
    records = [
        VideoRecord(Path("a/b c.mp4"), 1, "b c"),
        VideoRecord(Path("/x/ü\udcff.webm"), None, "ü"),
        VideoRecord(Path("long.mp4"), 0, "long", 0.0, 2.5),
        VideoRecord(Path("long.mp4"), 0, "long", 2.5, None),
    ]
    videos = VideoList(records, ["zero", "one"])
    assert list(videos) == records
    assert [videos[i] for i in range(-4, 0)] == records
    assert videos.labels == [1, -1, 0, 0]
    assert list(videos.subset([3, 0])) == [records[3], records[0]]
    with pytest.raises(IndexError):
        videos[4]


def test_labels_have_to_be_indices_of_distinct_classes():
    with pytest.raises(ValueError, match="label is 2; expected None or an index of the 2 classes"):
        VideoList([VideoRecord(Path("a"), 2, "a")], ["x", "y"])
    with pytest.raises(ValueError, match="'x' is there twice"):
        VideoList([], ["x", "x"])


# Layouts


def test_a_folder_per_class_gives_sorted_classes(tmp_path):
    touch(tmp_path / "walk/2.MP4", tmp_path / "run/1.webm", tmp_path / "run/day 2/3.avi")
    touch(
        tmp_path / "run/notes.txt", tmp_path / ".cache/x.mp4", tmp_path / "README.md", tmp_path / "labels.csv"
    )
    touch(tmp_path / "walk/frames/00001.jpg", tmp_path / "walk/frames/00002.jpg", tmp_path / "scripts/run.py")
    videos = load_videos(tmp_path)
    assert videos.classes == ("run", "walk")
    assert videos.layout == "folder per class"
    assert seen(videos) == [
        ("run/1.webm", "run"),
        ("run/day 2/3.avi", "run"),
        ("walk/2.MP4", "walk"),
        ("walk/frames", "walk"),
    ]
    assert videos[0].path == tmp_path / "run/1.webm"


def test_split_folders_share_the_classes_of_all_splits(tmp_path):
    touch(
        tmp_path / "train/b/1.mp4",
        tmp_path / "train/c/2.mp4",
        tmp_path / "val/a/3.mp4",
        tmp_path / "val/c/4.mp4",
    )
    train, validation = load_videos(tmp_path, split="train"), load_videos(tmp_path, split="val")
    assert train.classes == validation.classes == ("a", "b", "c")
    assert seen(train) == [("b/1.mp4", "b"), ("c/2.mp4", "c")]
    assert (
        seen(validation)
        == seen(load_videos(tmp_path, split="validation"))
        == [("a/3.mp4", "a"), ("c/4.mp4", "c")]
    )
    with pytest.raises(
        ValueError, match="split is None; expected one of those that are there: train, validation"
    ):
        load_videos(tmp_path)
    with pytest.raises(ValueError, match="split is 'test'; expected one of"):
        load_videos(tmp_path, split="test")


def test_a_class_can_be_called_train(tmp_path):
    touch(tmp_path / "train/1.mp4", tmp_path / "bus/2.mp4")
    assert load_videos(tmp_path).classes == ("bus", "train")
    with pytest.raises(ValueError, match="not divided into splits"):
        load_videos(tmp_path, split="train")


@pytest.mark.parametrize("separator", [",", "\t", ";", " ", ", "])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("numbers", [True, False])
def test_lists_are_read_with_each_separator(tmp_path, separator, header, numbers):
    touch(tmp_path / "v/a.mp4", tmp_path / "v/b.mp4", tmp_path / "c.webm")
    lines = [("v/a.mp4", "run"), ("v/b.mp4", "walk"), ("c.webm", "run")]
    if numbers:
        lines = [(path, {"run": "0", "walk": "2"}[label]) for path, label in lines]
    rows = [("path", "label")] * header + lines
    (tmp_path / "list.txt").write_text("\n".join(separator.join(row) for row in rows) + "\n\n")
    videos = load_videos(tmp_path / "list.txt")
    assert seen(videos) == lines
    assert videos.classes == (("0", "1", "2") if numbers else ("run", "walk"))
    assert videos[0].path == tmp_path / "v/a.mp4"
    assert videos.layout == "list"


def test_lists_keep_spaces_quotes_times_and_unknown_labels(tmp_path):
    touch(tmp_path / "videos/my video.mp4", tmp_path / "videos/b.mp4")
    (tmp_path / "list.csv").write_bytes(
        b'\xef\xbb\xbfmy video.mp4,turning left,0.5,2\r\nb.mp4,"push, then pull",,1.5\r\nb.mp4,,3,\r\n'
    )
    videos = load_videos(tmp_path / "list.csv", video_dir=tmp_path / "videos")
    assert seen(videos) == [("my video.mp4", "turning left"), ("b.mp4", "push, then pull"), ("b.mp4", None)]
    assert [(r.start_seconds, r.end_seconds) for r in videos] == [(0.5, 2.0), (None, 1.5), (3.0, None)]


def test_a_header_puts_columns_in_any_order_beside_others(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "list.csv").write_text("scene,Label,split,path\n3,run,train,a.mp4\n4,walk,val,b.mp4\n")
    train, validation = (load_videos(tmp_path / "list.csv", split=split) for split in ("train", "val"))
    assert seen(train) == [("a.mp4", "run")]
    assert seen(validation) == [("b.mp4", "walk")]
    assert train.classes == validation.classes == ("run", "walk")
    with pytest.raises(ValueError, match="split is None; expected one of"):
        load_videos(tmp_path / "list.csv")


def test_a_list_of_paths_alone_has_no_labels(tmp_path):
    touch(tmp_path / "my video.mp4", tmp_path / "b.mp4")
    (tmp_path / "list.txt").write_text("my video.mp4\nb.mp4\n")
    assert seen(load_videos(tmp_path / "list.txt")) == [("my video.mp4", None), ("b.mp4", None)]


def test_a_folder_of_lists_is_read_by_split_with_the_classes_of_all(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4")
    (tmp_path / "train.csv").write_text("a.mp4,walk\nb.mp4,run\n")
    (tmp_path / "val.csv").write_text("c.mp4,walk\nnot-there.mp4,jump\n")
    train = load_videos(tmp_path, split="train")
    assert train.classes == ("jump", "run", "walk")
    assert seen(train) == [("a.mp4", "walk"), ("b.mp4", "run")]
    with pytest.raises(FileNotFoundError, match="1 of 2 videos are not there"):
        load_videos(tmp_path, split="val")


def test_absolute_paths_are_allowed_and_escapes_refused(tmp_path):
    touch(tmp_path / "elsewhere/a.mp4", tmp_path / "lists/b.mp4")
    path = tmp_path / "lists/list.csv"
    path.write_text(f"{tmp_path}/elsewhere/a.mp4,0\nsub/../b.mp4,1\n")
    assert [r.path for r in load_videos(path)] == [tmp_path / "elsewhere/a.mp4", tmp_path / "lists/b.mp4"]
    for escape in ("../elsewhere/a.mp4", "sub/../../elsewhere/a.mp4", ".."):
        path.write_text(f"b.mp4,0\n{escape},1\n")
        with pytest.raises(ValueError, match=r"list\.csv, line 2: path .* leaves the folder"):
            load_videos(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("path,label\n", "a header and no line"),
        ("a.mp4,0\na.mp4,1,2\n", "line 2: 3 columns; expected 2"),
        ("a.mp4,0\na.mp4\nb.mp4,1\n", "line 2: 1 columns; expected 2"),
        ("a.mp4 12 0\nb.mp4 13 1\n", "lines have 3 columns; expected path,label or"),
        ("a.mp4,0,five,6\n", "line 1: time is 'five'; expected seconds"),
        ("a.mp4,0,5,5\n", r"line 1: ends at 5.0 s; expected an end after"),
        ("path,label,start_frame\na.mp4,0,5\n", "column 'start_frame' is not known; expected start_seconds"),
        ("path,label,path\na.mp4,0,b.mp4\n", "two columns have the same name"),
        ("path,label,split\na.mp4,0,holdout\n", "line 2: split is 'holdout'; expected train"),
        (",0\n", "line 1: path is ''; expected the path"),
    ],
)
def test_wrong_lists_are_refused_with_their_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_videos(tmp_path / "list.csv")


def test_a_binary_file_is_not_a_list(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        load_videos(tmp_path / "list.csv")
    touch(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="not a list or a folder of videos"):
        load_videos(tmp_path / "a.mp4")


KINETICS = """label,youtube_id,time_start,time_end,split
abseiling,_4YTwq0-73Y,3,13,train
"air drumming",-_CEvzyeyEg,14,24,train
zumba,0NR5z2vQ7bM,100,110,validate
"""


@pytest.mark.parametrize("folders", [True, False])
def test_kinetics_lists_find_their_files(tmp_path, folders):
    files = {
        "abseiling": "_4YTwq0-73Y_000003_000013.mp4",
        "air drumming": "-_CEvzyeyEg_000014_000024.mkv",
        "zumba": "0NR5z2vQ7bM_000100_000110.mp4",
    }
    touch(*(tmp_path / "videos" / (label if folders else "") / file for label, file in files.items()))
    (tmp_path / "kinetics.csv").write_text(KINETICS)
    train, validation = (
        load_videos(tmp_path / "kinetics.csv", split=split, video_dir=tmp_path / "videos")
        for split in ("train", "val")
    )
    assert seen(train) == [
        ("_4YTwq0-73Y_000003_000013", "abseiling"),
        ("-_CEvzyeyEg_000014_000024", "air drumming"),
    ]
    assert seen(validation) == [("0NR5z2vQ7bM_000100_000110", "zumba")]
    assert train.classes == validation.classes == ("abseiling", "air drumming", "zumba")
    assert train.layout == "Kinetics, train"
    assert train[1].path.name == files["air drumming"]
    assert train[0].start_seconds is None  # the files are cut already


def test_a_kinetics_file_in_two_classes_is_taken_from_its_own(tmp_path):
    file = "_4YTwq0-73Y_000003_000013.mp4"
    touch(tmp_path / "abseiling" / file, tmp_path / "rock_climbing" / file)
    path = tmp_path / "train.csv"
    path.write_text("label,youtube_id,time_start,time_end\nrock climbing,_4YTwq0-73Y,3,13\n")
    assert load_videos(path)[0].path.parent.name == "rock_climbing"
    path.write_text("label,youtube_id,time_start,time_end\nzumba,_4YTwq0-73Y,3,13\n")
    with pytest.raises(ValueError, match="is in 2 folders"):
        load_videos(path)


LABELS_V2 = {"Pushing something so that it falls": "2", "Holding something": "0", "Moving something up": "1"}
TRAIN_V2 = [
    {"id": "78687", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]},
    {
        "id": "42326",
        "label": "moving a book up",
        "template": "Moving [something] up",
        "placeholders": ["a book"],
    },
]


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
@pytest.mark.parametrize(("place", "videos"), [("", "videos"), ("labels", "20bn-something-something-v2")])
def test_something_something_v2_is_read_as_distributed(tmp_path, prefix, place, videos):
    write_json(tmp_path / place / f"{prefix}labels.json", LABELS_V2)
    write_json(tmp_path / place / f"{prefix}train.json", TRAIN_V2)
    write_json(tmp_path / place / f"{prefix}test.json", [{"id": "5"}])
    touch(tmp_path / videos / "78687.webm", tmp_path / videos / "42326.mp4", tmp_path / videos / "5.webm")
    train = load_videos(tmp_path, split="train")
    assert train.classes == ("Holding something", "Moving something up", "Pushing something so that it falls")
    assert seen(train) == [("78687", "Holding something"), ("42326", "Moving something up")]
    assert [r.path.name for r in train] == ["78687.webm", "42326.mp4"]
    assert train.layout == "Something-Something V2, train"
    assert seen(load_videos(tmp_path, split="test")) == [("5", None)]
    assert seen(load_videos(tmp_path / place / f"{prefix}train.json")) == seen(train)
    with pytest.raises(ValueError, match="split is 'val.*'; expected one of those that are there: "):
        load_videos(tmp_path, split="val")


def test_broken_something_something_annotations_are_named_with_their_line(tmp_path):
    touch(tmp_path / "videos/78687.webm", tmp_path / "videos/42326.webm")
    write_json(tmp_path / "labels.json", LABELS_V2)
    train = write_json(tmp_path / "train.json", TRAIN_V2)
    assert len(load_videos(tmp_path, split="train")) == 2

    train.write_text('[{"id": "78687"},\n{"id": 4')
    with pytest.raises(ValueError, match=r"train\.json, line 2, column \d+: not JSON"):
        load_videos(tmp_path, split="train")
    write_json(train, [TRAIN_V2[0], {"id": "../42326"}])
    with pytest.raises(ValueError, match=r"train\.json, entry 2: is .*expected"):
        load_videos(tmp_path, split="train")
    write_json(train, [{"id": "78687", "template": "Juggling [something]"}])
    with pytest.raises(ValueError, match=r"entry 1: class 'Juggling something' is not in labels\.json"):
        load_videos(tmp_path, split="train")
    write_json(train, {"78687": "Holding something"})
    with pytest.raises(ValueError, match=r"train\.json: holds a dict; expected a list"):
        load_videos(tmp_path, split="train")
    write_json(train, TRAIN_V2)
    for wrong in ({"a": "0", "b": "2"}, {"a": "0", "b": "0"}, {}, ["a"], {"a": "x"}):
        write_json(tmp_path / "labels.json", wrong)
        with pytest.raises(ValueError, match=r"labels\.json: expected an object of class names"):
            load_videos(tmp_path, split="train")


def test_something_something_v1_is_read_as_distributed(tmp_path):
    (tmp_path / "something-something-v1-labels.csv").write_text(
        "Holding something\nAttaching one, then two\n"
    )
    (tmp_path / "something-something-v1-train.csv").write_text(
        "100218;Attaching one, then two\n4;Holding something\n"
    )
    (tmp_path / "something-something-v1-test.csv").write_text("7\n8\n")
    folder = tmp_path / "20bn-something-something-v1"
    touch(*(folder / name / "00001.jpg" for name in ("100218", "4", "7", "8")))
    train = load_videos(tmp_path, split="train")
    assert train.classes == ("Holding something", "Attaching one, then two")
    assert seen(train) == [("100218", "Attaching one, then two"), ("4", "Holding something")]
    assert train[0].path == folder / "100218"
    assert train.layout == "Something-Something V1, train"
    assert seen(load_videos(tmp_path, split="test")) == [("7", None), ("8", None)]
    (tmp_path / "something-something-v1-train.csv").write_text("100218;Attaching\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 1: class 'Attaching' is not in"):
        load_videos(tmp_path, split="train")


def test_an_unknown_layout_lists_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_videos(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="it holds nothing"):
        load_videos(tmp_path)
    touch(tmp_path / "a.mp4", tmp_path / "notes/x.txt")
    with pytest.raises(ValueError, match=r"it holds a.mp4, notes/.\nLayouts that are known") as caught:
        load_videos(tmp_path)
    assert all(word in str(caught.value) for word in ("CLASS/video.mp4", "list", "Kinetics", "V1", "V2"))


def test_videos_without_their_annotations_are_not_taken_for_one_class(tmp_path):
    touch(tmp_path / "20bn-something-something-v2/1.webm")
    with pytest.raises(ValueError, match="no list or annotations"):
        load_videos(tmp_path)


def test_missing_files_are_counted_and_named_in_one_error(tmp_path):
    touch(tmp_path / "there.mp4")
    (tmp_path / "list.csv").write_text("there.mp4,a\n" + "".join(f"gone{i:02}.mp4,b\n" for i in range(12)))
    with pytest.raises(FileNotFoundError, match="12 of 13 videos are not there") as caught:
        load_videos(tmp_path / "list.csv")
    assert "gone09.mp4" in str(caught.value)
    assert "gone10.mp4" not in str(caught.value)
    assert "and 2 more" in str(caught.value)
    videos = load_videos(tmp_path / "list.csv", on_missing="skip")
    assert seen(videos) == [("there.mp4", "a")]
    assert videos.classes == ("a", "b")
    assert videos.missing == tuple(f"gone{i:02}.mp4" for i in range(12))


def test_classes_of_a_checkpoint_are_mapped_by_name(tmp_path):
    touch(tmp_path / "walk/1.mp4", tmp_path / "run/2.mp4")
    videos = load_videos(tmp_path, classes=["walk", "jump", "run"])
    assert videos.classes == ("walk", "jump", "run")
    assert videos.labels == [2, 0]
    with pytest.raises(ValueError, match="class 'walk' is not among the 1 that are expected"):
        load_videos(tmp_path, classes=["run"])


def test_numbers_are_indices_of_given_classes(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "list.csv").write_text("a.mp4,2\nb.mp4,0\n")
    assert load_videos(tmp_path / "list.csv", classes=["x", "y", "z"]).labels == [2, 0]
    with pytest.raises(ValueError, match="line 1: class '2' is not among the 2"):
        load_videos(tmp_path / "list.csv", classes=["x", "y"])


@pytest.mark.parametrize("shuffled", [False, True])
def test_numbers_as_labels_are_names_or_indices_for_a_whole_list_and_a_mixture_is_refused(tmp_path, shuffled):
    touch(*(tmp_path / f"{i}.mp4" for i in range(3)))
    names = [str(i) for i in range(1, 11)]  # classes that are called 1 to 10

    def labels(*given):
        lines = [f"{i}.mp4,{label}\n" for i, label in enumerate(given)]
        (tmp_path / "list.csv").write_text("".join(reversed(lines) if shuffled else lines))
        found = load_videos(tmp_path / "list.csv", classes=names)
        return {record.name: record.label for record in found}

    assert labels(1, 10, 3) == {"0.mp4": 0, "1.mp4": 9, "2.mp4": 2}
    assert labels(0) == {"0.mp4": 0}
    with pytest.raises(ValueError, match=r"2 of them are names of classes \(1, 2\) while 1 are not \(0\)"):
        labels(0, 1, 2)
    with pytest.raises(ValueError, match="class '11' is not among the 10"):
        labels(1, 11)


def test_the_other_splits_of_a_folder_take_part_in_what_numbers_mean(tmp_path):
    touch(*(tmp_path / f"{i}.mp4" for i in range(3)))
    (tmp_path / "train.csv").write_text("0.mp4,0\n1.mp4,1\n")
    (tmp_path / "val.csv").write_text("2.mp4,1\n")  # alone it could be the name of the first class
    with pytest.raises(ValueError, match="expected all to be names or all to be indices"):
        load_videos(tmp_path, split="validation", classes=["1", "2", "3"])
    assert load_videos(tmp_path, split="validation", classes=["a", "b", "c"]).labels == [1]


def test_a_list_without_labels_has_no_say_in_what_labels_are(tmp_path):
    touch(*(tmp_path / f"{i}.mp4" for i in range(4)))
    (tmp_path / "train.csv").write_text("0.mp4,0\n1.mp4,2\n")
    (tmp_path / "val.csv").write_text("2.mp4,1\n")
    (tmp_path / "test.csv").write_text("3.mp4\n")
    assert load_videos(tmp_path, split="train").labels == [0, 2]
    assert load_videos(tmp_path, split="validation").classes == ("0", "1", "2")
    assert load_videos(tmp_path, split="test").labels == [-1]


@pytest.mark.parametrize(
    ("bad", "num_videos", "stops"),
    [(2, 100, False), (3, 84, False), (4, 84, True), (4, 400, False), (5, 400, True)],
)
def test_more_than_one_percent_and_more_than_three_bad_videos_stop_work_that_skips_them(
    bad, num_videos, stops
):
    videos = BadVideos(num_videos, "skip")
    found = [BadVideo(i, f"{i}.mp4", "broken") for i in range(bad)]
    if stops:
        with pytest.raises(
            VideoError, match=f"{bad} of {num_videos} videos can't be decoded, more than 1% and more"
        ):
            videos.add(found)
    else:
        videos.add(found)
        assert len(videos.found) == bad


def test_what_is_hidden_is_passed_over_in_one_way(tmp_path):
    seen = ["run/a.mp4", "walk/deep/b.mp4"]
    hidden = ["run/._a.mp4", "run/.ipynb_checkpoints/a.mp4", "__MACOSX/run/a.mp4", ".cache/c.mp4"]
    touch(*(tmp_path / name for name in (*seen, *hidden)))
    assert [path.relative_to(tmp_path).as_posix() for path in find_video_files([tmp_path])] == seen
    assert [record.name for record in load_videos(tmp_path)] == seen
    assert find_video_files([tmp_path / "run" / "._a.mp4"]) == [
        tmp_path / "run" / "._a.mp4"
    ]  # asked for by name


# Clips


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> VideoList:
    """Videos of 20, 5 and 33 frames."""
    root = tmp_path_factory.mktemp("three")
    paths = [numbered(root / f"{n}.mp4", n) for n in (20, 5, 33)]
    return VideoList(
        [VideoRecord(path, label, path.stem) for label, path in enumerate(paths)], ["a", "b", "c"]
    )


def evaluation(videos: VideoList, **options) -> ClipDataset:
    options = {"frame_counts": (8, 4), "transform": EvalTransform(RAW), "training": False, **options}
    return ClipDataset(videos, **options)


def training(videos: VideoList, **options) -> ClipDataset:
    options = {"frame_counts": (8, 4), "transform": TrainTransform(RAW), "training": True, **options}
    return ClipDataset(videos, **options)


def test_evaluation_clips_show_the_frames_of_the_protocol(three):
    dataset = evaluation(
        three, num_views=2, transform=EvalTransform(RAW, num_crops=3), frame_counts=(4, 8, 3)
    )
    for index, n in enumerate((20, 5, 33)):
        sample = dataset[index]
        assert sample.label == sample.index == index
        assert list(sample.clips) == [4, 8, 3]
        for t, clips in sample.clips.items():
            assert clips.shape == (6, 3, t, 32, 32)
            for view, clip in enumerate(clips):
                assert shown(clip) == eval_indices(n, t, view=view // 3)


def test_training_clips_draw_their_own_frames_for_each_count(three):
    dataset = training(three)
    shows = set()
    for epoch in range(10):
        sample = dataset[2, epoch]
        assert {t: clip.shape for t, clip in sample.clips.items()} == {8: (3, 8, 32, 32), 4: (3, 4, 32, 32)}
        eight, four = shown(sample.clips[8]), shown(sample.clips[4])
        # a frame belongs to the segment that its middle lies in
        assert all(abs(k + 0.5 - (i + 0.5) * 33 / 8) <= 33 / 16 + 1e-6 for i, k in enumerate(eight))
        assert all(abs(k + 0.5 - (i + 0.5) * 33 / 4) <= 33 / 8 + 1e-6 for i, k in enumerate(four))
        shows.add((*eight, *four))
    assert len(shows) == 10


def test_a_clip_does_not_depend_on_the_other_counts_frames(three):
    together, alone = training(three)[0, 3], training(three, frame_counts=(4,))[0, 3]
    assert shown(together.clips[4]) == shown(alone.clips[4])


def test_short_videos_fill_their_clips_in_order(three):
    for dataset in (evaluation(three, frame_counts=(16,)), training(three, frame_counts=(16,))):
        clip = dataset[1].clips[16]
        frames = shown(clip if dataset.training else clip[0])
        assert sorted(frames) == frames
        assert set(frames) == set(range(5))


def test_the_frames_of_all_clips_are_decoded_once(three, monkeypatch):
    asked = []
    opened = datasets.open_video

    def spy(*args, **options):
        reader = opened(*args, **options)
        decode = reader._read
        monkeypatch.setattr(reader, "_read", lambda indices: asked.append(list(indices)) or decode(indices))
        return reader

    monkeypatch.setattr(datasets, "open_video", spy)
    evaluation(three, frame_counts=(8, 4, 16), num_views=2)[2]
    expected = {i for t in (8, 4, 16) for view in (0, 1) for i in eval_indices(33, t, view=view)}
    assert asked == [sorted(expected)]


def test_a_count_that_turns_out_wrong_is_sampled_anew(three, monkeypatch):
    class Liar:
        """Promises 40 frames and has 20."""

        name, fps, num_frames = "liar", 10.0, 40

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def sample(self, choose: Callable, *, each: Callable):
            choose(40)
            grey = torch.tensor([4 * i + 8 for i in choose(20)], dtype=torch.uint8)
            return each(grey[:, None, None, None].expand(-1, 3, 32, 32))

    monkeypatch.setattr(datasets, "open_video", lambda *_, **__: Liar())
    assert shown(evaluation(three)[0].clips[8][0]) == eval_indices(20, 8)


def test_dense_sampling_spans_the_window_at_every_count(three):
    sample = evaluation(three, sampling="dense", window=16)[2]
    assert shown(sample.clips[8][0]) == list(range(9, 25, 2))
    assert shown(sample.clips[4][0]) == list(range(10, 26, 4))
    views = evaluation(three, sampling="dense", window=16, num_views=3)[2].clips[8]
    assert [shown(clip)[0] for clip in views] == [3, 9, 15]
    starts = {
        shown(training(three, sampling="dense", window=16)[2, epoch].clips[8])[0] for epoch in range(12)
    }
    assert len(starts) > 3


def test_stretches_keep_to_their_seconds(three):
    def frames_of(start: float | None, end: float | None, t: int) -> list[int]:
        record = VideoRecord(three[0].path, 0, "stretch", start, end)
        return shown(evaluation(VideoList([record], ["a"]), frame_counts=(t,))[0].clips[t][0])

    assert frames_of(0.5, 0.9, 4) == [5, 6, 7, 8]
    assert frames_of(None, 0.4, 4) == [0, 1, 2, 3]
    assert frames_of(1.6, None, 4) == [16, 17, 18, 19]
    assert frames_of(1.6, 99.0, 4) == [16, 17, 18, 19]
    assert frames_of(0.52, 0.55, 2) == [5, 5]
    assert frames_of(1.95, None, 1) == [19]
    with pytest.raises(VideoError, match=r"has 2.000 s, but the list's stretch starts at 2.500 s"):
        frames_of(2.5, None, 4)


def test_a_flip_exchanges_the_label_with_the_motion(tmp_path):
    names = ["Pushing something from left to right", "Pushing something from right to left"]
    paths = [moving(tmp_path / f"{i}.mp4", to_the_right=i == 0) for i in range(2)]
    videos = VideoList([VideoRecord(path, i, str(i)) for i, path in enumerate(paths)], names)
    transform = TrainTransform(RAW, multi_scale_crop=(1,), flip_label=exchange_directions(names))
    dataset = training(videos, transform=transform, frame_counts=(8,))
    outcomes = set()
    for index in range(2):
        for epoch in range(10):
            sample = dataset[index, epoch]
            columns = sample.clips[8].mean(dim=(0, 2))  # (T, W)
            centre = (columns * torch.arange(32)).sum(1) / columns.sum(1)
            assert sample.label == (0 if centre[-1] > centre[0] else 1)
            outcomes.add((index, sample.label))
    assert len(outcomes) == 4


# Determinism, loaders, bad files


def same(a: Batch, b: Batch) -> bool:
    return (
        a.clips.keys() == b.clips.keys()
        and all(torch.equal(a.clips[t], b.clips[t]) for t in a.clips)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        and a.bad == b.bad
    )


def test_clips_are_a_function_of_seed_epoch_and_index(three):
    transform = TrainTransform(RAW, color_jitter=0.4, rand_augment=True)
    dataset = training(three, transform=transform)
    keys = [(2, 1), (0, 0), (1, 1), (2, 0), (2, 1)]
    here = list(DataLoader(dataset, batch_size=2, sampler=keys, collate_fn=collate))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = [collate([dataset[key] for key in keys[i : i + 2]]) for i in (0, 2, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    workers = list(
        DataLoader(
            dataset, batch_size=2, sampler=keys, collate_fn=collate, num_workers=2, persistent_workers=True
        )
    )
    assert all(same(a, b) for a, b in zip(here, again, strict=True))
    assert all(same(a, b) for a, b in zip(here, workers, strict=True))
    first = collate([dataset[2, 1]])
    assert same(first, collate([dataset[-1, 1]]))
    assert not same(first, collate([dataset[2, 0]]))
    assert not same(first, collate([training(three, transform=transform, seed=1)[2, 1]]))


@pytest.mark.parametrize("num_crops", [1, 3])
def test_frames_that_do_not_fit_into_memory_together_are_made_small_one_after_another(
    three, num_crops, monkeypatch
):
    record = three[2]
    transform = EvalTransform(Preprocessing(short_side=24, crop_size=16), num_crops=num_crops)
    dataset = ClipDataset(three, frame_counts=(4, 16), transform=transform, training=False, num_views=2)
    whole = dataset[2].clips
    monkeypatch.setattr(video, "CHUNK_BYTES", 3 * 32 * 48 * 2)  # two frames
    limits = Limits(max_bytes=3 * 32 * 48 * 3)
    with open_video(record.path, limits=limits) as reader:
        assert reader.num_frames == 33
        with pytest.raises(VideoError, match="at once"):
            reader.frames(range(16))
        few = dataset.clips(reader)
    assert few.keys() == whole.keys()
    assert all(torch.equal(few[count], whole[count]) for count in whole)


def test_frames_made_smaller_come_in_the_order_that_was_asked_for(three, monkeypatch):
    monkeypatch.setattr(video, "CHUNK_BYTES", 1)  # one at a time
    with open_video(three[0].path) as reader:
        wanted = [7, 3, 3, 19, 0]
        seen = []

        def each(frames):
            seen.append(len(frames))
            return frames[..., ::2, ::2]

        assert torch.equal(reader.frames(wanted, each=each), reader.frames(wanted)[..., ::2, ::2])
        assert seen == [1, 1, 1, 1]


def test_bad_videos_are_named_and_never_replaced(three, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    records = [
        *three,
        VideoRecord(tmp_path / "broken.mp4", 1, "broken"),
        VideoRecord(tmp_path / "gone.mp4", 1, "gone"),
    ]
    videos = VideoList(records, three.classes)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        evaluation(videos)[3]
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        evaluation(videos)[4]
    dataset = evaluation(videos, on_bad_video="skip")
    bad = dataset[3]
    assert isinstance(bad, BadVideo)
    assert (bad.index, bad.name) == (3, "broken")
    assert "broken.mp4" in bad.reason
    batch = collate([dataset[i] for i in (0, 3, 2, 4)])
    assert batch.indices.tolist() == [0, 2]
    assert batch.clips[8].shape == (2, 1, 3, 8, 32, 32)
    assert [video.name for video in batch.bad] == ["broken", "gone"]
    nothing = collate([dataset[3], dataset[4]])
    assert len(nothing) == 0
    assert nothing.clips == {}
    assert nothing.labels.dtype == torch.int64
    assert [video.index for video in nothing.bad] == [3, 4]


def test_a_loader_reports_bad_videos_from_its_workers(three, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = VideoList([*three, VideoRecord(tmp_path / "broken.mp4", 1, "broken")], three.classes)
    loader = DataLoader(
        evaluation(videos, on_bad_video="skip"), batch_size=2, num_workers=2, collate_fn=collate
    )
    batches = list(loader)
    assert [len(batch) for batch in batches] == [2, 1]
    assert [video.name for batch in batches for video in batch.bad] == ["broken"]
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        list(DataLoader(evaluation(videos), batch_size=2, num_workers=1, collate_fn=collate))


def test_batches_move_between_devices(three):
    batch = collate([evaluation(three)[i] for i in range(3)])
    moved = batch.to("meta")
    assert {clip.device.type for clip in moved.clips.values()} == {moved.labels.device.type} == {"meta"}
    assert batch.labels.device.type == "cpu"
    assert same(batch.to("cpu", non_blocking=True), batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a CUDA device")
def test_a_loader_pins_batches(three):
    loader = DataLoader(evaluation(three), batch_size=2, collate_fn=collate, pin_memory=True)
    for batch in loader:
        assert batch.clips[8].is_pinned()
        assert batch.labels.is_pinned()
        assert batch.to("cuda", non_blocking=True).clips[8].is_cuda


def test_batches_of_unlike_samples_are_refused(three):
    with pytest.raises(ValueError, match=r"samples have clips of \[8, 4\] and of \[4\] frames"):
        collate([evaluation(three)[0], evaluation(three, frame_counts=(4,))[0]])
    other = evaluation(three, transform=EvalTransform(RAW, num_crops=3))
    with pytest.raises(ValueError, match="clips of 8 frames have shapes"):
        collate([evaluation(three)[0], other[0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_counts": ()}, "frame_counts is"),
        ({"frame_counts": (4, 4)}, "expected different counts"),
        ({"frame_counts": (0,)}, "counts of 1 or more"),
        ({"sampling": "random"}, "expected 'segments' or 'dense'"),
        ({"num_views": 3}, "expected 1 to 2 in evaluation"),
        ({"training": True, "num_views": 2}, "expected 1 to 1 in training"),
        ({"on_bad_video": "replace"}, "expected 'error' or 'skip'"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_wrong_options_are_refused(three, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation(three, **options)


def test_training_needs_labels(three):
    videos = VideoList([*three, VideoRecord(three[0].path, None, "unlabelled")], three.classes)
    with pytest.raises(ValueError, match="1 of 4 videos have no label"):
        training(videos)
    assert evaluation(videos)[3].label == -1


def test_a_long_list_takes_little_memory_and_no_objects():
    records = (VideoRecord(Path(f"/data/videos/{i}.webm"), i % 174, str(i)) for i in range(20_000))
    videos = VideoList(records, [str(i) for i in range(174)])
    assert len(pickle.dumps(videos)) < 100 * len(videos)  # bytes
    assert videos[19_999].path == Path("/data/videos/19999.webm")
    assert not any(isinstance(value, list) for value in vars(videos).values())


def test_names_of_other_systems_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")  # not UTF-8, allowed on Linux
    touch(tmp_path / "x" / name, tmp_path / "ÿ/b.mp4")
    videos = load_videos(tmp_path)
    assert videos[0].path.exists()
    assert videos[0].name == f"x/{name}"


class Remembering(Dataset):
    """Says which item is read, and where."""

    def __init__(self, broken=None):
        self.broken, self.read = broken, queue.Queue()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == self.broken:
            raise VideoError("broken")
        self.read.put((index, threading.current_thread()))
        return index


def test_the_next_batch_is_read_in_a_thread_while_one_is_used():
    dataset = Remembering()
    batches = read_ahead(DataLoader(dataset, batch_size=1))
    for expected in range(4):
        assert next(batches).item() == expected
        for index in (0, 1) if expected == 0 else (expected + 1,) if expected < 3 else ():
            read, thread = dataset.read.get(timeout=60)  # though nobody asked for the next one yet
            assert read == index
            assert thread is not threading.main_thread()
    assert next(batches, None) is None


def test_an_error_of_the_reading_thread_arrives_where_its_batch_is_wanted():
    batches = read_ahead(DataLoader(Remembering(broken=2), batch_size=1))
    assert [next(batches).item(), next(batches).item()] == [0, 1]
    with pytest.raises(VideoError, match="broken"):
        next(batches)


def test_reading_ahead_ends_with_whoever_reads():
    before = threading.active_count()
    batches = read_ahead(DataLoader(Remembering(), batch_size=1))
    next(batches)
    batches.close()
    assert threading.active_count() == before
