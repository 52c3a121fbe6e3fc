"""Long videos: windows of one pass that see what a clip of exactly that window would show."""

import json
import weakref

import numpy as np
import pytest
import torch
from helpers import moving_bar, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.long_videos import windows as windows_module
from frameflex.deploy.long_videos.drawing import VideoWriter, draw_label, plot_timeline
from frameflex.deploy.long_videos.events import Event, Segment
from frameflex.deploy.long_videos.windows import LongVideo
from frameflex.deploy.recognizer import Recognizer
from frameflex.models.tsm import TSM
from frameflex.video import VideoError, open_video


def tiny_checkpoint(**values):
    torch.manual_seed(1)
    model = TSM("test_resnet", num_classes=3).eval()
    with torch.no_grad():
        model.head.bias[0] = 4.0
    return Checkpoint(
        model, ["left", "right", "nothing"], Preprocessing(short_side=36, crop_size=32), (4,), **values
    )


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer(tiny_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, tiny_checkpoint())
    return path


def noisy(count, *, size=(48, 64), seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, *size, 3)).astype(np.uint8)


def lossless(path, frames, *, fps=12):
    """FFV1: cutting and writing again changes no pixel."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0"))
            )
        container.mux(stream.encode())
    return path


def times(recognizer, path, **options):
    with LongVideo(recognizer, path, **options) as video:
        return [(round(start, 6), round(end, 6)) for start, end, _ in video.windows()]


@pytest.mark.parametrize("views", ["1x1", "2x3"])
@pytest.mark.parametrize("num_frames", [None, 1, 7])
def test_a_window_is_what_predict_makes_of_a_clip_that_spans_it(tmp_path, recognizer, views, num_frames):
    frames = noisy(40)
    path = lossless(tmp_path / "long.mkv", frames)
    with LongVideo(
        recognizer, path, window_seconds=1.0, stride_seconds=0.5, num_frames=num_frames, views=views, batch_size=3
    ) as video:  # fmt: skip
        segments = list(video)
    assert [s.start_seconds for s in segments] == pytest.approx([0, 0.5, 1, 1.5, 2, 40 / 12 - 1])
    for segment in segments:
        first = round(segment.start_seconds * 12)
        clip = lossless(tmp_path / "clip.mkv", frames[first : first + 12])
        logits = recognizer.logits(clip, num_frames=num_frames, views=views)
        assert segment.probabilities == pytest.approx(logits.softmax(-1).numpy(), abs=1e-6)


def test_clips_equal_those_of_the_offline_road_bit_for_bit(tmp_path, recognizer):
    frames = noisy(30)
    path = lossless(tmp_path / "long.mkv", frames)
    with LongVideo(recognizer, path, window_seconds=1.0, stride_seconds=0.25) as video:
        for start, _, clip in video.windows():
            first = round(start * 12)
            short = lossless(tmp_path / "clip.mkv", frames[first : first + 12])
            with open_video(short) as reader:
                assert torch.equal(clip, recognizer.clip_rule().clips(reader)[4])


@pytest.mark.parametrize(
    ("num_frames", "window", "stride", "expected"),
    [
        (24, 1.0, 0.5, [(0, 1), (0.5, 1.5), (1, 2)]),  # ends with the video: no further one
        (27, 1.0, 0.5, [(0, 1), (0.5, 1.5), (1, 2), (1.25, 2.25)]),  # one more, up to the end
        (12, 5.0, 1.0, [(0, 1)]),  # shorter than the window
        (1, 2.0, 1.0, [(0, 0.083333)]),
        (36, 0.5, 1.5, [(0, 0.5), (1.5, 2), (2.5, 3)]),  # with gaps between
    ],
)
def test_windows_cover_the_video_up_to_its_end(tmp_path, recognizer, num_frames, window, stride, expected):
    path = write_video(tmp_path / "a.mp4", noisy(num_frames), fps=12)
    found = times(recognizer, path, window_seconds=window, stride_seconds=stride)
    assert found == [pytest.approx(pair, abs=1e-5) for pair in expected]


def test_a_window_shorter_than_a_frame_sees_the_one_that_is_shown(tmp_path, recognizer):
    path = lossless(tmp_path / "a.mkv", noisy(3), fps=2)
    with LongVideo(recognizer, path, window_seconds=0.2, stride_seconds=0.2, num_frames=1) as video:
        clips = [(start, clip) for start, _, clip in video.windows()]
    with open_video(path) as reader:
        frames = recognizer.clip_rule(1).transform(reader.frames(range(3)))  # (1, 3, 3, h, w)
    for start, clip in clips:
        index = min(int(start / 0.5 + 1e-6), 2)
        # a window that starts before a frame and reaches it sees that one
        near = [index] + ([index + 1] if index < 2 and (index + 1) * 0.5 < start + 0.2 else [])
        assert any(torch.equal(clip[0, :, 0], frames[0, :, i]) for i in near)


def test_frames_are_held_for_a_window_and_no_longer(tmp_path, recognizer, monkeypatch):
    path = write_video(tmp_path / "a.mp4", noisy(240), fps=24)
    alive, most = weakref.WeakSet(), 0
    made = windows_module.VideoFrame.__init__

    def counted(self, *arguments):
        nonlocal most
        made(self, *arguments)
        alive.add(self)
        most = max(most, len(alive))

    monkeypatch.setattr(windows_module.VideoFrame, "__init__", counted)
    with LongVideo(recognizer, path, window_seconds=1.0, stride_seconds=0.5) as video:
        assert sum(1 for _ in video.windows()) == 19
    assert video.num_decoded == 240
    assert 24 <= most <= 24 + 4


def test_large_pictures_are_cut_early_and_give_the_same_windows(tmp_path, recognizer, monkeypatch):
    path = lossless(tmp_path / "a.mkv", noisy(30))
    with LongVideo(recognizer, path, window_seconds=1.0) as video:
        expected = list(video.windows())
    monkeypatch.setattr(windows_module, "_HELD_BYTES", 40_000)  # three pictures
    held = []
    add = windows_module._HeldFrames.add

    def watched(self, frame):
        add(self, frame)
        held.append(sum(f.num_bytes for f in self._frames))

    monkeypatch.setattr(windows_module._HeldFrames, "add", watched)
    with LongVideo(recognizer, path, window_seconds=1.0) as video:
        found = list(video.windows())
    assert max(held) <= 40_000
    assert all(torch.equal(a[2], b[2]) for a, b in zip(expected, found, strict=True))


def test_a_gap_is_told_and_no_window_within_it_is_made_up(tmp_path, recognizer):
    path = tmp_path / "gap.mp4"
    with VideoWriter(path, fps=12) as writer:
        for i in range(48):
            writer.write(
                torch.full((3, 48, 64), 5 * i, dtype=torch.uint8), i / 12 + (100.0 if i >= 24 else 0.0)
            )
    with LongVideo(recognizer, path, window_seconds=1.0, stride_seconds=0.5) as video:
        found = [(start, end) for start, end, _ in video.windows()]
    [gap] = video.troubles
    assert (gap.kind, round(gap.start_seconds, 1), round(gap.end_seconds)) == ("gap", 1.9, 102)
    assert all(start < 2 or start > 100.9 for start, _ in found)
    assert any(end > 103 for _, end in found)


def test_damage_in_the_middle_is_told_and_the_rest_is_seen(tmp_path, saved, capsys):
    path = write_video(tmp_path / "a.mp4", noisy(60), fps=12)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    for place in range(start + len(data) // 3, start + len(data) // 2, 5):
        data[place] ^= 0xFF
    path.write_bytes(data)
    output = tmp_path / "events.json"
    status = main(
        ["predict", str(saved), str(path), "--window", "1s", "--output", str(output), "--device", "cpu"]
    )
    captured = capsys.readouterr()
    assert status == 1  # not all of it could be seen
    assert "damaged at" in captured.err
    values = json.loads(output.read_text())
    assert {trouble["kind"] for trouble in values["troubles"]} >= {"damaged"}
    assert values["events"][-1]["end_seconds"] == pytest.approx(5, abs=0.2)


def test_two_recordings_in_one_file_are_told_and_time_goes_on(tmp_path, recognizer):
    small = write_video(tmp_path / "a.ts", noisy(24), fps=12).read_bytes()
    large = write_video(tmp_path / "b.ts", noisy(24, size=(96, 128)), fps=12).read_bytes()
    (tmp_path / "both.ts").write_bytes(small + large)
    with LongVideo(recognizer, tmp_path / "both.ts", window_seconds=1.0) as video:
        clips = [clip for *_, clip in video.windows()]
    assert {"clock", "size"} <= {trouble.kind for trouble in video.troubles}
    assert video.duration_seconds == pytest.approx(4, abs=0.2)
    assert {clip.shape for clip in clips} == {(1, 3, 4, 32, 32)}


def test_what_is_no_video_or_has_no_frame_is_an_error(tmp_path, recognizer):
    (tmp_path / "a.mp4").write_text("text")
    with pytest.raises(VideoError, match="not a video file"):
        LongVideo(recognizer, tmp_path / "a.mp4", window_seconds=1)
    with pytest.raises(FileNotFoundError):
        LongVideo(recognizer, tmp_path / "b.mp4", window_seconds=1)
    with pytest.raises(ValueError, match="window_seconds is 0"):
        LongVideo(recognizer, tmp_path / "a.mp4", window_seconds=0)


# From the command line


def predict(*arguments, capsys):
    status = main(["predict", *map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_events_go_to_files_pictures_and_a_video(tmp_path, saved, capsys):
    path = write_video(tmp_path / "a.mp4", moving_bar(36, rightwards=True), fps=12)
    out = tmp_path / "out"
    status, text, err = predict(
        saved, path, "--window", "1s", "--stride", "500ms", "--output", out / "e.srt", "--timeline", out / "t.png",
        "--annotate", out / "v.mp4", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    assert "0:00.0 - 0:03.0" in text
    assert (out / "e.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:03,000\nleft (")
    assert (out / "t.png").read_bytes().startswith(b"\x89PNG")
    with open_video(out / "v.mp4") as labelled, open_video(path) as original:
        assert labelled.num_frames == original.num_frames == 36
        assert labelled.timestamps == pytest.approx(original.timestamps, abs=2e-3)
    assert sorted(p.name for p in out.iterdir()) == ["e.srt", "t.png", "v.mp4"]


def test_json_lines_tell_windows_and_events_as_they_come(tmp_path, saved, capsys):
    path = write_video(tmp_path / "a.mp4", moving_bar(24, rightwards=True), fps=12)
    status, text, _ = predict(saved, path, "--window", "1s", "--json", "--top", 2, capsys=capsys)
    assert status == 0
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["start_seconds"] for line in lines[:-1]] == [0.0, 0.5, 1.0]
    assert all(len(line["predictions"]) == 2 for line in lines[:-1])
    assert lines[-1]["event"]["label"] == "left"


def test_several_videos_go_to_a_folder_and_a_bad_one_is_told(tmp_path, saved, capsys):
    for name in ("a", "b"):
        write_video(tmp_path / "in" / f"{name}.mp4", moving_bar(24, rightwards=True), fps=12)
    (tmp_path / "in" / "c.mp4").write_text("text")
    out = tmp_path / "out"
    status, _, err = predict(
        saved, tmp_path / "in", "--window", "1s", "--output", out, "--format", "csv", capsys=capsys
    )
    assert status == 1
    assert "1 of 3 videos" in err
    assert sorted(p.name for p in out.iterdir()) == ["a.csv", "b.csv"]
    status, _, err = predict(saved, tmp_path / "in", "--window", "1s", "--output", "one.csv", capsys=capsys)
    assert status == 1
    assert "is one file for 3 videos; expected a folder's name" in err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--stride", "1s"], 2, "--stride needs --window"),
        (["--output", "a.json"], 2, "--output needs --window"),
        (["--window", "0s"], 2, "expected a time above 0 such as 2s"),
        (["--window", "2s", "--budget", "auto"], 2, "--budget and --window don't go together"),
        (["--window", "2s", "--output", "a.txt"], 1, "events can't be written as txt"),
        (["--window", "2s", "--timeline", "a.txt"], 1, "expected a picture's name"),
        (["--window", "2s", "--annotate", "a.txt"], 1, "expected a video's name"),
        (["--window", "2s", "--nothing", "rest"], 1, "nothing is 'rest', which is no class"),
        (["--window", "2s", "--output", "FILE/x/a.json"], 1, "can't be made"),
        (["--window", "2s", "--annotate", "FILE"], 1, "would be written over, and it is read"),
        (["--confidence", "1.5"], 2, "expected a probability of 0 to 1"),
    ],
)
def test_what_can_not_work_is_one_line_before_the_work(tmp_path, saved, capsys, options, status, message):
    path = write_video(tmp_path / "a.mp4", moving_bar(6, rightwards=True), fps=12)
    options = [option.replace("FILE", str(path)) for option in options]
    found, out, err = predict(saved, path, *options, capsys=capsys)
    assert (found, out) == (status, "")
    assert message in err
    assert err.count("\n") == 1


# Pictures


def test_a_label_is_written_into_the_picture_and_nowhere_else():
    image = torch.full((3, 120, 200), 128, dtype=torch.uint8)
    drawn = draw_label(
        image, "waving a very long name that needs more than one line in this picture", "0:01.0"
    )
    assert drawn.shape == image.shape
    assert torch.equal(image, torch.full_like(image, 128))
    assert (drawn[:, :12] != 128).any()
    assert (drawn[:, -8:] != 128).any()
    assert (drawn[:, 60:90] == 128).all()
    assert torch.equal(draw_label(image, ""), image)


@pytest.mark.parametrize("num_segments", [0, 3, 2500])
def test_a_timeline_is_drawn_of_few_and_of_many_segments(tmp_path, num_segments):
    from PIL import Image

    segments = [Segment(i, i + 1, np.array([0.75, 0.25], np.float16)) for i in range(num_segments)]
    events = [Event("a", 0, 0.0, 2.0, 0.75)] if num_segments else []
    plot_timeline(tmp_path / "t.png", events, segments, ["a", "b"], duration_seconds=max(num_segments, 1))
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width > 1000


def test_a_recording_without_pictures_or_with_an_error_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "a.mp4"):
        pass

    def failing():
        with VideoWriter(tmp_path / "a.mp4") as writer:
            writer.write(torch.zeros(3, 32, 32, dtype=torch.uint8), 0.0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        failing()
    assert list(tmp_path.iterdir()) == []
