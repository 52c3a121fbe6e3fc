"""A network that gives NaN or infinite numbers gives no answer: one clear error, on every road."""

import json
import re

import pytest
import torch
import yaml
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.deploy.recognizer import Recognizer
from frameflex.export import ExportError, export, read_manifest, write_manifest
from frameflex.models import create_model
from frameflex.models.clips import classify_views
from frameflex.models.finite import NotFinite, finite

CLASSES = ["going left", "going right"]
SPOILT = ["nan", "infinite"]


def spoil(model, how):
    """Weights stay finite: what a look at the file can't find."""
    with torch.no_grad():
        if how == "nan":  # the root of a negative number, in evaluation alone
            norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            norms[-1].running_var.fill_(-1e30)
        else:  # each frame's logits are finite, their sum over frames is not
            model.head.bias.fill_(3.3e38)
    return model


def make_checkpoint(path, how, *, shift="bidirectional"):
    model = create_model("test_resnet", num_classes=2, shift=shift)
    torch.nn.init.normal_(model.head.weight)
    pixels = Preprocessing(short_side=32, crop_size=32)
    save_checkpoint(path, Checkpoint(spoil(model, how).eval(), list(CLASSES), pixels, (2, 4)))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("finite")
    bar_folder(root / "data", per_class=2)
    write_video(root / "long.mp4", moving_bar(24, rightwards=True))
    files = sorted((root / "data" / "val").rglob("*.mp4"))
    (root / "list.txt").write_text("".join(f"{file}\n" for file in files))
    for how in SPOILT:
        make_checkpoint(root / f"{how}.safetensors", how)
        make_checkpoint(root / f"{how}-causal.safetensors", how, shift="causal")
    return root


VERBS = {
    "evaluate": "evaluate CHECKPOINT ROOT/data --workers 0",
    "evaluate --json": "evaluate CHECKPOINT ROOT/data --workers 0 --json --frames 2,4",
    "evaluate --adaptive": "evaluate CHECKPOINT ROOT/data --workers 0 --adaptive --frames 2,4",
    "predict": "predict CHECKPOINT ROOT/data/val --workers 0",
    "predict --on-bad-video": "predict CHECKPOINT ROOT/data/val --workers 0 --on-bad-video skip",
    "predict --json": "predict CHECKPOINT ROOT/data/val --workers 0 --json",
    "predict --budget": "predict CHECKPOINT ROOT/data/val --workers 0 --budget 2,4",
    "predict --views": "predict CHECKPOINT ROOT/data/val --workers 0 --views 2x3",
    "predict --window": "predict CHECKPOINT ROOT/long.mp4 --window 1s",
    "predict --window --json": "predict CHECKPOINT ROOT/long.mp4 --window 1s --json",
    "predict --manifest": "predict CHECKPOINT --manifest ROOT/list.txt --out NEW/parts --workers 0",
    "stream": "stream CAUSAL ROOT/long.mp4 --every-frame --print-every 1ms",
    "stream --window": "stream CHECKPOINT ROOT/long.mp4 --every-frame --window 4",
    "calibrate": "calibrate CHECKPOINT ROOT/data/val --frames 3 --workers 0 --output NEW/new.safetensors",
    "export": "export CHECKPOINT --format torchscript --output NEW/exported",
    "export --half": "export CHECKPOINT --format torchscript --half --check ROOT/data --output NEW/exported",
    "export --step": "export CAUSAL --format onnx --step --output NEW/exported",
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.slow if "--step" in verb else []) for verb in VERBS]
)
def test_numbers_that_are_none_are_one_clear_error_in(verb, how, place, tmp_path, capsys):
    if "--step" in verb:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        if how == "infinite":
            pytest.skip("a step adds no frames up")
    if verb == "stream" and how == "infinite":
        pytest.skip("as a step: each frame's logits are finite, and their mean is taken in double")
    if verb == "calibrate" and how == "nan":
        pytest.skip("the norm that gives them is measured anew")
    words = {
        "CHECKPOINT": place / f"{how}.safetensors",
        "CAUSAL": place / f"{how}-causal.safetensors",
    }
    arguments = [
        str(words.get(word, word.replace("ROOT", str(place)).replace("NEW", str(tmp_path))))
        for word in VERBS[verb].split()
    ]
    status = main(arguments)
    captured = capsys.readouterr()
    told = [line for line in captured.err.splitlines() if line.startswith("frameflex: ")]
    assert status == 1, captured.err
    assert len(told) == 1, captured.err
    assert re.search("NaN or infinite", told[0])
    assert "Traceback" not in captured.err
    assert not re.search(r"\bnan\b|Infinity|NaN", captured.out)
    assert not (tmp_path / "new.safetensors").exists()
    assert not (tmp_path / "exported").exists()


