"""Times are never asserted; what is timed, and how it is reported, is."""

import json

import pytest
import torch

from frameflex.cli import main
from frameflex.cli.benchmark import BACKENDS as NAMES
from frameflex.deploy.benchmark import BACKENDS, benchmark, paired_seconds, spread, without_shift
from frameflex.models import TemporalShift, create_model


@pytest.fixture(scope="module")
def model():
    return create_model("test_resnet", num_classes=5, frame_counts=(2, 4)).eval()


def test_the_help_names_every_back_end():
    assert tuple(BACKENDS) == NAMES


def test_the_plain_network_differs_by_the_shift_and_its_scales_alone(model):
    plain = without_shift(model)
    assert not any(isinstance(module, TemporalShift) for module in plain.modules())
    assert plain.frame_counts == (2, 4)
    expected = {
        name.replace(".net.", "."): value.shape
        for name, value in model.state_dict().items()
        if ".scale." not in name
    }
    assert {name: value.shape for name, value in plain.state_dict().items()} == expected


def test_calls_are_made_in_turn_and_the_first_round_does_not_count():
    made = []
    times = paired_seconds([lambda: made.append("a"), lambda: made.append("b")], 3)
    assert "".join(made) == "abababab"
    assert [len(seconds) for seconds in times] == [3, 3]
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)


def test_every_setting_is_timed_and_what_can_not_run_is_named(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("frameflex.deploy.benchmark.importlib.util.find_spec", lambda name: None)
    report = benchmark(
        model,
        backends=("eager", "openvino", "cuda"),
        frame_counts=(2, 3),
        batches=(1, 2),
        size=32,
        num_runs=2,
    )
    assert [(t.backend, t.num_frames, t.batch) for t in report.timings] == [
        ("eager", frames, batch) for frames in (2, 3) for batch in (1, 2)
    ]
    assert "openvino is not installed" in report.unavailable["openvino"]
    assert "no CUDA device" in report.unavailable["cuda"]
    assert {"cpu", "cores", "threads", "torch"} <= set(report.hardware)
    for values in report.to_dict()["timings"]:
        assert values["clips_per_second"] == values["batch"] / values["seconds"]


def test_each_back_end_is_timed_in_each_precision_that_it_has(model, monkeypatch):
    from frameflex.models.precision import possible_precisions

    monkeypatch.setattr("frameflex.models.precision.cpu_flags", lambda: frozenset(["avx512_bf16"]))
    asked = [*possible_precisions("cpu"), "auto"]
    report = benchmark(
        model, backends=("eager",), frame_counts=(2,), size=32, precisions=(*asked, "int8"), num_runs=2
    )
    assert [timing.precision for timing in report.timings] == list(possible_precisions("cpu"))
    assert "a checkpoint in PyTorch doesn't have" in report.unavailable["eager"]
    pytest.importorskip("onnxruntime")
    report = benchmark(
        model,
        backends=("onnxruntime",),
        frame_counts=(2,),
        size=32,
        precisions=("auto", "bfloat16"),
        num_runs=2,
    )
    assert [timing.precision for timing in report.timings] == ["float32"]
    assert "this onnx export of float32 can't" in report.unavailable["onnxruntime, bfloat16"]


def test_wrong_arguments_are_refused(model):
    with pytest.raises(ValueError, match="back end 'tpu' is unknown; expected some of eager"):
        benchmark(model, backends=("tpu",))
    with pytest.raises(ValueError, match="num_runs is 1"):
        benchmark(model, num_runs=1)


def test_the_command_prints_a_table_and_writes_json_and_a_picture(tmp_path, capsys):
    arguments = [
        "benchmark",
        "test_resnet",
        "--backends",
        "eager",
        "--frames",
        "2",
        "--size",
        "32",
        "--runs",
        "2",
    ]
    status = main([*arguments, "--json", str(tmp_path / "times.json"), "--plot", str(tmp_path / "times.png")])
    assert status == 0
    printed = capsys.readouterr().out
    assert "without the shift" in printed
    assert "…" not in printed
    values = json.loads((tmp_path / "times.json").read_text())
    assert (values["network"], len(values["timings"])) == ("test_resnet", 1)
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_that_is_neither_file_nor_architecture_is_told_in_one_line(capsys):
    assert main(["benchmark", "resnet5O", "--backends", "eager"]) == 1
    assert "Did you mean" in capsys.readouterr().err
