"""The card beside a checkpoint."""

import json

import huggingface_hub
import yaml
from making import checkpoint

from frameflex.checkpoint import load_checkpoint, model_card, save_checkpoint
from frameflex.cli import main


def test_the_card_tells_what_a_checkpoint_is():
    card = model_card(checkpoint())
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "frameflex"
    assert front["pipeline_tag"] == "video-classification"
    for words in (
        "opening \\| a door",
        "2, 4: one network",
        "rendered in a test",
        "| 4 | 81.2 | 100.0 | 0.31 |",
        "BGR",
    ):
        assert words in card
    unknown = model_card(checkpoint(license="", source="", metrics={}))
    assert yaml.safe_load(unknown.split("---")[1])["license"] == "unknown"
    assert "ask their author" in unknown
    assert "Nothing yet." in unknown


def test_the_hubs_own_reader_finds_licence_task_and_every_figure():
    metrics = {
        **checkpoint().metrics,
        "published": [
            {
                "data": "Somewhere V2",
                "num_frames": 8,
                "top1": 62.7,
                "top5": 87.7,
                "protocol": "2 clips x 3 crops",
            }
        ],
    }
    recipe = {"data": {"train": "/home/somebody/doors"}}
    card = model_card(checkpoint(metrics=metrics, recipe=recipe), "someone/door")
    assert "/home/somebody" not in card
    read = huggingface_hub.ModelCard(card)
    assert read.data.pipeline_tag == "video-classification"
    found = {(r.dataset_name, r.metric_name, r.metric_value) for r in read.data.eval_results}
    assert found == {
        ("doors, validation", "top-1 %, 4 frames, clips x crops 1x1, 40 videos", 81.2),
        ("Somewhere V2", "top-1 %, 8 frames, 2 clips x 3 crops, as published", 62.7),
    }
    assert "| Somewhere V2 | 8 | 2 clips x 3 crops | 62.70 | 87.70 |" in card
    assert 'frameflex.load("someone/door")' in card
    assert "frameflex predict hf://someone/door video.mp4 --frames 4" in card
    assert "2. nothing" in card
    for missing in ("More Information Needed", "OWNER", "TODO"):
        assert missing not in card


def test_push_writes_a_folder_with_the_figures_that_evaluate_measured(tmp_path, capsys):
    save_checkpoint(tmp_path / "best.safetensors", checkpoint(license=""))
    results = {
        "checkpoint": "best.safetensors",
        "data": "/home/somebody/doors",
        "protocol": {"views": "2x3", "num_videos": 7},
        "results": [{"num_frames": count, "top1": 0.5, "top5": 1.0, "gflops": 0.1} for count in (2, 4)],
        "undecodable": [{"name": "/home/somebody/doors/a.mp4", "reason": "broken"}],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    folder = tmp_path / "shared"
    push = ["push", str(tmp_path / "best.safetensors"), "--folder", str(folder)]
    assert main([*push, "--results", str(tmp_path / "results.json"), "--license", "cc-by-4.0"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| 2 | 50.0 | 100.0 | 0.1 |" in card
    assert "somebody" not in card
    assert load_checkpoint(folder).metrics["evaluation"]["data"] == "doors"
    assert load_checkpoint(folder).license == "cc-by-4.0"


def test_push_says_what_is_missing(tmp_path, capsys):
    save_checkpoint(tmp_path / "best.safetensors", checkpoint(license=""))
    assert main(["push", str(tmp_path / "best.safetensors")]) == 2
    assert "expected OWNER/NAME, or --folder" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "best.safetensors"), "door"]) == 2
    assert "expected owner/name" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[]")
    push = ["push", str(tmp_path / "best.safetensors"), "--folder", str(tmp_path / "shared")]
    assert main([*push, "--results", str(tmp_path / "results.json")]) == 1
    assert "isn't results.json of frameflex evaluate" in capsys.readouterr().err
    assert main(push) == 0
    assert "say --license" in capsys.readouterr().err
