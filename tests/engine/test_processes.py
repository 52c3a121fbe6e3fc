"""Several processes train one network: the same as one process, whatever their shares and whoever is stopped."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import moving_bar, tiny_recipe, write_video
from timm.layers.norm_act import BatchNormAct2d
from torch.utils.data import DataLoader

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.data.clips import ClipDataset, collate
from frameflex.data.datasets import load_split
from frameflex.data.records import VideoRecord
from frameflex.data.transforms import Preprocessing, TrainTransform
from frameflex.engine.evaluation import evaluate
from frameflex.engine.loading import EpochBatches, build_loader, build_transform
from frameflex.engine.recipe import Clip, Data, Model, Objective, Recipe, Training
from frameflex.engine.starting import build_model, preprocessing_of
from frameflex.engine.task import read_task
from frameflex.engine.training import train
from frameflex.models.synced_norm import sync_norms
from frameflex.video import VideoError

SCRIPT = """
import json, os, signal, sys
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.watching import Interrupted, Watcher
from frameflex.engine.training import train

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


one_device = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="two processes would share one device"
)


def torchrun(*arguments, processes=2):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    done = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@one_device
@pytest.mark.slow
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
            objective=Objective(
                counts="all", random_counts=True
            ),  # leaves norms of some counts without gradients
            training=Training(epochs=2, batch_size=batch_size, learning_rate=0.1, reference_batch_size=None),
        )

    train(recipe("one", 2))
    recipe("two", 1).save(tmp_path / "two.yaml")
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun(tmp_path / "script.py", tmp_path / "two.yaml")
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


def uneven_recipe(root, name, **training):
    """One step over four videos that go left and two that go right, whose classes count the same."""
    recipe = tiny_recipe(
        root, root.parent / name, counts=(2, 3), method="ffn", epochs=1, learning_rate=0.5, **training
    )
    recipe.model.backbone, recipe.model.dropout = "test_convnext", 0.0  # no norm looks at the batch
    recipe.objective.class_balance = "loss"
    recipe.training.momentum = recipe.training.weight_decay = 0.0
    recipe.training.clip_grad_norm, recipe.training.parameter_groups = None, "plain"
    return recipe


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    root = tmp_path_factory.mktemp("uneven") / "data"
    for i in range(6):
        name = "going left" if i < 4 else "going right"
        write_video(root / "train" / name / f"{i}.mp4", moving_bar(8, rightwards=i >= 4, size=32, seed=i))
        write_video(root / "val" / name / f"{i}.mp4", moving_bar(8, rightwards=i >= 4, size=32, seed=i))
    return root


def after_one_step(recipe, *, leave_out=()):
    """The weights after a step on the mean of weight times loss over its videos, written from the formula."""
    task = read_task(recipe)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, task.classes)
    batches = EpochBatches(len(task.training), batch_size=6, seed=recipe.seed, frame_counts=(2, 3))
    transform = build_transform(recipe, task.training, preprocessing_of(recipe, model))
    [batch] = build_loader(recipe, task.training, transform, batches, pin_memory=False)
    keep = [i for i, index in enumerate(batch.indices) if task.training[index].name not in leave_out]
    labels = batch.labels[keep]
    weight = {0: 6 / (2 * 4), 1: 6 / (2 * 2)}
    logits = {count: model(clip[keep]) for count, clip in batch.clips.items()}
    teacher = logits[3].detach().softmax(1)
    total = sum(
        -weight[int(label)] * logits[3][i].log_softmax(0)[label]
        + (teacher[i] * (teacher[i].log() - logits[2][i].log_softmax(0))).sum()
        for i, label in enumerate(labels)
    )
    (total / len(keep)).backward()
    return {
        name: (p - recipe.training.learning_rate * p.grad).detach()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def assert_weights(folder, expected):
    state = load_checkpoint(folder / "last.safetensors").model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(6, 1), (3, 2), (4, 2), (2, 3), (1, 6)])
