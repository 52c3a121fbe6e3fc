"""Names of files and classes may hold anything: every verb shows them on one line and writes what can be read."""

import csv
import json
import os
import re
import shutil
import sys
import warnings

import pytest
import torch
from helpers import moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.batch import read_parts
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.training import train
from frameflex.models import create_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems forbid some of these names")

# As in the file system, and as people are to be shown it.
NAMES = {
    b"clip [abc123].mp4": "clip [abc123].mp4",
    b"[red]marked[bold].mp4": "[red]marked[bold].mp4",
    b"escaped \\[red] [[x]].mp4": "escaped \\[red] [[x]].mp4",
    b":smile: $x$ {y} %s.mp4": ":smile: $x$ {y} %s.mp4",
    b"caf\xe9.mp4": r"caf\xe9.mp4",
    b"two\nlines.mp4": r"two\nlines.mp4",
    b"\x1b[31mred\x07.mp4": r"\x1b[31mred\x07.mp4",
    "c1\x9b31m.mp4".encode(): r"c1\x9b31m.mp4",
    "turned\u202e4pm.mp4".encode(): r"turned\u202e4pm.mp4",
    "of \u2028 two.mp4".encode(): r"of \u2028 two.mp4",
    "\U0001f600 שלום.mp4".encode(): "\U0001f600 שלום.mp4",
    b"'quoted\" & \\back; <b>.mp4": "'quoted\" & \\back; <b>.mp4",
    b"a  b\t.mp4": r"a  b\t.mp4",
    b"_" + b"long" * 60 + b".mp4": "_" + "long" * 60 + ".mp4",
}
CLASSES = ["[red]going[/] left :smile: $x", "_going\x1b[1m\nright\udce9 \u202e$"]
SHOWN_CLASSES = ["[red]going[/] left :smile: $x", r"_going\x1b[1m\nright\xe9 \u202e$"]
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800-\udfff]")  # all but the end of a line


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Videos of all names, a folder of two classes, checkpoints of classes with such names."""
    root = tmp_path_factory.mktemp("names")
    video = write_video(root / "plain.mp4", moving_bar(12, rightwards=True))
    (root / "videos").mkdir()
    for name in NAMES:
        shutil.copy(video, os.path.join(os.fsencode(root / "videos"), name))
    (root / "broken").mkdir()
    for name in NAMES:
        with open(os.path.join(os.fsencode(root / "broken"), name), "wb") as file:
            file.write(b"no video")
    for number, (name, _) in enumerate(NAMES.items()):
        for split in ("train", "val"):
            folder = os.path.join(
                os.fsencode(root / "data"), split.encode(), b"[b]class %d\x1b" % (number % 2)
            )
            os.makedirs(folder, exist_ok=True)
            moved = moving_bar(10 + number, rightwards=number % 2 == 0, seed=number + 50 * (split == "val"))
            shutil.copy(write_video(root / "one.mp4", moved), os.path.join(folder, name))
    for name, options in (("best", {}), ("causal", {"shift": "causal"})):
        torch.manual_seed(0)
        model = create_model("test_resnet", num_classes=2, **options).eval()
        made = Checkpoint(model, CLASSES, Preprocessing(short_side=32, crop_size=32), (4,))
        save_checkpoint(root / f"{name}.safetensors", made)
    return root


def run(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of a formula or a glyph
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Glyph")
        return main([str(argument) for argument in arguments])


def shown(capsys):
    told = capsys.readouterr()
    for text in told:
        assert UNSEEN.findall(text) == []
    return told.out, told.err


def test_every_name_is_read_back_and_shown_by_predict(things, capsys):
    assert run("predict", things / "best.safetensors", things / "videos", "--workers", 0) == 0
    out, _ = shown(capsys)
    lines = out.splitlines()
    for name in NAMES.values():
        assert str(things / "videos" / name) in lines
    assert sum(line.endswith(SHOWN_CLASSES[0]) for line in lines) == len(NAMES)
    assert sum(line.endswith(SHOWN_CLASSES[1]) for line in lines) == len(NAMES)


def test_json_of_predict_has_every_name_whole_but_for_bytes_that_are_no_text(things, capsys):
    assert run("predict", things / "best.safetensors", things / "videos", "--workers", 0, "--json") == 0
    rows = [json.loads(line) for line in shown(capsys)[0].splitlines()]
    expected = {os.fsdecode(name).replace("\udce9", r"\xe9") for name in NAMES}
    assert {row["video"].removeprefix(f"{things / 'videos'}/") for row in rows} == expected
    assert {one["label"] for one in rows[0]["predictions"]} == {n.replace("\udce9", r"\xe9") for n in CLASSES}


@pytest.mark.parametrize("form", [[], ["--json"], ["--window", "0.5"], ["--window", "0.5", "--json"]])
def test_an_error_names_its_file_on_one_line(things, capsys, form):
    assert run("predict", things / "best.safetensors", things / "broken", "--workers", 0, *form) == 1
    _, err = shown(capsys)
    for name in NAMES.values():
        assert sum(f"broken/{name}:" in line for line in err.splitlines()) == 1


@pytest.mark.parametrize("form", ["json", "csv", "srt"])
def test_events_are_written_of_every_name(things, capsys, tmp_path, form):
    best = Recognizer.from_checkpoint(things / "best.safetensors")(things / "plain.mp4")[0].index
    for name in (b"caf\xe9.mp4", b"two\nlines.mp4", b"clip [abc123].mp4"):
        path = os.fsdecode(os.path.join(os.fsencode(things / "videos"), name))
        target = tmp_path / f"events.{form}"
        options = (
            "--window",
            "0.5",
            "--threshold",
            "0.01",
            "--output",
            target,
            "--timeline",
            tmp_path / "t.png",
        )
        assert run("predict", things / "best.safetensors", path, *options) == 0
        assert SHOWN_CLASSES[best] in shown(capsys)[0]
        text = target.read_text(encoding="utf-8")
        if form == "json":
            assert json.loads(text)["video"] == path.replace("\udce9", r"\xe9")
        elif form == "csv":
            assert {row["label"] for row in csv.DictReader(text.splitlines(keepends=True))} <= {
                name.replace("\udce9", r"\xe9") for name in CLASSES
            }
        else:
            assert UNSEEN.findall(text) == []
            assert (
                len(text.split("\n\n")[0].splitlines()) == 3
            )  # number, times, label: no line of the label's


def test_an_evaluation_says_where_it_wrote_and_what_it_left_out(things, capsys, tmp_path):
    names = [os.fsdecode(b"caf\xe9 [abc123].mp4"), "clip [abc123].mp4"]
    shutil.copy(things / "broken" / names[1], tmp_path / names[0])
    with (tmp_path / "list.csv").open("wb") as file:
        file.write(os.fsencode(f"path,label\n{things / 'videos' / names[1]},0\n{names[0]},1\n"))
    output = tmp_path / "[results]"
    options = ("--output", output, "--workers", 0, "--on-bad-video", "skip")
    if run("evaluate", things / "best.safetensors", tmp_path / "list.csv", *options) != 0:
        assert "UTF-8" in shown(capsys)[1]  # what a list is in; then without
        (tmp_path / names[0]).rename(tmp_path / "b [abc].mp4")
        (tmp_path / "list.csv").write_text(f"path,label\n{things / 'videos' / names[1]},0\nb [abc].mp4,1\n")
        assert run("evaluate", things / "best.safetensors", tmp_path / "list.csv", *options) == 0
    _, err = shown(capsys)
    assert f"into {output}" in err
    assert "left out: b [abc].mp4: " in err
    assert "clip [abc123].mp4" in (output / "predictions.csv").read_text(encoding="utf-8")


def test_a_check_lists_every_name(things, capsys, tmp_path):
    output = tmp_path / "check"
    assert run("data", "check", things / "broken", "--output", output, "--workers", 2) == 1
    out, _ = shown(capsys)
    report = (output / "report.txt").read_text(encoding="utf-8")
    assert UNSEEN.findall(report) == []
    for name in NAMES.values():
        if len(name) < 100:  # longer ones are folded
            assert name in report
    found = json.loads((output / "report.json").read_text(encoding="utf-8"))["findings"]
    expected = {os.fsdecode(name).replace("\udce9", r"\xe9") for name in NAMES}
    assert {one["name"] for one in found if one["kind"] != "duplicate"} == expected
    assert "clip [abc123].mp4" in out
    assert run("predict", things / "best.safetensors", things / "broken", "--quarantine",
               output / "quarantine.txt", "--workers", 0) == 0  # fmt: skip
    _, err = shown(capsys)
    for name in NAMES.values():
        assert f"broken/{name}: " in err


def test_training_evaluating_preparing_and_exporting_take_every_name(things, capsys, tmp_path):
    train(tiny_recipe(things / "data", tmp_path / "run", epochs=1))
    best = tmp_path / "run" / "best.safetensors"
    names = load_checkpoint(best).class_names
    assert sorted(names) == ["[b]class 0\x1b", "[b]class 1\x1b"]
    output = tmp_path / "results"
    assert run("evaluate", best, things / "data", "--output", output, "--workers", 0) == 0
    shown(capsys)
    with open(output / "predictions.csv", newline="", encoding="utf-8") as file:
        told = {row["video"].rpartition("/")[2] for row in csv.DictReader(file)}
    assert told == {os.fsdecode(name).replace("\udce9", r"\xe9") for name in NAMES}
    page = (output / "report.html").read_text(encoding="utf-8")
    assert UNSEEN.findall(page) == []
    assert r"[b]class 0\x1b" in page
    assert run("data", "prepare", things / "data", tmp_path / "shards", "--workers", 2) == 0
    shown(capsys)
    assert run("evaluate", best, tmp_path / "shards", "--workers", 0, "--json") == 0
    assert json.loads(shown(capsys)[0])["protocol"]["num_videos"] == len(NAMES)


def test_a_stream_names_its_source_on_one_line(things, capsys):
    for name, seen in NAMES.items():
        path = os.fsdecode(os.path.join(os.fsencode(things / "videos"), name))
        assert run("stream", things / "causal.safetensors", path, "--every-frame") == 0
        out, _ = shown(capsys)
        lines = [json.loads(line) for line in out.splitlines()]
        assert {line["source"] for line in lines} == {path.replace("\udce9", r"\xe9")}, seen


def test_an_export_in_int8_names_what_it_left_out(things, capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    folder = shutil.copytree(things / "videos", tmp_path / "videos")
    broken = os.path.join(os.fsencode(folder), b"caf\xe9 [abc123]\x1b.mp4")
    with open(broken, "wb") as file:
        file.write(b"no video")
    output = tmp_path / "out [1]"
    options = (
        "--format",
        "onnx",
        "--int8",
        folder,
        "--on-bad-video",
        "skip",
        "--min-agreement",
        0,
        "--workers",
        0,
    )
    assert run("export", things / "best.safetensors", "--output", output, *options, "--json") == 0
    out, err = shown(capsys)
    assert r"caf\xe9 [abc123]\x1b.mp4" in err
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    assert json.loads(out) == manifest
    assert manifest["class_names"] == [name.replace("\udce9", r"\xe9") for name in CLASSES]


def test_a_manifest_of_videos_gives_their_names_back(things, capsys, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"{things / 'videos' / name}\n" for name in NAMES.values()))
    assert run("predict", things / "best.safetensors", "--manifest", tmp_path / "list.txt", "--out",
               tmp_path / "out [1]", "--part-format", "jsonl", "--workers", 0) == 0  # fmt: skip
    _, err = shown(capsys)
    assert f"parts in {tmp_path / 'out [1]'}" in err
    rows = list(read_parts(tmp_path / "out [1]"))
    assert [row["video"] for row in rows] == [f"{things / 'videos' / name}" for name in NAMES.values()]
    good = [row for row in rows if row["error"] is None]
    assert {one["label"] for one in good[0]["predictions"]} == {n.replace("\udce9", r"\xe9") for n in CLASSES}
