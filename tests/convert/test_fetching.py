"""Published weights by name: every row of the table converts, and what isn't what its row says is refused."""

import json
import re
from importlib import resources

import pytest
import torch
import torchvision
from helpers import moving_bar, write_video
from published_networks import published_tensors as tensors

import frameflex
from frameflex.checkpoint import CheckpointError, cache_folder, load_checkpoint, published
from frameflex.cli import main

ROWS = published.published()
SMALL = "tsm_mobilenetv2.k400_8f"


def kept():
    """Names in the cache, but for locks."""
    return sorted(
        path.name for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock"
    )


# ---------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", ROWS)
def test_a_row_holds_together(name):
    row = ROWS[name]
    assert re.fullmatch(r"tsm_[a-z0-9_]+\.[a-z0-9]+_\d+f[a-z0-9_]*", name)
    assert f"_{row.num_frames}f" in name
    assert row.address.startswith("https://")
    assert row.address.endswith(f"{row.sha256}.pth")
    assert len(row.class_names) == len(set(row.class_names)) >= 27
    assert row.terms
    assert row.license
    for metric in row.metrics:
        assert metric["protocol"]
        assert 40 < metric["top1"] < metric.get("top5", 100) <= 100


def test_no_two_rows_are_of_one_file():
    assert (
        len({row.address for row in ROWS.values()}) == len({row.sha256 for row in ROWS.values()}) == len(ROWS)
    )


def test_the_class_lists_are_part_of_the_package():
    lists = {file.name for file in resources.files("frameflex.checkpoint").joinpath("classes").iterdir()}
    assert lists == {f"{row.classes}.txt" for row in ROWS.values()}
    assert ROWS["tsm_resnet50.k400_8f"].class_names[:2] == ["abseiling", "air drumming"]
    assert ROWS["tsm_resnet50.ssv2_8f"].class_names[173] == "Wiping something off of something"


@pytest.mark.parametrize(
    "name", [SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in ROWS if name != SMALL)]
)
def test_every_row_converts_and_gives_logits(name, serve):
    row = serve(name, {"meta": {"epoch": 50}, "state_dict": tensors(ROWS[name])})
    checkpoint = load_checkpoint(name)
    assert checkpoint.class_names == row.class_names
    assert checkpoint.frame_counts == (row.num_frames,)
    assert checkpoint.sampling == row.sampling
    assert checkpoint.license == "apache-2.0"
    assert row.terms in checkpoint.source
    pixels = checkpoint.preprocessing
    assert (pixels.short_side, pixels.crop_size, pixels.geometry) == (256, 224, "mmaction2")
    assert pixels.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-6)
    assert checkpoint.model.config["non_local"] == row.non_local
    with torch.no_grad():
        logits = checkpoint.model(torch.randn(1, 3, row.num_frames, 64, 64))
    assert logits.shape == (1, len(row.class_names))
    assert logits.isfinite().all()
    assert kept() == [row.path.name]


# ---------------------------------------------------------------------------------------------- in use


def test_three_lines_give_a_label_and_the_second_time_nothing_is_fetched(serve, web, caplog):
    row = serve(SMALL, {"state_dict": tensors(ROWS[SMALL])})
    video = torch.randint(0, 256, (12, 64, 80, 3), dtype=torch.uint8)
    recognizer = frameflex.load(SMALL, device="cpu")
    answers = recognizer(video)
    assert answers[0].label in row.class_names
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"fetching {SMALL} from 127.0.0.1" in said
    assert "MB" in said
    assert row.terms in said
    caplog.clear()
    assert frameflex.Recognizer.from_pretrained(SMALL, device="cpu")(video) == answers
    assert len(web.requests) == 1
    assert not caplog.records


