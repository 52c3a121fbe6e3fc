"""Training clips played backwards: what is chosen and told, which tables are refused, and what stays as it was."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import bar_folder, tiny_recipe, write_video

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.engine.recipe import Data, Recipe, RecipeError
from frameflex.engine.recipe_files import bundled_recipes, parse_recipe
from frameflex.engine.training import train


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    """Classes "going left" and "going right"."""
    return bar_folder(tmp_path_factory.mktemp("bars") / "my_videos", per_class=4)


TINY = ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--training.epochs", "1"]
TINY += ["--clip.crop_size", "32", "--data.num_workers", "0"]


def test_a_folder_with_opposites_is_trained_backwards_too_and_says_so(bars, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", str(bars), "--output", str(output), *TINY]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert 'chosen: clip.reverse True: played backwards "going left" is "going right"' in said
    assert 'playing backwards exchanges "going left" and "going right"' in said
    assert yaml.safe_load((output / "recipe.yaml").read_text())["clip"]["reverse"] is True


def test_the_automatic_recipe_plays_nothing_backwards_where_no_opposites_are_found(tmp_path):
    for name in ("waving", "clapping"):
        write_video(tmp_path / name / "a.mp4", np.zeros((10, 32, 32, 3), np.uint8))
    assert not parse_recipe([str(tmp_path)])[0].clip.reverse
    table = ["--data.reversed", "{clapping: clapping}"]
    recipe, _ = parse_recipe([str(tmp_path), *table])
    assert recipe.clip.reverse
    assert recipe.data.reversed == {"clapping": "clapping"}
    assert not parse_recipe([str(tmp_path), *table, "--clip.reverse", "false"])[0].clip.reverse


def test_recipes_play_nothing_backwards_unless_asked(bars, tmp_path, caplog):
    recipe = tiny_recipe(bars, tmp_path / "run", epochs=1)
    assert not recipe.clip.reverse
    with caplog.at_level(logging.INFO, "frameflex"):
        train(recipe)
    assert "backwards" not in caplog.text


def test_a_table_that_cannot_be_is_one_error_before_anything_is_written(bars, tmp_path, capsys):
    for table in ("{going lift: going right}", "{going left: going right, going right: null}"):
        for first in (str(bars), "finetune_folder.yaml"):
            options = ["--data.train", str(bars)] if first.endswith("yaml") else []
            command = ["train", first, *options, *TINY, "--output", str(tmp_path / "run")]
            assert main([*command, "--clip.reverse", "true", "--data.reversed", table]) == 1
            said = capsys.readouterr().err.strip().splitlines()
            assert said[-1].startswith("frameflex: data.reversed: ")
            assert not (tmp_path / "run").exists()


def test_a_table_without_reversal_is_said_to_do_nothing(bars, tmp_path, caplog):
    recipe = tiny_recipe(bars, tmp_path / "run", epochs=1)
    plain = replace(recipe, data=replace(recipe.data), output=str(tmp_path / "plain"))
    recipe.data.reversed = {"going left": None}
    train(recipe)
    assert "data.reversed is given, but clip.reverse is off" in caplog.text
    train(plain)
    assert trained_alike(recipe, plain)


def trained_alike(one: Recipe, other: Recipe) -> bool:
    """Whether two runs gave the same weights, to the bit."""
    weights, others = (
        load_checkpoint(Path(recipe.output) / "best.safetensors").model.state_dict()
        for recipe in (one, other)
    )
    return all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_a_run_with_clips_backwards_repeats_itself_and_is_another_than_one_without(bars, tmp_path):
    plain = tiny_recipe(bars, tmp_path / "plain", method="ffn", drawn="drawn")
    recipe = replace(plain, clip=replace(plain.clip, reverse=True), output=str(tmp_path / "first"))
    again = replace(recipe, output=str(tmp_path / "second"))
    for run in (plain, recipe, again):
        train(run)
    assert trained_alike(recipe, again)
    assert not trained_alike(recipe, plain)


def test_the_bundled_recipes_play_nothing_backwards():
    assert not any(parse_recipe([str(path)])[0].clip.reverse for path in bundled_recipes())


def test_the_class_of_nothing_may_be_its_own_reverse(tmp_path):
    for name in ("waving", "clapping"):
        write_video(tmp_path / "videos" / name / "a.mp4", np.zeros((10, 32, 32, 3), np.uint8))
    nothing = ["--data.nothing", str(tmp_path / "videos" / "waving")]
    recipe, _ = parse_recipe([str(tmp_path / "videos"), *nothing, "--data.reversed", "{nothing: nothing}"])
    assert recipe.clip.reverse
    assert not parse_recipe([str(tmp_path / "videos"), *nothing])[0].clip.reverse


def test_a_table_survives_its_file_and_names_that_yaml_takes_for_something_else_want_quotes(tmp_path):
    file = tmp_path / "recipe.yaml"
    recipe = Recipe(Data("x", reversed={"on": "off", "waving": "waving", "left": None, "1": "2"}))
    recipe.save(file)
    assert parse_recipe([str(file)])[0] == recipe
    for wrong in ("{on: off}", "{1: 2}", "{waving: 3}", "{waving: [clapping]}"):
        file.write_text(f"data: {{train: x, reversed: {wrong}}}")
        with pytest.raises(RecipeError, match=r"^data.reversed holds .* Put quotes around names"):
            parse_recipe([str(file)])
    with pytest.raises(RecipeError, match=r"^data.reversed holds .* Put quotes around names"):
        parse_recipe(["--data.train", "x", "--data.reversed", "{on: off}"])
    with pytest.raises(RecipeError, match=r'^key "data.reversed" is waving; expected a table such as'):
        parse_recipe(["--data.train", "x", "--data.reversed", "waving"])


def test_sets_of_classes_have_no_reverse(bars):
    options = ["finetune_folder.yaml", "--data.train", str(bars), "--data.multi_label", "true"]
    with pytest.raises(
        RecipeError, match=r"clip\.reverse and data\.reversed don't go with data\.multi_label"
    ):
        parse_recipe([*options, "--clip.reverse", "true"])
