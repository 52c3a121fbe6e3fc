"""Data sets as they lie on disk."""

import json
import os
from pathlib import Path

import pytest

from frameflex.data.datasets import load_videos
from frameflex.data.records import VideoList


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
    with pytest.raises(ValueError, match="no list of videos"):
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
    with pytest.raises(ValueError, match=r"it holds a.mp4, notes/.\nWhat was looked for") as caught:
        load_videos(tmp_path)
    assert all(
        word in str(caught.value)
        for word in (
            "CLASS/video.mp4",
            "list",
            "Kinetics",
            "V1",
            "V2",
            "Jester",
            "UCF101",
            "HMDB51",
            "shards",
        )
    )


def test_videos_without_their_annotations_are_not_taken_for_one_class(tmp_path):
    touch(tmp_path / "20bn-something-something-v2/1.webm")
    with pytest.raises(ValueError, match=r"it holds 20bn-something-something-v2/.\n(.*\n)*.*labels.json"):
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


def test_names_of_other_systems_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")  # not UTF-8, allowed on Linux
    touch(tmp_path / "x" / name, tmp_path / "ÿ/b.mp4")
    videos = load_videos(tmp_path)
    assert videos[0].path.exists()
    assert videos[0].name == f"x/{name}"


def test_jester_is_read_as_distributed(tmp_path):
    home = tmp_path / "20bn-jester-v1"
    touch(home / "34870/00001.jpg", home / "5/00001.jpg", home / "6/00001.jpg")
    (tmp_path / "jester-v1-labels.csv").write_text("Swiping Left\nDrumming Fingers\n")
    (tmp_path / "jester-v1-train.csv").write_text("34870;Drumming Fingers\n")
    (tmp_path / "jester-v1-validation.csv").write_text("5;Swiping Left\n")
    (tmp_path / "jester-v1-test.csv").write_text("6\n")
    videos = load_videos(tmp_path, split="train")
    assert videos.layout == "Jester, train"
    assert videos.classes == ("Swiping Left", "Drumming Fingers")  # in the order of the labels' file
    assert seen(videos) == [("34870", "Drumming Fingers")]
    (tmp_path / "jester-v1-train.csv").write_text("34870;Drumming Fi")  # half-written
    with pytest.raises(
        ValueError, match=r"train.csv, line 1: class 'Drumming Fi' is not in jester-v1-labels.csv"
    ):
        load_videos(tmp_path, split="train")


@pytest.fixture
def ucf(tmp_path) -> Path:
    names = ["v_Biking_g01_c01.avi", "v_Biking_g08_c01.avi"]
    touch(*(tmp_path / "UCF-101/Biking" / name for name in names), tmp_path / "UCF-101/ApplyLipstick/v_b.avi")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyLipstick\n2 Biking\n")
    (lists / "trainlist01.txt").write_text("Biking/v_Biking_g08_c01.avi 2\nApplyLipstick/v_b.avi 1\n")
    (lists / "testlist01.txt").write_text("Biking/v_Biking_g01_c01.avi\n")
    (lists / "trainlist02.txt").write_text("Biking/v_Biking_g01_c01.avi 2\n")
    return tmp_path


def test_ucf101_is_read_by_its_official_lists(ucf):
    videos = load_videos(ucf, split="train")
    assert videos.classes == ("ApplyLipstick", "Biking")
    assert seen(videos) == [("Biking/v_Biking_g08_c01", "Biking"), ("ApplyLipstick/v_b", "ApplyLipstick")]
    assert seen(load_videos(ucf, split="test")) == [("Biking/v_Biking_g01_c01", "Biking")]
    assert seen(load_videos(ucf / "ucfTrainTestlist/trainlist02.txt")) == [
        ("Biking/v_Biking_g01_c01", "Biking")
    ]
    with pytest.raises(
        ValueError, match="split is 'validation'; expected one of those that are there: train, test"
    ):
        load_videos(ucf, split="val")


def test_a_half_written_list_of_ucf101_is_named_with_its_line(ucf):
    (ucf / "ucfTrainTestlist/trainlist01.txt").write_text("Biking/v_Biking_g08_c01.avi 2\nApplyLips")
    with pytest.raises(
        ValueError, match=r"trainlist01.txt, line 2: is 'ApplyLips'; expected CLASS/video.avi. Half"
    ):
        load_videos(ucf, split="train")