def test_every_video_of_a_step_counts_as_the_formula_says_however_it_is_split(uneven, batch_size, accumulate):
    name = f"split-{batch_size}-{accumulate}"
    recipe = uneven_recipe(uneven, name, batch_size=batch_size, accumulate=accumulate)
    train(recipe)
    assert_weights(uneven.parent / name, after_one_step(recipe))


def test_a_video_that_cannot_be_decoded_leaves_a_mean_over_the_others(uneven, monkeypatch):
    recipe = uneven_recipe(uneven, "one-bad", batch_size=2, accumulate=3)
    expected = after_one_step(recipe, leave_out=["going left/1.mp4"])

    def open_all_but_one(record, *, open=VideoRecord.open, **how):
        if record.name == "going left/1.mp4" and "train" in record.path.parts:
            raise VideoError(f"video {record.name}: it is broken.")
        return open(record, **how)

    monkeypatch.setattr(VideoRecord, "open", open_all_but_one)
    train(recipe)
    assert_weights(uneven.parent / "one-bad", expected)


@one_device
@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulate"), [(3, 1), (1, 3), (2, 2)])
def test_every_video_counts_the_same_in_two_processes(uneven, batch_size, accumulate):
    name = f"two-{batch_size}-{accumulate}"
    recipe = uneven_recipe(uneven, name, batch_size=batch_size, accumulate=accumulate)
    recipe.save(uneven.parent / f"{name}.yaml")
    torchrun("-m", "frameflex", "train", uneven.parent / f"{name}.yaml")
    assert_weights(uneven.parent / name, after_one_step(recipe))


def moved_bars(root, *, train, validation):
    for split, number in (("train", train), ("val", validation)):
        for i in range(number):
            frames = moving_bar(8, rightwards=i % 2 == 1, size=32, seed=i + 100 * (split == "val"))
            write_video(root / split / ("right" if i % 2 else "left") / f"{i}.mp4", frames)
    return root


def events(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@one_device
@pytest.mark.slow
def test_torchrun_has_the_loss_curve_of_one_process_with_synchronised_norms(tmp_path):
    # Eleven videos by four: a step with three, of which one process has one. Five by two to validate on.
    data = moved_bars(tmp_path / "data", train=11, validation=5)

    def recipe(output, batch_size, **training):
        made = tiny_recipe(
            data, tmp_path / output, method="ffn", batch_size=batch_size, learning_rate=0.002, **training
        )
        made.model.dropout = 0.0
        return made

    train(recipe("one", 4))
    recipe("two", 2, sync_norms=True).save(tmp_path / "two.yaml")
    torchrun("-m", "frameflex", "train", tmp_path / "two.yaml")
    one, two = (events(tmp_path / name) for name in ("one", "two"))
    losses = [[event["loss"] for event in log if event["event"] == "step"] for log in (one, two)]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    states = [
        load_checkpoint(tmp_path / name / "last.safetensors").model.state_dict() for name in ("one", "two")
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4)
    measured = [log[-1] for log in (one, two)]
    assert [log["protocol"]["num_videos"] for log in measured] == [5, 5]  # not six
    assert measured[0]["results"][1]["top1"] == measured[1]["results"][1]["top1"]


UNTIL = """
import os, signal, sys
from frameflex.console import make_console, show_messages
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.watching import Interrupted, Watcher
from frameflex.engine.training import train

def press(report):
    if report.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)

show_messages(make_console(), debug=False)
recipe, _ = parse_recipe([sys.argv[1]])
try:
    train(recipe, resume=True, watcher=Watcher(on_step=press))
except Interrupted:
    pass
"""


@one_device
@pytest.mark.slow
@pytest.mark.parametrize("synchronised", [True, False])
def test_a_run_goes_on_with_another_number_of_processes_in_the_middle_of_an_epoch(tmp_path, synchronised):
    """2, 1, 2 and 1 processes equal two that were never stopped. One takes the shares of two one after the other, so
    that norms look at the same videos; only their running statistics are those of another process's share, then."""
    data = moved_bars(tmp_path / "data", train=11, validation=3)  # three steps an epoch, of 3, 4 and 4 videos

    def recipe(name):
        made = tiny_recipe(
            data,
            tmp_path / name,
            method="ffn",
            epochs=3,
            batch_size=2,
            learning_rate=0.004,
            reference_batch_size=8,
        )
        made.training.sync_norms = synchronised
        made.model.dropout = 0.0
        made.save(tmp_path / f"{name}.yaml")
        return made

    recipe("whole")
    torchrun("-m", "frameflex", "train", tmp_path / "whole.yaml")
    recipe("parts")
    (tmp_path / "script.py").write_text(UNTIL)
    said = [
        " ".join(
            torchrun(tmp_path / "script.py", tmp_path / "parts.yaml", until, processes=processes).split()
        )
        for processes, until in ((2, 1), (1, 3), (2, 5), (1, 100))
    ]
    assert "began with 2 processes" not in said[0] + said[2]
    how = "4 of each batch in a process" + (";" if synchronised else ", 2 at once;")
    for text in (said[1], said[3]):
        assert f"goes on with 1: its steps stay the same, 4 videos at the same learning rate, {how}" in text
    whole, parts = ([e for e in events(tmp_path / n) if e["event"] == "step"] for n in ("whole", "parts"))
    assert [e["step"] for e in parts] == [e["step"] for e in whole] == list(range(1, 10))
    assert [e["learning_rate"] for e in parts] == [e["learning_rate"] for e in whole]
    assert [e["loss"] for e in parts] == pytest.approx([e["loss"] for e in whole], rel=1e-4)
    ours, theirs = (
        load_checkpoint(tmp_path / name / "last.safetensors").model for name in ("parts", "whole")
    )
    state = ours.state_dict() if synchronised else dict(ours.named_parameters())
    for name, value in state.items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-3, atol=1e-4)


