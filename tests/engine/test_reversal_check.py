"""Whether a network tells classes that were played backwards from their own reverse."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import bar_folder, tiny_recipe, write_video
from torch import nn

from frameflex.checkpoint import load_checkpoint
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import Preprocessing
from frameflex.engine.evaluation import evaluate
from frameflex.engine.recipe import RecipeError
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.reversal_check import doubtful_reversals
from frameflex.engine.training import train
from frameflex.engine.watching import Interrupted, StepReport, Watcher

RAW = Preprocessing(short_side=32, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1))
CLASSES = ["open", "close", "clapping", "waving"]


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    """Classes "going left" and "going right"."""
    return bar_folder(tmp_path_factory.mktemp("bars") / "my_videos", per_class=4)


@pytest.fixture(scope="module")
def brightening(tmp_path_factory) -> Path:
    """A video that gets brighter."""
    grey = (4 * np.arange(20) + 8).astype(np.uint8)
    frames = np.tile(grey[:, None, None, None], (1, 32, 48, 3))
    return write_video(tmp_path_factory.mktemp("brightening") / "video.mp4", frames)


def test_a_network_that_sees_no_order_is_not_trained_backwards(bars):
    options = ["finetune_folder.yaml", "--data.train", str(bars), "--clip.reverse", "true"]
    with pytest.raises(RecipeError, match=r"clip\.reverse doesn't go with model\.shift none"):
        parse_recipe([*options, "--model.shift", "none"])
    assert not parse_recipe([str(bars), "--model.shift", "none"])[0].clip.reverse
    assert not parse_recipe([*options, "--clip.frame_counts", "1"])[0].reverses
    assert not parse_recipe([str(bars), "--clip.frame_counts", "1"])[0].clip.reverse
    assert parse_recipe([*options, "--clip.frame_counts", "1,2", "--method", "ffn"])[0].reverses


def test_a_run_that_plays_backwards_stopped_and_resumed_equals_the_run_never_stopped(bars, tmp_path):
    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_checkpoint(tmp_path / name / "last.safetensors").model.state_dict()

    def stop(report: StepReport) -> None:
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    for name in ("plain", "whole", "stopped"):
        recipe = tiny_recipe(bars, tmp_path / name, learning_rate=0.05)
        recipe.clip.reverse = name != "plain"
        if name == "stopped":
            with pytest.raises(Interrupted):
                train(recipe, watcher=Watcher(on_step=stop))
        train(recipe, resume=name == "stopped")
    whole, stopped, plain = weights("whole"), weights("stopped"), weights("plain")
    assert all(torch.equal(tensor, stopped[key]) for key, tensor in whole.items())
    assert not all(torch.equal(tensor, plain[key]) for key, tensor in whole.items())


class Ordered(nn.Module):
    """Answers "open" where clips get brighter and "close" where they get darker; or "open" to all."""

    def __init__(self, *, sees_order: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(sees_order)))

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        change = self.scale * (clip[:, :, -1] - clip[:, :, 0]).mean(dim=(1, 2, 3))
        return torch.stack([change + 1e-3, -change, change * 0 - 9, change * 0 - 9], dim=1)


@pytest.mark.parametrize(("sees_order", "number", "doubted"), [(False, 8, 1), (True, 8, 0), (False, 3, 0)])
def test_two_classes_with_the_same_answer_both_ways_are_doubted(
    brightening, tmp_path, sees_order, number, doubted
):
    recipe = tiny_recipe(tmp_path, tmp_path, counts=(4, 8))
    recipe.clip.reverse = True
    network = Ordered(sees_order=sees_order)
    records = [VideoRecord(brightening, label, "video") for label in [0] * number + [3] * 9]
    videos = VideoList(records, CLASSES)
    measured = evaluate(network, videos, preprocessing=RAW, frame_counts=(4, 8), trained_counts=(8,))
    lines = doubtful_reversals(network, measured, recipe, preprocessing=RAW)
    assert len(lines) == doubted
    if doubted:
        assert (
            '"open" and "close": the network answers the same forwards and backwards for 8 of 8' in lines[0]
        )
        assert 'data.reversed {"open": null}, or with clip.reverse false' in lines[0]
    recipe.data.reversed = {"open": None}
    assert not doubtful_reversals(network, measured, recipe, preprocessing=RAW)


def test_classes_that_look_the_same_backwards_are_doubted_at_the_end_of_a_run(tmp_path, caplog):
    for split in ("train", "val"):
        for grey, name in ((40, "lifting"), (200, "lowering")):
            for i in range(4):
                write_video(
                    tmp_path / "data" / split / name / f"{i}.mp4",
                    np.full((8, 32, 32, 3), grey + 5 * i, np.uint8),
                )
    recipe = tiny_recipe(tmp_path / "data", tmp_path / "run", counts=(4,), epochs=1)
    recipe.clip.reverse = True
    train(recipe)
    assert (
        '"lifting" and "lowering": the network answers the same forwards and backwards for 8 of 8'
        in caplog.text
    )
