"""Exported graphs say what the model says, or are not written; they run where a checkpoint runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import bar_folder, moving_bar, write_video
from torch import nn

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.datasets import VideoList, VideoRecord, load_videos
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.recognizer import Recognizer
from frameflex.export import exporting
from frameflex.export.exporting import FORMATS, export, export_network
from frameflex.export.running import (
    ExportError,
    from_pixels,
    load_exported,
    read_manifest,
    to_pixels,
    write_manifest,
)
from frameflex.models import create_model

CLASSES = ["going left", "going right", "standing"]
TINY = {"channels": [16, 16, 16, 16]}
DATA = Path(__file__).parent / "data"


def checkpoint(
    backbone="test_resnet", *, counts=(2, 4), flexible=False, preprocessing=None, size=32, **options
) -> Checkpoint:
    """A network whose norms and logits are as far from trivial as a trained one's."""
    if backbone == "test_resnet":
        options.setdefault("backbone_options", TINY)
    model = create_model(
        backbone, num_classes=len(CLASSES), frame_counts=counts if flexible else (), **options
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    if flexible:
        for name, parameter in model.named_parameters():
            if ".scales." in name:
                nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(model.head.weight, std=1.0)
    pixels = preprocessing or Preprocessing(short_side=size, crop_size=size)
    return Checkpoint(model.eval(), list(CLASSES), pixels, tuple(counts))


def needs(format, *, int8=False):
    packages = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}.get(format, [])
    for package in [*packages, *(["nncf"] if int8 and format == "openvino" else [])]:
        pytest.importorskip(package)


def close(got, expected, tolerance=1e-4):
    return (got - expected).abs().max() <= tolerance * expected.abs().max()


# --------------------------------------------------------------------------- the network that is traced


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"flexible": True}),
        ("test_resnet", {"flexible": True, "counts": (3, 5), "untrained": "blend"}),
        ("test_resnet", {"shift": "none"}),
        ("test_resnet", {"shift": "causal"}),
        ("test_resnet", {"shift_place": "block"}),
        ("test_resnet", {"temporal_pool": True, "flexible": True}),
        ("test_resnet", {"non_local": "embedded_gaussian"}),
        ("test_efficientnet", {"flexible": True}),
        pytest.param("mobilenetv3_small_050", {"flexible": True}, marks=pytest.mark.slow),
        pytest.param("regnetx_002", {}, marks=pytest.mark.slow),
        ("test_convnext", {"flexible": True}),
        pytest.param("ghostnet_050", {"flexible": True}, marks=pytest.mark.slow),
        ("test_byobnet", {"flexible": True}),
        ("test_nfnet", {"flexible": True}),
        ("test_mambaout", {}),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        {"batch": "dynamic"},
        {"batch": "dynamic", "cut": True, "quantised": True},
        {"batch": 1, "cut": True, "divide": True},
    ],
)
def test_the_network_for_export_equals_the_model_in_every_family_and_variant(backbone, options, form):
    made = checkpoint(backbone, size=64, **options)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    for count in (1, 2, 4):
        network = export_network(made.model, count, crop_size=64, **form)
        clip = torch.randn(3 if form["batch"] == "dynamic" else 1, 3, count, 64, 64)
        with torch.no_grad():
            assert close(network(clip), made.model(clip))
    after = made.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_batch_norm_behind_a_convolution_is_folded():
    network = export_network(checkpoint(flexible=True).model, 4, crop_size=32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.slow
def test_a_scale_before_a_grouped_convolution_goes_to_the_right_channels():
    made = checkpoint("resnext50_32x4d", flexible=True)
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert close(export_network(made.model, 4, crop_size=32)(clip), made.model(clip))


def test_pixels_come_back_exactly_from_a_normalised_clip():
    preprocessing = Preprocessing(channel_order="bgr")
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 1, 16, 16, 3)
    assert torch.equal(to_pixels(from_pixels(pixels, preprocessing), preprocessing), pixels)


# ------------------------------------------------------------------------------------------ each format


