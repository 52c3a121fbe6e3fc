"""Before and after a checkpoint is made frame-flexible."""

import json
from dataclasses import replace

import pytest
from helpers import bar_folder, tiny_recipe

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.engine.gain import counts_over, measure_gain
from frameflex.engine.training import train


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gain")
    data = bar_folder(folder / "bars")
    recipe = tiny_recipe(data, folder / "plain", counts=(4,), epochs=1)
    return data, train(recipe)[0]


def test_both_checkpoints_are_measured_on_the_same_videos(plain, tmp_path, capsys):
    data, checkpoint = plain
    command = ["train", str(data), "--output", str(tmp_path / "flexible"), "--init", str(checkpoint)]
    assert main([*command, "--any-frame-count", "--training.epochs", "1"]) == 0
    gain = json.loads((tmp_path / "flexible" / "gain.json").read_text())
    assert [[row["num_frames"] for row in gain[name]["results"]] for name in ("before", "after")] == [
        [1, 2, 3, 4]
    ] * 2
    out = capsys.readouterr()
    assert "before" in out.out
    assert "made frame-flexible in" in out.err
    made = load_checkpoint(tmp_path / "flexible" / "best.safetensors")
    assert made.frame_counts == made.model.frame_counts == (1, 2, 4)  # those of the plain one, halved
    assert made.preprocessing == load_checkpoint(checkpoint).preprocessing


def test_nothing_is_compared_where_there_is_nothing_to(plain, tmp_path):
    data, checkpoint = plain
    recipe = tiny_recipe(data, tmp_path / "run")
    assert measure_gain(recipe, checkpoint) == {}  # another method, no start
    fresh = replace(recipe, method="ffn")
    assert measure_gain(fresh, checkpoint) == {}


def test_counts_to_look_at_are_the_trained_ones_and_those_between():
    assert counts_over((16, 4, 8)) == (2, 4, 6, 8, 12, 16)
    assert counts_over((1, 2)) == (1, 2)
