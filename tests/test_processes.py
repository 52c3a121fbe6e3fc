"""Several processes train one network: the same as one process, whatever their shares and whoever is stopped."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import moving_bar, write_video

from frameflex.checkpoint import load_checkpoint
from frameflex.engine.recipe import Clip, Data, Model, Objective, Recipe, Training
from frameflex.engine.training import train

SCRIPT = """
import json, os, signal, sys
from frameflex.cli.train import parse_recipe
from frameflex.engine.training import Interrupted, Watcher, train

def press(report):  # in one of the processes only
    if os.environ["RANK"] == "1" and report.step == 1:
        os.kill(os.getpid(), signal.SIGTERM)

def note(epoch, measured, best):
    with open(recipe.output + os.environ["RANK"] + ".json", "w") as file:
        json.dump(measured.to_dict(), file)

recipe, _ = parse_recipe([sys.argv[1]])
try:
    train(recipe, watcher=Watcher(on_step=press))
except Interrupted as stopped:
    assert stopped.checkpoint.is_file()
    train(recipe, resume=True, watcher=Watcher(on_validation=note))
else:
    raise SystemExit("was not stopped")
"""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes would share one device")
def test_two_processes_stopped_and_resumed_equal_one_that_never_was(tmp_path):
    # Three videos: at one step of two a process has none. One to validate on: one process has none of those.
    for split, name, seed in (
        ("train", "left", 0),
        ("train", "right", 1),
        ("train", "right", 2),
        ("val", "left", 3),
    ):
        frames = moving_bar(16, rightwards=name == "right", seed=seed)
        write_video(tmp_path / "data" / split / name / f"{seed}.mp4", frames)

    def recipe(output, batch_size):
        return Recipe(
            data=Data(train=str(tmp_path / "data"), num_workers=0),
            output=str(tmp_path / output),
            method="ffn",
            clip=Clip(frame_counts=(2, 3, 12), short_side=32, crop_size=32),
            model=Model(
                backbone="test_convnext", pretrained=False, dropout=0.0
            ),  # no norm looks at the batch
            objective=Objective(random_counts=True),  # leaves norms of some counts without gradients
            training=Training(epochs=2, batch_size=batch_size, learning_rate=0.1, reference_batch_size=None),
        )

    train(recipe("one", 2))
    recipe("two", 1).save(tmp_path / "two.yaml")
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(tmp_path / "two.yaml")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        load_checkpoint(tmp_path / name / "last.safetensors", training=True).model.state_dict()
        for name in ("one", "two")
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 6  # four steps and two validations, written by one process
    measured = [json.loads((tmp_path / f"two{rank}.json").read_text()) for rank in (0, 1)]
    assert measured[0] == measured[1]  # one of them had nothing to measure
    assert measured[1]["results"][0]["gflops"] > 0
