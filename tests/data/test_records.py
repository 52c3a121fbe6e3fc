"""Lists of videos, and what becomes of bad ones."""

import pickle
from pathlib import Path

import pytest

from frameflex.data.records import BadVideo, BadVideos, VideoList, VideoRecord
from frameflex.video import VideoError


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


def test_a_long_list_takes_little_memory_and_no_objects():
    records = (VideoRecord(Path(f"/data/videos/{i}.webm"), i % 174, str(i)) for i in range(20_000))
    videos = VideoList(records, [str(i) for i in range(174)])
    assert len(pickle.dumps(videos)) < 100 * len(videos)  # bytes
    assert videos[19_999].path == Path("/data/videos/19999.webm")
    assert not any(isinstance(value, list) for value in vars(videos).values())