def test_hmdb51_is_read_by_its_official_splits(tmp_path):
    home, splits = tmp_path / "hmdb51_org", tmp_path / "testTrainMulti_7030_splits"
    touch(home / "wave/#1 hi (x).avi", home / "wave/b.avi", home / "run/a.avi", home / "run/c.avi")
    splits.mkdir()
    (splits / "wave_test_split1.txt").write_text("#1 hi (x).avi 1 \nb.avi 2 \n")
    (splits / "run_test_split1.txt").write_text("a.avi 1\nc.avi 0\n")
    (splits / "run_test_split2.txt").write_text("a.avi 0\nc.avi 1\n")
    assert seen(load_videos(tmp_path, split="train")) == [
        ("run/a.avi", "run"),
        ("wave/#1 hi (x).avi", "wave"),
    ]
    assert seen(load_videos(tmp_path, split="test")) == [("wave/b.avi", "wave")]
    assert seen(load_videos(splits / "run_test_split2.txt", split="train")) == [("run/c.avi", "run")]
    (splits / "wave_test_split1.txt").write_text("#1 hi (x).avi 1\nb.av")
    with pytest.raises(
        ValueError, match=r"wave_test_split1.txt, line 2: is 'b.av'; expected video.avi and 0, 1"
    ):
        load_videos(tmp_path, split="train")


def test_a_space_separated_list_keeps_spaces_in_paths(tmp_path):
    touch(tmp_path / "my clip.mp4", tmp_path / "b.mp4", tmp_path / "take 1.mp4.avi")
    (tmp_path / "list.txt").write_text("my clip.mp4 left\nb.mp4 right\ntake 1.mp4.avi left\n")
    videos = load_videos(tmp_path / "list.txt")
    assert seen(videos) == [("my clip.mp4", "left"), ("b.mp4", "right"), ("take 1.mp4.avi", "left")]
    (tmp_path / "list.txt").write_text('my clip.mp4 left 1 2.5\n"b.mp4" right 0 1\n')
    assert [(r.name, r.start_seconds, r.end_seconds) for r in load_videos(tmp_path / "list.txt")] == [
        ("my clip.mp4", 1, 2.5),
        ("b.mp4", 0, 1),
    ]
    (tmp_path / "list.txt").write_text("my frames 1 left\nb frames 2 left\n")
    with pytest.raises(ValueError, match=r'Put names that hold the separator into "quotes"'):
        load_videos(tmp_path / "list.txt")


