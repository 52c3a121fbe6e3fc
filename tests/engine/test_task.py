"""What a recipe trains and validates on where the data set came divided, half divided, in groups, or in folds."""

import shutil

import pytest
from helpers import moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.engine.recipe import RecipeError
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.self_check import videos_for_calibration
from frameflex.engine.task import find_folds, find_videos, read_task
from frameflex.engine.training import train
from frameflex.engine.watching import Watcher


def videos_at(root, *, per_class=5, classes=("left", "right"), seed=0):
    for name in classes:
        for i in range(per_class):
            frames = moving_bar(8 + i, rightwards=name == "right", seed=seed + i + 50 * (name == "right"))
            write_video(root / name / f"{i}.mp4", frames)
    return root


@pytest.fixture(scope="module")
def train_and_test(tmp_path_factory):
    root = tmp_path_factory.mktemp("half divided") / "videos"
    videos_at(root / "Train")
    videos_at(root / "Test", per_class=2, seed=200)
    return root


def test_without_a_validation_split_a_part_of_train_is_held_out_and_test_is_left(
    train_and_test, tmp_path, caplog
):
    task = read_task(tiny_recipe(train_and_test, tmp_path / "run"))
    assert (len(task.training), len(task.validation)) == (8, 2)
    assert all("Train" in video.path.parts for video in (*task.training, *task.validation))
    assert task.division.fraction == 0.2
    assert "its test split is left for frameflex evaluate" in caplog.text


def test_ucf101_holds_out_whole_recordings_of_its_training_list(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 left\n2 right\n")
    names = {"train": range(1, 6), "test": (6,)}
    for split, groups in names.items():
        listed = [f"{c}/v_{c}_g{g:02}_c{i:02}.avi" for c in ("left", "right") for g in groups for i in (1, 2)]
        (lists / f"{split}list01.txt").write_text("".join(f"{name} 1\n" for name in listed))
        for n, name in enumerate(listed):
            write_video(tmp_path / "UCF-101" / name, moving_bar(8, rightwards="right" in name, seed=n))
    task = read_task(tiny_recipe(tmp_path, tmp_path / "run"))
    assert (len(task.training), len(task.validation)) == (16, 4)
    assert len({video.group for video in task.validation}) == 2
    assert all("g06" not in video.name for video in (*task.training, *task.validation))


def test_evaluate_takes_test_where_there_is_no_validation_and_says_so(train_and_test, tmp_path, capsys):
    [best] = train(tiny_recipe(train_and_test, tmp_path / "run", epochs=1))
    capsys.readouterr()
    assert main(["evaluate", str(best), str(train_and_test), "--workers", "0", "--json"]) == 0
    captured = capsys.readouterr()
    assert '"num_videos": 4' in captured.out
    assert "has no validation split: its test split is measured" in captured.err
    assert main(["evaluate", str(best), str(train_and_test), "--workers", "0", "--split", "train"]) == 0
    assert "its test split" not in capsys.readouterr().err


def test_calibration_measures_on_a_part_of_train_that_was_held_out_where_there_is_test_alone(
    train_and_test, tmp_path
):
    [best] = train(tiny_recipe(train_and_test, tmp_path / "run", epochs=1))
    found = videos_for_calibration([str(train_and_test)], load_checkpoint(best))
    assert (len(found.measured_on), len(found.held_out)) == (8, 2)
    assert all("Train" in video.path.parts for video in (*found.measured_on, *found.held_out))


def test_a_fold_is_validated_on_its_part_and_trained_on_all_others(train_and_test, tmp_path):
    recipe = tiny_recipe(train_and_test, tmp_path / "run")
    recipe.data.folds = 5
    videos, _ = find_folds(recipe)
    seen = []
    for fold in range(1, 6):
        recipe.data.fold = fold
        training, validation = find_videos(recipe)
        assert {str(v.path) for v in training}.isdisjoint(str(v.path) for v in validation)
        assert len(training) + len(validation) == len(videos) == 10  # of Train alone
        seen += [str(video.path) for video in validation]
    assert len(set(seen)) == 10
    assert read_task(recipe).division.fraction is None


def test_folds_give_up_a_division_into_training_and_validation(tmp_path):
    root = videos_at(tmp_path / "v/train", per_class=3).parent
    videos_at(root / "val", per_class=2, seed=300)
    recipe = tiny_recipe(root, tmp_path / "run")
    recipe.data.folds = 5
    videos, folds = find_folds(recipe)
    assert len(videos) == 10
    assert [len(fold) for fold in folds] == [2] * 5


def test_videos_of_nothing_are_spread_over_the_folds_as_a_class(train_and_test, tmp_path):
    for i in range(5):
        write_video(tmp_path / "idle" / f"{i}.mp4", moving_bar(6, rightwards=True, seed=70 + i))
    recipe = tiny_recipe(train_and_test, tmp_path / "run")
    recipe.data.folds, recipe.data.nothing = 5, str(tmp_path / "idle")
    videos, folds = find_folds(recipe)
    assert videos.classes == ("left", "right", "nothing")
    assert [sorted(videos.subset(fold).labels) for fold in folds] == [[0, 1, 2]] * 5


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--folds", "1"], "data.folds is 1; expected at least 2"),
        (["--folds", "3", "--data.fold", "4"], "data.fold is 4; expected 1 to 3"),
        (["--data.fold", "1"], "data.folds is None"),
        (["--folds", "3", "--method", "separate"], "data.folds doesn't go with method separate"),
        (["--folds", "3", "--data.multi_label", "true"], "data.folds doesn't go with data.multi_label"),
    ],
)
def test_folds_that_cannot_be_are_refused_with_the_recipe(option, words, train_and_test):
    with pytest.raises(RecipeError, match=words):
        parse_recipe([str(train_and_test), *option])