@pytest.mark.slow
def test_a_name_stands_wherever_a_checkpoint_does(serve, web, tmp_path, capsys):
    serve(SMALL, {"state_dict": tensors(ROWS[SMALL])})
    names = ROWS[SMALL].class_names[:2]
    for i, name in enumerate(names):
        for split in ("train", "val"):
            frames = moving_bar(9, rightwards=bool(i), seed=i)
            write_video(tmp_path / "data" / split / name / f"{split}.mp4", frames)
    video = str(tmp_path / "data" / "val" / names[0] / "val.mp4")
    small = ["--workers", "0"]
    assert main(["predict", SMALL, video, "--json", "--top", "1", *small]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] in ROWS[SMALL].class_names
    assert main(["predict", SMALL, video, "--window", "0.5s", "--json", *small]) == 0
    assert main(["evaluate", SMALL, str(tmp_path / "data"), "--frames", "2", "--json", *small]) == 0
    assert main(["stream", SMALL, video, "--window", "4"]) == 0
    recipe = ["train", "finetune_folder.yaml", "--data.train", str(tmp_path / "data"), "--model.init", SMALL]
    recipe += [
        "--training.epochs",
        "1",
        "--training.batch_size",
        "2",
        "--training.reference_batch_size",
        "null",
    ]
    recipe += ["--data.num_workers", "0", "--clip.frame_counts", "[2]", "--output", str(tmp_path / "run")]
    assert main(recipe) == 0
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").class_names == names
    assert len(web.requests) == 1


def test_a_file_that_was_fetched_by_hand_is_found_and_left(serve, web):
    row = serve(SMALL, {"state_dict": tensors(ROWS[SMALL])})
    row.download_path.parent.mkdir(parents=True)
    row.download_path.write_bytes(b"another file")
    with pytest.raises(CheckpointError, match=rf"isn't the file of {SMALL}.*{row.address}"):
        load_checkpoint(SMALL)
    row.download_path.write_bytes(web.files[f"{SMALL}.pth"])
    load_checkpoint(SMALL)
    assert row.download_path.is_file()
    assert not web.requests


def test_a_name_slightly_wrong_is_met_with_the_right_one(web):
    with pytest.raises(CheckpointError, match=r"did you mean tsm_resnet50\.ssv2_8f"):
        load_checkpoint("tsm_resnet50.sv2_8f")
    with pytest.raises(FileNotFoundError, match=r"best\.safetensors: no such file"):
        load_checkpoint("best.safetensors")
    with pytest.raises(CheckpointError, match="did you mean"):
        frameflex.load("tsm_resnet50.k400_8F")
    with pytest.raises(CheckpointError, match=r"did you mean tsm_resnet50\.ssv2_8f"):
        frameflex.load("TSM_ResNet50.SSv2_8f")
    with pytest.raises(CheckpointError, match=r"did you mean tsm_resnet101\.ssv2_8f\?"):
        frameflex.load("tsm_resnet101")


def test_a_file_of_that_name_comes_before_the_table(tmp_path, monkeypatch, web):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SMALL).mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        load_checkpoint(SMALL)
    assert not web.requests


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: b"<html>Sign in</html>" * 99, "no file of torch.save or safetensors"),
        (lambda: {"state_dict": tensors(ROWS[SMALL], num_classes=5)}, "400 class names for 5 logits"),
        (lambda: torchvision.models.resnet18(num_classes=400).state_dict(), "its backbone is resnet18"),
        (lambda: {"a": torch.ones(3)}, "no kind that is known"),
    ],
)
def test_what_is_not_what_its_row_says_is_refused_before_anything_is_kept(content, words, serve):
    serve(SMALL, content())
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(SMALL)
    assert kept() == []


def test_a_broken_conversion_leaves_no_half_checkpoint(serve, monkeypatch):
    serve(SMALL, {"state_dict": tensors(ROWS[SMALL])})

    def full(*args, **options):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("frameflex.convert.fetching.save_checkpoint", full)
        with pytest.raises(CheckpointError, match="No space left on device.*FRAMEFLEX_CACHE"):
            load_checkpoint(SMALL)
    assert kept() == []


def test_the_command_shows_fetches_and_deletes(serve, web, capsys, tmp_path):
    assert main(["models", "--weights", "tsm_mobilenetv2*", "--json"]) == 0
    assert SMALL in capsys.readouterr().out
    assert main(["models", "--cached"]) == 0
    assert "nothing" in capsys.readouterr().err
    serve(SMALL, {"state_dict": tensors(ROWS[SMALL])})
    load_checkpoint(SMALL)
    assert main(["models", "--cached"]) == 0
    assert SMALL in capsys.readouterr().out
    assert main(["models", "--delete", SMALL]) == 0
    assert "MB" in capsys.readouterr().out
    assert kept() == []
    assert main(["models", "--delete", SMALL]) == 1
    assert "isn't in the cache" in capsys.readouterr().err
    assert main(["models", "--delete", "tsm_mobilenet.k400_8f"]) == 1
    assert f"did you mean {SMALL}" in capsys.readouterr().err