MEASURE = """
import os, sys
import torch
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.watching import Watcher
from frameflex.engine.training import train

def note(epoch, measured, best):
    torch.save((measured.names, measured.logits), recipe.output + "-" + os.environ["RANK"] + ".pt")

recipe, _ = parse_recipe([sys.argv[1]])
train(recipe, watcher=Watcher(on_validation=note))
"""


@one_device
@pytest.mark.slow
def test_validation_in_two_processes_measures_the_network_that_is_saved_and_each_video_once(tmp_path):
    # Norms that are not synchronised: each process has statistics of its own, and an average of its own of them.
    data = moved_bars(tmp_path / "data", train=6, validation=3)
    recipe = tiny_recipe(data, tmp_path / "run", epochs=1, batch_size=2, ema_decay=0.5, learning_rate=0.05)
    recipe.save(tmp_path / "recipe.yaml")
    (tmp_path / "script.py").write_text(MEASURE)
    torchrun(tmp_path / "script.py", tmp_path / "recipe.yaml")
    saved = load_checkpoint(tmp_path / "run" / "last.safetensors")
    expected = evaluate(
        saved.model.to(memory_format=torch.channels_last),
        load_split(data, "validation"),
        preprocessing=saved.preprocessing,
        frame_counts=(2, 4),
    )
    for rank in (0, 1):
        names, logits = torch.load(tmp_path / f"run-{rank}.pt")
        assert names == expected.names
        for count, rows in logits.items():
            torch.testing.assert_close(rows, expected.logits[count], rtol=1e-4, atol=1e-6)


def test_every_process_and_worker_augments_in_its_own_way(tmp_path):
    frames = moving_bar(8, rightwards=True, size=48)
    for i in range(6):
        write_video(tmp_path / "train" / "right" / f"{i}.mp4", frames)  # all the same
        write_video(tmp_path / "train" / "left" / f"{i}.mp4", frames)
    videos = load_split(tmp_path, "train")
    pixels = Preprocessing(short_side=32, crop_size=32)
    dataset = ClipDataset(
        videos, frame_counts=(4,), transform=TrainTransform(pixels, color_jitter=0.5), training=True
    )
    seen, clips = [], []
    for rank in (0, 1):
        batches = EpochBatches(len(videos), batch_size=3, seed=0, frame_counts=(4,), rank=rank, world=2)
        loader = DataLoader(
            dataset, batch_sampler=batches, num_workers=2, collate_fn=collate, persistent_workers=True
        )
        for batches.epoch in (0, 1):
            for batch in loader:
                seen += [(batches.epoch, index) for index in batch.indices.tolist()]
                clips += [clip.numpy().tobytes() for clip in batch.clips[4]]
    assert sorted(seen) == [(epoch, video) for epoch in (0, 1) for video in range(12)]  # once an epoch
    assert len(set(clips)) == 24


