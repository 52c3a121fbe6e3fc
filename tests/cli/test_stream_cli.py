"""``frameflex stream`` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers import moving_bar, write_video
from web import serving

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.models.tsm import TSM
from frameflex.video import open_video

PIXELS = Preprocessing(short_side=32, crop_size=32)


def checkpoint(path, *, shift, names=("left", "right", "nothing")):
    torch.manual_seed(1)
    model = TSM("test_resnet", num_classes=len(names), shift=shift).eval()
    with torch.no_grad():
        model.head.bias[0] = 4.0  # sure of "left" whatever it sees: there is always an event
    save_checkpoint(path, Checkpoint(model, list(names), PIXELS, (4,)))
    return path


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("causal") / "causal.safetensors", shift="causal")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_bar(24, rightwards=True), fps=12)


def stream(*arguments, capsys):
    status = main(["stream", *map(str, arguments), "--device", "cpu"])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def of_type(lines, kind):
    return [line for line in lines if line["type"] == kind]


def test_a_file_gives_predictions_an_event_and_its_end(causal, clip, capsys):
    status, lines, err = stream(causal, clip, "--every-frame", "--print-every", "1ms", capsys=capsys)
    assert status == 0, err
    predictions = of_type(lines, "prediction")
    assert [line["seconds"] for line in predictions] == pytest.approx([i / 12 for i in range(24)], abs=1e-3)
    assert predictions[0]["reset"] == "start"
    assert all("reset" not in line for line in predictions[1:])
    assert {line["label"] for line in predictions} == {"left"}
    [event] = of_type(lines, "event")
    assert (event["label"], event["start_seconds"]) == ("left", 0.0)
    assert event["end_seconds"] == pytest.approx(23 / 12, abs=1e-3)
    assert of_type(lines, "notice")[-1]["kind"] == "ended"
    assert [line["type"] for line in lines].index("start") < [line["type"] for line in lines].index("event")


def test_the_command_says_what_the_library_says_of_the_same_frames(causal, clip, capsys):
    _, lines, _ = stream(
        causal, clip, "--every-frame", "--stride", 2, "--print-every", "1ms", "--consensus", "mean",
        capsys=capsys,
    )  # fmt: skip
    recognizer = StreamingRecognizer(causal, stride=1, consensus="mean", device="cpu")
    with open_video(clip) as reader:
        frames = reader.frames(range(0, 24, 2))
    expected = [recognizer.push(frame, 2 * i / 12).probability for i, frame in enumerate(frames)]
    assert [line["probability"] for line in of_type(lines, "prediction")] == pytest.approx(expected, abs=1e-5)


def test_several_sources_in_one_process_say_what_each_says_alone(causal, clip, tmp_path, capsys):
    other = write_video(tmp_path / "other.mp4", moving_bar(15, rightwards=False, seed=3), fps=12)

    def predictions(*sources):
        _, lines, _ = stream(causal, *sources, "--every-frame", "--print-every", "1ms", capsys=capsys)
        return {
            str(s): [(p["seconds"], p["probability"]) for p in of_type(lines, "prediction") if p["source"] == str(s)]
            for s in sources
        }  # fmt: skip

    both, first, second = predictions(clip, other), predictions(clip), predictions(other)
    for source, alone in (first | second).items():
        assert np.array(both[source]) == pytest.approx(np.array(alone), abs=1e-5)


def test_a_bidirectional_checkpoint_is_refused_with_both_remedies_and_window_takes_it(tmp_path, clip, capsys):
    path = checkpoint(tmp_path / "both.safetensors", shift="bidirectional")
    status, lines, err = stream(path, clip, capsys=capsys)
    assert (status, lines) == (1, [])
    assert "train a causal one" in err
    assert "--window" in err
    status, lines, err = stream(path, clip, "--window", 4, "--hop", 2, "--every-frame", capsys=capsys)
    assert status == 0, err
    assert of_type(lines, "event")


def test_a_resolution_change_resets_the_stream_and_says_so(causal, tmp_path, capsys):
    small = write_video(tmp_path / "a.ts", moving_bar(12, rightwards=True), fps=12).read_bytes()
    large = write_video(tmp_path / "b.ts", moving_bar(12, rightwards=True, size=96), fps=12).read_bytes()
    (tmp_path / "both.ts").write_bytes(small + large)
    status, lines, err = stream(
        causal, tmp_path / "both.ts", "--every-frame", "--print-every", "1ms", capsys=capsys
    )
    assert status == 0, err
    [notice] = [line for line in of_type(lines, "notice") if line["kind"] == "size"]
    assert "96x96 pixels from here on, before 48x48" in notice["text"]
    resets = [line for line in of_type(lines, "prediction") if "reset" in line]
    assert resets[-1]["reset"] == notice["text"]
    assert resets[-1]["num_seen"] == 1  # nothing of the frames before is left
    first, second = of_type(lines, "event")[0], of_type(lines, "event")[-1]
    assert first["end_seconds"] <= second["start_seconds"]


def test_a_clock_that_jumps_resets_the_stream_and_says_so(causal, tmp_path, capsys):
    data = write_video(tmp_path / "a.ts", moving_bar(24, rightwards=True), fps=12).read_bytes()
    (tmp_path / "twice.ts").write_bytes(data + data)
    status, lines, err = stream(
        causal, tmp_path / "twice.ts", "--every-frame", "--print-every", "1ms", capsys=capsys
    )
    assert status == 0, err
    resets = [line for line in of_type(lines, "prediction") if "reset" in line]
    assert len(resets) == 2
    assert "the clock jumps" in resets[1]["reset"]
    assert resets[1]["num_seen"] == 1
    assert len(of_type(lines, "event")) == 2


def test_corrupt_packets_end_nothing_and_are_told(causal, tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 48, 3)).astype(np.uint8)
    data = bytearray(write_video(tmp_path / "a.mp4", frames, fps=12).read_bytes())
    start = data.index(b"mdat")
    for place in range(start + len(data) // 3, start + len(data) // 2, 5):
        data[place] ^= 0xFF
    (tmp_path / "b.mp4").write_bytes(data)
    status, lines, err = stream(causal, tmp_path / "b.mp4", "--every-frame", capsys=capsys)
    assert status == 0, err
    damaged = [line for line in of_type(lines, "notice") if line["kind"] == "damaged"]
    assert damaged[-1]["count"] > 0
    assert of_type(lines, "prediction")[-1]["seconds"] > 1.4


def test_a_lost_connection_resets_the_stream_and_a_dead_one_fails_without_ending_the_others(
    causal, clip, tmp_path, capsys
):
    data = write_video(tmp_path / "a.ts", moving_bar(24, rightwards=True), fps=12).read_bytes()
    with serving(data, data) as address, serving(None, None, None) as dead:
        status, lines, err = stream(
            causal, address, dead, clip, "--timeout", "500ms", "--give-up", "1500ms", "--print-every", "1ms",
            capsys=capsys,
        )  # fmt: skip
    assert status == 1
    notices = of_type(lines, "notice")
    assert [n["kind"] for n in notices if n["source"] == dead][-1] == "failed"
    assert "connected" in [n["kind"] for n in notices if n["source"] == address]
    assert [n["kind"] for n in notices if n["source"] == str(clip)][-1] == "ended"
    again = [p for p in of_type(lines, "prediction") if p["source"] == address and "reset" in p]
    assert [p["num_seen"] for p in again] == [1, 1]
    assert "connected again after" in again[1]["reset"]
    assert f"{dead}: gave up after" in err.replace("\n", " ")


def test_the_saved_video_has_every_frame_and_can_be_read(causal, clip, tmp_path, capsys):
    saved = tmp_path / "new" / "saved.mp4"
    status, _, err = stream(
        causal, clip, clip, "--every-frame", "--stride", 3, "--save", saved, capsys=capsys
    )
    assert status == 0, err
    assert sorted(path.name for path in saved.parent.iterdir()) == ["saved-1.mp4", "saved-2.mp4"]
    with open_video(tmp_path / "new" / "saved-2.mp4") as written, open_video(clip) as original:
        assert written.num_frames == original.num_frames
        assert written.timestamps == pytest.approx(original.timestamps, abs=2e-3)
        frame, before = written.frames([20])[0].float(), original.frames([20])[0].float()
    change = (frame - before).abs().amax(0)
    assert change[:12].max() > 60  # the label
    assert change[18:34].mean() < 12  # between label and time, the picture


def test_raw_pictures_on_standard_input(causal, monkeypatch, capsys):
    reading, writing = os.pipe()
    threading.Thread(
        target=lambda: (os.write(writing, moving_bar(8, rightwards=True).tobytes()), os.close(writing))
    ).start()
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        status, lines, err = stream(
            causal, "-", "--size", "48x48", "--fps", 8, "--every-frame", "--print-every", "1ms", capsys=capsys
        )
    finally:
        os.dup2(before, 0)
        for handle in (before, reading):
            os.close(handle)
    assert status == 0, err
    assert [p["seconds"] for p in of_type(lines, "prediction")] == pytest.approx([i / 8 for i in range(8)])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-", "-"], 2, "- is given twice"),
        (["-"], 1, "raw pictures need size and fps"),
        (["missing.mp4"], 1, "there is no such file"),
        (["ftp://a/b"], 1, "can't read ftp"),
        (["CLIP", "--rate", "0"], 2, "'0'; expected frames a second"),
        (["CLIP", "--rate", "3", "--stride", "2"], 2, "not allowed with"),
        (["CLIP", "--size", "48"], 2, "expected height x width"),
        (["CLIP", "--release", "0.9"], 2, "--release 0.9 is above --threshold 0.5"),
        (["CLIP", "--nothing", "none"], 1, "nothing is 'none', which is no class"),
        (["CLIP", "--save", "a.gif"], 1, "ending in .mp4, .mkv or .mov"),
        (["CLIP", "--duration", "soon"], 2, "expected a time above 0"),
    ],
)
def test_what_can_not_work_is_one_line_at_once(causal, clip, capsys, arguments, status, message):
    arguments = [clip if argument == "CLIP" else argument for argument in arguments]
    found, lines, err = stream(causal, *arguments, capsys=capsys)
    assert (found, lines) == (status, [])
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="signals of POSIX")
def test_interrupted_it_ends_with_130_and_its_video_is_whole(causal, tmp_path):
    clip = write_video(tmp_path / "long.mp4", moving_bar(240, rightwards=True), fps=12)  # 20 s
    saved = tmp_path / "saved.mp4"
    listen = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # background jobs ignore it
    )
    start = f"{listen}; import sys; from frameflex.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "stream", causal, clip, "--save", saved, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the signal is this process's alone, not its parent's
    )
    first = process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    lines = [json.loads(line) for line in [first, *out.splitlines()]]
    assert of_type(lines, "event")  # that was going on
    with open_video(saved) as video:
        assert 0 < video.num_frames < 240
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "saved.mp4"]