def test_folds_and_group_are_keys_of_the_recipe_by_short_names(train_and_test):
    recipe, _ = parse_recipe(["motion.yaml", "--folds=4", "--group", "scene", "--data.train", "x"])
    assert (recipe.data.folds, recipe.data.group) == (4, "scene")


def test_training_says_first_what_is_odd_about_its_videos(tmp_path, capsys):
    root = videos_at(tmp_path / "v/train", per_class=3).parent
    videos_at(root / "val", per_class=1, classes=("left",), seed=300)
    shutil.copy(root / "train/left/0.mp4", root / "val/left/copy.mp4")
    (root / "old/left").mkdir(parents=True)
    (root / "train/nothing yet").mkdir()
    told = []
    watcher = Watcher(on_data_problems=told.extend)
    train(tiny_recipe(root, tmp_path / "run", epochs=1), watcher=watcher)
    assert len(told) == 4
    for words in ("left out: old", "nothing yet: holds no video", "class 'right' has no validation video"):
        assert any(words in line for line in told)
    assert "with the same content" in told[-1]
    assert "copy.mp4" in told[-1]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run/best.safetensors"), str(root), "--workers", "0"]) == 0
    assert capsys.readouterr().err.count("left out: old") == 1


def test_groups_are_held_out_whole_and_the_checkpoint_knows_them(tmp_path, caplog):
    for who in ("ann", "bob", "cy", "dee", "eve"):
        for name in ("left", "right"):
            for i in range(2):
                frames = moving_bar(8, rightwards=name == "right", seed=ord(who[0]) + i)
                write_video(tmp_path / "v" / name / who / f"{who}{i}.mp4", frames)
    [best] = train(tiny_recipe(tmp_path / "v", tmp_path / "run", epochs=1))
    training, validation = find_videos(tiny_recipe(tmp_path / "v", tmp_path / "run"))
    assert len(validation) == 4
    assert {video.group for video in training}.isdisjoint(video.group for video in validation)
    assert len(load_checkpoint(best).videos.trained_on(training)) == 16
    assert "whole groups are held out (there are 5)" in caplog.text.lower()
