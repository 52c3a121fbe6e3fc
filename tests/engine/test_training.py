"""The loop: exact resuming, what it writes, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import CheckpointError, load_checkpoint, remove_leftovers
from frameflex.data.splits import hold_out
from frameflex.engine.loading import EpochBatches, LoaderClock
from frameflex.engine.memory import saved_for_backward
from frameflex.engine.objective import FrameFlexibleObjective
from frameflex.engine.optimization import build_optimizer, learning_rate_factor, parameter_groups
from frameflex.engine.recipe import Data, Objective, Recipe, RecipeError
from frameflex.engine.run import Run
from frameflex.engine.run_folder import RunFolder, cut_log
from frameflex.engine.run_state import restore, state_of
from frameflex.engine.training import train
from frameflex.engine.watching import Interrupted, Watcher
from frameflex.models import TSM
from frameflex.video import VideoError


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    return bar_folder(tmp_path_factory.mktemp("bars"))


def stop_after(step):
    """A watcher that presses Ctrl-C in one step."""

    def on_step(report):
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return Watcher(on_step=on_step)


def weights(path):
    checkpoint = load_checkpoint(path, training=True)
    assert checkpoint.training is not None
    tensors = {**checkpoint.model.state_dict(), **checkpoint.training.tensors}
    # Copies: what was loaded lies in the file, which a test may damage.
    return {name: tensor.clone() for name, tensor in tensors.items()}, checkpoint.training.values


@pytest.mark.parametrize(
    ("method", "optimizer", "drawn"),
    [("tsm", "sgd", "all"), ("ffn", "adamw", "all"), ("ffn", "adamw", "drawn")],
)
def test_a_run_stopped_at_any_step_and_resumed_equals_the_run_never_stopped(
    bars, tmp_path, method, optimizer, drawn
):
    options = {
        "method": method,
        "optimizer": optimizer,
        "drawn": drawn,
        "first_phase": 0.5,  # of two epochs: across the border, too
        "accumulate": 2,
        "batch_size": 2,
        "warmup_epochs": 0.5,
    }
    whole = tiny_recipe(bars, tmp_path / "whole", **options)
    train(whole)
    expected, expected_values = weights(tmp_path / "whole" / "last.safetensors")
    for step in (1, 3, 5):  # in the middle of an epoch, at its end, in the second
        stopped = tiny_recipe(bars, tmp_path / f"stopped{step}", **options)
        with pytest.raises(Interrupted, match="--resume"):
            train(stopped, watcher=stop_after(step))
        torch.rand(step)  # a new process has another random state
        train(stopped, resume=True)
        got, values = weights(tmp_path / f"stopped{step}" / "last.safetensors")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
        assert values["step"] == expected_values["step"] == 6
        assert values["best_top1"] == expected_values["best_top1"]


def test_each_batch_draws_one_count_and_trains_its_parts_alone(bars, tmp_path, caplog):
    recipe = tiny_recipe(
        bars, tmp_path / "run", method="ffn", counts=(2, 3, 4), drawn="drawn", epochs=8, optimizer="adamw"
    )
    seen = []

    def count(self, clips, labels, forward=FrameFlexibleObjective.forward):
        seen.append(tuple(clips))
        return forward(self, clips, labels)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(FrameFlexibleObjective, "forward", count)
        [path] = train(recipe)
    assert len(seen) == 24
    assert {len(counts) for counts in seen} == {1}
    assert {counts[0] for counts in seen} == {2, 3, 4}
    norms = load_checkpoint(path.with_name("last.safetensors")).model.backbone.bn1.norms
    assert {count: int(norm.num_batches_tracked) for count, norm in norms.items()} == {
        str(count): seen.count((count,)) for count in (2, 3, 4)
    }
    assert caplog.text.count("kept for the backward pass") == 1


def test_counts_are_drawn_from_seed_and_place_alone_and_alike_in_every_process():
    def counts(rank, seed=0, epoch=0):
        batches = EpochBatches(
            40, batch_size=2, seed=seed, frame_counts=(2, 4, 8), draws_counts=True, rank=rank, world=2
        )
        batches.epoch = epoch
        return [batches.counts(i) for i in range(10)], [{key[2] for key in batch} for batch in batches]

    chosen, given = counts(0)
    assert given == [{drawn} for drawn in chosen]
    assert counts(1)[0] == chosen
    assert counts(0, epoch=1)[0] != chosen != counts(0, seed=1)[0]
    with pytest.raises(RecipeError, match="goes with objective.counts all"):
        Recipe(Data("x"), method="ffn", objective=Objective(random_counts=True))


def test_the_other_counts_join_with_the_parts_of_the_largest(bars, tmp_path, caplog):
    recipe = tiny_recipe(bars, tmp_path / "run", method="ffn", epochs=3, first_phase=0.7, ema_decay=0.5)
    assert recipe.first_phase_epochs == 2
    norms, seen = [], []

    def look(report):
        state = load_checkpoint(tmp_path / "run" / "last.safetensors").model.state_dict()
        norms.append(
            [
                torch.equal(value, state[re.sub(r"(norms|scales)\.2", r"\1.4", name)])
                for name, value in state.items()
                if re.search(r"(norms|scales)\.2", name)
            ]
        )

    def count(self, clips, labels, forward=FrameFlexibleObjective.forward):
        seen.append(tuple(clips))
        return forward(self, clips, labels)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(FrameFlexibleObjective, "forward", count)
        train(recipe, watcher=Watcher(on_validation=lambda *_: look(None)))
    look(None)
    assert seen == [(4,)] * 6 + [(2, 4)] * 3
    assert [all(same) for same in norms] == [True, True, False, False]
    assert "the first 2 of 3 epochs at 4 frames alone" in caplog.text
    assert "from here on 2 and 4 frames are trained together" in caplog.text


def test_a_checkpoint_to_start_from_skips_the_first_phase_and_a_zero_is_the_published_method(bars, tmp_path):
    recipe = tiny_recipe(bars, tmp_path / "run", method="ffn", epochs=4, first_phase=0.5)
    assert (recipe.first_phase_epochs, recipe.students_learn_labels) == (2, True)
    recipe.model.init = "some.safetensors"
    assert (recipe.first_phase_epochs, recipe.students_learn_labels) == (0, True)
    published = tiny_recipe(bars, tmp_path / "run", method="ffn", epochs=4, first_phase=0.0)
    assert (published.first_phase_epochs, published.students_learn_labels) == (0, False)
    published.objective.student_cross_entropy = True
    assert published.students_learn_labels
    with pytest.raises(RecipeError, match="training.first_phase is 1"):
        tiny_recipe(bars, tmp_path / "run", method="ffn", first_phase=1.0)


def test_workers_do_not_change_the_result(bars, tmp_path):
    for workers in (0, 2):
        recipe = tiny_recipe(bars, tmp_path / str(workers), epochs=1)
        recipe.data.num_workers = workers
        train(recipe)
    alone, beside = (weights(tmp_path / name / "last.safetensors")[0] for name in ("0", "2"))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_a_stop_during_validation_loses_nothing(bars, tmp_path):
    whole, stopped = (tiny_recipe(bars, tmp_path / name) for name in ("whole", "stopped"))
    train(whole)

    def press(done, total):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(stopped, watcher=Watcher(on_validation_progress=press))
    validated = []
    train(stopped, resume=True, watcher=Watcher(on_validation=lambda epoch, *_: validated.append(epoch)))
    assert validated == [0, 1]
    expected, got = (weights(tmp_path / name / "last.safetensors")[0] for name in ("whole", "stopped"))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_signal_handlers_are_given_back(bars, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train(tiny_recipe(bars, tmp_path / "run", epochs=1))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_leaves_recipe_log_and_checkpoints(bars, tmp_path):
    recipe = tiny_recipe(bars, tmp_path / "run")
    assert train(recipe) == [tmp_path / "run" / "best.safetensors"]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "recipe.yaml", "log.jsonl", "step-00000003.safetensors", "last.safetensors", "best.safetensors"
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == recipe.to_dict()
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["step"] * 3 + ["validation"] + ["step"] * 3 + [
        "validation"
    ]
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.recipe == recipe.to_dict()
    assert best.class_names == ["going left", "going right"]
    assert best.frame_counts == (4,)
    assert best.metrics["validation"]["results"][1]["num_frames"] == 4


def test_separate_training_makes_a_plain_network_for_each_count(bars, tmp_path):
    paths = train(tiny_recipe(bars, tmp_path, method="separate", epochs=1))
    assert paths == [tmp_path / "2f" / "best.safetensors", tmp_path / "4f" / "best.safetensors"]
    assert [load_checkpoint(path).frame_counts for path in paths] == [(2,), (4,)]


def test_ffn_training_keeps_every_counts_norms(bars, tmp_path):
    [path] = train(tiny_recipe(bars, tmp_path / "run", method="ffn"))
    checkpoint = load_checkpoint(path)
    assert checkpoint.model.frame_counts == checkpoint.frame_counts == (2, 4)
    norms = checkpoint.model.backbone.bn1.norms
    assert not torch.equal(norms["2"].running_mean, norms["4"].running_mean)


def test_random_counts_are_drawn_below_the_largest_and_alike_in_every_process():
    def counts(rank):
        batches = EpochBatches(
            40, batch_size=4, seed=0, frame_counts=(2, 4, 8), random_counts=True, rank=rank, world=2
        )
        return [batch[0][2] for batch in batches]

    drawn = counts(0)
    assert drawn == counts(1)
    assert all(len(set(c)) == 3 and c[-1] == 8 and c[0] >= 2 for c in drawn)
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_video_is_dealt_once_an_epoch_and_processes_make_as_many_batches(world):
    ranks = [
        EpochBatches(23, batch_size=3, seed=1, frame_counts=(4,), rank=rank, world=world)
        for rank in range(world)
    ]
    for epoch in (0, 1):
        for rank in ranks:
            rank.epoch = epoch
        batches = [list(rank) for rank in ranks]
        assert {len(b) for b in batches} == {len(ranks[0])}
        videos = sorted(video for rank in batches for batch in rank for video, *_ in batch)
        assert videos == list(range(23))
        assert all(batch for rank in batches for batch in rank)


@pytest.mark.parametrize(("begun_with", "world"), [(2, 1), (3, 1), (4, 2), (1, 2), (2, 3), (3, 2), (2, 6)])
def test_another_number_of_processes_shares_the_batches_that_the_run_began_with(begun_with, world):
    def dealt(world, **options):
        """The videos of each batch of all processes, those of each part, and the counts."""
        ranks = [
            EpochBatches(
                23, batch_size=3, seed=1, frame_counts=(2, 4, 8), draws_counts=True, rank=rank, world=world,
                begun_with=begun_with, **options,
            )
            for rank in range(world)
        ]  # fmt: skip
        for rank in ranks:
            rank.epoch, rank.first_batch = 5, 1
        lists = [list(rank) for rank in ranks]
        assert {len(one) for one in lists} == {len(rank) for rank in ranks}
        parts = ranks[0].parts
        batches = []
        for i in range(len(lists[0]) // parts):
            together = [video for one in lists for part in one[i * parts : (i + 1) * parts] for video in part]
            batches.append((sorted(together), ranks[0].counts(1 + i), ranks[0].num_videos_of(1 + i, 1)))
        return batches, max(len(part) for one in lists for part in one)

    wanted, most = dealt(begun_with)
    assert most == 3
    batches, most = dealt(world)
    assert batches == wanted
    assert all(len(videos) == number for videos, _, number in batches)
    assert most <= 3
    assert dealt(world, whole=True)[0] == wanted


def test_more_processes_than_videos_of_a_step_are_refused():
    with pytest.raises(RecipeError, match=r"steps of 3 videos \(1 processes\); .* and there are 4"):
        EpochBatches(23, batch_size=3, seed=1, frame_counts=(4,), world=4, begun_with=1)


def test_the_schedule_is_a_function_of_the_step():
    recipe = tiny_recipe("x", "y", epochs=10, warmup_epochs=1.0)
    factors = [learning_rate_factor(recipe, step, 10) for step in range(100)]
    assert factors[0] < factors[5] < factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] < 0.01
    recipe = tiny_recipe("x", "y", epochs=10, schedule="steps", milestones=(4, 8))
    assert [learning_rate_factor(recipe, step, 10) for step in (0, 39, 40, 79, 80)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


def test_parameters_are_grouped_as_published():
    model = TSM("test_resnet", num_classes=5)
    groups = {group["name"]: group for group in parameter_groups(model, published=True)}
    names = {id(p): name for name, p in model.named_parameters()}
    members = {kind: [names[id(p)] for p in group["params"]] for kind, group in groups.items()}
    assert members["classifier weight"] == ["head.weight"]
    assert members["classifier bias"] == ["head.bias"]
    assert all(name.endswith("weight") and "bn" not in name for name in members["weights"])
    assert {"backbone.bn1.weight", "backbone.bn1.bias"} <= set(members["norms and scales"])
    assert sum(map(len, members.values())) == len(names)
    assert (groups["classifier weight"]["rate"], groups["classifier bias"]["rate"]) == (5, 10)
    assert groups["norms and scales"]["decay"] == 0
    recipe = tiny_recipe("x", "y", learning_rate=0.01, reference_batch_size=64, batch_size=16, accumulate=2)
    optimizer = build_optimizer(recipe, model, num_processes=2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.05, 0.1}


def test_gradients_are_clipped_with_mixed_precision_too(bars, tmp_path):
    for precision in ("no", "bf16"):
        recipe = tiny_recipe(
            bars, tmp_path / precision, epochs=1, precision=precision, clip_grad_norm=1e-6, weight_decay=0.0,
            learning_rate=1.0, momentum=0.0,
        )  # fmt: skip
        torch.manual_seed(0)
        train(recipe)
        trained = load_checkpoint(tmp_path / precision / "last.safetensors").model
        torch.manual_seed(0)
        start = TSM("test_resnet", num_classes=2)
        moved = max(
            float((a - b).detach().abs().max())
            for a, b in zip(trained.parameters(), start.parameters(), strict=True)
        )
        assert 0 < moved < 1e-4


def test_accumulating_gradients_equals_a_larger_batch_where_no_norm_looks_at_the_batch(
    bars, tmp_path, monkeypatch
):
    from frameflex.engine import run as running

    def frozen(recipe, classes, build=running.build_model):
        model = build(recipe, classes)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.train = lambda mode=True, m=m: m
                m.training = False
        return model

    monkeypatch.setattr(running, "build_model", frozen)
    for name, batch_size, accumulate in (("large", 6, 1), ("small", 3, 2)):
        recipe = tiny_recipe(bars, tmp_path / name, epochs=1, batch_size=batch_size, accumulate=accumulate)
        recipe.model.dropout = 0.0
        train(recipe)
    large, small = (
        load_checkpoint(tmp_path / name / "last.safetensors").model for name in ("large", "small")
    )
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_second_run_in_the_folder_of_one_that_runs_is_refused_in_a_line(bars, tmp_path):
    recipe = tiny_recipe(bars, tmp_path / "run", epochs=1)
    recipe.save(tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "frameflex", "train", str(tmp_path / "recipe.yaml")]
    with RunFolder(tmp_path / "run", keep=1).held():
        for more in ([], ["--resume"]):
            done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1].startswith(
                f"frameflex: output {tmp_path / 'run'} is in use: process"
            )
    assert not (tmp_path / "run").exists()


def test_a_lock_left_by_a_killed_run_holds_nobody_back(bars, tmp_path):
    script = (
        "import sys; from pathlib import Path; from frameflex.engine.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), keep=1).held(): print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    recipe = tiny_recipe(bars, tmp_path / "run", epochs=1)
    with pytest.raises(RecipeError, match=f"in use: process {holder.pid} on"):
        train(recipe)
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    assert train(recipe)[0].exists()


@pytest.mark.parametrize("change", ["another training video", "a moved label", "another validation video"])
def test_a_run_goes_on_with_the_same_videos_and_labels_only(tmp_path, change):
    data = bar_folder(tmp_path / "data", per_class=2)
    recipe = tiny_recipe(data, tmp_path / "run", epochs=2)

    def stop_after_a_validation(report):
        if report.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(recipe, watcher=Watcher(on_step=stop_after_a_validation))
    left, right = data / "train" / "going left", data / "train" / "going right"
    if change == "another training video":
        (left / "0.mp4").rename(left / "other.mp4")
    elif change == "a moved label":  # as many videos as before
        (left / "0.mp4").rename(right / "moved.mp4")
    else:
        (data / "val" / "going left" / "0.mp4").rename(data / "val" / "going left" / "other.mp4")
    which = "validation" if "validation" in change else "training"
    with pytest.raises(RecipeError, match=f"{which} videos are not the same, by name, label or order"):
        train(recipe, resume=True)


def test_a_folder_with_files_is_not_trained_into(bars, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RecipeError, match="holds files already"):
        train(tiny_recipe(bars, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_resuming_with_another_recipe_is_refused(bars, tmp_path):
    train(tiny_recipe(bars, tmp_path / "run", epochs=1))
    with pytest.raises(RecipeError, match=r"training.learning_rate was 0.01 and is 0.5"):
        train(tiny_recipe(bars, tmp_path / "run", epochs=1, learning_rate=0.5), resume=True)


def small_data(root, *, train=("left", "right"), validation=("left", "right"), broken=()):
    for split, names in (("train", train), ("val", validation)):
        for seed, name in enumerate(names):
            path = root / split / name / f"{seed}.mp4"
            write_video(path, moving_bar(6, rightwards=name == "right", size=32, seed=seed))
    for path in broken:
        (root / path).write_bytes(b"not a video")
    return root


def test_resuming_with_other_videos_or_classes_is_refused(tmp_path):
    data = small_data(tmp_path / "data", train=("left", "right", "right"))
    recipe = tiny_recipe(data, tmp_path / "run", epochs=1)
    train(recipe)
    (data / "train" / "right" / "2.mp4").unlink()
    with pytest.raises(RecipeError, match="videos were 3 and are 2"):
        train(recipe, resume=True)
    (data / "train" / "right").rename(data / "train" / "rightwards")
    (data / "val" / "right").rename(data / "val" / "rightwards")
    with pytest.raises(RecipeError, match=r"classes were .*'right'.* and are .*'rightwards'"):
        train(recipe, resume=True)


def test_a_validation_video_that_cannot_be_decoded_costs_no_epoch(tmp_path):
    data = small_data(tmp_path / "data", broken=["val/left/broken.mp4"])
    recipe = tiny_recipe(data, tmp_path / "run", epochs=1)
    with pytest.raises(VideoError, match="broken.mp4"):
        train(recipe, check_data=False)  # as one that breaks while it trains, or is one of many
    (data / "val" / "left" / "broken.mp4").unlink()
    steps = []
    train(recipe, resume=True, watcher=Watcher(on_step=steps.append))
    assert steps == []  # nothing is trained again, only validated
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_one_class_and_unlabelled_videos_are_refused_before_anything_is_trained(tmp_path):
    one = small_data(tmp_path / "one", train=("left", "left"), validation=("left",))
    with pytest.raises(RecipeError, match="one class, 'left'"):
        train(tiny_recipe(one, tmp_path / "run"))
    two = small_data(tmp_path / "two")
    (tmp_path / "list.csv").write_text("path,label\ntwo/val/left/0.mp4,left\ntwo/val/right/1.mp4,\n")
    recipe = tiny_recipe(two, tmp_path / "run")
    recipe.data.validation = str(tmp_path / "list.csv")
    with pytest.raises(RecipeError, match="1 of 2 validation videos have no label"):
        train(recipe)
    assert not (tmp_path / "run").exists()


def broken_copy(bars, root, *, per_class, broken):
    for split in ("train", "val"):
        for name in ("going left", "going right"):
            for i in range(per_class if split == "train" else 2):
                frames = moving_bar(6, rightwards="right" in name, size=32, seed=i)
                write_video(root / split / name / f"{i}.mp4", frames)
    for i in range(broken):
        (root / "train" / "going left" / f"broken{i}.mp4").write_bytes(b"not a video")
    return root


def test_one_broken_training_file_is_skipped_and_named_but_more_than_three_stop(tmp_path, caplog):
    one = broken_copy(None, tmp_path / "one", per_class=5, broken=1)
    train(tiny_recipe(one, tmp_path / "run1", epochs=1))
    assert "broken0.mp4" in caplog.text
    four = broken_copy(None, tmp_path / "four", per_class=5, broken=4)
    with pytest.raises(
        VideoError, match="4 of 14 training videos can't be decoded, more than 1% and more than 3"
    ):
        train(tiny_recipe(four, tmp_path / "run2", epochs=1))
    strict = tiny_recipe(one, tmp_path / "run3", epochs=1)
    strict.data.on_bad_video = "error"
    with pytest.raises(VideoError, match="broken0.mp4"):
        train(strict)


def test_held_out_videos_are_a_share_of_each_class_and_always_the_same(tmp_path):
    from frameflex.data.records import VideoList, VideoRecord

    records = [VideoRecord(tmp_path / f"{i}.mp4", i % 3, f"{i}.mp4") for i in range(60)]
    videos = VideoList(records, ["a", "b", "c"])
    training, validation = hold_out(videos, 0.2)
    assert [validation.labels.count(label) for label in range(3)] == [4, 4, 4]
    names = {r.name for r in training} | {r.name for r in validation}
    assert len(names) == 60
    assert [r.name for r in hold_out(videos, 0.2)[1]] == [r.name for r in validation]
    with pytest.raises(ValueError, match="class 'b' has 1 video"):
        hold_out(VideoList(records[:4], ["a", "b", "c"]), 0.5)


def test_a_checkpoint_starts_another_run_and_keeps_rows_of_classes_of_the_same_name(bars, tmp_path):
    [path] = train(tiny_recipe(bars, tmp_path / "first", epochs=1))
    for old, new in (("going left", "swerving"),):
        for split in ("train", "val"):
            target = tmp_path / "other" / split
            target.mkdir(parents=True)
            for folder in (bars / split).iterdir():
                (target / (new if folder.name == old else folder.name)).symlink_to(folder)
    from frameflex.engine.starting import build_model

    recipe = tiny_recipe(tmp_path / "other", tmp_path / "second", epochs=1)
    recipe.model.init = str(path)
    model, source = build_model(recipe, ["going right", "swerving"]), load_checkpoint(path).model
    assert torch.equal(model.head.weight[0], source.head.weight[1])
    assert not torch.equal(model.head.weight[1], source.head.weight[0])
    assert torch.equal(model.backbone.bn1.running_mean, source.backbone.bn1.running_mean)
    train(recipe)
    recipe.model.backbone = "resnet18"
    with pytest.raises(RecipeError, match="model.init has test_resnet"):
        build_model(recipe, ["going right", "swerving"])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_leaves_a_checkpoint_and_a_clean_message(bars, tmp_path, number):
    recipe = tiny_recipe(bars, tmp_path / "run", epochs=200)
    recipe.data.num_workers = 2
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "frameflex", "train", str(tmp_path / "recipe.yaml")]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(run.pid, number)
    _, messages = run.communicate(timeout=60)
    assert run.returncode == 130, messages
    assert "continue it with --resume" in messages
    assert "Traceback" not in messages
    values = weights(tmp_path / "run" / "last.safetensors")[1]
    assert values["step"] >= 3


def test_a_missing_tensorboard_is_told_before_anything_is_written(bars, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RecipeError, match=r"frameflex\[tracking\]"):
        train(tiny_recipe(bars, tmp_path / "run", tensorboard=True))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------- killed, and gone on with


def test_a_log_is_cut_back_to_what_its_checkpoint_has_behind_it(tmp_path):
    log = tmp_path / "log.jsonl"
    events = [{"event": "step", "epoch": 0, "step": step} for step in (1, 2)]
    events += [{"event": "validation", "epoch": 0}, {"event": "step", "epoch": 1, "step": 3}]
    lines = [json.dumps(event) + "\n" for event in events]
    for step, epoch, kept in ((3, 1, 4), (2, 1, 3), (2, 0, 2), (1, 0, 1), (0, 0, 0)):
        log.write_text("".join(lines) + '{"event": "st')  # the last line was being written
        cut_log(log, step=step, epoch=epoch)
        assert log.read_text() == "".join(lines[:kept])
    cut_log(tmp_path / "none.jsonl", step=0, epoch=0)
    assert not (tmp_path / "none.jsonl").exists()


class Killed(BaseException):
    """As sudden as SIGKILL: nothing catches it."""


def killed_at(step):
    def on_step(report):
        if report.step == step:
            raise Killed

    return Watcher(on_step=on_step)


def test_a_killed_run_goes_on_from_its_newest_checkpoint_with_an_average_and_a_log_without_repeats(
    bars, tmp_path
):
    options = {
        "method": "ffn",
        "ema_decay": 0.9,
        "checkpoint_steps": 2,
        "batch_size": 2,
        "keep_checkpoints": 3,
    }
    train(tiny_recipe(bars, tmp_path / "whole", **options))
    expected, _ = weights(tmp_path / "whole" / "last.safetensors")
    assert any(name.startswith("raw/") for name in expected)
    run = tmp_path / "killed"
    with pytest.raises(Killed):
        train(tiny_recipe(bars, run, **options), watcher=killed_at(5))
    assert sorted(path.name for path in run.glob("*.safetensors")) == [
        "last.safetensors",
        "step-00000002.safetensors",
    ]
    with pytest.raises(Killed):
        train(tiny_recipe(bars, run, **options), resume=True, watcher=killed_at(9))
    train(tiny_recipe(bars, run, **options), resume=True)
    got, _ = weights(run / "last.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    keys = ("event", "epoch", "step", "loss", "accuracy")
    logs = [
        [
            [json.loads(line).get(key) for key in keys]
            for line in (folder / "log.jsonl").read_text().splitlines()
        ]
        for folder in (tmp_path / "whole", run)
    ]
    assert logs[0] == logs[1]
    assert len(list(run.glob("*.safetensors"))) == 4  # the newest three and the best


def test_a_truncated_checkpoint_is_said_and_the_one_before_it_is_gone_on_from(bars, tmp_path, caplog):
    recipe = tiny_recipe(bars, tmp_path / "run")
    train(recipe)
    expected, _ = weights(tmp_path / "run" / "last.safetensors")
    whole = (tmp_path / "run" / "last.safetensors").read_bytes()
    (tmp_path / "run" / "last.safetensors").write_bytes(whole[: len(whole) // 2])
    steps = []
    train(recipe, resume=True, watcher=Watcher(on_step=lambda report: steps.append(report.step)))
    assert steps == [4, 5, 6]
    assert "last.safetensors is not a complete" in caplog.text
    assert "going on from" in caplog.text
    got, _ = weights(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    for path in (tmp_path / "run").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the checkpoints in .* can be read"):
        train(recipe, resume=True)


def test_a_full_disk_is_one_clear_error_and_leaves_the_former_checkpoint_whole(bars, tmp_path):
    recipe = tiny_recipe(bars, tmp_path / "run", epochs=1)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    train(recipe)
    last = tmp_path / "run" / "last.safetensors"
    before, _ = weights(last)
    limit = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({last.stat().st_size // 2},) * 2)
from frameflex.checkpoint import load_checkpoint, save_checkpoint
save_checkpoint({str(last)!r}, load_checkpoint({str(last)!r}, training=True))
"""
    done = subprocess.run([sys.executable, "-c", limit], capture_output=True, text=True)
    assert "last.safetensors could not be written" in done.stderr
    assert "untouched" in done.stderr
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(last)[0].items())
    assert not list(last.parent.glob(".*"))


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_are_not(bars, tmp_path):
    path = tmp_path / "last.safetensors"
    writer = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    from frameflex.checkpoint.format import _writer

    files = {name: tmp_path / f".last.safetensors.{name}.tmp" for name in (
        f"{_writer()}.{dead.pid}", f"{_writer()}.{writer.pid}", "elsewhere.1", "elsewhere.2"
    )}  # fmt: skip
    for folder in files.values():
        folder.mkdir()
        (folder / ".tmpAbC123").write_bytes(b"half")  # safetensors' own temporary name
    os.utime(files["elsewhere.2"], (0, 0))
    (tmp_path / ".best.safetensors.elsewhere.3.tmp").mkdir()
    remove_leftovers(path)
    writer.communicate(b"\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [
            ".best.safetensors.elsewhere.3.tmp",
            files[f"{_writer()}.{writer.pid}"].name,
            files["elsewhere.1"].name,
        ]
    )