@pytest.mark.parametrize("kind", ["plain", "with activation"])
def test_a_synchronised_norm_of_one_process_is_the_norm(kind):
    norm = torch.nn.BatchNorm2d(5) if kind == "plain" else BatchNormAct2d(5)
    torch.nn.init.normal_(norm.weight)
    both = [norm, copy.deepcopy(norm)]
    sync_norms(torch.nn.Sequential(both[1]))
    assert both[1].state_dict().keys() == norm.state_dict().keys()
    grads = []
    for one in both:
        x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
        one(x).square().sum().backward()
        grads.append((x.grad, one.weight.grad, one.bias.grad, one.running_mean, one.running_var))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(both[1].eval()(x), norm.eval()(x))


def test_norms_that_cannot_be_synchronised_are_refused():
    with pytest.raises(ValueError, match="no norm of the network looks at the batch"):
        sync_norms(torch.nn.LayerNorm(3))
    with pytest.raises(ValueError, match="BatchNorm1d, whose statistics it can't"):
        sync_norms(torch.nn.BatchNorm1d(3))


WAITING = """
import sys, time
from torch.utils.data import DataLoader
from frameflex.data.loading import end_with_parent

if __name__ == "__main__":
    loader = DataLoader(
        range(8),
        num_workers=2,
        worker_init_fn=end_with_parent,
        multiprocessing_context=sys.argv[1],
        persistent_workers=True,
    )
    iterator = iter(loader)
    next(iterator)
    print(*[worker.pid for worker in iterator._workers], flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in Linux's /proc")
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_loader_workers_end_with_a_process_that_was_killed(tmp_path, start_method):
    (tmp_path / "waiting.py").write_text(WAITING)
    with subprocess.Popen(
        [sys.executable, tmp_path / "waiting.py", start_method], stdout=subprocess.PIPE, text=True
    ) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()

    def runs(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    waited = 0
    while any(map(runs, workers)) and waited < 300:
        time.sleep(0.1)
        waited += 1
    assert not any(map(runs, workers))


@one_device
@pytest.mark.slow
def test_two_processes_cross_validate_as_one_does(tmp_path):
    for name in ("left", "right"):
        for i in range(3):
            frames = moving_bar(12 + i, rightwards=name == "right", seed=i)
            write_video(tmp_path / "data" / name / f"{i}.mp4", frames)
    for output, batch_size in (("one", 2), ("two", 1)):
        recipe = Recipe(
            data=Data(train=str(tmp_path / "data"), num_workers=0, folds=2),
            output=str(tmp_path / output),
            clip=Clip(frame_counts=(4,), short_side=32, crop_size=32),
            model=Model(backbone="test_convnext", pretrained=False, dropout=0.0),
            training=Training(epochs=2, batch_size=batch_size, learning_rate=0.1, reference_batch_size=None),
        )
        recipe.save(tmp_path / f"{output}.yaml")
    assert main(["train", str(tmp_path / "one.yaml")]) == 0
    torchrun("-m", "frameflex", "train", tmp_path / "two.yaml")
    one, two = (json.loads((tmp_path / name / "folds.json").read_text()) for name in ("one", "two"))
    assert one["folds"] == two["folds"]
    for alone, together in zip(one["videos"], two["videos"], strict=True):
        assert (alone["name"], alone["fold"]) == (together["name"], together["fold"])
        assert alone["probability_of_label"] == pytest.approx(together["probability_of_label"], abs=1e-3)
