"""Exports run where a checkpoint runs, and damaged ones don't run at all."""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exportable import CLASSES, close, needs

from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.recognizer import Recognizer
from frameflex.export import ExportError, load_exported, read_manifest, write_manifest
from frameflex.export.running import from_pixels, to_pixels

DATA = Path(__file__).parents[1] / "data"


def test_pixels_come_back_exactly_from_a_normalised_clip():
    preprocessing = Preprocessing(channel_order="bgr")
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 1, 16, 16, 3)
    assert torch.equal(to_pixels(from_pixels(pixels, preprocessing), preprocessing), pixels)


@pytest.fixture
def copied(exported_folder, tmp_path):
    return Path(shutil.copytree(exported_folder / "out", tmp_path / "out"))


@pytest.mark.parametrize("inside", ["", "manifest.json", "model_4.pt"])
def test_a_recognizer_runs_an_export_as_it_runs_the_checkpoint(exported_folder, inside):
    model = Recognizer.from_checkpoint(exported_folder / "model.safetensors", device="cpu")
    graph = Recognizer.from_checkpoint(exported_folder / "out" / inside)
    for video in ("a.mp4", "b.mp4"):
        for options in ({}, {"num_frames": 2}, {"budget": "auto"}, {"views": "2x1"}):
            expected = model(exported_folder / video, **options)
            got = graph(exported_folder / video, **options)
            assert [answer.label for answer in got] == [answer.label for answer in expected]
            assert [answer.probability for answer in got] == pytest.approx(
                [answer.probability for answer in expected], abs=1e-4
            )


def test_predict_takes_an_export(exported_folder, capsys):
    answers = []
    for name in ("model.safetensors", "out"):
        arguments = [str(exported_folder / name), str(exported_folder / "a.mp4")]
        assert main(["predict", *arguments, "--json", "--workers", "0"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    assert [answer["label"] for answer in answers[0]] == [answer["label"] for answer in answers[1]]
    assert answers[0][0]["probability"] == pytest.approx(answers[1][0]["probability"], abs=1e-4)


def test_frames_that_were_not_exported_are_refused_with_those_that_were(exported_folder):
    recognizer = Recognizer.from_checkpoint(exported_folder / "out")
    with pytest.raises(ValueError, match="no graph for 3 frames; it has 2, 4"):
        recognizer(exported_folder / "a.mp4", num_frames=3)


def test_a_changed_file_is_not_used(copied):
    with open(copied / "model_2.pt", "ab") as file:
        file.write(b"x")
    with pytest.raises(ExportError, match=r"model_2\.pt: its SHA-256 checksum"):
        load_exported(copied)


def test_a_missing_file_is_named(copied):
    (copied / "model_2.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_2\.pt is missing"):
        load_exported(copied)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "", "manifest.json"])
def test_a_manifest_can_not_name_files_elsewhere(copied, name):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="expected plain names"):
        load_exported(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frameflex_export": 99}, "this frameflex reads up to 1"),
        ({"frameflex_export": None}, "is no manifest"),
        ({"files": None}, "is no manifest"),
        ({"format": "pickle"}, "doesn't hold together"),
        ({"graphs": [{"num_frames": 2, "file": "other.pt"}]}, "doesn't hold together"),
        ({"graphs": []}, "doesn't hold together"),
        ({"preprocessing": {"crop_size": -1}}, "doesn't hold together"),
        ({"batch": -3}, "doesn't hold together"),
        ({"class_names": 7}, "doesn't hold together"),
    ],
)
def test_a_damaged_manifest_is_one_clear_error(copied, change, message):
    manifest = json.loads((copied / "manifest.json").read_text()) | change
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=message):
        load_exported(copied)


def test_a_manifest_that_is_no_json_is_one_clear_error(copied):
    (copied / "manifest.json").write_text("[1, 2")
    with pytest.raises(ExportError, match="is no manifest of frameflex"):
        load_exported(copied)


def test_a_graph_without_its_manifest_says_what_is_expected(copied):
    (copied / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected a folder written by frameflex export"):
        load_exported(copied / "model_2.pt")


def test_a_graph_that_its_runtime_can_not_read_is_one_clear_error(copied):
    (copied / "model_2.pt").write_bytes(b"no graph")
    manifest = json.loads((copied / "manifest.json").read_text())
    write_manifest(copied, {key: value for key, value in manifest.items() if key != "files"})
    model = load_exported(copied).model
    with pytest.raises(ExportError, match="can't run it"):
        model(torch.randn(1, 3, 2, 32, 32))


def test_the_manifest_says_all_that_an_answer_needs(exported_folder):
    _, manifest = read_manifest(exported_folder / "out")
    assert manifest["class_names"] == CLASSES
    assert manifest["preprocessing"]["crop_size"] == 32
    assert manifest["sampling"] == {"sampling": "segments"}
    assert manifest["input"]["shape"] == ["B", 3, "T", 32, 32]
    assert manifest["files"].keys() == {"model_2.pt", "model_4.pt"}
    assert manifest["versions"]["torch"]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_what_an_earlier_version_exported_still_loads_and_says_the_same(format):
    needs(format)
    folder = DATA / f"exported_{format}"
    model = load_exported(folder).model
    expected = json.loads((folder.parent / "exported_logits.json").read_text())
    for count in (3,):
        clip = torch.sin(torch.arange(3 * count * 32 * 32, dtype=torch.float32)).view(1, 3, count, 32, 32)
        assert close(model(clip)[0], torch.tensor(expected[str(count)]))


DROPS_TWO_GRAPHS_AND_HANDLES_A_SIGNAL = """
import gc, os, signal, sys
import torch
from frameflex.export.running import load_exported



def graph():
    loaded = load_exported(sys.argv[1])
    size = loaded.preprocessing.crop_size
    loaded.model(torch.zeros(1, 3, 3, size, size))
    return loaded


first, second = graph(), graph()
del first
gc.collect()
del second
gc.collect()
another = __import__("openvino").Core()  # as nncf makes one
another.get_property("CPU", "FULL_DEVICE_NAME")
del another
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals of POSIX")
def test_signals_are_handled_after_openvino_graphs_are_gone():
    needs("openvino")
    script = [sys.executable, "-c", DROPS_TWO_GRAPHS_AND_HANDLES_A_SIGNAL, str(DATA / "exported_openvino")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_an_export_is_run_without_importing_timm():
    needs("onnx")
    code = (
        "import sys, torch, frameflex; recognizer = frameflex.load(sys.argv[1]); "
        "recognizer.probabilities(torch.zeros(1, 1, 3, 3, 32, 32)); print('timm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(DATA / "exported_onnx")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("room", ["models", "export"])
def test_every_public_name_of_a_room_that_imports_late_is_there(room):
    module = importlib.import_module(f"frameflex.{room}")
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert not inspect.ismodule(getattr(module, name))
    assert set(module._HOMES) <= set(module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing
