"""Do clips played backwards look like the class that their names say? Seen before training."""

import pytest
import timm
import torch
from helpers import bar_folder

from frameflex.engine import reversal_choice
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.reversal_choice import Look


def features(direction, seed, *, number=20):
    """Of clips that change in a direction, each in its own way."""
    noise = torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))
    return torch.cat([noise, torch.tensor(direction) + 0.1 * noise], 1)


LEFT, RIGHT, OTHER = [1.0] * 8, [-1.0] * 8, [1.0, -1.0] * 4


@pytest.mark.parametrize(
    ("left_backwards", "right_backwards", "agrees"),
    [(RIGHT, LEFT, True), (LEFT, RIGHT, False), (OTHER, LEFT, False)],
)
def test_what_looks_like_its_opposite_agrees(left_backwards, right_backwards, agrees):
    forwards = torch.cat([features(LEFT, 0), features(RIGHT, 1)])
    backwards = torch.cat([features(left_backwards, 2), features(right_backwards, 3)])
    labels = torch.tensor([0] * 20 + [1] * 20)
    look = reversal_choice._told(forwards, backwards, labels, torch.tensor([1, 0]))
    assert (look.num_clips, look.forwards) == (40, 40)
    assert look.agrees == agrees


@pytest.mark.parametrize("look", [Look(40, 22, 22, 2), Look(0, 0, 0, 2), Look(4, 3, 4, 2)])
def test_where_order_is_not_seen_nothing_agrees(look):
    assert not look.agrees


@pytest.mark.parametrize("turned", [False, True])
def test_the_choice_says_what_was_seen(tmp_path, caplog, monkeypatch, turned):
    caplog.set_level("INFO", logger="frameflex")
    data = bar_folder(tmp_path / "data", per_class=8)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    if turned:  # as if a clip looked the same backwards
        told = reversal_choice._told
        monkeypatch.setattr(reversal_choice, "_told", lambda one, _, *rest: told(one, one, *rest))
    start = ["--model.backbone", "test_resnet", "--model.pretrained", str(tmp_path / "weights.pth")]
    recipe, _ = parse_recipe([str(data), "--output", str(tmp_path / "run"), *start], look=True)
    assert recipe.clip.reverse is not turned
    assert "of 16 forwards" in caplog.text
    insisting, _ = parse_recipe([str(data), *start, "--clip.reverse", "true"], look=True)
    assert insisting.clip.reverse
    unseen, _ = parse_recipe([str(data), "--model.backbone", "test_resnet"])  # nothing is loaded
    assert unseen.clip.reverse
