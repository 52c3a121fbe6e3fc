"""What verbs write: never over what they read, whole, and with the rights that the user's umask leaves."""

import os
import shutil
import stat
import sys

import pytest
import torch
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.engine.training import train
from frameflex.export import export
from frameflex.models import create_model
from frameflex.motion.rendering import render
from frameflex.new_files import new_file, new_folder

CLASSES = ["going left", "going right"]


def checkpoint(**options):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=2, **options).eval()
    return Checkpoint(model, CLASSES, Preprocessing(short_side=32, crop_size=32), (4,))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    save_checkpoint(root / "model.safetensors", checkpoint())
    save_checkpoint(root / "causal.safetensors", checkpoint(shift="causal"))
    write_video(root / "a.mp4", moving_bar(24, rightwards=True))
    write_video(root / "b.mp4", moving_bar(24, rightwards=False))
    return root


def another_name(kind, file):
    """The same file, called otherwise."""
    if kind == "as it is":
        return file
    other = file.parent / "other" / file.name
    other.parent.mkdir()
    if kind == "a link":
        other.symlink_to(file)
    elif kind == "a hard link":
        os.link(file, other)
    else:
        return file.parent / "other" / ".." / file.name
    return other


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("kind", ["as it is", "a link", "a hard link", "another spelling"])
@pytest.mark.parametrize(
    "arguments",
    [
        "stream causal.safetensors a.mp4 --every-frame --save {a.mp4}",
        "predict model.safetensors a.mp4 --window 1s --annotate {a.mp4}",
        "predict model.safetensors a.mp4 --window 1s --output {events.json} --quarantine events.json",
        "convert model.safetensors --to {model.safetensors}",
        "calibrate model.safetensors a.mp4 --frames 2 --output {model.safetensors}",
        "evaluate model.safetensors results.json/../predictions.csv --output {predictions.csv}/..",
        "data check quarantine.txt --output {quarantine.txt}/..",
    ],
    ids=lambda text: text.split()[0] + "-" + text.split("--")[-1].split()[0],
)
def test_no_verb_writes_over_what_it_reads(things, tmp_path, monkeypatch, capsys, kind, arguments):
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("model.safetensors", "causal.safetensors", "a.mp4"):
        shutil.copy(things / name, folder)
    (folder / "events.json").write_text("[]")
    for name in ("predictions.csv", "quarantine.txt"):
        (folder / name).write_text("a.mp4,going left\n")
    arguments = arguments.replace("results.json/../", "")
    monkeypatch.chdir(folder)
    before, after = arguments.split("{")
    name, rest = after.split("}")
    output = another_name(kind, folder / name)
    target = str(output.parent) if rest == "/.." else str(output)
    content = (folder / name).read_bytes()
    assert main([*before.split(), target, *rest.replace("/..", "").split()]) == 1
    said = capsys.readouterr().err
    assert "would be written over, and it is read" in said
    assert (folder / name).read_bytes() == content


def test_several_long_videos_have_one_policy(things, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(things / name, tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    checkpoint, files = str(things / "model.safetensors"), ["a.mp4", "broken.mp4", "gone.mp4", "b.mp4"]
    assert main(["predict", checkpoint, *files, "--window", "1s"]) == 1
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.endswith(".mp4")][-1] == "b.mp4"
    assert "broken.mp4" in told.err
    assert "gone.mp4" in told.err
    assert "2 of 4 videos" in told.err
    assert main(["predict", checkpoint, *files, "--window", "1s", "--on-bad-video", "error"]) == 1
    told = capsys.readouterr()
    assert "broken.mp4" in told.err
    assert "b.mp4" not in told.out.replace("broken", "")


@pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_outputs_have_the_rights_that_the_umask_leaves(things, tmp_path, monkeypatch, umask):
    data = bar_folder(tmp_path / "data", per_class=2)
    before = os.umask(umask)
    try:
        monkeypatch.chdir(tmp_path)
        [best] = train(tiny_recipe(data, tmp_path / "run", epochs=1))
        model = str(best)
        assert main(["evaluate", model, str(data), "--output", "results"]) == 0
        windows = ["--window", "1s", "--output", "events.json", "--timeline", "t.png", "--annotate", "v.mp4"]
        assert main(["predict", model, str(things / "a.mp4"), *windows]) == 0
        (tmp_path / "list.txt").write_text(str(things / "a.mp4") + "\n")
        assert main(["predict", model, "--manifest", "list.txt", "--out", "parts"]) == 0
        assert main(["data", "check", str(data), "--output", "checked", "--workers", "1"]) == 0
        assert main(["data", "prepare", str(data), "shards", "--workers", "1"]) == 0
        assert (
            main(
                ["calibrate", model, str(data), "--frames", "3", "--output", "c.safetensors", "--allow-worse"]
            )
            == 0
        )
        render(tmp_path / "motion", num_videos=24, size=16)
        export(best, tmp_path / "exported", format="torchscript", frame_counts=(2,))
    finally:
        os.umask(before)
    wrong = []
    for path in tmp_path.rglob("*"):
        if path.is_relative_to(data) or path.is_symlink() or path.name == "list.txt":
            continue
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        if stat.S_IMODE(path.stat().st_mode) != expected:
            wrong.append(f"{path.relative_to(tmp_path)}: {stat.S_IMODE(path.stat().st_mode):o}")
    assert wrong == []


def test_a_file_or_folder_is_there_whole_or_not_at_all(tmp_path):
    def write_half():
        with new_file(tmp_path / "deep" / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    def fill_half():
        with new_folder(tmp_path / "b") as folder:
            (folder / "half").touch()
            raise RuntimeError

    for stopped in (write_half, fill_half):
        with pytest.raises(RuntimeError):
            stopped()
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "full"):
        pass
    assert (tmp_path / "full" / "precious").exists()


def test_views_that_a_network_has_not_are_told_before_a_folder_is_made(tmp_path, capsys):
    data = bar_folder(tmp_path / "bars", per_class=1)
    whole = checkpoint()
    whole.preprocessing = Preprocessing(crop_size=32, fit="whole")
    save_checkpoint(tmp_path / "whole.safetensors", whole)
    command = [
        "evaluate",
        str(tmp_path / "whole.safetensors"),
        str(data),
        "--output",
        str(tmp_path / "results"),
    ]
    assert main([*command, "--views", "1x3"]) == 1
    assert "sees the whole frame" in capsys.readouterr().err
    assert main([*command, "--views", "2x1", "--baseline"]) == 1
    assert "--baseline is measured with one view" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
