"""Cross-validation: every video recognised once, by a network that never saw it; stopped, and gone on."""

import json
import os
import signal
import statistics
from dataclasses import replace

import pytest
import torch
from helpers import moving_bar, write_video

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.engine.confidence import wilson_interval
from frameflex.engine.cross_validation import cross_validate
from frameflex.engine.evaluation import evaluate
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.run import Run
from frameflex.engine.task import find_videos
from frameflex.engine.watching import Interrupted, Watcher

TINY = ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--training.epochs", "2"]
TINY += ["--clip.crop_size", "32", "--data.num_workers", "0", "--clip.frame_counts", "2,4"]
TINY += [
    "--training.precision",
    "no",
]  # the same in fixtures, which are made before a test is given a plain CPU


def make_videos(root, *, people=("ann", "bob", "cy", "dee"), per_person=1):
    for name in ("left", "right"):
        for n, who in enumerate(people):
            for i in range(per_person):
                frames = moving_bar(
                    8 + n, rightwards=name == "right", seed=10 * n + i + 500 * (name == "right")
                )
                write_video(root / name / who / f"{who}{i}.mp4", frames)
    return root


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("people") / "my_videos")


@pytest.fixture(scope="module")
def validated(people, tmp_path_factory):
    """The folder of a cross-validation on the command line, and what it said."""
    output = tmp_path_factory.mktemp("folds") / "run"
    assert main(["train", str(people), "--folds", "2", "--output", str(output), *TINY]) == 0
    return output


def test_every_video_is_held_out_once_and_groups_are_held_out_whole(validated):
    found = json.loads((validated / "folds.json").read_text())
    assert found["num_videos"] == len(found["videos"]) == 8
    assert found["num_groups"] == 4
    assert len({video["name"] for video in found["videos"]}) == 8
    folds_of = {}
    for video in found["videos"]:
        folds_of.setdefault(video["group"], set()).add(video["fold"])
    assert all(len(folds) == 1 for folds in folds_of.values())
    for fold in found["folds"]:
        division = load_checkpoint(validated / f"fold{fold['fold']}" / "last.safetensors").videos
        assert division.training.number == fold["num_training"] == 4
        assert division.validation.number == fold["num_validation"] == 4


def test_the_numbers_are_those_of_the_videos_after_the_last_epoch(validated):
    found = json.loads((validated / "folds.json").read_text())
    assert [result["num_frames"] for result in found["results"]] == [2, 4]
    largest = found["results"][-1]
    right = [video["prediction"] == video["label"] for video in found["videos"]]
    assert (largest["right"], largest["number"]) == (sum(right), 8)
    assert largest["top1"] == sum(right) / 8
    assert largest["interval"] == list(wilson_interval(sum(right), 8))
    assert largest["mean"] == pytest.approx(statistics.mean(largest["of_folds"]))
    assert largest["deviation"] == pytest.approx(statistics.stdev(largest["of_folds"]))
    for number, share in enumerate(largest["of_folds"], start=1):
        checkpoint = load_checkpoint(validated / f"fold{number}" / "last.safetensors")
        assert checkpoint.metrics["validation"]["epoch"] == 2
        assert checkpoint.metrics["validation"]["results"][-1]["top1"] == share
    for video in found["videos"]:
        assert 0 <= video["probability_of_label"] <= video["probability"] <= 1


def test_the_page_shows_the_folds_and_the_data_s_problems(validated):
    page = (validated / "report.html").read_text(encoding="utf-8")
    assert "Cross-validation" in page
    assert "4 groups were held out whole" in page
    assert "fold 2" in page
    assert "Data problems" in page
    assert "my_videos: the classes are left, right" in page
    assert "It is not known which videos" not in page
    assert len((validated / "predictions.csv").read_text().splitlines()) == 1 + 2 * 8