def test_the_state_of_loss_scaling_comes_back(bars, tmp_path):
    run = Run.__new__(Run)
    run.model = TSM("test_resnet", num_classes=2)
    run.optimizer, run.average, run.values = torch.optim.SGD(run.model.parameters(), 0.1), None, {"step": 3}

    class Accelerator:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    run.accelerator = Accelerator()
    run.accelerator.scaler.scale(torch.zeros(1))
    run.accelerator.scaler.update(new_scale=4.0)
    state = state_of(run)
    kept = type(state)(json.loads(json.dumps(state.values)), state.tensors)
    run.accelerator.scaler = torch.amp.GradScaler("cpu")
    restore(run, kept)
    assert run.accelerator.scaler.get_scale() == 4.0


def test_an_average_is_validated_and_saved_and_equals_the_slow_one(bars, tmp_path):
    recipe = tiny_recipe(
        bars, tmp_path / "run", epochs=1, ema_decay=0.5, checkpoint_steps=1, keep_checkpoints=9
    )
    train(recipe)
    paths = [*sorted((tmp_path / "run").glob("step-*.safetensors")), tmp_path / "run" / "last.safetensors"]
    assert len(paths) == 3
    average = None
    for step, path in enumerate(paths):
        tensors, _ = weights(path)
        raw = {name.removeprefix("raw/"): value for name, value in tensors.items() if name.startswith("raw/")}
        decay = min(0.5, 1 - step ** (-2 / 3)) if step else 0.0
        average = raw if average is None else {
            name: decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
            for name, value in raw.items()
        }  # fmt: skip
        for name, value in average.items():
            torch.testing.assert_close(tensors[name], value)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors").model.state_dict()
    for name, value in average.items():
        torch.testing.assert_close(best[name], value)
    assert any(not torch.equal(best[name], raw[name]) for name in raw)


