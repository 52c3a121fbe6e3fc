"""Exported graphs say what the model says, or are not written."""

import pytest
import torch
from exportable import CLASSES, checkpoint, close, needs
from helpers import bar_folder, moving_bar, write_video

from frameflex.checkpoint import save_checkpoint
from frameflex.cli import main
from frameflex.data.datasets import load_videos
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing
from frameflex.export import FORMATS, ExportError, comparing, export, exporting, load_exported
from frameflex.export.network import ExportNetwork, FlatShift
from frameflex.export.running import from_pixels


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


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"frame_counts": (2,)}, ["batch", 3, 2, 32, 32]),
        ({"frame_counts": "any"}, ["batch", 3, "frames", 32, 32]),
        ({"frame_counts": "any", "uint8_input": True}, ["batch", "frames", 32, 32, 3]),
        ({"frame_counts": (2,), "batch": 1}, [1, 3, 2, 32, 32]),
    ],
)
def test_open_axes_of_an_onnx_graph_have_names_for_people(options, shape, tmp_path):
    needs("onnx")
    import onnxruntime

    export(checkpoint(counts=(2,)), tmp_path / "out", format="onnx", **options)
    [file] = (tmp_path / "out").glob("*.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == shape
    assert session.get_outputs()[0].shape == [shape[0], len(CLASSES)]


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
    weights = sum(4 * parameter.numel() for parameter in made.model.parameters())
    assert sizes[0] - sizes[1] > 0.15 * weights  # half of them, less what casts take in a graph this small


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


@pytest.mark.parametrize("format", ["openvino", "torchscript"])
def test_a_graph_that_shifts_wrongly_fails_the_export_and_leaves_nothing(format, tmp_path, monkeypatch):
    needs(format)
    right = exporting.write_graph

    def wrong(network, path, **options):
        for module in network.modules():
            if isinstance(module, FlatShift):
                module.causal = True  # the channels that should come from the next frame stay
        right(network, path, **options)

    monkeypatch.setattr(exporting, "write_graph", wrong)
    with pytest.raises(ExportError, match=r"logits differ from the model's by .* at 4 frames and 1 clips"):
        export(checkpoint(), tmp_path / "out", format=format, frame_counts=(4,))
    assert list(tmp_path.iterdir()) == []


def test_clips_that_mix_at_their_borders_fail_the_export(tmp_path, monkeypatch):
    def unmarked(self, frames, num_clips, num_frames):
        for stride in self.strides:
            self._borders.alone[stride] = False
            self._borders.first[stride] = self._borders.last[stride] = None

    monkeypatch.setattr(ExportNetwork, "_mark_borders", unmarked)
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
    real = comparing._logits
    monkeypatch.setattr(comparing, "_logits", lambda *given: -real(*given))  # a graph that is always wrong
    with pytest.raises(ExportError, match="gives the model's label on 0 of 1 videos"):
        export(checkpoint(), tmp_path / "out", format="openvino", frame_counts=(2,), int8_videos=videos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["videos"]


def test_the_command_line_exports_and_says_what_it_compared(exported_folder, tmp_path, capsys):
    arguments = ["export", str(exported_folder / "model.safetensors"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--format", "torchscript", "--frames", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out")
    assert "T = 2, batch 3: logits differ by at most" in printed.err
    assert main([*arguments, "--format", "torchscript"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_export_leaves_out_what_a_quarantine_list_names_and_skips_or_stops_at_bad_videos(tmp_path, capsys):
    save_checkpoint(tmp_path / "model.safetensors", checkpoint(counts=(2,)))
    for name in CLASSES:
        write_video(tmp_path / "data" / "val" / name / "a.mp4", moving_bar(6, rightwards=True))
    broken = tmp_path / "data" / "val" / CLASSES[0] / "b.mp4"
    broken.write_bytes(b"no video")
    (tmp_path / "quarantine.txt").write_text(f"{broken}\tunreadable\n")
    arguments = ["export", str(tmp_path / "model.safetensors"), "--format", "torchscript", "--half"]
    arguments += ["--check", str(tmp_path / "data"), "--workers", "0", "--output"]
    assert main([*arguments, str(tmp_path / "a")]) == 1
    assert "b.mp4" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main([*arguments, str(tmp_path / "b"), "--on-bad-video", "skip"]) == 0
    assert "of 3 videos" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "c"), "--quarantine", str(tmp_path / "quarantine.txt")]) == 0
    assert "of 3 videos" in capsys.readouterr().err


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
