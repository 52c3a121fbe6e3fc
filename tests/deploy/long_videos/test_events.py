"""Probabilities over time become events, and files of them."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frameflex.deploy.long_videos.events import (
    Event,
    EventDetector,
    Segment,
    detect_events,
    event_format,
    merge_windows,
    write_events,
)
from frameflex.new_files import new_file

NAMES = ["wave", "push", "nothing"]


def detector(**options):
    return EventDetector(NAMES, **{"threshold": 0.6, "release": 0.4, **options})


def feed(found, rows):
    """Events of rows (seconds, wave, push); "nothing" takes the rest."""
    events = []
    for seconds, wave, push in rows:
        events += found.update([wave, push, 1 - wave - push], seconds)
    return events


def test_an_event_starts_at_the_threshold_and_ends_below_release():
    found = detector()
    assert feed(found, [(0, 0.5, 0.1), (1, 0.6, 0.1), (2, 0.45, 0.1)]) == []
    assert found.current == Event("wave", 0, 1, 2, pytest.approx((0.6 + 0.45) / 2))
    [event] = feed(found, [(3, 0.39, 0.1)])
    assert (event.label, event.start_seconds, event.end_seconds) == ("wave", 1, 3)
    assert event.probability == pytest.approx((0.6 + 0.45) / 2)
    assert found.current is None


def test_labels_do_not_flicker_between_two_classes_that_are_close():
    found = EventDetector(["a", "b"], threshold=0.5, release=0.3)
    for i in range(20):
        assert found.update([0.52, 0.48] if i % 2 == 0 else [0.46, 0.54], i) == []
    [event] = found.finish(20)
    assert (event.label, event.start_seconds, event.end_seconds) == ("a", 0, 20)


def test_another_class_takes_over_only_clearly_and_then_without_a_gap():
    found = EventDetector(["a", "b"], threshold=0.5, release=0.3)
    found.update([0.6, 0.4], 0)
    assert found.update([0.41, 0.59], 1) == []  # 0.18 ahead, and 0.2 is asked for
    [event] = found.update([0.35, 0.65], 2)
    assert (event.label, event.end_seconds) == ("a", 2)
    assert (found.current.label, found.current.start_seconds) == ("b", 2)


def test_nothing_makes_no_event_and_ends_one():
    found = detector(nothing="nothing")
    assert feed(found, [(0, 0.0, 0.0), (1, 0.1, 0.1)]) == []
    assert found.current is None
    feed(found, [(2, 0.9, 0.0)])
    [event] = feed(found, [(3, 0.39, 0.0)])
    assert event.end_seconds == 3
    assert found.finish(9) == []
    plain = detector()
    feed(plain, [(0, 0.0, 0.0)])
    assert plain.finish(1)[0].label == "nothing"


def test_nothing_takes_over_from_a_class_that_is_still_above_release():
    found = EventDetector(["a", "nothing"], threshold=0.5, release=0.1, nothing=1)
    found.update([0.9, 0.1], 0)
    [event] = found.update([0.2, 0.8], 1)
    assert event.label == "a"
    assert found.current is None


def test_short_events_are_dropped_and_not_shown_before_they_are_old_enough():
    found = detector(min_seconds=1.0)
    assert feed(found, [(0, 0.9, 0), (0.5, 0.1, 0)]) == []
    feed(found, [(1, 0.9, 0), (1.5, 0.9, 0)])
    assert found.current is None
    feed(found, [(2, 0.9, 0)])
    assert found.current.start_seconds == 1
    [event] = found.finish(2.5)
    assert event.end_seconds == 2.5


def test_finish_and_reset_start_afresh():
    found = detector()
    feed(found, [(10, 0.9, 0)])
    assert len(found.finish(11)) == 1
    feed(found, [(0, 0.9, 0)])  # an earlier clock
    found.reset()
    assert found.current is None
    assert found.finish(0) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold is 0; expected a probability above 0"),
        ({"threshold": 0.3}, "release is 0.4; expected 0 to the threshold"),
        ({"min_seconds": -1}, "min_seconds is -1; expected at least 0"),
        ({"nothing": "none"}, "nothing is 'none', which is no class; expected one of wave, push, nothing"),
        ({"nothing": 3}, "nothing is 3; expected a whole number from 0 to 2"),
    ],
)
def test_a_setting_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        detector(**options)


def test_what_can_not_be_probabilities_or_time_is_refused():
    found = detector()
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(3,\)"):
        found.update([0.5, 0.5], 0)
    with pytest.raises(ValueError, match="Of logits take the softmax"):
        found.update(torch.tensor([3.0, -1.0, 0.0]), 0)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        found.update([float("nan")] * 3, 0)
    with pytest.raises(ValueError, match="finite number"):
        found.update([1, 0, 0], float("nan"))
    found.update(np.array([1, 0, 0]), 5)
    with pytest.raises(ValueError, match=r"before the last update's 5\.000"):
        found.update([1, 0, 0], 4)
    with pytest.raises(ValueError, match="before the last update"):
        found.finish(4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=40), st.floats(0, 3))
def test_events_are_in_order_disjoint_and_long_enough_whatever_comes(rows, min_seconds):
    found = detector(min_seconds=min_seconds, nothing="nothing")
    events = [event for time, row in enumerate(rows) for event in found.update(row, float(time))]
    events += found.finish(float(len(rows)))
    end = 0.0
    for event in events:
        assert end <= event.start_seconds < event.end_seconds <= len(rows)
        assert event.end_seconds - event.start_seconds >= min_seconds
        assert event.label != "nothing"
        assert max(row[event.index] for row in rows[int(event.start_seconds) :]) >= 0.6
        end = event.end_seconds


# Windows


def window(start, end, *probabilities):
    return Segment(start, end, np.array(probabilities, float))


def test_windows_that_overlap_become_segments_with_their_mean():
    segments = list(merge_windows([window(0, 2, 1, 0), window(1, 3, 0, 1), window(2, 4, 0, 1)]))
    assert [(s.start_seconds, s.end_seconds) for s in segments] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [s.probabilities.tolist() for s in segments] == [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]


def test_a_gap_between_windows_is_in_no_segment_and_ends_an_event():
    segments = list(merge_windows([window(0, 1, 0.9, 0.1), window(3, 4, 0.9, 0.1)]))
    assert [(s.start_seconds, s.end_seconds) for s in segments] == [(0, 1), (3, 4)]
    events = list(detect_events(segments, EventDetector(["a", "b"])))
    assert [(e.label, e.start_seconds, e.end_seconds) for e in events] == [("a", 0, 1), ("a", 3, 4)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8), st.floats(0, 1)), min_size=1, max_size=12),
)
def test_every_moment_has_the_mean_of_the_windows_that_cover_it(drawn):
    windows = [window(start, start + length, p) for start, length, p in sorted(drawn)]
    segments = list(merge_windows(windows))
    for tick in range(40):
        moment = tick + 0.5
        covering = [w.probabilities[0] for w in windows if w.start_seconds < moment < w.end_seconds]
        found = [s.probabilities[0] for s in segments if s.start_seconds < moment < s.end_seconds]
        assert len(found) == (1 if covering else 0)
        if covering:
            assert found[0] == pytest.approx(np.mean(covering))


def test_windows_out_of_order_are_refused():
    with pytest.raises(ValueError, match="expected the order of time"):
        list(merge_windows([window(1, 3, 1), window(0, 2, 1)]))


# Files

EVENTS = [
    Event('wave, "left"', 0, 0.0, 1.25, 0.875),
    Event("two\nlines --> arrow", 1, 3661.5, 3662.0004, 0.5),
]


def test_json_holds_the_events_and_what_else_was_given(tmp_path):
    write_events(tmp_path / "a" / "events.json", EVENTS, details={"video": "x.mp4"})
    values = json.loads((tmp_path / "a" / "events.json").read_text())
    assert values["video"] == "x.mp4"
    assert [Event(**event) for event in values["events"]] == EVENTS


def test_csv_survives_commas_quotes_and_lines(tmp_path):
    write_events(tmp_path / "events.csv", EVENTS)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "events.csv").read_text())))
    assert [row["label"] for row in rows] == [event.label for event in EVENTS]
    assert (rows[0]["start_seconds"], rows[0]["end_seconds"]) == ("0.000", "1.250")


def test_srt_has_its_numbers_times_and_one_line_a_label(tmp_path):
    write_events(tmp_path / "events.srt", EVENTS)
    assert (tmp_path / "events.srt").read_text() == (
        '1\n00:00:00,000 --> 00:00:01,250\nwave, "left" (88%)\n\n'
        "2\n01:01:01,500 --> 01:01:02,000\ntwo lines → arrow (50%)\n\n"
    )


def test_the_format_can_be_given_and_an_unknown_one_is_refused(tmp_path):
    write_events(tmp_path / "events.txt", EVENTS, file_format="csv")
    assert (tmp_path / "events.txt").read_text().startswith("start_seconds,")
    with pytest.raises(
        ValueError, match=r"written as txt; expected a name that ends in \.json, \.csv, \.srt"
    ):
        event_format("events.txt")
    with pytest.raises(ValueError, match="a file without an ending"):
        event_format("events")


def test_a_file_that_could_not_be_finished_leaves_the_former_one_and_no_other(tmp_path):
    path = tmp_path / "events.json"
    path.write_text("before")
    with pytest.raises(TypeError):
        write_events(path, EVENTS, details={"video": object()})

    def interrupted():
        with new_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["events.json"]