@pytest.mark.parametrize("format", FORMATS)
def test_a_frame_flexible_network_gets_a_graph_of_its_own_parts_for_each_count(format, tmp_path):
    needs(format)
    made = checkpoint(flexible=True)
    manifest = export(made, tmp_path / "out", format=format, frame_counts=(1, 4))
    assert [graph["num_frames"] for graph in manifest["graphs"]] == [1, 4]
    assert {(row["num_frames"], row["batch"]) for row in manifest["parity"]} == {
        (1, 1),
        (1, 3),
        (4, 1),
        (4, 3),
    }
    exported = load_exported(tmp_path / "out").model
    for count in (1, 4):
        for batch in (1, 2, 5):
            clip = torch.randn(batch, 3, count, 32, 32)
            with torch.no_grad():
                assert close(exported(clip), made.model(clip))
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_one_graph_of_a_plain_network_takes_any_number_of_frames(format, tmp_path):
    needs(format)
    made = checkpoint(counts=(4,))
    export(made, tmp_path / "out", format=format, frame_counts="any")
    exported = load_exported(tmp_path / "out").model
    for batch, count in ((1, 1), (3, 1), (1, 2), (2, 5), (3, 16)):
        clip = torch.randn(batch, 3, count, 32, 32)
        with torch.no_grad():
            assert close(exported(clip), made.model(clip))


def test_a_graph_for_a_fixed_batch_takes_any_number_of_clips(tmp_path):
    made = checkpoint()
    export(made, tmp_path / "out", format="torchscript", frame_counts=(2,), batch=2)
    clip = torch.randn(5, 3, 2, 32, 32)
    with torch.no_grad():
        assert close(load_exported(tmp_path / "out").model(clip), made.model(clip))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.slow
def test_half_precision_stays_near_the_model(format, tmp_path):
    needs(format)
    made = checkpoint()
    full = export(made, tmp_path / "full", format=format, frame_counts=(2,))
    half = export(made, tmp_path / "half", format=format, frame_counts=(2,), half=True)
    assert half["precision"] == "half"
    assert max(row["max_difference"] for row in half["parity"]) > max(
        row["max_difference"] for row in full["parity"]
    )
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / name).glob("model*")) for name in ("full", "half")
    ]
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("format", ["openvino", "torchscript"])
def test_pixels_are_normalised_inside_the_graph_on_request(format, tmp_path):
    needs(format)
    preprocessing = Preprocessing(short_side=32, crop_size=32, mean=(0.1, 0.5, 0.7), channel_order="bgr")
    made = checkpoint(preprocessing=preprocessing)
    manifest = export(made, tmp_path / "out", format=format, frame_counts=(2,), uint8_input=True)
    assert manifest["input"]["dtype"] == "uint8"
    assert manifest["input"]["shape"] == ["B", 2, 32, 32, 3]
    pixels = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8)
    exported = load_exported(tmp_path / "out").model
    with torch.no_grad():
        expected = made.model(from_pixels(pixels, preprocessing))
    assert close(exported(from_pixels(pixels, preprocessing)), expected)
    if format == "torchscript":  # what the graph itself takes
        graph = torch.jit.load(str(tmp_path / "out" / "model_2.pt"))
        assert close(graph(pixels), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    [
        *("test_resnet", "test_efficientnet", "mobilenetv3_small_050", "regnetx_002", "test_convnext"),
        *("ghostnet_050", "test_byobnet", "test_nfnet", "test_mambaout"),
    ],
)
def test_a_member_of_every_family_exports_to_onnx(backbone, tmp_path):
    needs("onnx")
    made = checkpoint(backbone, size=64)
    manifest = export(made, tmp_path / "out", frame_counts=(2,))
    assert all(row["max_difference"] <= row["allowed"] for row in manifest["parity"])


# ---------------------------------------------------------------------------------- nothing wrong gets out


@pytest.mark.parametrize("format", ["openvino", "torchscript"])
def test_a_graph_that_shifts_wrongly_fails_the_export_and_leaves_nothing(format, tmp_path, monkeypatch):
    needs(format)
    right = exporting._write_graph

    def wrong(network, path, **options):
        for module in network.modules():
            if isinstance(module, exporting.FlatShift):
                module.causal = True  # the channels that should come from the next frame stay
        right(network, path, **options)

    monkeypatch.setattr(exporting, "_write_graph", wrong)
    with pytest.raises(ExportError, match=r"logits differ from the model's by .* at 4 frames and 1 clips"):
        export(checkpoint(), tmp_path / "out", format=format, frame_counts=(4,))
    assert list(tmp_path.iterdir()) == []


