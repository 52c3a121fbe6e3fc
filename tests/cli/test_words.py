"""Mistakes that people make, each told in one line of our own words, before any work."""

import pytest
import torch
import yaml
from helpers import bar_folder, tiny_recipe

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.recipe_files import parse_recipe
from frameflex.export import export, load_exported
from frameflex.models import create_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("words")
    bar_folder(root / "data", per_class=1)
    for shift in ("bidirectional", "causal"):
        model = create_model("test_resnet", num_classes=2, shift=shift)
        made = Checkpoint(
            model.eval(),
            ["going left", "going right"],
            Preprocessing(short_side=32, crop_size=32),
            (2, 4),
        )
        save_checkpoint(root / f"{shift}.safetensors", made)
    export(root / "bidirectional.safetensors", root / "exported", format="torchscript")
    (root / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(root / "data", root / "unused").to_dict()))
    (root / "a_file").write_text("no folder")
    return root


def told(arguments, place, capsys):
    words = {"MODEL": place / "bidirectional.safetensors", "CAUSAL": place / "causal.safetensors"}
    status = main([str(words.get(a, a.replace("ROOT", str(place)))) for a in arguments.split()])
    captured = capsys.readouterr()
    assert status in (1, 2)
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("frameflex: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    assert "Error:" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("value", ["8", "4,8", "[4,8]", "[8]"])
@pytest.mark.parametrize("join", [" ", "="])
def test_a_list_of_a_recipe_may_be_one_number_or_several_with_commas(value, join, place):
    words = f"{place / 'recipe.yaml'} --clip.frame_counts{join}{value} --training.epochs 3".split(" ")
    recipe, _ = parse_recipe(words)
    assert recipe.clip.frame_counts == tuple(int(count) for count in value.strip("[]").split(","))
    assert recipe.training.epochs == 3


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("clip.frame_counts", "x", "a list such as"),
        ("training.epochs", "x", "a whole number"),
        ("training.tensorboard", "x", "true or false"),
    ],
)
def test_a_value_of_another_kind_is_told_without_pythons_names(key, value, expected, place, capsys):
    line = told(f"train ROOT/recipe.yaml --{key} {value}", place, capsys)
    assert f'"{key}" is x; expected {expected}' in line


DEVICES = [
    "evaluate MODEL ROOT/data",
    "predict MODEL ROOT/data/val",
    "predict MODEL ROOT/data/val --window 1s",
    "predict MODEL --manifest ROOT/list.txt --out ROOT/parts",
    "stream CAUSAL ROOT/data/val",
    "calibrate MODEL ROOT/data --frames 3 --output ROOT/new.safetensors",
]


@pytest.mark.parametrize("verb", DEVICES)
@pytest.mark.parametrize("device", ["cuda:99", "gpu", "xpu", "cuda:x"])
def test_a_device_that_is_not_there_is_named_with_the_one_that_is(verb, device, place, capsys):
    line = told(f"{verb} --device {device}", place, capsys)
    assert f"device is '{device}', which can't be used here" in line
    assert "expected cpu, cuda" in line


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate MODEL ROOT/data --frames",
        "predict MODEL ROOT/data --frames",
        "predict MODEL ROOT/data --budget",
        "stream CAUSAL ROOT/data --frames",
        "stream CAUSAL ROOT/data --window",
        "calibrate MODEL ROOT/data --output ROOT/new.safetensors --frames",
        "export MODEL --format onnx --output ROOT/graphs --frames",
    ],
)
@pytest.mark.parametrize("count", ["99999999", "0", "-8", "8.5", "acht", "²"])
def test_frame_counts_that_can_not_be_are_refused(arguments, count, place, capsys):
    line = told(f"{arguments}={count}", place, capsys)
    assert "from 1 to 1024" in line


