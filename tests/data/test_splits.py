"""Who is held out, and in which fold: whole groups, each class on both sides, the same in every run."""

from collections import Counter

import pytest

from frameflex.data.datasets import load_split, load_videos
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.splits import divide_into_folds, hold_out

CLASSES = ["a", "b", "c"]


def videos_of(tmp_path, rows):
    """Rows of (class index, group)."""
    records = [
        VideoRecord(tmp_path / f"{i}.mp4", label, f"{i}.mp4", group=group)
        for i, (label, group) in enumerate(rows)
    ]
    return VideoList(records, CLASSES)


def sides_of(videos, *sides):
    """In how many of the sides each group has videos."""
    groups = Counter()
    for side in sides:
        groups.update({video.group for video in side})
    return groups


def test_whole_groups_are_held_out_near_the_share_of_each_class(tmp_path):
    rows = [(label, f"person {p}") for p in range(10) for label in range(3) for _ in range(4)]
    videos = videos_of(tmp_path, rows)
    training, validation = hold_out(videos, 0.2)
    assert set(sides_of(videos, training, validation).values()) == {1}
    assert [validation.labels.count(label) for label in range(3)] == [8, 8, 8]
    assert [video.name for video in hold_out(videos, 0.2)[1]] == [video.name for video in validation]


def test_groups_of_different_sizes_and_classes_keep_every_class_on_both_sides(tmp_path):
    sizes = (1, 7, 2, 9, 3, 4, 12, 5)
    rows = [(g % 3, f"g{g}") for g, size in enumerate(sizes) for _ in range(size)]
    rows += [((g + 1) % 3, f"g{g}") for g in range(0, 8, 2)]
    videos = videos_of(tmp_path, rows)
    for fraction in (0.1, 0.2, 0.5, 0.8):
        training, validation = hold_out(videos, fraction)
        assert set(sides_of(videos, training, validation).values()) == {1}
        assert set(training.labels) == set(validation.labels) == {0, 1, 2}


def test_training_never_lacks_a_class_even_where_validation_must(tmp_path):
    pairs = [
        (0, "x"),
        (1, "x"),
        (1, "y"),
        (2, "y"),
        (2, "z"),
        (0, "z"),
    ]  # no group can be spared for all three
    training, validation = hold_out(videos_of(tmp_path, pairs), 0.3)
    assert set(training.labels) == {0, 1, 2}
    assert len(set(validation.labels)) == 2


def test_a_class_in_one_group_is_one_line_that_names_both(tmp_path):
    videos = videos_of(tmp_path, [(0, "ann"), (0, "ann"), (1, "ann"), (1, "bob"), (2, ""), (2, "")])
    for divide in (lambda: hold_out(videos, 0.2), lambda: divide_into_folds(videos, 2)):
        with pytest.raises(
            ValueError, match="class 'a' has all of its 2 videos in one group, 'ann'"
        ) as error:
            divide()
        assert "\n" not in str(error.value)


def test_folds_hold_every_video_once_and_spread_each_class(tmp_path):
    videos = videos_of(tmp_path, [(i % 3, "") for i in range(47)])
    folds = divide_into_folds(videos, 5)
    assert sorted(index for fold in folds for index in fold) == list(range(47))
    for label in range(3):
        numbers = [videos.subset(fold).labels.count(label) for fold in folds]
        assert max(numbers) - min(numbers) <= 1
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert divide_into_folds(videos, 5) == folds


def test_folds_keep_groups_whole_and_about_even(tmp_path):
    rows = [(label, f"p{p}") for p in range(9) for label in range(3) for _ in range(1 + p % 3)]
    videos = videos_of(tmp_path, rows)
    folds = divide_into_folds(videos, 3)
    assert set(sides_of(videos, *(videos.subset(fold) for fold in folds)).values()) == {1}
    assert [len(fold) for fold in folds] == [18, 18, 18]


