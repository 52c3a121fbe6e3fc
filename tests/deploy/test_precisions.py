"""--precision, from Python and from the command line, on everything that runs a network."""

import json

import pytest
import torch
from helpers import bar_folder, moving_bar, write_video

import frameflex
from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.evaluation import evaluate
from frameflex.models import create_model
from frameflex.models.precision import possible_precisions

CLASSES = ["going left", "going right"]

needs_bfloat16 = pytest.mark.skipif(
    "bfloat16" not in possible_precisions("cpu"), reason="this CPU can't compute in bfloat16"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("precisions")
    for shift in ("bidirectional", "causal"):
        model = create_model("test_resnet", num_classes=2, shift=shift).eval()
        torch.nn.init.normal_(model.head.weight, std=0.3)
        pixels = Preprocessing(short_side=32, crop_size=32)
        save_checkpoint(folder / f"{shift}.safetensors", Checkpoint(model, CLASSES, pixels, (2, 4)))
    write_video(folder / "a.mp4", moving_bar(12, rightwards=True))
    bar_folder(folder / "bars", per_class=1)
    return folder


def fast_in_bfloat16(monkeypatch):
    monkeypatch.setattr("frameflex.models.precision.cpu_flags", lambda: frozenset(["avx512_bf16"]))


@needs_bfloat16
def test_a_recognizer_computes_in_what_was_asked_for(folder, monkeypatch):
    fast_in_bfloat16(monkeypatch)
    logits = {}
    for precision in (None, "float32", "bfloat16", "auto"):
        recognizer = frameflex.load(folder / "bidirectional.safetensors", device="cpu", precision=precision)
        logits[recognizer.precision, precision] = recognizer.logits(folder / "a.mp4")
    exact, rounded = logits["float32", None], logits["bfloat16", "bfloat16"]
    assert torch.equal(logits["float32", "float32"], exact)
    assert torch.equal(logits["bfloat16", "auto"], rounded)
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


@needs_bfloat16
@pytest.mark.parametrize("options", [{}, {"window": 3}])
def test_a_live_stream_computes_in_what_was_asked_for(folder, options):
    frames = list(torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8))
    said = {}
    for precision in ("float32", "bfloat16"):
        stream = StreamingRecognizer(
            folder / "causal.safetensors", device="cpu", precision=precision, **options
        )
        assert stream.precision == precision
        said[precision] = torch.stack([stream.push(frame).logits for frame in frames])
    assert not torch.equal(said["float32"], said["bfloat16"])
    torch.testing.assert_close(said["bfloat16"], said["float32"], atol=0.05, rtol=0.05)


@needs_bfloat16
def test_streams_that_start_at_different_times_share_a_batch_in_bfloat16(folder):
    stream = StreamingRecognizer(
        folder / "causal.safetensors", device="cpu", precision="bfloat16", num_streams=2
    )
    alone = StreamingRecognizer(folder / "causal.safetensors", device="cpu", precision="bfloat16")
    frames = list(torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8))
    stream.push_many([None, frames[0]])
    for frame in frames:
        expected = alone.push(frame)
        got = stream.push_many([frame, frame])[0]
        torch.testing.assert_close(got.logits, expected.logits, atol=0.02, rtol=0.02)


@needs_bfloat16
def test_evaluate_is_exact_unless_it_is_asked_otherwise_and_says_so(folder, capsys, monkeypatch):
    fast_in_bfloat16(monkeypatch)
    arguments = [
        "evaluate",
        str(folder / "bidirectional.safetensors"),
        str(folder / "bars"),
        "--workers",
        "0",
    ]
    told = {}
    for extra in ([], ["--precision", "auto"]):
        assert main([*arguments, *extra, "--json", "--device", "cpu"]) == 0
        captured = capsys.readouterr()
        told[bool(extra)] = json.loads(captured.out)["protocol"]["precision"], captured.err
    assert told[False][0] == "float32"
    assert "computing in" not in told[False][1]
    assert told[True][0] == "bfloat16"
    assert "computing in bfloat16, by what this hardware does fast" in told[True][1]
    assert main([*arguments, "--precision", "bfloat16", "--device", "cpu"]) == 0
    assert "computed in bfloat16" in " ".join(capsys.readouterr().out.split())


