"""Copies on both sides of a division are found and named; what only resembles is not."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers import moving_bar, write_video

from frameflex.data.leaks import find_leaks
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.shards import ShardMember


def videos(*paths, **stretch):
    return VideoList([VideoRecord(path, 0, path.name, **stretch) for path in paths], ["a"])


@pytest.fixture
def clip(tmp_path):
    """Makes videos of a textured scene in which a bar moves."""

    def make(name, *, seed=0, rightwards=True, size=64):
        rng = np.random.default_rng(seed)
        frames = rng.integers(20, 200, (1, 4, 4, 1)).repeat(size // 4, 1).repeat(size // 4, 2)
        frames = np.broadcast_to(frames, (24, size, size, 3)).copy()
        bar = moving_bar(24, rightwards=rightwards, size=size)
        frames[bar == 230] = 230
        return write_video(tmp_path / name, frames.astype(np.uint8))

    return make


def encode_again(source, target):
    """Half the size, strongly compressed, at another rate."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream("libx264", rate=25, options={"crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        stream.time_base = Fraction(1, 25)
        for number, frame in enumerate(before.decode(video=0)):
            small = frame.reformat(48, 48, "yuv420p")
            small.pts, small.time_base = number, Fraction(1, 25)
            after.mux(stream.encode(small))
        after.mux(stream.encode())
    return target


def test_a_copy_by_another_name_is_found_by_its_content(clip, tmp_path):
    one, other = clip("one.mp4"), clip("other.mp4", seed=1)
    copy = tmp_path / "copy.mp4"
    shutil.copy(one, copy)
    leaks = find_leaks([videos(one, other), videos(copy)])
    assert leaks.same == [(str(one), str(copy))]
    assert leaks.alike == []
    (line,) = leaks.lines()
    assert "1 pair of videos in training and validation with the same content" in line
    assert f"{one} = {copy}" in line
    assert find_leaks([videos(one, copy), videos(other)]).lines() == []  # on one side: no leak


def test_a_copy_that_was_encoded_again_is_found_by_its_pictures(clip, tmp_path):
    one = clip("one.mp4")
    again = encode_again(one, tmp_path / "again.mp4")
    leaks = find_leaks([videos(again), videos(one)])
    assert leaks.same == []
    assert leaks.alike == [(str(again), str(one))]


def test_another_movement_before_the_same_background_is_no_copy(clip):
    leaks = find_leaks([videos(clip("right.mp4")), videos(clip("left.mp4", rightwards=False))])
    assert leaks.lines() == []
    assert leaks.cut_short() is None


def test_plain_pictures_tell_nothing(tmp_path):
    grey = [write_video(tmp_path / f"{n}.mp4", np.full((n, 48, 48, 3), 90, np.uint8)) for n in (8, 9)]
    assert find_leaks([videos(grey[0]), videos(grey[1])]).lines() == []


def test_stretches_of_a_file_on_both_sides_are_named(clip):
    file = clip("long.mp4")
    first = videos(file, start_seconds=0.0, end_seconds=1.0)
    second = videos(file, start_seconds=1.0, end_seconds=2.0)
    assert find_leaks([first, second]).recordings == [str(file)]
    assert find_leaks([first, first]).same == [(str(file), str(file))]


def test_copies_in_shards_are_found_by_their_checksums_without_reading():
    members = [
        ShardMember("nowhere.tar", f"{i}.mp4", 512 * i, 100, crc32) for i, crc32 in enumerate((1, 2, 1))
    ]
    leaks = find_leaks([videos(*members[:2]), videos(members[2])])
    assert leaks.same == [(str(members[0]), str(members[2]))]
    assert leaks.cut_short() is None


def test_broken_videos_are_left_to_training(clip, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 40)
    assert find_leaks([videos(clip("one.mp4")), videos(tmp_path / "broken.mp4")]).lines() == []


def test_a_look_that_was_cut_short_says_so(clip):
    many = [clip(f"{i}.mp4", seed=i) for i in range(3)]
    leaks = find_leaks([videos(*many[:2]), videos(many[2])], seconds=0)
    assert leaks.num_looked_at == 0
    assert "0 of 3 videos" in leaks.cut_short()