@pytest.mark.parametrize(
    ("rows", "folds", "words"),
    [
        ([(0, ""), (0, ""), (1, ""), (1, "")], 5, "4 videos for 5 folds"),
        ([(0, "x"), (0, "y"), (1, "x"), (1, "y")], 3, "2 groups of videos for 3 folds"),
        ([(0, ""), (0, ""), (1, "")], 2, "class 'b' has 1 video"),
        ([(0, ""), (0, "")], 1, "1 folds; expected at least 2"),
    ],
)
def test_what_cannot_be_divided_into_folds_is_said(rows, folds, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        divide_into_folds(videos_of(tmp_path, rows), folds)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


def test_a_folder_inside_a_class_is_the_group_of_its_videos(tmp_path):
    touch(*(tmp_path / label / f"{who}/{i}.mp4" for label in "ab" for who in ("ann", "bob") for i in (1, 2)))
    touch(tmp_path / "a/alone.mp4")
    groups = {video.name: video.group for video in load_videos(tmp_path)}
    assert groups["a/ann/1.mp4"] == groups["b/ann/2.mp4"] == "ann"
    assert groups["a/alone.mp4"] == ""


def test_frames_of_a_video_as_images_are_no_group(tmp_path):
    touch(*(tmp_path / label / f"{i}/00001.jpg" for label in "ab" for i in (1, 2)))
    assert {video.group for video in load_videos(tmp_path)} == {""}


def test_a_single_folder_that_holds_a_whole_class_is_not_taken_as_its_group_and_noted(tmp_path):
    touch(*(tmp_path / f"a/{who}/{i}.mp4" for who in ("ann", "bob") for i in (1, 2)))
    touch(tmp_path / "b/takes/1.mp4", tmp_path / "b/takes/2.mp4")
    videos = load_videos(tmp_path)
    assert {video.group for video in videos} == {""}
    (note,) = videos.notes
    assert "b: all its videos are in one folder, takes" in note


def test_a_list_may_name_its_groups_in_any_column_on_request(tmp_path):
    touch(*(tmp_path / f"{i}.mp4" for i in range(2)))
    (tmp_path / "list.csv").write_text("path,label,Camera\n0.mp4,a,left\n1.mp4,b,right\n")
    assert [video.group for video in load_split(tmp_path / "list.csv", "train")] == ["", ""]
    found = load_split(tmp_path / "list.csv", "train", group="camera")
    assert [video.group for video in found] == ["left", "right"]
    with pytest.raises(
        ValueError, match="data.group is 'lens'; expected a column .* has path, label, camera"
    ):
        load_split(tmp_path / "list.csv", "train", group="lens")
    touch(tmp_path / "folder/a/1.mp4", tmp_path / "folder/b/1.mp4")
    with pytest.raises(ValueError, match="a column of a list, and this is none"):
        load_split(tmp_path / "folder", "train", group="camera")


def test_clips_of_one_recording_are_a_group_in_ucf101_and_hmdb51(tmp_path):
    root = tmp_path / "ucf"
    names = [f"v_Biking_g{g:02}_c{c:02}" for g in (1, 2) for c in (1, 2)]
    touch(*(root / f"UCF-101/Biking/{name}.avi" for name in names))
    (root / "ucfTrainTestlist").mkdir()
    (root / "ucfTrainTestlist/classInd.txt").write_text("1 Biking\n")
    lines = "".join(f"Biking/{name}.avi 1\n" for name in names)
    (root / "ucfTrainTestlist/trainlist01.txt").write_text(lines)
    groups = [video.group for video in load_videos(root / "ucfTrainTestlist/trainlist01.txt")]
    assert groups == ["Biking/g01", "Biking/g01", "Biking/g02", "Biking/g02"]
    root = tmp_path / "hmdb"
    names = [f"{film}_wave_u_nm_np1_fr_med_{i}.avi" for film in ("A_Film", "B") for i in (0, 1)]
    touch(*(root / f"hmdb51_org/wave/{name}" for name in names))
    (root / "splits").mkdir()
    (root / "splits/wave_test_split1.txt").write_text("".join(f"{name} 1\n" for name in names))
    groups = [video.group for video in load_videos(root, split="train")]
    assert groups == ["A_Film", "A_Film", "B", "B"]