@needs_bfloat16
def test_evaluate_gives_the_logits_of_a_recognizer_in_the_same_precision(folder):
    recognizer = Recognizer.from_checkpoint(
        folder / "bidirectional.safetensors", device="cpu", precision="bfloat16"
    )
    from frameflex.data.datasets import load_split

    videos = load_split(folder / "bars", "validation", classes=CLASSES)
    measured = evaluate(
        recognizer.model,
        videos,
        preprocessing=recognizer.checkpoint.preprocessing,
        frame_counts=[4],
        batch_size=1,
        precision="bfloat16",
    )
    for record, logits in zip(videos, measured.logits[4], strict=True):
        torch.testing.assert_close(recognizer.logits(record.path, num_frames=4), logits, atol=0, rtol=0)


@needs_bfloat16
def test_predict_says_in_one_line_what_auto_came_to(folder, capsys, monkeypatch):
    arguments = ["predict", str(folder / "bidirectional.safetensors"), str(folder / "a.mp4")]
    for flags, line in (
        (["avx512_bf16"], "computing in bfloat16, by what this hardware does fast; --precision float32"),
        ([], "computing in float32, by what this hardware does fast"),
    ):
        monkeypatch.setattr("frameflex.models.precision.cpu_flags", lambda flags=flags: frozenset(flags))
        assert main([*arguments, "--workers", "0", "--device", "cpu"]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert said.count("computing in") == 1
        assert line in said
    assert main([*arguments, "--workers", "0", "--device", "cpu", "--precision", "float32"]) == 0
    assert "computing in" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["predict", "stream", "evaluate", "calibrate"])
def test_a_precision_that_the_device_cannot_do_is_one_line_that_names_the_others(
    folder, verb, tmp_path, capsys
):
    more = ["--frames", "3", "--output", str(tmp_path / "new.safetensors")] if verb == "calibrate" else []
    data = folder / ("bars" if verb in ("evaluate", "calibrate") else "a.mp4")
    arguments = [verb, str(folder / "causal.safetensors"), str(data), *more, "--device", "cpu"]
    assert main([*arguments, "--precision", "int8"]) == 1
    said = capsys.readouterr().err
    assert (
        "precision is 'int8', which a checkpoint in PyTorch doesn't have; on cpu it has auto, float32" in said
    )
    assert len(said.strip().splitlines()) == 1


@needs_bfloat16
def test_a_list_begun_in_one_precision_is_not_continued_in_another(folder, tmp_path, capsys):
    (tmp_path / "videos.txt").write_text(f"{folder / 'a.mp4'}\n")
    arguments = [
        *("predict", str(folder / "bidirectional.safetensors"), "--manifest", str(tmp_path / "videos.txt")),
        *("--out", str(tmp_path / "out"), "--workers", "0", "--device", "cpu", "--part-format", "jsonl"),
    ]
    assert main([*arguments, "--precision", "float32"]) == 0
    assert main([*arguments, "--precision", "float32"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--precision", "bfloat16"]) == 1
    assert "precision 'float32' there, 'bfloat16' now" in capsys.readouterr().err


@needs_bfloat16
def test_calibrating_in_bfloat16_gives_nearly_the_same_statistics(folder, tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        path = tmp_path / f"{precision}.safetensors"
        arguments = [
            *("calibrate", str(folder / "bidirectional.safetensors"), str(folder / "bars"), "--frames", "3"),
            *("--output", str(path), "--workers", "0", "--device", "cpu", "--allow-worse"),
        ]
        assert main([*arguments, "--precision", precision]) == 0
        model = frameflex.load(path, device="cpu").model
        found[precision] = {
            name: value for name, value in model.state_dict().items() if name.endswith("norms.3.running_mean")
        }
    assert found["float32"]
    different = 0
    for name, value in found["float32"].items():
        different += not torch.equal(value, found["bfloat16"][name])
        torch.testing.assert_close(found["bfloat16"][name], value, atol=0.1, rtol=0.05)
    assert different


@needs_bfloat16
@pytest.mark.parametrize(
    ("precision", "expected"), [("bfloat16", "bf16"), ("auto", "bf16"), ("float32", "no")]
)
def test_train_takes_the_same_names(folder, monkeypatch, precision, expected):
    from frameflex.engine.recipe_files import parse_recipe

    fast_in_bfloat16(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    recipe, _ = parse_recipe([str(folder / "bars"), "--precision", precision])
    assert recipe.training.precision == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--precision", "int8"],
            "--precision int8: networks can't be trained in that on cpu; expected auto, float32",
        ),
        (
            ["--precision", "float32", "--training.precision", "bf16"],
            "both --precision and --training.precision",
        ),
    ],
)
def test_train_refuses_what_it_cannot_do(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["train", str(folder / "bars"), *arguments]) == 1
    assert message in capsys.readouterr().err