def test_clips_that_mix_at_their_borders_fail_the_export(tmp_path, monkeypatch):
    def unmarked(self, frames, num_clips, num_frames):
        for stride in self.strides:
            self._borders.alone[stride] = False
            self._borders.first[stride] = self._borders.last[stride] = None

    monkeypatch.setattr(exporting.ExportNetwork, "_mark_borders", unmarked)
    with pytest.raises(ExportError, match="3 clips"):
        export(checkpoint(), tmp_path / "out", format="torchscript", frame_counts=(4,))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="choose another"):
        export(checkpoint(), tmp_path / "out", format="torchscript")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite'; expected one of onnx"),
        ({"opset": 11}, "opset is 11; expected 18 to"),
        ({"batch": 0}, "batch is 0"),
        ({"frame_counts": (0, 4)}, "expected one or more of at least 1"),
        ({"frame_counts": "any", "format": "torchscript"}, "expected onnx or openvino"),
        ({"format": "torchscript", "int8_videos": VideoList([], CLASSES)}, "no int8"),
        ({"int8_videos": VideoList([], CLASSES)}, "no videos to calibrate"),
        ({"min_agreement": 2.0}, "expected 0 to 1"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_written(options, message, tmp_path):
    needs(options.get("format", "onnx"))
    with pytest.raises(ValueError, match=message):
        export(checkpoint(), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_any_number_of_frames_needs_a_network_without_parts_for_each(tmp_path):
    needs("onnx")
    with pytest.raises(
        ValueError, match="norms and scales for each frame count; give the counts, such as 2,4"
    ):
        export(checkpoint(flexible=True), tmp_path / "out", frame_counts="any")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    import importlib

    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ExportError, match=r"pip install 'frameflex\[export\]'"):
        export(checkpoint(), tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------- running an export


@pytest.fixture(scope="module")
def exported_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    made = checkpoint()
    save_checkpoint(folder / "model.safetensors", made)
    export(made, folder / "out", format="torchscript", frame_counts=(2, 4))
    write_video(folder / "a.mp4", moving_bar(12, rightwards=True))
    write_video(folder / "b.mp4", moving_bar(9, rightwards=False))
    return folder


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


# --------------------------------------------------------------------------------------------------- int8


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_measured_on_labelled_videos(format, tmp_path):
    needs(format, int8=True)
    made = checkpoint(counts=(4,))
    root = bar_folder(tmp_path / "data", per_class=3)
    labelled = load_videos(root, split="validation", classes=CLASSES)
    files = [VideoRecord(labelled[i].path, None, labelled[i].name) for i in range(len(labelled))]
    manifest = export(
        made,
        tmp_path / "out",
        format=format,
        int8_videos=VideoList(files, CLASSES),
        check_videos=labelled,
        min_agreement=0.0,
    )
    (row,) = manifest["agreement"]
    assert row["num_videos"] == len(labelled)
    assert {"same_label", "top1_model", "top1_graph"} <= row.keys()
    assert "parity" not in manifest
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = made.model(clip)
    got = load_exported(tmp_path / "out").model(clip)
    assert not torch.equal(got, expected)
    assert close(got, expected, 0.3)


@pytest.mark.slow
def test_int8_that_changes_labels_fails_the_export(tmp_path, monkeypatch):
    needs("openvino", int8=True)
    video = write_video(tmp_path / "videos" / "a.mp4", moving_bar(8, rightwards=True))
    videos = VideoList([VideoRecord(video, None, "a")], CLASSES)
    real = exporting._logits
    monkeypatch.setattr(exporting, "_logits", lambda *given: -real(*given))  # a graph that is always wrong
    with pytest.raises(ExportError, match="gives the model's label on 0 of 1 videos"):
        export(checkpoint(), tmp_path / "out", format="openvino", frame_counts=(2,), int8_videos=videos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["videos"]


# --------------------------------------------------------------------------------------- the command line


def test_the_command_line_exports_and_says_what_it_compared(exported_folder, tmp_path, capsys):
    arguments = ["export", str(exported_folder / "model.safetensors"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--format", "torchscript", "--frames", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out")
    assert "T = 2, batch 3: logits differ by at most" in printed.err
    assert main([*arguments, "--format", "torchscript"]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "none"], 'expected "dynamic" or a number'),
        (["--frames", "0"], "are no frame counts"),
        (["--half", "--int8", "a.mp4"], "not allowed with"),
    ],
)
def test_a_wrong_option_is_one_line(options, message, tmp_path, capsys):
    arguments = ["export", "x.safetensors", "--format", "onnx", "--output", str(tmp_path / "out")]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ older versions


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_what_an_earlier_version_exported_still_loads_and_says_the_same(format):
    needs(format)
    folder = DATA / f"exported_{format}"
    model = load_exported(folder).model
    expected = json.loads((folder.parent / "exported_logits.json").read_text())
    for count in (3,):
        clip = torch.sin(torch.arange(3 * count * 32 * 32, dtype=torch.float32)).view(1, 3, count, 32, 32)
        assert close(model(clip)[0], torch.tensor(expected[str(count)]))
