"""--max-decode-seconds: a video that takes too long is bad, in every verb that reads videos."""

import json
import time

import numpy as np
import pytest
import torch
from helpers import bar_folder, moving_bar, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.long_videos.windows import ForwardVideo
from frameflex.deploy.recognizer import Recognizer
from frameflex.models.tsm import TSM
from frameflex.video import Limits, VideoError, open_video

TOO_SHORT, AMPLE = "0.000001", "600"
CLASSES = ["going left", "going right"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, a data set and a manifest."""
    folder = tmp_path_factory.mktemp("limit")
    bar_folder(folder / "data", per_class=2)
    torch.manual_seed(1)
    model = TSM("test_resnet", num_classes=2).eval()
    pixels = Preprocessing(short_side=36, crop_size=32)
    save_checkpoint(folder / "m.safetensors", Checkpoint(model, CLASSES, pixels, (2,)))
    (folder / "list.csv").write_text("path\ndata/val/going left/0.mp4\n")
    return folder


VERBS = {
    "evaluate": "evaluate {m} {data} --workers 0 --device cpu",
    "calibrate": "calibrate {m} {data} --frames 3 --output {out}/c.safetensors --workers 0 --device cpu",
    "export": "export {m} --output {out}/e --format onnx --frames 2 --int8 {data}/train",
    "predict": "predict {m} {video} --workers 0 --device cpu --on-bad-video error",
    "manifest": "predict {m} --manifest {list} --out {out}/p --workers 0 --device cpu --on-bad-video error",
    "window": "predict {m} {video} --window 1s --device cpu",
}


def run(place, tmp_path, verb, limit):
    words = {"m": "m.safetensors", "data": "data", "video": "data/val/going left/0.mp4", "list": "list.csv"}
    paths = {name: str(place / path) for name, path in words.items()} | {"out": str(tmp_path)}
    argv = [word.format(**paths) for word in VERBS[verb].split(" ")]
    return main([*argv, "--max-decode-seconds", limit])


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_video_that_takes_too_long_is_bad_in(verb, place, tmp_path, capsys):
    if verb == "export":
        pytest.importorskip("onnxruntime")
    assert run(place, tmp_path, verb, TOO_SHORT) == 1
    said = capsys.readouterr().err
    assert "not decoded after 1e-06 s" in " ".join(said.split())


@pytest.mark.parametrize("verb", ["evaluate", "predict", "window"])
def test_a_limit_that_is_ample_changes_nothing_in(verb, place, tmp_path, capsys):
    assert run(place, tmp_path, verb, AMPLE) == 0
    assert "not decoded" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon"])
def test_a_limit_that_is_none_is_refused(value, place, tmp_path, capsys):
    assert run(place, tmp_path, "evaluate", value) == 2
    assert "expected seconds, more than 0" in capsys.readouterr().err


def test_training_takes_the_limit_from_its_recipe(place, tmp_path, capsys):
    recipe = f"data.train={place / 'data'} data.num_workers=0 training.epochs=1 clip.frame_counts=[2]"
    recipe += " clip.short_side=32 clip.crop_size=32 model.backbone=test_resnet model.pretrained=false"
    argv = [f"--{word}" for word in [*recipe.split(), f"output={tmp_path / 'run'}"]]
    assert main(["train", *argv, f"--data.max_decode_seconds={TOO_SHORT}", "--data.on_bad_video=error"]) == 1
    assert "not decoded after 1e-06 s" in " ".join(capsys.readouterr().err.split())


def test_a_list_keeps_its_limits_in_parts_of_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_bar(4, rightwards=True))
    videos = VideoList([VideoRecord(path, 0, "a")] * 3, ["one"])
    limited = videos.within(Limits(max_seconds=2))
    assert videos.limits.max_seconds is None
    assert limited.subset([0, 2]).limits.max_seconds == 2
    assert list(limited) == list(videos)


def test_the_clock_of_one_reading_runs_through_all_of_its_parts(tmp_path, monkeypatch):
    """Frames that are made small as they are decoded are read in parts, which are one reading together."""
    path = write_video(tmp_path / "a.mp4", moving_bar(12, rightwards=True))
    monkeypatch.setattr("frameflex.video.reader.CHUNK_BYTES", 1)
    with open_video(path, limits=Limits(max_seconds=0.2)) as reader:

        def slowly(frames):
            time.sleep(0.05)
            return frames

        with pytest.raises(VideoError, match=r"not decoded after 0\.2 s"):
            reader.frames(range(12), each=slowly)


def test_a_folder_of_pictures_has_the_limit_too(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number in range(3):
        image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
    with (
        open_video(tmp_path, limits=Limits(max_seconds=1e-6)) as reader,
        pytest.raises(VideoError, match="not decoded after"),
    ):
        reader.frames([0, 1, 2])


def test_who_takes_the_frames_of_a_long_video_may_take_their_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_bar(6, rightwards=True))
    with ForwardVideo(path, limits=Limits(max_seconds=2)) as video:
        for _ in video.frames():
            time.sleep(0.4)  # together more than the limit, which is of reading and decoding
    assert video.troubles == []
    assert video.num_decoded == 6


def test_a_recognizer_holds_its_limits(place):
    video = place / "data" / "val" / "going left" / "0.mp4"
    slow = Recognizer.from_checkpoint(place / "m.safetensors", device="cpu", limits=Limits(max_seconds=1e-6))
    with pytest.raises(VideoError, match="not decoded after"):
        slow(video)
    [(_, answer)] = slow.recognize_many([video])
    assert isinstance(answer, VideoError)
    assert json.dumps(str(answer)).count("not decoded after") == 1
