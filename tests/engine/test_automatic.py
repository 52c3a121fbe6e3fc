import numpy as np
import pytest
import yaml
from helpers import bar_folder, moving_bar, write_video

from frameflex.checkpoint import load_checkpoint
from frameflex.cli import main
from frameflex.engine import automatic
from frameflex.engine.recipe import Recipe
from frameflex.engine.recipe_files import parse_recipe

TINY = ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--training.epochs", "1"]
TINY += ["--clip.crop_size", "32", "--data.num_workers", "0"]


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    return bar_folder(tmp_path_factory.mktemp("automatic") / "my_videos", per_class=6)


def folder_of(root, *, num_frames=10, height=48, width=64, per_class=4):
    for name in ("left", "right"):
        for i in range(per_class):
            frames = np.full((num_frames, height, width, 3), 40 * i, np.uint8)
            write_video(root / name / f"{i}.mp4", frames)
    return root


def test_a_folder_is_enough_and_its_recipe_runs_again(bars, tmp_path, capsys):
    output = tmp_path / "mine"
    assert main(["train", str(bars), "--output", str(output), *TINY]) == 0
    said = capsys.readouterr().err
    for words in ("clip.frame_counts [8]: the videos have", "training.optimizer adamw", "clip.fit whole"):
        assert words in said
    assert "training.epochs 1" not in said, "given, so not chosen"
    assert load_checkpoint(output / "best.safetensors").preprocessing.fit == "whole"
    again = tmp_path / "again"
    assert main(["train", str(output / "recipe.yaml"), "--output", str(again)]) == 0
    first, second = (yaml.safe_load((run / "recipe.yaml").read_text()) for run in (output, again))
    assert first | {"output": ""} == second | {"output": ""}
    tensors = [load_checkpoint(run / "best.safetensors").model.state_dict() for run in (output, again)]
    assert all(tensor.equal(tensors[1][name]) for name, tensor in tensors[0].items())
    assert main(["train", str(bars), "--output", str(output), "--resume"]) == 0  # nothing is left to do


def test_the_choices_are_those_that_were_measured(bars):
    recipe, _ = parse_recipe([str(bars)])
    training = recipe.training
    assert (training.optimizer, training.learning_rate, training.reference_batch_size) == (
        "adamw",
        5e-4,
        None,
    )
    assert (training.parameter_groups, training.weight_decay, training.batch_size) == ("plain", 0.05, 4)
    assert (recipe.method, recipe.clip.frame_counts, recipe.clip.fit) == ("tsm", (8,), "whole")
    assert recipe.model.dropout == 0
    assert training.epochs * 3 == 600  # 12 training videos, 4 a step
    assert 0 < training.warmup_epochs < training.epochs / 10


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (120, 160, (96, 128)),
        (160, 120, (128, 96)),
        (120, 120, (112, 112)),
        (90, 160, (80, 144)),
        (96, 96, (96, 96)),  # nothing is made larger than it is
        (48, 64, (80, 112)),  # but to what a network of images can see
    ],
)
def test_the_size_follows_the_videos_shape(height, width, size, tmp_path):
    recipe, _ = parse_recipe([str(folder_of(tmp_path, height=height, width=width))])
    assert recipe.clip.crop_size == size


def test_frame_counts_follow_the_videos_lengths(tmp_path):
    folder_of(tmp_path, num_frames=6)
    assert parse_recipe([str(tmp_path)])[0].clip.frame_counts == (4,)
    recipe, _ = parse_recipe([str(tmp_path), "--any-frame-count"])
    assert (recipe.method, recipe.clip.frame_counts) == ("ffn", (1, 2, 4))


def test_a_key_that_is_given_wins(bars):
    options = [
        "--training.batch_size=2",
        "--clip.fit",
        "pad",
        "--clip.frame_counts",
        "3",
        "--clip.crop_size",
        "64,80",
    ]
    recipe, _ = parse_recipe([str(bars), *options])
    assert (recipe.training.batch_size, recipe.clip.fit, recipe.clip.frame_counts) == (2, "pad", (3,))
    assert recipe.clip.crop_size == (64, 80)
    assert recipe.training.epochs * 6 == 600  # steps stay, epochs follow the batch


def test_more_videos_are_a_longer_run_and_never_less_than_five_epochs(monkeypatch):
    seen = automatic._Seen(20, 4 / 3, 120 * 160, 0, 1)
    steps = []
    for number in (8, 80, 150, 300, 1000, 10_000):
        videos = type(
            "Videos", (), {"splits": ("train", "validation"), "__len__": lambda self, n=number: n}
        )()
        choices = automatic._choose(Recipe(automatic_data()), (), videos, seen, any_frame_count=False)
        [epochs] = [
            choice.values["training.epochs"] for choice in choices if "training.epochs" in choice.values
        ]
        assert epochs >= 5
        steps.append(epochs * -(-number // 4))
    assert steps[0] == 600
    assert steps == sorted(steps)
    assert (steps[3], steps[4]) == (1500, 4000)


def automatic_data():
    from frameflex.engine.recipe import Data

    return Data("videos")


def test_upright_and_flat_videos_are_said_and_trained_together(tmp_path, capsys):
    folder_of(tmp_path / "videos", per_class=3)
    for name in ("left", "right"):
        write_video(tmp_path / "videos" / name / "upright.mp4", np.zeros((10, 64, 48, 3), np.uint8))
    assert main(["train", str(tmp_path / "videos"), "--output", str(tmp_path / "run"), *TINY]) == 0
    assert "2 upright and 6 flat videos, none of them cut off" in capsys.readouterr().err


def test_one_class_no_video_and_only_broken_ones_are_one_error_and_nothing_is_written(tmp_path, capsys):
    write_video(tmp_path / "one/waving/a.mp4", moving_bar(10, rightwards=True))
    (tmp_path / "none/waving").mkdir(parents=True)
    for name in ("waving", "clapping"):
        for i in range(2):
            file = tmp_path / f"broken/{name}/{i}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"no video" * 50)
    for folder, words in (
        ("one", "of one class, 'waving'"),
        ("none", "none"),
        ("broken", "none of the 4 videos looked at can be decoded"),
        ("nowhere", "no such folder of videos and no such recipe"),
    ):
        assert main(["train", str(tmp_path / folder), "--output", str(tmp_path / "run")]) == 1
        said = capsys.readouterr().err.strip()
        assert words in said
        assert [line.startswith("frameflex: ") for line in said.splitlines()].count(True) == 1
        assert said.splitlines()[-1].startswith("frameflex: ")
        assert "chosen: " not in said
        assert not (tmp_path / "run").exists()


def test_any_frame_count_with_a_recipe_says_what_to_give(capsys):
    assert main(["train", "motion.yaml", "--any-frame-count"]) == 1
    assert "--method ffn and --clip.frame_counts" in capsys.readouterr().err


def test_an_output_that_is_in_use_is_told_before_a_video_or_a_network_is_opened(
    tmp_path, monkeypatch, capsys
):
    data, used = bar_folder(tmp_path / "data", per_class=2), tmp_path / "used"
    used.mkdir()
    (used / "last.safetensors").touch()
    monkeypatch.setattr(automatic, "automatic_recipe", None)  # calling it would fail otherwise
    assert main(["train", str(data), "--output", str(used)]) == 1
    assert "holds files already" in capsys.readouterr().err
