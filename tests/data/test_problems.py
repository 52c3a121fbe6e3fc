"""What is odd about classes and their division is one line each."""

from frameflex.data.problems import class_problems, notes_of
from frameflex.data.records import VideoList, VideoRecord


def videos(*labels, classes=("a", "b", "c"), notes=()):
    records = [VideoRecord(f"{i}.mp4", label, f"{i}.mp4") for i, label in enumerate(labels)]
    return VideoList(records, classes, notes=notes)


def test_even_classes_on_both_sides_are_no_problem():
    assert class_problems(videos(0, 0, 1, 1, 2, 2), videos(0, 1, 2)) == []


def test_labels_that_begin_at_one_leave_a_class_without_videos():
    training = videos(1, 1, 2, 2, classes=("0", "1", "2"))
    (line,) = class_problems(training, videos(1, 2, classes=("0", "1", "2")))
    assert line == "class '0' has no video at all; labels count from 0, or are names"


def test_a_class_that_only_one_side_has_and_one_with_a_single_video_are_named():
    lines = class_problems(videos(0, 0, 1), videos(0, 2))
    assert lines == [
        "class 'c' has no training video but validation videos, which can't be recognised",
        "class 'b' has a single training video",
        "class 'b' has no validation video: nothing is measured there",
    ]


def test_very_uneven_classes_are_said_with_their_numbers():
    (line,) = class_problems(videos(*[0] * 40, 1, 1, 2, 2, 2))
    assert "'a' has 40 training videos, 'b' 2" in line
    assert class_problems(videos(*[0] * 18, 1, 1, 2, 2)) == []


def test_notes_are_said_once():
    assert notes_of(videos(0, notes=["odd"]), None, videos(1, notes=["odd", "more"])) == ["odd", "more"]