def test_a_fold_alone_repeats_what_it_was_among_the_others(validated, people, tmp_path):
    recipe, _ = parse_recipe([str(validated / "fold2" / "recipe.yaml"), "--output", str(tmp_path / "alone")])
    assert (recipe.data.folds, recipe.data.fold) == (2, 2)
    assert main(["train", str(validated / "fold2/recipe.yaml"), "--output", str(tmp_path / "alone")]) == 0
    first, second = (
        load_checkpoint(path / "last.safetensors").model.state_dict()
        for path in (validated / "fold2", tmp_path / "alone")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_held_out_answers_are_those_of_evaluate(validated):
    found = json.loads((validated / "folds.json").read_text())
    recipe, _ = parse_recipe([str(validated / "fold1" / "recipe.yaml")])
    _, held_out = find_videos(recipe)
    checkpoint = load_checkpoint(validated / "fold1" / "last.safetensors")
    measured = evaluate(
        checkpoint.model,
        held_out,
        preprocessing=checkpoint.preprocessing,
        frame_counts=[4],
        temperature=checkpoint.temperature,
    )
    probabilities = measured.calibrated(4).softmax(1).gather(1, measured.labels[:, None])[:, 0]
    ours = {name: float(p) for name, p in zip(measured.names, probabilities, strict=True)}
    theirs = {v["name"]: v["probability_of_label"] for v in found["videos"] if v["fold"] == 1}
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_cross_validation_that_was_stopped_goes_on_and_keeps_its_folds(people, tmp_path):
    recipe, _ = parse_recipe([str(people), "--folds", "2", "--output", str(tmp_path / "run"), *TINY])

    def stop_in_the_second(report):
        if (tmp_path / "run" / "fold2").exists():
            raise Interrupted(tmp_path)

    with pytest.raises(Interrupted):
        cross_validate(recipe, watcher=Watcher(on_step=stop_in_the_second))
    first = tmp_path / "run" / "fold1" / "last.safetensors"
    written = first.read_bytes()
    steps = []
    result = cross_validate(recipe, resume=True, watcher=Watcher(on_step=steps.append))
    assert len(steps) == 2  # an epoch is one step of 4 videos: those of the second fold alone
    assert first.read_bytes() == written
    whole = cross_validate(replace(recipe, output=str(tmp_path / "whole")))
    assert result.to_dict() == whole.to_dict()


def test_folds_that_were_trained_one_by_one_are_collected(people, validated, tmp_path, capsys):
    command = ["train", str(people), "--folds", "2", *TINY]
    alone = tmp_path / "run" / "fold2"
    assert main([*command, "--data.fold", "2", "--output", str(alone)]) == 0
    written = (alone / "last.safetensors").read_bytes()
    assert main([*command, "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert (alone / "last.safetensors").read_bytes() == written
    first, second = (json.loads((run / "folds.json").read_text()) for run in (validated, tmp_path / "run"))
    assert first["videos"] == second["videos"]


def test_other_folds_than_those_of_the_run_are_refused(people, validated, capsys):
    before = {path: path.read_bytes() for path in validated.rglob("*") if path.is_file()}
    assert main(["train", str(people), "--folds", "3", "--output", str(validated), "--resume"]) == 1
    assert "data.folds was 2 and is 3" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in validated.rglob("*") if path.is_file()} == before


def test_ctrl_c_leaves_what_resume_goes_on_from(people, tmp_path, monkeypatch, capsys):
    steps = Run._step

    def step_and_press(self, *arguments):
        if self.folder.path.name == "fold2":
            os.kill(os.getpid(), signal.SIGINT)
        return steps(self, *arguments)

    output = tmp_path / "run"
    command = ["train", str(people), "--folds", "2", "--output", str(output), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", step_and_press)
        assert main(command) == 130
    said = capsys.readouterr().err
    assert "fold2/last.safetensors holds the run so far, continue it with --resume" in said
    assert not (output / "folds.json").exists()
    assert main([*command, "--resume"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == str(output / "folds.json")
    assert "95 % interval" in captured.out
    assert main(["train", str(people), "--output", str(output), "--resume"]) == 0  # nothing is left to do


def test_what_cannot_be_cross_validated_is_one_error_and_nothing_is_written(people, tmp_path, capsys):
    for name in ("left", "right"):
        for i in range(2):
            broken = tmp_path / "broken" / name / f"{i}.mp4"
            broken.parent.mkdir(parents=True, exist_ok=True)
            broken.write_bytes(b"no video" * 50)
            write_video(tmp_path / "few" / name / f"{i}.mp4", moving_bar(8 + i, rightwards=name == "left"))
            write_video(tmp_path / "mixed" / name / f"{i}.mp4", moving_bar(8 + i, rightwards=name == "left"))
    (tmp_path / "mixed/left/bad.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "none/waving").mkdir(parents=True)
    write_video(tmp_path / "one/waving/a.mp4", moving_bar(8, rightwards=True))
    for folder, words in (
        (people, "data.folds: 4 groups of videos for 5 folds"),
        (tmp_path / "few", "data.folds: 4 videos for 5 folds"),
        (tmp_path / "mixed", "1 of 5 videos can't be decoded: left/bad.mp4"),
        (tmp_path / "broken", "none of the 4 videos looked at can be decoded"),
        (tmp_path / "none", "no known layout"),
        (tmp_path / "one", "of one class, 'waving'"),
    ):
        output = tmp_path / "run"
        folds = "2" if folder.name == "mixed" else "5"
        assert main(["train", str(folder), "--folds", folds, "--output", str(output), *TINY]) == 1
        said = capsys.readouterr().err.strip()
        assert words in said
        assert sum(line.startswith("frameflex: ") for line in said.splitlines()) == 1
        assert not output.exists()


def test_a_folder_that_holds_something_else_is_left_alone(people, tmp_path, capsys):
    command = ["train", str(people), "--folds", "2", "--output", str(tmp_path), *TINY]
    (tmp_path / "notes.txt").write_text("mine")
    assert main(command) == 1
    assert "holds files already" in capsys.readouterr().err
    (tmp_path / "last.safetensors").write_bytes(b"a run")
    assert main([*command, "--resume"]) == 1
    assert "holds a run without folds" in capsys.readouterr().err
    assert not (tmp_path / "fold1").exists()


def test_without_folds_the_groups_are_held_out_whole_too_and_the_last_line_has_an_interval(
    people, tmp_path, capsys
):
    assert main(["train", str(people), "--output", str(tmp_path / "run"), *TINY]) == 0
    said = capsys.readouterr().err
    assert "95 % interval" in said.strip().splitlines()[-1]
    assert "whole groups are held out (there are 4)" in said.lower()
    recipe, _ = parse_recipe([str(tmp_path / "run/recipe.yaml")])
    training, validation = find_videos(recipe)
    assert {v.group for v in training}.isdisjoint(v.group for v in validation)