def losses_of(recipe):
    losses = []
    train(recipe, watcher=Watcher(on_step=lambda report: losses.append(report.loss)))
    return losses


def test_grad_checkpointing_changes_neither_weights_nor_statistics_at_several_counts(bars, tmp_path):
    results = []
    for given in (False, True):
        recipe = tiny_recipe(
            bars, tmp_path / str(given), method="ffn", counts=(2, 3, 5), epochs=1, grad_checkpointing=given
        )
        losses = losses_of(recipe)
        results.append((losses, weights(tmp_path / str(given) / "last.safetensors")[0]))
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, rtol=0, atol=0)


def test_kept_memory_is_said_once_for_each_count_and_is_less_with_grad_checkpointing(bars, tmp_path, caplog):
    caplog.set_level("INFO")
    found = []
    for given in (False, True):
        caplog.clear()
        options = {"epochs": 2, "first_phase": 0.0, "grad_checkpointing": given}
        train(tiny_recipe(bars, tmp_path / str(given), method="ffn", **options))
        [line] = [r.getMessage() for r in caplog.records if "kept for the backward pass" in r.getMessage()]
        found.append([float(number) for number in re.findall(r"([\d.]+) MB at", line)])
    assert found[0][0] < found[0][1]  # 2 and 4 frames
    assert all(less < more for less, more in zip(found[1], found[0], strict=True))


