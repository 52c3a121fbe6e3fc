"""Live sources: what happens to them is told, and ends nothing but, at last, themselves."""

import http.server
import itertools
import os
import threading
import time

import numpy as np
import pytest
import torch
from helpers import write_video
from web import serving

from frameflex.deploy.live.sources import LiveFrame, LiveSource, Notice, running, source_kind
from frameflex.video import VideoError, open_video
from frameflex.video.sequential import Damage, SequentialReader, TimedFrame


def numbered(count, *, size=(48, 64), first=0):
    """Frames whose brightness is their number."""
    return np.stack([np.full((*size, 3), 8 * (first + i) % 250, np.uint8) for i in range(count)])


def noisy(count, *, size=(48, 64)):
    return np.random.default_rng(0).integers(0, 255, (count, *size, 3)).astype(np.uint8)


def play(source, *, seconds=30.0):
    """All that a source gives until it ends."""
    items = []
    end = time.monotonic() + seconds
    with running([source]) as wake:
        while not source.ended or source.waiting:
            assert time.monotonic() < end, "the source doesn't end"
            wake.wait(0.05)
            wake.clear()
            items += source.poll()
        items += source.poll()
    frames = [item for item in items if isinstance(item, LiveFrame)]
    return frames, [item for item in items if isinstance(item, Notice)]


def kinds(notices):
    return [notice.kind for notice in notices]


def told_of(notices):
    """Without the frames that were dropped: a busy machine may be too slow for a live source at any moment."""
    return [notice for notice in notices if notice.kind != "dropped"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("ts") / "a.ts", numbered(24), fps=12)


# Files


def test_a_file_gives_every_frame_in_order_with_its_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(20), fps=10)
    source = LiveSource(str(path), every_frame=True)
    frames, notices = play(source)
    assert [round(frame.seconds, 3) for frame in frames] == [i / 10 for i in range(20)]
    with open_video(path) as reader:
        assert all(torch.equal(f.read(), r) for f, r in zip(frames, reader, strict=True))
    assert kinds(notices) == ["ended"]
    assert (source.failed, source.num_frames, source.num_dropped) == (False, 20, 0)


def test_frames_that_nobody_takes_in_time_are_dropped_and_counted(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered(12), fps=60)
    source = LiveSource(str(path))
    with running([source]) as wake:
        while not source.ended:
            wake.wait(0.05)
            wake.clear()
        items = source.poll()
    [frame] = [item for item in items if isinstance(item, LiveFrame)]
    assert frame.seconds == pytest.approx(11 / 60, abs=0.01)  # the newest one
    assert source.num_dropped == 11
    [dropped] = [item for item in items if isinstance(item, Notice) and item.kind == "dropped"]
    assert dropped.count == 11
    assert "11 frames dropped" in dropped.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"stride": 3}, range(0, 30, 3)), ({"rate": 10.0}, range(0, 30, 3)), ({"rate": 100.0}, range(30))],
)
def test_stride_and_rate_choose_the_frames_that_the_network_sees(tmp_path, options, expected):
    path = write_video(tmp_path / "a.mp4", numbered(30), fps=30)
    frames, _ = play(LiveSource(str(path), every_frame=True, **options))
    assert [round(frame.seconds * 30) for frame in frames] == list(expected)
    frames, _ = play(LiveSource(str(path), every_frame=True, all_frames=True, **options))
    assert len(frames) == 30
    assert [round(frame.seconds * 30) for frame in frames if frame.due] == list(expected)


