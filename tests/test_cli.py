"""The command line as a user meets it: help, results, one-line errors, exit statuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import bar_folder, tiny_recipe

from frameflex.cli import VERBS, main
from frameflex.cli.evaluate import short_names
from frameflex.cli.options import frame_counts
from frameflex.engine.recipe import RecipeError
from frameflex.engine.recipe_files import bundled_recipes, find_recipe, parse_recipe
from frameflex.engine.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    data = bar_folder(root / "data", per_class=3)
    [path] = train(tiny_recipe(data, root / "run", epochs=1))
    return data, path


def run(*arguments, capsys):
    status = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_overview_lists_every_verb_and_each_explains_itself(capsys):
    status, out, _ = run("--help", capsys=capsys)
    assert status == 0
    assert all(f"  {verb} " in out for verb in VERBS)
    for verb in VERBS:
        status, out, err = run(verb, "--help", capsys=capsys)
        assert status == 0, err
        assert "usage: frameflex" in out


def test_an_unknown_verb_is_told_the_close_one(capsys):
    status, out, err = run("evalute", capsys=capsys)
    assert (status, out) == (2, "")
    assert err == "frameflex: unknown command 'evalute'; did you mean evaluate?\n"


def test_train_evaluate_and_predict_from_the_command_line(tmp_path, capsys):
    data = bar_folder(tmp_path / "data", per_class=3)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(data, tmp_path / "run").to_dict()))
    status, out, err = run("train", recipe, "--training.epochs", 1, "--seed=3", capsys=capsys)
    assert status == 0, err
    checkpoint = out.strip()
    assert checkpoint == str(tmp_path / "run" / "best.safetensors")
    assert "epoch 1: validation top-1" in err
    assert 'exchanges "going left" and "going right"' in err.replace("\n", " ")
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (saved["training"]["epochs"], saved["seed"]) == (1, 3)

    status, out, err = run(
        "evaluate", checkpoint, data, "--frames", "1-3,8", "--workers", 0, "--output", tmp_path / "results",
        "--json", capsys=capsys,
    )  # fmt: skip
    assert status == 0, err
    results = json.loads(out)
    assert [result["num_frames"] for result in results["results"]] == [1, 2, 3, 8]
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert written == {"report.html", "results.json", "predictions.csv", "accuracy.png", "confusion.png"}
    status, out, _ = run("evaluate", checkpoint, data, "--workers", 0, capsys=capsys)
    assert "top-1 %" in out
    assert re.search(r"│ +\*4 │", out)

    folder, pattern = data / "val" / "going left", data / "val" / "*" / "1.mp4"
    status, out, err = run(
        "predict", checkpoint, folder, pattern, "--json", "--workers", 0, "--top", 1, capsys=capsys
    )
    assert status == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 4  # 3 in the folder and 1 more: a file that matches twice is recognised once
    assert all(len(line["predictions"]) == 1 for line in lines)


def test_an_unreadable_file_is_reported_and_the_rest_go_on(trained, tmp_path, capsys):
    data, path = trained
    (tmp_path / "broken.mp4").write_text("no video")
    good = data / "val" / "going left" / "0.mp4"
    status, out, err = run("predict", path, tmp_path / "broken.mp4", good, "--workers", 0, capsys=capsys)
    assert status == 1
    assert "going" in out
    assert "broken.mp4" in err
    assert "1 of 2 videos could not be recognised" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "nowhere.safetensors", "x.mp4"], "checkpoint nowhere.safetensors: no such file"),
        (
            ["predict", "FOLDER", "x.mp4"],
            "is a folder; name a file in it: best.safetensors, last.safetensors",
        ),
        (["evaluate", "CHECKPOINT", "nowhere"], "nowhere: there is no such file or folder"),
        (["evaluate", "CHECKPOINT", "DATA", "--split", "test"], "expected one of those that are there"),
        (["predict", "CHECKPOINT", "nothing-*.mp4"], "no video file there"),
        (["train", "nothing.yaml"], "recipe nothing.yaml: no such file"),
        (["train", "motion.yaml", "--data.train", "nowhere"], "nowhere: there is no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_status_1(trained, arguments, words, capsys):
    data, path = trained
    arguments = [
        {"CHECKPOINT": str(path), "DATA": str(data), "FOLDER": str(path.parent)}.get(a, a) for a in arguments
    ]
    status, out, err = run(*arguments, capsys=capsys)
    assert status == 1
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate"],
        ["evaluate", "a", "b", "--frames", "4,x"],
        ["evaluate", "a", "b", "--frames", "0"],
        ["predict", "a", "b", "--top", "0"],
        ["data", "draw"],
    ],
)
def test_usage_errors_are_one_line_and_status_2(arguments, capsys):
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(FileNotFoundError):
        main(["predict", "nowhere.safetensors", "x.mp4", "--debug"])


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("--training.epoch", "Did you mean training.epochs?"),
        ("--training.learnign_rate", "Did you mean training.learning_rate?"),
        ("--epochs", "Did you mean training.epochs?"),
        ("--zzz", "See frameflex train --help"),
    ],
)
def test_an_unknown_key_on_the_command_line_gets_a_hint(key, hint):
    with pytest.raises(RecipeError, match=hint.replace("?", r"\?")):
        parse_recipe(["motion.yaml", key, "3"])


def test_an_unknown_key_in_a_file_gets_a_hint(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: x}\ntraining: {epoch: 3}\n")
    with pytest.raises(RecipeError, match=r"unknown key training.epoch. Did you mean training.epochs\?"):
        parse_recipe([str(path)])
    path.write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match="holds list; expected keys"):
        parse_recipe([str(path)])
    path.write_text("data: {train: x\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        parse_recipe([str(path)])
    path.write_text("data: {train: x}\ntraining: {epochs: many}\n")
    with pytest.raises(RecipeError, match="epochs"):
        parse_recipe([str(path)])
    path.write_text("data: {train: !!python/object/apply:os.system ['touch hacked']}\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        parse_recipe([str(path)])


@pytest.mark.parametrize("path", bundled_recipes(), ids=lambda path: path.name)
def test_bundled_recipes_are_complete(path):
    recipe, resume = parse_recipe([str(path), "--data.train", "somewhere"])
    assert not resume
    values = yaml.safe_load(path.read_text())
    for group, keys in recipe.to_dict().items():
        if isinstance(keys, dict):
            assert set(values[group]) == set(keys), f"{path.name}: {group}"
        else:
            assert group in values
    assert find_recipe(path.stem) == path


def test_a_recipe_survives_its_own_yaml(tmp_path):
    recipe, _ = parse_recipe(["motion.yaml", "--clip.mean", "[0.5,0.5,0.5]", "--training.accumulate", "3"])
    recipe.save(tmp_path / "again.yaml")
    again, _ = parse_recipe([str(tmp_path / "again.yaml")])
    assert again.to_dict() == recipe.to_dict()


def test_frame_counts_are_lists_and_ranges():
    assert frame_counts("4,8,16") == (4, 8, 16)
    assert frame_counts("1-4,2,10") == (1, 2, 3, 4, 10)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["best.safetensors"], ["best"]),
        (["runs/tsm/best.safetensors", "runs/ffn/best.safetensors"], ["tsm", "ffn"]),
        (["/a/tsm/run/last.safetensors", "/a/st", "/a/ffn/run/last.safetensors"], ["tsm", "st", "ffn"]),
        (["a/x/best.safetensors", "b/x/best.safetensors"], ["a/x", "b/x"]),
        (["m/best.safetensors", "m/last.safetensors"], ["best", "last"]),
        (
            ["tsm_resnet50.ssv2_8f", "tsm_resnet50.ssv2_16f"],
            ["tsm_resnet50.ssv2_8f", "tsm_resnet50.ssv2_16f"],
        ),
    ],
)
def test_several_checkpoints_get_short_names_that_differ(paths, names):
    assert list(short_names([Path(path) for path in paths])) == names


def test_the_choices_that_help_shows_are_those_of_the_library():
    from frameflex.cli import evaluate, options
    from frameflex.data import transforms
    from frameflex.models import frame_flexible

    assert tuple(transforms.VIEWS) == options.VIEWS
    assert frame_flexible.UNTRAINED == evaluate.UNTRAINED


def test_render_makes_a_data_set_that_is_read_back(tmp_path, capsys):
    status, out, err = run("data", "render", tmp_path / "motion", "--videos", 24, "--size", 32, capsys=capsys)
    assert status == 0, err
    assert out.strip() == str(tmp_path / "motion")
    status, _, err = run("data", "render", tmp_path / "motion", "--videos", 36, "--size", 32, capsys=capsys)
    assert status == 1
    assert "holds another benchmark" in err


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "frameflex", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("frameflex ")
    assert done.stderr == ""


def test_models_lists_what_can_be_built(capsys):
    status, out, _ = run("models", "resnet1[48]", capsys=capsys)
    assert status == 0
    assert "resnet18" in out.split()
    status, _, err = run("models", "zzz*", capsys=capsys)
    assert (status, "no architecture matches" in err) == (1, True)


def test_evaluate_refuses_what_cannot_work_before_it_measures(trained, tmp_path, capsys, monkeypatch):
    from frameflex.engine import evaluation

    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("measured"))
    data, checkpoint = trained
    status, out, err = run("evaluate", checkpoint, data, "--adaptive", capsys=capsys)
    assert (status, out) == (1, "")
    assert "--adaptive at 4 frames alone" in err
    (tmp_path / "taken").write_text("a file")
    status, out, err = run("evaluate", checkpoint, data, "--output", tmp_path / "taken", capsys=capsys)
    assert (status, out) == (1, "")
    assert "taken" in err


def test_compared_checkpoints_are_measured_at_the_counts_of_all(trained, tmp_path, capsys):
    data, checkpoint = trained
    [other] = train(tiny_recipe(data, tmp_path / "other", counts=(2,), epochs=1))
    status, out, err = run(
        "evaluate", checkpoint, other, data, "--compare", "--json", "--workers", 0, capsys=capsys
    )
    assert status == 0, err
    measured = [[row["num_frames"] for row in result["results"]] for result in json.loads(out)]
    assert measured == [[2, 4], [2, 4]]


def test_an_output_that_cannot_be_made_is_one_line_before_any_work(trained, tmp_path, capsys):
    data, checkpoint = trained
    (tmp_path / "file").write_text("mine")
    for arguments in (
        ("evaluate", checkpoint, data, "--output", tmp_path / "file" / "results"),
        ("calibrate", checkpoint, data, "--frames", 3, "--output", tmp_path / "file" / "new.safetensors"),
    ):
        status, _, err = run(*arguments, capsys=capsys)
        assert status == 1
        assert err.count("\n") == 1
        assert "can't be made (" in err
        assert "choose another" in err


def test_untrained_is_refused_for_networks_that_have_nothing_to_choose_from(trained, capsys):
    data, checkpoint = trained
    status, _, err = run("evaluate", checkpoint, data, "--untrained", "blend", capsys=capsys)
    assert status == 1
    assert "--untrained blend" in err
    assert "for frame-flexible networks" in err


def test_calibrate_takes_a_device(trained, tmp_path, capsys):
    data, checkpoint = trained
    new = tmp_path / "new" / "calibrated.safetensors"
    status, out, err = run(
        "calibrate",
        checkpoint,
        data,
        "--frames",
        3,
        "--output",
        new,
        "--device",
        "cpu",
        "--workers",
        0,
        "--allow-worse",
        capsys=capsys,
    )
    assert status == 0, err
    assert out.strip() == str(new)
    assert "on 6 held-out videos" in err  # the validation split
    status, _, err = run(
        "calibrate", checkpoint, data, "--frames", 3, "--output", tmp_path / "x.safetensors", "--device", "warp",
        capsys=capsys,
    )  # fmt: skip
    assert status == 1
    assert "warp" in err


def test_calibrate_refuses_a_wrong_name_before_it_works(trained, tmp_path, capsys):
    data, checkpoint = trained
    status, out, err = run(
        "calibrate", checkpoint, data, "--frames", 3, "--output", tmp_path / "x.pth", capsys=capsys
    )
    assert (status, out) == (2, "")
    assert ".safetensors" in err


def test_of_several_processes_only_the_first_talks(trained, tmp_path, capsys, monkeypatch):
    data, _ = trained
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(data, tmp_path / "run", epochs=1).to_dict()))
    monkeypatch.setenv("RANK", "1")
    status, out, err = run("train", recipe, capsys=capsys)
    assert (status, out, err) == (0, "", "")


def test_a_stopped_demo_says_where_things_are_and_promises_no_resuming(tmp_path, capsys, monkeypatch):
    from frameflex import demo
    from frameflex.engine.watching import Interrupted

    def stop(output, **_):
        raise Interrupted(output / "tsm" / "last.safetensors")

    monkeypatch.setattr(demo, "demo", stop)
    status, out, err = run("demo", "--output", tmp_path / "mine", capsys=capsys)
    assert (status, out) == (130, "")
    assert str(tmp_path / "mine") in err
    assert "--resume" not in err
