"""The how-to "repeat a published number": its mechanics on a tiny data set in Something-Something's own layout."""

import json
from dataclasses import replace

import pytest
from helpers import moving_bar, write_video
from published_networks import published_tensors

from frameflex.checkpoint import load_checkpoint, published
from frameflex.cli import main
from frameflex.engine.evaluation import CountResult, Evaluation
from frameflex.report import published_lines

NAME = "tsm_resnet50.ssv2_16f"
ROW = published.published()[NAME]


@pytest.fixture
def data(tmp_path):
    """Four videos of two of the 174 classes, in the layout that the data set is distributed in."""
    root = tmp_path / "data" / "something-something-v2"
    names = ROW.class_names
    root.mkdir(parents=True)
    (root / "labels.json").write_text(json.dumps({name: str(i) for i, name in enumerate(sorted(names))}))
    for split, first in (("train", 0), ("validation", 4)):
        entries = []
        for i in range(first, first + 4):
            name = ("Pulling something from left to right", "Pulling something from right to left")[i % 2]
            write_video(
                root / "20bn-something-something-v2" / f"{i}.webm".replace("webm", "mp4"),
                moving_bar(18 + i, rightwards=i % 2 == 0, seed=i),
            )
            template = name.replace("something", "[something]")
            label = template.replace("[something]", "a pen")
            entries.append({"id": str(i), "label": label, "template": template, "placeholders": ["a pen"]})
        (root / f"{split}.json").write_text(json.dumps(entries))
    return root


@pytest.mark.slow
def test_evaluate_train_and_evaluate_again_from_a_published_name(serve, data, tmp_path, capsys):
    row = replace(ROW, backbone="mobilenetv2_100")  # smaller; the rest is the row's
    serve(NAME, {"state_dict": published_tensors(row)}, backbone=row.backbone)
    small = ["--workers", "0"]
    evaluate = ["evaluate", NAME, str(data), "--frames", "2,16", *small]
    assert main([*evaluate, "--output", str(tmp_path / "before")]) == 0
    told = capsys.readouterr().out
    assert "published: top-1 64.16 % on Something-Something V2 at 16 frames (2 clips x 3 crops" in told
    assert "here: 0.00 % on 4 videos; the protocol differs: clips x crops here are 1x1, published 2x3" in told
    results = json.loads((tmp_path / "before" / "results.json").read_text())
    assert results["published"][0]["top1"] == 64.16
    recipe = ["train", "ssv2_ffn_resnet50.yaml", "--data.train", str(data), "--model.init", NAME]
    recipe += ["--model.backbone", "null", "--training.epochs", "1", "--training.batch_size", "2"]
    recipe += [
        "--training.reference_batch_size",
        "null",
        "--training.milestones",
        "[]",
        "--data.num_workers",
        "0",
    ]
    recipe += ["--clip.frame_counts", "[2,16]", "--clip.short_side", "32", "--clip.crop_size", "32"]
    recipe += ["--training.precision", "no", "--output", str(tmp_path / "flexible")]
    assert main(recipe) == 0
    trained = load_checkpoint(tmp_path / "flexible" / "best.safetensors")
    assert trained.model.frame_counts == (2, 16)
    assert "published" not in trained.metrics  # these are other weights
    again = [
        "evaluate",
        str(tmp_path / "flexible" / "best.safetensors"),
        str(data),
        "--frames",
        "2,16",
        *small,
    ]
    capsys.readouterr()
    assert main(again) == 0
    assert "published" not in capsys.readouterr().out


def test_a_line_says_what_differs_or_that_nothing_does():
    import torch

    def at(count):
        return CountResult(
            num_frames=count, top1=0.6123, top5=0.9, mean_class_accuracy=0.6, gflops=1.0, clips_per_second=1.0
        )

    measured = Evaluation([at(8)], (8,), ["a"], ["x"], torch.zeros(1), {}, "2x3")
    figure = {"data": "D", "num_frames": 8, "top1": 62.7, "views": "2x3", "protocol": "2 clips x 3 crops"}
    (line,) = published_lines(measured, {"published": [figure]})
    assert line == (
        "published: top-1 62.70 % on D at 8 frames (2 clips x 3 crops); here: 61.23 % on 1 videos; the same protocol"
    )
    (line,) = published_lines(measured, {"published": [{**figure, "num_frames": 16}]})
    assert "here: not measured" in line
    assert "--frames 16" in line
    (line,) = published_lines(measured, {"published": [{**figure, "views": None, "protocol": "10 crops"}]})
    assert "clips x crops here are 2x3, published: 10 crops" in line
    assert published_lines(measured, {"validation": {}}) == []