def test_one_class_in_two_forms_of_unicode_is_one_class(tmp_path):
    touch(tmp_path / "train/caf\u00e9/a.mp4", tmp_path / "val/cafe\u0301/b.mp4", tmp_path / "train/x/c.mp4")
    train, val = (load_videos(tmp_path, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == ("caf\u00e9", "x")
    assert [val.classes[label] for label in val.labels] == ["caf\u00e9"]
    (tmp_path / "val.csv").write_text("val/cafe\u0301/b.mp4,cafe\u0301\n", encoding="utf-8")
    assert load_videos(tmp_path / "val.csv", classes=train.classes).labels == [0]
    assert load_videos(tmp_path / "val.csv", classes=["x", "cafe\u0301"]).labels == [
        1
    ]  # of an old checkpoint


def test_classes_that_differ_in_capitals_between_splits_are_refused_with_both_names(tmp_path):
    touch(tmp_path / "train/Left/a.mp4", tmp_path / "train/up/a.mp4", tmp_path / "val/left/b.mp4")
    with pytest.raises(
        ValueError, match="class 'Left' of train and 'left' of validation differ in capitals alone"
    ):
        load_videos(tmp_path, split="train")
    (tmp_path / "list.csv").write_text("val/left/b.mp4,left\n")
    with pytest.raises(ValueError, match="Only capitals differ from 'Left': rename one"):
        load_videos(tmp_path / "list.csv", classes=["Left", "up"])


def test_two_classes_of_one_split_may_differ_in_capitals(tmp_path):
    touch(tmp_path / "train/a/1.mp4", tmp_path / "train/A/1.mp4", tmp_path / "val/a/1.mp4")
    assert load_videos(tmp_path, split="train").classes == ("A", "a")  # letters, for instance


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("train_set", "test_set", "test"),
        ("Training", "Testing", "test"),
        ("train", "dev", "validation"),
        ("trainset", "valset", "validation"),
        ("train-data", "valid data", "validation"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, train, other, split):
    touch(*(tmp_path / part / label / "a.mp4" for part in (train, other) for label in ("left", "right")))
    videos = load_videos(tmp_path, split="train")
    assert videos.classes == ("left", "right")
    assert videos.splits == ("train", split)


def test_two_folders_of_one_split_are_refused(tmp_path):
    touch(tmp_path / "train/a/1.mp4", tmp_path / "training/a/1.mp4", tmp_path / "val/a/1.mp4")
    with pytest.raises(ValueError, match="both train/ and training/ hold train videos"):
        load_videos(tmp_path, split="train")


def test_classes_that_are_called_like_splits_are_questioned(tmp_path):
    touch(tmp_path / "train_1/left/a.mp4", tmp_path / "test_1/left/a.mp4")
    with pytest.raises(
        ValueError, match="its folders are called test_1, train_1, as splits are and not classes"
    ):
        load_videos(tmp_path)


def test_what_is_odd_about_a_folder_is_noted(tmp_path):
    touch(
        tmp_path / "train/a/1.mp4",
        tmp_path / "train/b/1.mp4",
        tmp_path / "val/a/1.mp4",
        tmp_path / "old/a/1.mp4",
    )
    (tmp_path / "train/c").mkdir()
    notes = "\n".join(load_videos(tmp_path, split="train").notes)
    assert "train/c: holds no video; it is no class" in notes
    assert "beside train, val, left out: old" in notes


def test_classes_one_folder_too_high_are_noted(tmp_path):
    touch(*(tmp_path / person / label / "a.mp4" for person in ("ann", "bob") for label in ("left", "right")))
    (note,) = load_videos(tmp_path).notes
    assert "the classes are ann, bob, …; in each of them are folders left, right" in note


def test_a_column_says_whose_video_it_is(tmp_path):
    touch(tmp_path / "1.mp4", tmp_path / "2.mp4")
    (tmp_path / "list.csv").write_text("path,label,subject\n1.mp4,a,ann\n2.mp4,b,\n")
    assert [record.group for record in load_videos(tmp_path / "list.csv")] == ["ann", ""]


def test_what_is_odd_about_a_list_is_noted(tmp_path):
    touch(*(tmp_path / f"{name}.mp4" for name in "abcd"))
    (tmp_path / "list.csv").write_text("a.mp4,Left\nb.mp4,left\nc.mp4,left\na.mp4,left\nc.mp4,left\n")
    notes = "\n".join(load_videos(tmp_path / "list.csv").notes)
    assert "classes 'Left' and 'left' differ in capitals alone" in notes
    assert "1 videos are listed with several labels (a.mp4: 'Left', 'left')" in notes
    assert "1 videos are listed twice (c.mp4)" in notes
    (tmp_path / "list.csv").write_text("filename,kind\na.mp4,0\nb.mp4,1\n")
    (note,) = load_videos(tmp_path / "list.csv").notes
    assert "no label is read: no column is called label, class, class_name" in note


def test_capitals_that_differ_between_the_splits_of_one_list_are_refused(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "list.csv").write_text("path,label,split\na.mp4,Left,train\nb.mp4,left,val\n")
    with pytest.raises(ValueError, match="class 'Left' of train and 'left' of validation differ in capitals"):
        load_videos(tmp_path / "list.csv", split="train")


def test_spaces_around_a_class_and_videos_beside_the_classes(tmp_path):
    touch(
        tmp_path / "train/up /a.mp4",
        tmp_path / "train/down/a.mp4",
        tmp_path / "val/up/a.mp4",
        tmp_path / "train/x.mp4",
    )
    videos = load_videos(tmp_path, split="val")
    assert videos.classes == ("down", "up")
    assert videos.labels == [1]
    assert any("train: left out: 1 beside the class folders (x.mp4)" in note for note in videos.notes)
