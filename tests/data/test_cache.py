"""Frames that are kept."""

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_video

from frameflex.data import cache as caching
from frameflex.data.cache import FrameCache
from frameflex.data.clips import ClipDataset
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing, TrainTransform
from frameflex.video import VideoError

RAW = Preprocessing(short_side=32, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1))


def made(path: Path, num_frames: int = 12, size: tuple[int, int] = (32, 48)) -> Path:
    """A video whose frame k is grey of brightness 8 k + 8."""
    grey = (8 * np.arange(num_frames) + 8).astype(np.uint8)
    return write_video(path, np.tile(grey[:, None, None, None], (1, *size, 3)), fps=10)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Which videos were opened."""
    names: list[str] = []
    whole = VideoRecord.open

    def spy(record: VideoRecord, **options):
        names.append(record.name)
        return whole(record, **options)

    monkeypatch.setattr(VideoRecord, "open", spy)
    return names


@pytest.mark.parametrize("memory_bytes", [0, 10**9])
def test_clips_of_kept_frames_are_those_of_decoded_ones(tmp_path, opened, memory_bytes):
    videos = VideoList(
        [VideoRecord(made(tmp_path / f"{n}.mp4", n), i, str(n)) for i, n in enumerate((12, 7))], ["a", "b"]
    )
    options = {"frame_counts": (8, 4), "transform": TrainTransform(RAW), "training": True}
    plain = ClipDataset(videos, **options)
    cache = FrameCache((32, 32), memory_bytes=memory_bytes, folder=tmp_path / "kept")
    kept = ClipDataset(videos, **options, open_record=cache.open)
    for epoch in range(3):
        for index in range(2):
            expected, got = plain[index, epoch], kept[index, epoch]
            assert all(torch.equal(got.clips[t], expected.clips[t]) for t in (8, 4))
    assert opened == ["12", "7"]  # the plain ones aren't counted
    assert (tmp_path / "kept").exists() == (memory_bytes == 0)


def test_large_frames_are_kept_small_and_cover_what_is_asked_for(tmp_path):
    record = VideoRecord(made(tmp_path / "a.mp4", 3, (120, 200)), 0, "a")
    cache = FrameCache((38, 40), memory_bytes=10**9)
    with cache.open(record) as reader:
        assert (reader.height, reader.width, reader.num_frames) == (38, 63, 3)
        assert reader.frames([2]).float().mean().item() == pytest.approx(24, abs=2)
    assert cache.kept_bytes == 3 * 38 * 63 * 3


def test_a_stretch_is_kept_with_its_own_times(tmp_path):
    path = made(tmp_path / "a.mp4", 12)  # 10 frames a second
    record = VideoRecord(path, 0, "a", start_seconds=0.35, end_seconds=0.8)
    cache = FrameCache((32, 32), memory_bytes=10**9)
    with record.open() as whole, cache.open(record) as reader:
        assert reader.timestamps == whole.timestamps[4:8]
    dataset = ClipDataset(
        VideoList([record], ["a", "b"]),
        frame_counts=[4],
        transform=TrainTransform(RAW, flip=False),
        training=True,
        open_record=cache.open,
    )
    shown = ((dataset[0].clips[4].mean((0, 2, 3)) * 255 - 8) / 8).round().tolist()
    assert shown == [4, 5, 6, 7]


def test_a_file_that_changed_is_decoded_anew_and_what_is_stale_goes(tmp_path, opened):
    record = VideoRecord(made(tmp_path / "a.mp4", 5), 0, "a")
    cache = FrameCache((32, 32), folder=tmp_path / "kept")
    assert cache.open(record).num_frames == cache.open(record).num_frames == 5
    assert len(opened) == 1
    made(tmp_path / "a.mp4", 9)
    os.utime(tmp_path / "a.mp4", (1, 1))
    assert cache.open(record).num_frames == 9
    assert len(list((tmp_path / "kept").iterdir())) == 4
    cache.clean([record])
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert cache.open(record).num_frames == 9
    assert len(opened) == 2
    cache.close(remove=True)
    assert not (tmp_path / "kept").exists()


def test_another_process_takes_the_files_and_not_the_memory(tmp_path, opened):
    record = VideoRecord(made(tmp_path / "a.mp4"), 0, "a")
    cache = FrameCache((32, 32), folder=tmp_path / "kept")
    cache.open(record)
    other = pickle.loads(pickle.dumps(cache))
    assert torch.equal(other.open(record).frames([3]), cache.open(record).frames([3]))
    assert len(opened) == 1


def test_a_very_long_video_is_not_kept(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(caching, "_MOST_BYTES", 3 * 32 * 48 * 5)
    record = VideoRecord(made(tmp_path / "a.mp4", 6), 0, "a")
    cache = FrameCache((32, 48), memory_bytes=10**9)
    for _ in range(2):
        with cache.open(record) as reader:
            assert reader.frames([5]).float().mean().item() == pytest.approx(48, abs=2)
    assert len(opened) == 2
    assert cache.kept_bytes == 0


def test_a_full_disk_is_said_once_and_decoding_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(caching, "_LEFT_FREE_BYTES", 2**60)
    cache = FrameCache((32, 32), folder=tmp_path / "kept")
    records = [VideoRecord(made(tmp_path / f"{i}.mp4"), 0, str(i)) for i in range(2)]
    assert [cache.open(record).num_frames for record in records] == [12, 12]
    assert caplog.text.count("no more frames are kept (the disk is nearly full)") == 1


def test_videos_are_decoded_ahead_once_and_a_broken_one_is_told_to_who_asks(tmp_path, opened):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    records = [VideoRecord(made(tmp_path / f"{i}.mp4"), 0, str(i)) for i in range(3)]
    broken = VideoRecord(tmp_path / "broken.mp4", 0, "broken")
    cache = FrameCache((32, 32), memory_bytes=10**9)
    cache.fill([records[0], broken, *records[1:]])
    for record in records:
        assert cache.open(record).num_frames == 12
    with pytest.raises(VideoError, match="broken"):
        cache.open(broken)
    cache.close()
    assert sorted(name for name in opened if name != "broken") == ["0", "1", "2"]
    assert not any(thread.name == "decode ahead" for thread in threading.enumerate())
