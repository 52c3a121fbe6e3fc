"""`import frameflex`: quick, complete, typed."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import moving_bar, write_video

import frameflex

PROGRAM = """\
import numpy as np
import frameflex
from frameflex import TemporalShift, TSMResNet50, list_models, open_video, temporal_shift

recognizer: frameflex.Recognizer = frameflex.load("best.safetensors", device="cpu")
label: str = recognizer("clip.mp4", num_frames=8)[0].label
many: list[list[str]] = [[answer.label for answer in one] for one in recognizer(["a.mp4", "b.mp4"])]
array: float = recognizer(np.zeros((8, 64, 64, 3), np.uint8))[0].probability
score: float = recognizer.pipeline("clip.mp4", top_k=3)[0]["score"]
network = frameflex.make_frame_flexible(frameflex.create_model("resnet50", num_classes=7), (4, 8))
with open_video("clip.mp4") as reader:
    count: int = reader.num_frames
names: list[str] = list_models("resnet*")
"""


def test_importing_it_loads_no_torch_and_takes_a_moment():
    code = (
        "import time; start = time.perf_counter(); import frameflex; seconds = time.perf_counter() - start; "
        "import sys; print(seconds, 'torch' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(3)]
    seconds, loaded = zip(*(run.stdout.split() for run in runs), strict=True)
    assert min(map(float, seconds)) < 0.2
    assert set(loaded) == {"False"}


def test_every_public_name_is_there():
    assert set(frameflex.__all__) <= set(dir(frameflex))
    for name in frameflex.__all__:
        assert getattr(frameflex, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        frameflex.nothing  # noqa: B018


def test_the_seeds_names_are_what_they_were():
    from frameflex.models.temporal_shift import TemporalShift, temporal_shift
    from frameflex.models.tsm import TSMResNet50

    assert (frameflex.temporal_shift, frameflex.TemporalShift) == (temporal_shift, TemporalShift)
    assert frameflex.TSMResNet50 is TSMResNet50


def test_the_examples_in_the_docstrings_give_what_they_show(tmp_path, monkeypatch):
    from frameflex.checkpoint import Checkpoint, save_checkpoint
    from frameflex.data.transforms import Preprocessing

    model = frameflex.create_model("test_resnet", num_classes=2).eval()
    with torch.no_grad():
        model.state_dict()["head.bias"][1] = 100.0  # whatever it sees
    checkpoint = Checkpoint(model, ["going left", "going right"], Preprocessing(36, 32), (8,))
    save_checkpoint(tmp_path / "best.safetensors", checkpoint)
    write_video(tmp_path / "clip.mp4", moving_bar(9, rightwards=True))
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    for shown in (frameflex.load, frameflex.list_models):
        for example in doctest.DocTestFinder().find(shown, globs={"list_models": frameflex.list_models}):
            assert runner.run(example).attempted > 0
    assert runner.failures == 0


@pytest.mark.soak
def test_a_users_program_passes_a_type_checker_and_a_wrong_one_does_not(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    source = Path(frameflex.__file__).parents[1]
    common = [
        "--cache-dir",
        str(tmp_path / "cache"),
        "--follow-imports",
        "silent",
        "--ignore-missing-imports",
    ]
    (tmp_path / "right.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(
        'import frameflex\nlabel: int = frameflex.load("a", device="cpu")("clip.mp4")[0].label\n',
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", str(source))
        patch.chdir(tmp_path)
        out, _, status = mypy.run([*common, "--strict", "right.py"])
        assert status == 0, out
        out, _, status = mypy.run([*common, "wrong.py"])
        assert status == 1
        assert "Incompatible types in assignment" in out