def test_a_resolution_change_in_mid_stream_is_told_before_the_first_frame_of_that_size(tmp_path):
    small = write_video(tmp_path / "a.ts", numbered(8), fps=12).read_bytes()
    large = write_video(tmp_path / "b.ts", numbered(8, size=(96, 80)), fps=12).read_bytes()
    (tmp_path / "both.ts").write_bytes(small + large)
    source = LiveSource(str(tmp_path / "both.ts"), every_frame=True)
    items = []
    with running([source]):
        while not source.ended or source.waiting:
            items += source.poll()
            time.sleep(0.005)
        items += source.poll()
    sizes = [item.size for item in items if isinstance(item, LiveFrame)]
    assert set(sizes) == {(48, 64), (96, 80)}
    place = next(i for i, item in enumerate(items) if isinstance(item, LiveFrame) and item.size == (96, 80))
    told = [i for i, item in enumerate(items) if isinstance(item, Notice) and item.kind == "size"]
    assert len(told) == 1
    assert told[0] < place
    assert items[told[0]].stale
    assert "80x96 pixels from here on, before 64x48" in items[told[0]].text
    assert items[place].read().shape == (3, 96, 80)


def test_a_clock_that_jumps_is_told_and_time_goes_on_forward(tmp_path, recording):
    (tmp_path / "twice.ts").write_bytes(
        recording.read_bytes() * 2
    )  # the second starts at the first one's time
    frames, notices = play(LiveSource(str(tmp_path / "twice.ts"), every_frame=True))
    assert len(frames) == 48
    times = [frame.seconds for frame in frames]
    assert all(a < b for a, b in itertools.pairwise(times))
    assert max(np.diff(times)) < 0.2
    told = [n for n in notices if n.kind != "damaged"]  # the seam also breaks the count of packets
    assert kinds(told) == ["clock", "ended"]
    assert told[0].stale
    assert "the clock jumps by -" in told[0].text


