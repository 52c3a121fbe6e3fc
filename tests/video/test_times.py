"""Times count from a file's start, as players and FFmpeg count them, whatever its sound does."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.clips import ClipDataset, stretch_of
from frameflex.data.datasets import load_videos
from frameflex.data.records import VideoRecord
from frameflex.data.transforms import EvalTransform, Preprocessing
from frameflex.deploy.live.sources import LiveFrame, LiveSource
from frameflex.deploy.long_videos.windows import ForwardVideo, LongVideo
from frameflex.deploy.recognizer import Recognizer
from frameflex.models.tsm import TSM
from frameflex.video import VideoError, open_video
from frameflex.video.sequential import SequentialReader, TimedFrame

FPS = 10
SOUND_RATE = 48000
CODECS = {  # of pictures and sound, for each container
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "mkv": ("libx264", "pcm_s16le"),
    "webm": ("libvpx", "libopus"),
    "ts": ("libx264", "mp2"),
    "flv": ("libx264", "aac"),
    "avi": ("mpeg4", "pcm_s16le"),
    "nut": ("mpeg4", "pcm_s16le"),
    "wmv": ("wmv2", "mp2"),
}
SOUND_DELAY = 0.03  # at most: encoders of sound need a moment of silence before it, and containers keep it


def write_with_sound(
    path: Path,
    *,
    pictures: tuple[float, float],
    sound: tuple[float, float] | None,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write pictures, whose grey is ten times their number, and silence, each from a start to an end in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, sound_codec = CODECS[path.suffix[1:]]
    if codec not in av.codecs_available or (sound and sound_codec not in av.codecs_available):
        pytest.skip(f"this PyAV has no {codec} or {sound_codec} encoder")
    packets = []
    with av.open(str(path), "w", container_options=options or {}) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.max_b_frames = b_frames
        silence = container.add_stream(sound_codec, rate=SOUND_RATE, layout="mono") if sound else None
        for number in range(round((pictures[1] - pictures[0]) * FPS)):
            image = np.full((48, 64, 3), 10 * (number % 20) + 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(pictures[0] * FPS) + number, Fraction(1, FPS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if silence is not None:
            context = silence.codec_context
            step = context.frame_size or 4800
            for start in range(round(sound[0] * SOUND_RATE), round(sound[1] * SOUND_RATE), step):
                values = np.zeros((1, step), np.int16)
                frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
                packets += silence.encode(frame)
            packets += silence.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def times_in_one_pass(path: Path) -> list[float]:
    with SequentialReader(path) as reader:
        return [item.seconds for item in reader if isinstance(item, TimedFrame)]


def times_by_number(path: Path) -> list[float]:
    with open_video(path, decoder="pyav") as reader:
        return reader.timestamps


def read_to_the_end(path: Path) -> ForwardVideo:
    with ForwardVideo(path) as video:
        for _ in video.frames():
            pass
    return video


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(1)
    model = TSM("test_resnet", num_classes=2).eval()
    with torch.no_grad():
        model.head.bias[0] = 4.0
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    pixels = Preprocessing(short_side=36, crop_size=32)
    save_checkpoint(path, Checkpoint(model, ["waving", "nothing"], pixels, (4,)))
    return path


# Where pictures start


@pytest.mark.parametrize("suffix", sorted(set(CODECS) - {"avi"}))
def test_pictures_that_start_after_the_sound_have_the_times_that_players_show(suffix, tmp_path):
    path = write_with_sound(tmp_path / f"late.{suffix}", pictures=(2, 6), sound=(0, 6))
    for times in (times_by_number(path), times_in_one_pass(path)):
        assert times == pytest.approx([2 + i / FPS for i in range(40)], abs=SOUND_DELAY)
        assert np.diff(times) == pytest.approx(1 / FPS, abs=2e-3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_pictures_with_b_frames_that_start_after_the_sound_do_too(suffix, tmp_path):
    path = write_with_sound(tmp_path / f"late.{suffix}", pictures=(2, 6), sound=(0, 6), b_frames=2)
    for times in (times_by_number(path), times_in_one_pass(path)):
        assert times == pytest.approx([2 + i / FPS for i in range(40)], abs=SOUND_DELAY)


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_sound_that_starts_after_the_pictures_changes_no_time(suffix, tmp_path):
    path = write_with_sound(tmp_path / f"a.{suffix}", pictures=(0, 4), sound=(1, 4))
    for times in (times_by_number(path), times_in_one_pass(path)):
        assert times == pytest.approx([i / FPS for i in range(40)], abs=1e-6)


@pytest.mark.parametrize("suffix", sorted(set(CODECS) - {"avi"}))
def test_a_video_without_sound_starts_at_zero_wherever_its_clock_does(suffix, tmp_path):
    path = write_with_sound(tmp_path / f"alone.{suffix}", pictures=(2, 6), sound=None)
    for times in (times_by_number(path), times_in_one_pass(path)):
        assert times == pytest.approx([i / FPS for i in range(40)], abs=2e-3)
    video = read_to_the_end(path)
    assert video.troubles == []


def test_a_file_whose_clock_starts_anywhere_counts_from_its_start(tmp_path):
    for suffix in ("mkv", "ts"):
        path = write_with_sound(tmp_path / f"day.{suffix}", pictures=(1002, 1006), sound=(1000, 1006))
        for times in (times_by_number(path), times_in_one_pass(path)):
            assert times == pytest.approx([2 + i / FPS for i in range(40)], abs=SOUND_DELAY)
        video = read_to_the_end(path)
        assert video.troubles == []


def test_dropped_frames_of_an_avi_take_their_time_in_one_pass_and_by_number(tmp_path):
    """An AVI has no times: its muxer writes packets without data for the time in which there is no frame."""
    path = tmp_path / "dropped.avi"
    numbers = [0, 1, 2, 3, 20, 21, 22]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = [number / FPS for number in numbers]
    assert times_in_one_pass(path) == pytest.approx(expected, abs=1e-6)
    assert times_by_number(path) == pytest.approx(expected, abs=1e-6)


def test_windows_and_subtitles_of_late_pictures_have_the_players_times(tmp_path, saved, capsys):
    path = write_with_sound(tmp_path / "late.mp4", pictures=(2, 6), sound=(0, 6))
    recognizer = Recognizer.from_checkpoint(saved, device="cpu")
    with LongVideo(recognizer, path, window_seconds=1.0, stride_seconds=0.5) as video:
        windows = [(start, end) for start, end, _ in video.windows()]
    expected = [(2 + 0.5 * i, 3 + 0.5 * i) for i in range(7)]
    assert windows == [pytest.approx(pair, abs=1e-6) for pair in expected]
    assert video.duration_seconds == pytest.approx(6)
    assert video.troubles == []
    with LongVideo(recognizer, path, window_seconds=10.0) as video:
        assert [(start, end) for start, end, _ in video.windows()] == [pytest.approx((2, 6))]
    output = tmp_path / "late.srt"
    options = ["--window", "1s", "--output", str(output), "--device", "cpu"]
    assert main(["predict", str(saved), str(path), *options]) == 0
    assert output.read_text().startswith("1\n00:00:02,000 --> 00:00:06,000\nwaving")
    assert "0:02.0 - 0:06.0" in capsys.readouterr().out


def test_the_windows_of_late_pictures_see_the_frames_of_the_same_pictures_alone(tmp_path, saved):
    recognizer = Recognizer.from_checkpoint(saved, device="cpu")
    clips = {}
    for name, sound in (("late.mkv", (0, 6)), ("alone.mkv", None)):
        path = write_with_sound(tmp_path / name, pictures=(2, 6), sound=sound)
        with LongVideo(recognizer, path, window_seconds=1.3, stride_seconds=0.7) as video:
            clips[name] = [clip for _, _, clip in video.windows()]
    assert len(clips["late.mkv"]) == len(clips["alone.mkv"]) > 3
    assert all(torch.equal(a, b) for a, b in zip(*clips.values(), strict=True))


def test_a_stream_from_a_file_has_the_players_times(tmp_path):
    path = write_with_sound(tmp_path / "late.mp4", pictures=(2, 3), sound=(0, 3))
    seconds = []
    with LiveSource(str(path), every_frame=True) as source:
        while not source.ended or source.waiting:
            seconds += [item.seconds for item in source.poll() if isinstance(item, LiveFrame)]
    assert seconds == pytest.approx([2 + i / FPS for i in range(10)], abs=1e-6)


def test_a_stretch_of_a_list_counts_from_the_files_start(tmp_path):
    for suffix in ("mp4", "mkv", "ts"):
        path = write_with_sound(tmp_path / f"late.{suffix}", pictures=(2, 6), sound=(0, 6))
        with open_video(path, decoder="pyav") as reader:

            def stretch(start, end, reader=reader):
                return stretch_of(VideoRecord(Path("a"), 0, "a", start, end), reader, reader.num_frames)

            middle = 0.5 / FPS  # between frames: encoders of sound move them by a few milliseconds
            assert stretch(None, None) == (0, 40)
            assert stretch(5 - middle, 6 - middle) == (30, 40)
            assert stretch(2 - middle, 3 - middle) == (0, 10)
            assert stretch(0, 3 - middle) == (0, 10)
            assert stretch(None, 3 - middle) == (0, 10)
            assert stretch(4 - middle, None) == (20, 40)
            with pytest.raises(VideoError, match=r"first frame is at 2\.0.* stretch ends at 1\.000 s"):
                stretch(0, 1)
            with pytest.raises(VideoError, match=r"has 6\.0.* stretch starts at 6\.500 s"):
                stretch(6.5, 7)


def test_a_list_with_a_stretch_gives_the_frames_that_a_player_shows_then(tmp_path):
    path = write_with_sound(tmp_path / "late.mp4", pictures=(2, 6), sound=(0, 6))
    (tmp_path / "list.csv").write_text("path,label,start_seconds,end_seconds\nlate.mp4,one,4.95,5.95\n")
    videos = load_videos(tmp_path / "list.csv")
    transform = EvalTransform(Preprocessing(short_side=32, crop_size=32))
    clips = ClipDataset(videos, frame_counts=(10,), transform=transform, training=False)
    frames = clips[0].clips[10][0]  # (3, T, h, w)
    with open_video(path, decoder="pyav") as reader:
        expected = transform(reader.frames(range(30, 40)))[0]
    assert torch.equal(frames, expected)


# Where pictures end


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_sound_that_lasts_longer_than_the_pictures_is_no_damage(suffix, tmp_path, saved, capsys):
    path = write_with_sound(tmp_path / f"long.{suffix}", pictures=(0, 4), sound=(0, 30))
    video = read_to_the_end(path)
    assert video.troubles == []
    assert video.num_decoded == 40
    if suffix in ("mp4", "mkv", "flv"):
        output = tmp_path / "events.json"
        options = ["--window", "1s", "--output", str(output), "--device", "cpu"]
        assert main(["predict", str(saved), str(path), *options]) == 0
        values = json.loads(output.read_text())
        assert values["troubles"] == []
        assert values["duration_seconds"] == pytest.approx(4, abs=SOUND_DELAY)
        assert "stop" not in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi"])
def test_the_stated_end_is_that_of_the_pictures(suffix, tmp_path):
    path = write_with_sound(tmp_path / f"a.{suffix}", pictures=(0, 4), sound=(0, 30))
    with SequentialReader(path) as reader:
        assert reader.duration_seconds == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv"])
def test_the_stated_end_of_late_pictures_counts_from_the_files_start(suffix, tmp_path):
    path = write_with_sound(tmp_path / f"a.{suffix}", pictures=(2, 6), sound=(0, 6))
    with SequentialReader(path) as reader:
        assert reader.duration_seconds == pytest.approx(6, abs=0.15)


@pytest.mark.parametrize("sound", [None, (0, 20)])
@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv"])
def test_a_file_whose_end_is_missing_is_still_told(suffix, sound, tmp_path):
    path = write_with_sound(tmp_path / f"cut.{suffix}", pictures=(0, 20), sound=sound)
    assert read_to_the_end(path).troubles == []
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    troubles = read_to_the_end(path).troubles
    assert "ended" in {trouble.kind for trouble in troubles}
    assert any("frames stop at" in trouble.text for trouble in troubles)


def test_a_tag_that_is_no_time_a_wrong_one_or_not_utf8_does_no_harm(tmp_path):
    path = write_with_sound(tmp_path / "a.mkv", pictures=(0, 4), sound=(0, 4))
    content = path.read_bytes()
    assert content.count(b"00:00:04.000000000") == 2
    for tag in (
        b"99:00:04.000000000",
        b"00:00:00.000000000",
        b"xx:00:04.000000000",
        b"00:00:04.00000000\xff",
    ):
        path.write_bytes(content.replace(b"00:00:04.000000000", tag))
        assert read_to_the_end(path).troubles == []
        assert times_by_number(path) == pytest.approx([i / FPS for i in range(40)], abs=1e-6)


def test_a_video_of_one_stream_keeps_its_stated_length(tmp_path):
    path = write_video(tmp_path / "a.mp4", np.zeros((24, 48, 64, 3), np.uint8), fps=12)
    with SequentialReader(path) as reader:
        assert reader.duration_seconds == pytest.approx(2)
