"""In what exported graphs compute."""

import pytest
import torch
from exportable import checkpoint, needs

from frameflex.cli import main
from frameflex.deploy.recognizer import Recognizer
from frameflex.export import export, load_exported


@pytest.fixture
def openvino_graph(tmp_path):
    needs("openvino")
    export(checkpoint(), tmp_path / "out", format="openvino", frame_counts=(2,))
    return tmp_path / "out"


def test_a_graph_of_one_precision_names_it_when_asked_for_another(exported_folder, capsys):
    model = load_exported(exported_folder / "out").model
    assert model.compute_in(None) == model.compute_in("auto") == model.compute_in("float32") == "float32"
    with pytest.raises(
        ValueError, match="this torchscript export of float32 can't .* expected auto, float32"
    ):
        model.compute_in("bfloat16")
    with pytest.raises(ValueError, match="precision is 'double'; expected one of auto, float32"):
        model.compute_in("double")
    arguments = [str(exported_folder / "out"), str(exported_folder / "a.mp4"), "--precision", "int8"]
    assert main(["predict", *arguments]) == 1
    assert "precision is 'int8', which this torchscript export" in capsys.readouterr().err


def test_openvino_computes_a_float32_graph_in_bfloat16_where_asked(openvino_graph, monkeypatch):
    from frameflex.export.running import _openvino_precisions

    if "bfloat16" not in _openvino_precisions():
        pytest.skip("OpenVINO can't compute in bfloat16 on this CPU")
    monkeypatch.setattr("frameflex.models.precision.cpu_flags", lambda: frozenset(["avx512_bf16"]))
    clip, logits = torch.randn(1, 3, 2, 32, 32), {}
    for precision in (None, "float32", "bfloat16", "auto"):
        recognizer = Recognizer.from_checkpoint(openvino_graph, precision=precision)
        logits[precision, recognizer.precision] = recognizer.model(clip)
    exact, rounded = logits[None, "float32"], logits["bfloat16", "bfloat16"]
    assert torch.equal(exact, logits["float32", "float32"])
    assert torch.equal(rounded, logits["auto", "bfloat16"])
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_a_precision_chosen_later_counts_from_then_on(openvino_graph):
    from frameflex.export.running import _openvino_precisions

    if "bfloat16" not in _openvino_precisions():
        pytest.skip("OpenVINO can't compute in bfloat16 on this CPU")
    model, clip = load_exported(openvino_graph).model, torch.randn(1, 3, 2, 32, 32)
    exact = model(clip)
    model.compute_in("bfloat16")
    assert not torch.equal(model(clip), exact)
    model.compute_in("float32")
    assert torch.equal(model(clip), exact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "--precision int8 needs videos to calibrate with; give --int8 VIDEO"),
        (["--precision", "bfloat16"], "graphs hold float32, float16 or int8"),
        (["--precision", "float32", "--half"], "--precision float32 and --half contradict each other"),
    ],
)
def test_an_export_in_what_cannot_be_is_refused_with_what_can(
    exported_folder, tmp_path, capsys, arguments, message
):
    path = str(exported_folder / "model.safetensors")
    output = str(tmp_path / "new")
    assert main(["export", path, "--format", "torchscript", "--output", output, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_export_in_float16_is_the_one_of_half(exported_folder, tmp_path):
    path, output = str(exported_folder / "model.safetensors"), tmp_path / "new"
    arguments = [
        "--format",
        "torchscript",
        "--frames",
        "2",
        "--output",
        str(output),
        "--precision",
        "float16",
    ]
    assert main(["export", path, *arguments]) == 0
    assert Recognizer.from_checkpoint(output).precision == "float16"