def test_a_validation_of_numbers_that_are_none_stops_training_in_one_line(place, tmp_path, capsys):
    recipe = tiny_recipe(place / "data", tmp_path / "run", epochs=1)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    status = main(["train", str(tmp_path / "mine.yaml"), "--model.init", str(place / "nan.safetensors")])
    captured = capsys.readouterr()
    assert status == 1
    told = [line for line in captured.err.splitlines() if line.startswith("frameflex: ")]
    assert len(told) == 1, captured.err
    assert "NaN or infinite" in told[0]
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_the_error_names_the_video(place):
    recognizer = Recognizer.from_checkpoint(place / "nan.safetensors", device="cpu")
    with pytest.raises(
        NotFinite, match=r"video .*long\.mp4: the network gives NaN or infinite logits at 4 frames"
    ):
        recognizer(place / "long.mp4")
    with pytest.raises(NotFinite, match=r"long\.mp4"):
        recognizer.logits(place / "long.mp4")
    with pytest.raises(NotFinite, match=r"long\.mp4"):
        list(recognizer.recognize_many([place / "long.mp4"]))


def test_one_clip_without_an_answer_is_told_from_those_with_one():
    logits = torch.zeros(3, 2)
    assert finite(logits, num_frames=4) is logits
    logits[1, 0] = float("inf")
    with pytest.raises(NotFinite, match=r"video b: .* at 4 frames"):
        finite(logits, num_frames=4, names=["a", "b", "c"])
    with pytest.raises(NotFinite, match=r"for 1 of 3 clips"):
        finite(logits, num_frames=4)


def test_half_precision_that_overflows_is_no_answer():
    class Half(torch.nn.Module):
        def forward(self, clip):
            return (clip.mean((1, 2, 3, 4)).half() * 60000)[:, None].expand(-1, 2)

    with pytest.raises(NotFinite, match="overflows"):
        classify_views(Half(), torch.full((1, 1, 3, 2, 4, 4), 2.0))
    # Two views of 60000 each have a mean, but no sum, in float16.
    logits = classify_views(Half(), torch.full((1, 2, 3, 2, 4, 4), 1.0))
    assert logits.float().isfinite().all()


def test_an_export_that_gives_no_numbers_gives_no_answer(place, tmp_path, capsys):
    model = create_model("test_resnet", num_classes=2)
    pixels = Preprocessing(short_side=32, crop_size=32)
    export(Checkpoint(model.eval(), list(CLASSES), pixels, (2,)), tmp_path / "out", format="torchscript")
    graph = torch.jit.load(str(tmp_path / "out" / "model_2.pt"))
    with torch.no_grad():
        next(value for name, value in graph.named_parameters() if name == "head.bias").fill_(float("nan"))
    graph.save(str(tmp_path / "out" / "model_2.pt"))
    manifest = read_manifest_unchecked(tmp_path / "out")
    write_manifest(tmp_path / "out", {key: value for key, value in manifest.items() if key != "files"})
    read_manifest(tmp_path / "out")
    for options in ([], ["--json"], ["--window", "1s"]):
        assert (
            main(["predict", str(tmp_path / "out"), str(place / "long.mp4"), "--workers", "0", *options]) == 1
        )
        captured = capsys.readouterr()
        assert "NaN or infinite" in captured.err
        assert "nan" not in captured.out.lower()


def read_manifest_unchecked(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("how", SPOILT)
def test_export_says_that_the_model_gives_no_numbers(how, place, tmp_path):
    with pytest.raises(ExportError, match="the model gives NaN or infinite logits"):
        export(place / f"{how}.safetensors", tmp_path / "out", format="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_export_in_half_precision_says_that_the_graph_overflows(place, tmp_path):
    made = load_checkpoint(make_checkpoint(tmp_path / "large.safetensors", "nan"))
    with torch.no_grad():
        for module in made.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.fill_(1.0)
        made.model.head.bias.fill_(1e6)
    with pytest.raises(ExportError, match=r"the graph gives NaN or infinite logits .* float16 ends at 65504"):
        export(made, tmp_path / "out", format="torchscript", half=True)


def test_labels_of_numbers_that_are_none_agree_with_nothing(place, tmp_path):
    from frameflex.export.comparing import compare_labels

    good = create_model("test_resnet", num_classes=2)
    pixels = Preprocessing(short_side=32, crop_size=32)
    made = Checkpoint(good.eval(), list(CLASSES), pixels, (2,))
    videos = VideoList([VideoRecord(place / "long.mp4", 0, "long")], CLASSES)
    bad = torch.nn.Module()
    bad.forward = lambda clip: torch.full((len(clip), 2), float("nan"))
    with pytest.raises(ExportError, match="the graph gives NaN or infinite logits"):
        compare_labels(made, bad, videos, 2, min_agreement=0.0)


@pytest.mark.parametrize("options", [{}, {"window": 2}])
def test_a_stream_says_when_the_numbers_end(options, place):
    recognizer = StreamingRecognizer(
        load_checkpoint(place / "nan-causal.safetensors"), device="cpu", **options
    )
    with pytest.raises(NotFinite):
        recognizer.push(torch.zeros(3, 40, 40, dtype=torch.uint8), 0.0)