@pytest.mark.parametrize(
    "arguments",
    [
        "train ROOT/recipe.yaml --output ROOT/a_file/out",
        "evaluate MODEL ROOT/nowhere --output ROOT/a_file/out",
        "calibrate MODEL ROOT/nowhere --frames 3 --output ROOT/a_file/out.safetensors",
        "export MODEL --format torchscript --output ROOT/a_file/out",
        "export CAUSAL --format onnx --step --output ROOT/a_file/out",
        "predict MODEL ROOT/data/val/*left/0.mp4 --window 1s --output ROOT/a_file/out.json",
        "predict MODEL --manifest ROOT/nowhere.txt --out ROOT/a_file/out",
        "stream CAUSAL ROOT/data --save ROOT/a_file/out.mp4",
        "data check ROOT/nowhere --output ROOT/a_file/out",
        "data prepare ROOT/data ROOT/a_file/out",
        "data render ROOT/a_file/out --videos 4",
        "demo --quick --output ROOT/a_file/out",
        "push MODEL --folder ROOT/a_file/out",
        "benchmark test_resnet --json ROOT/a_file/out.json",
        "benchmark test_resnet --plot ROOT/a_file/out.png",
        "predict MODEL ROOT/data/val/*left/0.mp4 --window 1s --timeline ROOT/a_file/out.png",
        "predict MODEL ROOT/data/val/*left/0.mp4 --window 1s --annotate ROOT/a_file/out.mp4",
        "convert ROOT/nowhere.pth --to ROOT/a_file/out.safetensors",
    ],
)
def test_a_place_that_can_not_be_written_to_is_found_before_any_work(arguments, place, capsys):
    line = told(arguments, place, capsys)
    assert "a_file" in line
    assert "choose another" in line


def test_resuming_with_more_epochs_says_how_to_train_for_longer(place, tmp_path, capsys):
    recipe = ["train", str(place / "recipe.yaml"), "--output", str(tmp_path / "run")]
    assert main([*recipe, "--training.epochs", "1"]) == 0
    capsys.readouterr()
    assert main([*recipe, "--training.epochs", "2", "--resume"]) == 1
    line = capsys.readouterr().err
    assert f"--model.init {tmp_path / 'run' / 'last.safetensors'}" in line


# ---------------------------------------------------------------------------------------------- in Python


@pytest.mark.parametrize("which", ["model", "export"])
@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8), "clip is uint8; expected float, normalised"),
        (torch.zeros(1, 3, 2, 32, 32, dtype=torch.int64), "clip is int64; expected float"),
        (torch.zeros(0, 3, 2, 32, 32), r"so no clip; expected \(B, 3, T, H, W\) with B at least 1"),
        (torch.zeros(1, 3, 0, 32, 32), "so no frame"),
        (torch.zeros(3, 2, 32, 32), r"clip\[None\]"),
        ([[1.0]], "clip is list; expected a tensor"),
        (None, "clip is NoneType; expected a tensor"),
    ],
)
def test_what_is_no_batch_of_clips_is_refused_by_model_and_export(which, clip, message, place):
    if which == "model":
        model = create_model("test_resnet", num_classes=2).eval()
    else:
        model = load_exported(place / "exported").model
    with pytest.raises(ValueError, match=message):
        model(clip)


@pytest.mark.parametrize("num_frames", ["8", 8.0, 0, -1, True, 99999999, (8,)])
def test_a_frame_count_that_is_no_number_is_refused(num_frames, place):
    recognizer = Recognizer.from_checkpoint(place / "bidirectional.safetensors", device="cpu")
    video = next((place / "data" / "val").rglob("*.mp4"))
    for call in (
        recognizer,
        recognizer.logits,
        lambda *a, **o: next(recognizer.recognize_many(list(a), **o)),
    ):
        with pytest.raises(
            ValueError, match="num_frames is .*; expected a whole number of frames from 1 to 1024"
        ):
            call(video, num_frames=num_frames)
    with pytest.raises(ValueError, match="expected a whole number of frames from 1 to 1024"):
        recognizer(video, budget=(2, "4"))
    causal = Recognizer.from_checkpoint(place / "causal.safetensors", device="cpu").checkpoint
    with pytest.raises(ValueError, match="expected a whole number of frames from 1 to 1024"):
        StreamingRecognizer(causal, num_frames=num_frames, device="cpu")
    with pytest.raises(ValueError, match="window is .*; expected a whole number of frames from 1 to 1024"):
        StreamingRecognizer(causal, window=num_frames, device="cpu")


def test_a_device_of_python_is_checked_too(place):
    with pytest.raises(ValueError, match="device is 'cuda:99', which can't be used here"):
        Recognizer.from_checkpoint(place / "bidirectional.safetensors", device="cuda:99")
    assert Recognizer.from_checkpoint(place / "bidirectional.safetensors", device=torch.device("cpu"))


def test_one_value_a_channel_in_training_is_told_in_our_words():
    model = create_model("test_resnet", num_classes=2).train()
    with pytest.raises(ValueError, match=r"single value of each channel.*call model\.eval\(\)"):
        model(torch.randn(1, 3, 1, 16, 16))
    assert model.eval()(torch.randn(1, 3, 1, 16, 16)).shape == (1, 2)
