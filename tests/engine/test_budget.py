"""Runs that fit into minutes, and videos that are decoded once."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from helpers import bar_folder, tiny_recipe
from timm.layers import Conv2dSame
from torch import nn

from frameflex.engine import budget
from frameflex.engine.budget import fit_to_minutes
from frameflex.engine.recipe import RecipeError
from frameflex.engine.run import _depthwise_in_float32
from frameflex.engine.training import train


def losses(output):
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_from_kept_frames_has_the_losses_of_decoding_each_time(tmp_path, num_workers):
    data = bar_folder(tmp_path / "bars")
    plain = tiny_recipe(data, tmp_path / "plain")
    kept = tiny_recipe(data, tmp_path / "kept")
    train(plain)
    train(replace(kept, data=replace(kept.data, cache_frames=True, num_workers=num_workers)))
    assert losses(tmp_path / "kept") == losses(tmp_path / "plain")
    assert not (tmp_path / "kept" / "frames").exists()  # goes away at the end


def test_the_schedule_is_as_long_as_the_budget_leaves_time_for(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="frameflex")
    data = bar_folder(tmp_path / "bars")  # 12 training videos, 3 steps of 4; 6 to validate
    recipe = tiny_recipe(data, tmp_path / "run", epochs=40, warmup_epochs=2.0, validate_every=2, minutes=10.0)
    monkeypatch.setattr(budget, "_time_steps", lambda *_: (4.0, 30.0))
    fitted = fit_to_minutes(recipe).training
    # 600 s, of which 540 are planned: 30 to start; a validation takes 0.4 * 4 s * 6 / 4 = 2.4 s, an epoch 12 s.
    num_validations = -(-fitted.epochs // fitted.validate_every)
    assert 12 * fitted.epochs + 2.4 * num_validations == pytest.approx(510, abs=14)
    assert fitted.validate_every == 3  # as often in a run as before
    assert fitted.warmup_epochs == pytest.approx(2.0 * fitted.epochs / 40, abs=0.2)
    assert fitted.minutes is None
    assert "there is time for" in caplog.text


def test_folds_share_the_budget(tmp_path, monkeypatch):
    data = bar_folder(tmp_path / "bars", per_class=4)
    recipe = tiny_recipe(data / "train", tmp_path / "run", minutes=10.0)
    recipe = replace(recipe, data=replace(recipe.data, folds=2))
    monkeypatch.setattr(budget, "_time_steps", lambda *_: (4.0, 0.0))
    one = fit_to_minutes(replace(recipe, data=replace(recipe.data, folds=None))).training.epochs
    assert fit_to_minutes(recipe).training.epochs < one


def test_steps_are_timed_on_the_videos_themselves_and_nothing_is_left(tmp_path):
    recipe = tiny_recipe(bar_folder(tmp_path / "bars"), tmp_path / "run", minutes=5.0)
    fitted = fit_to_minutes(recipe)
    assert fitted.training.epochs > 10
    assert not (tmp_path / "run").exists()


def test_a_budget_that_is_too_short_for_one_pass_names_one_that_isnt(tmp_path, monkeypatch):
    recipe = tiny_recipe(bar_folder(tmp_path / "bars"), tmp_path / "run", minutes=0.5)
    monkeypatch.setattr(budget, "_time_steps", lambda *_: (30.0, 10.0))
    with pytest.raises(
        RecipeError, match=r"training.minutes 0.5 is too short for one pass over 12 videos; expected 2"
    ):
        fit_to_minutes(recipe)
    assert not (tmp_path / "run").exists()


def test_a_budget_that_nobody_fitted_is_refused(tmp_path):
    recipe = tiny_recipe(bar_folder(tmp_path / "bars"), tmp_path / "run", minutes=5.0)
    with pytest.raises(RecipeError, match="fit_to_minutes"):
        train(recipe)
    with pytest.raises(RecipeError, match="training.minutes is 0.0; expected above 0"):
        tiny_recipe(tmp_path, tmp_path / "run", minutes=0.0)


def test_depthwise_convolutions_stay_in_float32_where_a_cpu_trains_in_bfloat16(tmp_path):
    recipe = tiny_recipe(bar_folder(tmp_path / "bars"), tmp_path / "run", epochs=1, precision="bf16")
    recipe = replace(recipe, model=replace(recipe.model, backbone="test_efficientnet"))
    train(recipe)
    assert all(0 < loss < 5 for loss in losses(tmp_path / "run"))
    own = nn.Conv2d(4, 4, 3, groups=4)
    padded = Conv2dSame(4, 4, 3, stride=2, groups=4)  # timm's, which pads in its own forward
    network = nn.ModuleList([own, padded, nn.Conv2d(4, 4, 1)])
    x = torch.randn(1, 4, 9, 9)
    plain = [module(x) for module in network]
    _depthwise_in_float32(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [module(x) for module in copy.deepcopy(network)]
    assert [output.dtype for output in outputs] == [torch.float32, torch.float32, torch.bfloat16]
    assert all(torch.equal(a, b) for a, b in zip(outputs[:2], plain[:2], strict=True))
