"""What was trained on is known afterwards: a folder is measured on its held-out part."""

import json
import shutil

import pytest
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from frameflex.checkpoint import format as checkpoint_format
from frameflex.cli import main
from frameflex.data.datasets import load_split
from frameflex.data.splits import Division, KnownVideos, hold_out, video_key
from frameflex.engine.evaluation import evaluate
from frameflex.engine.training import train
from frameflex.video import VideoError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("held out")
    data = root / "my videos"
    for name in ("left", "right"):
        for i in range(5):
            frames = moving_bar(8 + i, rightwards=name == "right", seed=i)
            write_video(data / name / f"{i}.mp4", frames)
    [best] = train(tiny_recipe(data, root / "run", epochs=2))
    return data, best


def measured(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments), "--workers", "0", "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_evaluate_measures_exactly_the_held_out_part_of_the_folder_trained_on_and_says_so(trained, capsys):
    data, best = trained
    found, told = measured(capsys, best, data)
    checkpoint = load_checkpoint(best)
    held_out = hold_out(load_split(data, "validation"), 0.2)[1]
    assert found["protocol"]["num_videos"] == len(held_out) == 2
    assert found["protocol"]["num_trained_on"] == 0
    assert "held out of training; 8 that were trained on are left out" in " ".join(told.split())
    again = evaluate(
        checkpoint.model,
        held_out,
        preprocessing=checkpoint.preprocessing,
        frame_counts=checkpoint.frame_counts,
    )
    assert found["results"][0]["top1"] == again.results[0].top1
    reported = checkpoint.metrics["validation"]["results"]  # what the run itself measured
    assert found["results"][-1]["top1"] == reported[-1]["top1"]


def test_videos_trained_on_are_named_where_they_are_measured(trained, capsys):
    data, best = trained
    found, told = measured(capsys, best, data, "--include-trained")
    assert found["protocol"]["num_videos"] == 10
    assert len(found["trained_on"]) == found["protocol"]["num_trained_on"] == 8
    assert "8 of the 10 measured videos were trained on" in " ".join(told.split())


def test_comparing_leaves_out_what_either_was_trained_on(trained, tmp_path, capsys):
    data, best = trained
    other = load_checkpoint(best)
    videos = load_split(data, "validation")
    other.videos = Division(KnownVideos.of([videos[0]]), KnownVideos.of([]))
    save_checkpoint(tmp_path / "other.safetensors", other)
    found, _ = measured(capsys, best, tmp_path / "other.safetensors", data, "--compare")
    trained_on = {videos[i].name for i in load_checkpoint(best).videos.trained_on(videos)} | {videos[0].name}
    assert [one["protocol"]["num_videos"] for one in found] == [10 - len(trained_on)] * 2


def test_a_moved_folder_is_known_added_files_are_new_and_other_files_of_the_same_names_are_others(
    trained, tmp_path
):
    data, best = trained
    division = load_checkpoint(best).videos
    shutil.copytree(data, tmp_path / "moved")
    write_video(tmp_path / "moved" / "left" / "new.mp4", moving_bar(9, rightwards=False, seed=77))
    moved = load_split(tmp_path / "moved", "validation")
    known = division.trained_on(moved)
    assert len(known) == 8
    rest = [video.name for i, video in enumerate(moved) if i not in known]
    assert sum(video in division.validation for video in moved) == 2
    assert any("new" in name for name in rest)
    for name in ("left", "right"):
        for i in range(5):
            write_video(
                tmp_path / "other" / name / f"{i}.mp4", moving_bar(20 + i, rightwards=True, seed=50 + i)
            )
    assert division.trained_on(load_split(tmp_path / "other", "validation")) == []


def test_a_checkpoint_without_this_measures_all_and_says_that_it_does_not_know(trained, tmp_path, capsys):
    data, best = trained
    old = load_checkpoint(best)
    old.videos = None
    save_checkpoint(tmp_path / "old.safetensors", old)
    found, _ = measured(capsys, tmp_path / "old.safetensors", data)
    assert found["protocol"]["num_videos"] == 10
    assert found["protocol"]["num_trained_on"] is None
    assert found["trained_on"] is None


def test_a_network_that_started_from_another_remembers_what_that_one_saw(trained, tmp_path):
    data, best = trained
    for name in ("left", "right"):
        for i in range(3):
            write_video(tmp_path / "second" / name / f"{i}.mp4", moving_bar(30 + i, rightwards=False, seed=i))
    recipe = tiny_recipe(tmp_path / "second", tmp_path / "run", epochs=1)
    recipe.model.init = str(best)
    [second] = train(recipe)
    division = load_checkpoint(second).videos
    assert len(division.trained_on(load_split(data, "validation"))) == 8
    assert len(division.trained_on(load_split(tmp_path / "second", "validation"))) == 4
    assert division.training.number == 12


@pytest.mark.parametrize("keys", ["no base64!", "YWJj", 7, None])
def test_a_checkpoint_with_a_broken_list_of_videos_is_refused(trained, tmp_path, monkeypatch, keys):
    _, best = trained
    checkpoint = load_checkpoint(best)
    header = checkpoint_format._header(checkpoint)
    header["videos"]["training"]["keys"] = keys
    monkeypatch.setattr(checkpoint_format, "_header", lambda _: header)
    save_checkpoint(tmp_path / "broken.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match="doesn't hold together"):
        load_checkpoint(tmp_path / "broken.safetensors")


def test_a_million_videos_do_not_fill_a_checkpoint(monkeypatch, trained):
    data, _ = trained
    monkeypatch.setattr("frameflex.data.splits.MAX_REMEMBERED", 5)
    videos = load_split(data, "validation")
    known = KnownVideos.of(videos)
    assert (known.number, known.keys) == (10, frozenset())
    assert videos[0] not in known
    again = KnownVideos.of(videos.subset(reversed(range(10))))
    assert again.digest == known.digest  # whatever the order
    assert len({video_key(video) for video in videos}) == 10


def test_a_validation_video_that_is_none_is_told_before_the_first_step(tmp_path):
    data = bar_folder(tmp_path / "bars", per_class=2)
    (data / "val" / "going left" / "broken.mp4").write_bytes(b"no video")
    recipe = tiny_recipe(data, tmp_path / "run")
    with pytest.raises(
        VideoError, match=r"1 of 7 videos can't be decoded: going left/broken.mp4; validation"
    ):
        train(recipe)
    assert not (tmp_path / "run" / "last.safetensors").exists()