def test_corrupt_packets_are_skipped_and_counted(tmp_path):
    path = write_video(tmp_path / "a.mp4", noisy(30), fps=12)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    for place in range(start + len(data) // 3, start + len(data) // 2, 5):
        data[place] ^= 0xFF
    (tmp_path / "b.mp4").write_bytes(data)
    source = LiveSource(str(tmp_path / "b.mp4"), every_frame=True)
    frames, notices = play(source)
    assert source.num_damaged > 0
    assert frames[-1].seconds > 2  # it went on after the damage
    assert kinds(notices).count("damaged") >= 1
    assert kinds(notices)[-2:] in (["ended", "damaged"], ["damaged", "ended"])
    assert not source.failed


# Addresses


def test_a_lost_connection_is_told_and_made_again(recording):
    data = recording.read_bytes()
    with serving(data[: len(data) // 2], data) as address:
        source = LiveSource(address, timeout_seconds=3, give_up_seconds=2)
        frames, notices = play(source)
    assert source.num_frames > 24
    notices = told_of(notices)
    found = kinds(notices)
    assert found[:2] == ["lost", "connected"]
    assert found[-1] == "failed"  # after the second answer the server has no more
    assert "trying again in 0.5 s" in notices[0].text
    assert all(n.stale for n in notices if n.kind in ("lost", "connected", "failed"))
    assert "gave up after" in notices[-1].text
    times = [frame.seconds for frame in frames]
    assert times == sorted(times)
    assert source.failed


def test_waits_between_two_tries_grow(recording):
    with serving() as address:
        _, notices = play(LiveSource(address, timeout_seconds=3, give_up_seconds=3))
    waits = [float(n.text.split("trying again in ")[1].split(" ")[0]) for n in notices if n.kind == "lost"]
    assert waits == [0.5, 1.0]
    assert "404" in notices[0].text


def test_a_dead_camera_that_never_answers_ends_in_time_and_says_so():
    with serving(None, None, None, None) as address:
        source = LiveSource(address, timeout_seconds=0.4, give_up_seconds=1.5)
        frames, notices = play(source)
    assert frames == []
    assert kinds(notices)[0] == "lost"
    assert kinds(notices)[-1] == "failed"
    assert "no data in time" in notices[0].text
    assert source.failed


def test_a_camera_that_dies_midway_is_told(recording):
    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if answered.is_set():
                self.send_error(503)
                return
            answered.set()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(recording.read_bytes())
            self.wfile.flush()
            over.wait(20)  # the connection stays open, nothing comes

        def log_message(self, *_):
            pass

    over, answered = threading.Event(), threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://user:secret@127.0.0.1:{server.server_port}/a.ts"
        source = LiveSource(address, timeout_seconds=1, give_up_seconds=2)
        _, notices = play(source)
        notices = told_of(notices)
    finally:
        over.set()
        server.shutdown()
        server.server_close()
    assert source.num_frames > 0
    assert kinds(notices)[0] == "lost"
    assert kinds(notices)[-1] == "failed"
    assert "no data in time" in notices[0].text
    assert "secret" not in source.name + "".join(n.text for n in notices)


# Standard input and mistakes


def test_raw_pictures_come_from_a_pipe_and_a_part_of_one_is_told():
    reading, writing = os.pipe()
    pictures = noisy(5, size=(6, 8))

    def write():
        os.write(writing, pictures.tobytes() + b"rest")
        os.close(writing)

    threading.Thread(target=write).start()
    source = LiveSource("-", size=(6, 8), fps=10, every_frame=True, stdin=reading)
    frames, notices = play(source)
    os.close(reading)
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert all(
        np.array_equal(f.read().permute(1, 2, 0).numpy(), p) for f, p in zip(frames, pictures, strict=True)
    )
    assert kinds(notices) == ["damaged", "ended"]
    assert "the last 4 bytes are no whole picture of 144" in notices[0].text


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("-", "raw"), ("0", "camera"), ("/dev/video12", "camera"), ("rtsp://a/b", "address"),
        ("HTTPS://a/b.m3u8", "address"), ("clip.mp4", "file"), ("./0", "file"),
    ],
)  # fmt: skip
def test_what_a_source_is_can_be_told_from_its_name(source, kind):
    assert source_kind(source) == kind


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("missing.mp4", {}, FileNotFoundError, "there is no such file"),
        ("file:///etc/passwd", {}, ValueError, "can't read file; expected one of rtsp"),
        ("-", {}, ValueError, "raw pictures need size and fps"),
        ("-", {"size": (4, 4), "fps": 0}, ValueError, "raw pictures need size and fps"),
        ("rtsp://a/b", {"every_frame": True}, ValueError, "is live"),
        ("rtsp://a/b", {"rate": 0}, ValueError, "rate is 0; expected more than 0"),
        ("9876", {}, FileNotFoundError, "no camera"),
    ],
)
def test_a_source_that_can_not_be_is_refused_at_once(source, options, error, message):
    if source == "9876" and not os.path.isdir("/dev"):
        pytest.skip("cameras are devices of another kind here")
    with pytest.raises(error, match=message):
        LiveSource(source, **options)


def test_a_file_that_is_no_video_fails_and_says_so(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    source = LiveSource(str(tmp_path / "a.mp4"))
    frames, notices = play(source)
    assert frames == []
    assert kinds(notices) == ["failed"]
    assert "not a video file" in notices[0].text
    assert source.failed


# The reader beneath


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_reading_once_gives_the_frames_and_times_of_open_video(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", noisy(15), fps=12)
    with open_video(path) as reader, SequentialReader(path) as sequential:
        items = list(sequential)
        assert all(isinstance(item, TimedFrame) for item in items)
        assert [item.seconds for item in items] == pytest.approx(reader.timestamps, abs=1e-9)
        assert all(torch.equal(a.image(), b) for a, b in zip(items, reader, strict=True))


def test_damage_in_the_middle_is_stepped_over_where_open_video_refuses(tmp_path):
    path = write_video(tmp_path / "a.mp4", noisy(30), fps=12)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    for place in range(start + len(data) // 3, start + len(data) // 2, 5):
        data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(VideoError), open_video(path) as reader:
        reader.frames(range(reader.num_frames))
    with SequentialReader(path) as sequential:
        items = list(sequential)
    assert any(isinstance(item, Damage) for item in items)
    assert sum(isinstance(item, TimedFrame) for item in items) > 5