def test_kept_bytes_are_those_that_autograd_keeps():
    layer = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8)
    with saved_for_backward(layer.parameters()) as saved:
        layer(x).exp().sum()
    assert saved.num_bytes == 2 * 4 * 8 * 4  # the input of the product, and what exp gave; no weight


@pytest.mark.soak
def test_compiled_training_has_the_same_losses_at_several_counts(bars, tmp_path):
    options = {"method": "ffn", "counts": (2, 4), "epochs": 1, "batch_size": 5, "learning_rate": 0.001}
    eager, compiled = (
        losses_of(
            replace(recipe, model=replace(recipe.model, dropout=0.0))
        )  # compiled dropout draws other masks
        for recipe in (
            tiny_recipe(bars, tmp_path / "eager", **options),
            tiny_recipe(bars, tmp_path / "compiled", compile=True, **options),
        )
    )
    assert compiled == pytest.approx(eager, rel=1e-3)
    with pytest.raises(RecipeError, match=r"training.compile and training.sync_norms"):
        tiny_recipe(bars, tmp_path, compile=True, sync_norms=True)


def test_a_loader_that_starves_the_network_is_said_once_with_what_to_do(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def batches():
        for batch in range(30):
            now[0] += 3.0  # decoding
            yield batch

    clock = LoaderClock(num_workers=0)
    for _ in clock.start(batches()):
        now[0] += 1.0  # a step
        share = clock.waiting()
    assert share == pytest.approx(29 * 3 / (29 * 3 + 30), abs=1e-6)  # the first batch isn't counted
    assert [record.getMessage() for record in caplog.records] == [caplog.records[0].getMessage()]
    assert "data.num_workers more than 0" in caplog.text
