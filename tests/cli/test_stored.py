"""Every verb does at s3:// what it does on local files, or says in a line why it can't. A real S3 server."""

import json
import re
import sys

import pytest
import torch
from helpers import bar_folder, tiny_recipe
from store import times

from frameflex.checkpoint import Checkpoint, fetch, load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.datasets import load_split, load_videos, survey
from frameflex.data.preparing import Encoding, prepare
from frameflex.data.transforms import Preprocessing
from frameflex.engine.training import train
from frameflex.models import create_model
from frameflex.storage import StorageError

CLASSES = ["going left", "going right"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set, a list of it, its shards, and a checkpoint."""
    root = tmp_path_factory.mktemp("stored")
    data = bar_folder(root / "data", per_class=3)
    rows = [f"data/val/{name}/{i}.mp4,{name}" for name in CLASSES for i in range(3)]
    (root / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    prepare(survey(data), root / "shards", encoding=Encoding("lossless"), videos_per_shard=3)
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=2, pretrained=False)
    recipe = tiny_recipe(data, root)
    pixels = Preprocessing(short_side=32, crop_size=32)
    save_checkpoint(
        root / "best.safetensors",
        Checkpoint(
            model=model, class_names=CLASSES, preprocessing=pixels, frame_counts=recipe.clip.frame_counts
        ),
    )
    return root


@pytest.fixture
def both(made, store):
    """Where it lies here, and where it lies in storage."""
    store.put_folder(made, "a")
    store.requests.clear()
    return str(made), "s3://bucket/a"


def answers(capsys, *argv, status=0):
    assert main([str(one) for one in argv]) == status
    return capsys.readouterr().out


def videos_of(home, data):
    return [(str(v.path).removeprefix(home), v.label, v.name, v.group) for v in data]


def test_a_data_set_in_storage_is_the_local_one(both):
    here, there = both
    for name in ("data", "list.csv", "shards"):
        for split in ("train", "validation"):
            ours, theirs = (load_split(f"{home}/{name}", split) for home in (here, there))
            assert videos_of(there, theirs) == videos_of(here, ours)
            assert (theirs.classes, theirs.splits, theirs.layout) == (ours.classes, ours.splits, ours.layout)
            for a, b in zip(ours, theirs, strict=True):
                with a.open() as first, b.open() as second:
                    assert torch.equal(first.frames([0, 5]), second.frames([0, 5]))


def test_lists_of_addresses_and_videos_elsewhere_are_read(both, tmp_path, store):
    _, there = both
    names = [(f"{name}/{i}.mp4", name) for name in CLASSES for i in range(3)]
    addresses = tmp_path / "addresses.csv"
    addresses.write_text(
        "path,label\n" + "".join(f"{there}/data/val/{file},{name}\n" for file, name in names)
    )
    relative = tmp_path / "relative.csv"
    relative.write_text("path,label\n" + "".join(f"{file},{name}\n" for file, name in names))
    wanted = [f"{there}/data/val/{file}" for file, _ in names]
    assert [str(v.path) for v in load_videos(addresses)] == wanted
    assert [str(v.path) for v in load_videos(relative, video_dir=f"{there}/data/val")] == wanted
    addresses.write_text(f"path,label\n{there}/data/val/going left/0.mp4,x\n{there}/data/none.mp4,y\n")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 2 videos are not there:\n  s3://bucket/a/data/none.mp4"
    ):
        load_videos(addresses)
    many = [f"{there}/data/val/going left/{i}.mp4,x\n" for i in range(60)]
    addresses.write_text("path,label\n" + "".join(many))
    store.requests.clear()
    assert len(load_videos(addresses, on_missing="skip").missing) == 57
    assert len(store.requests) < 5  # the folder is listed


def test_what_is_no_data_set_is_said_with_its_address(both, store):
    _, there = both
    for address, words in {
        f"{there}/none": "there is no such file or folder",
        f"{there}/data/val/going left/0.mp4": "no known layout",
        f"{there}/none.csv": "there is no such file",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
            load_videos(address)
        assert str(error.value).startswith(address)
        assert "/tmp" not in str(error.value)
    store.put("wrong/list.csv", b"path,label\na.mp4,x\nb.mp4,x,y\n")
    with pytest.raises(ValueError, match=r"s3://bucket/wrong/list.csv, line 3: 3 columns"):
        load_videos("s3://bucket/wrong/list.csv")
    for i in range(3):
        store.put(f"pictures/x/v/{i}.jpg", b"1")
        store.put(f"pictures/y/v/{i}.jpg", b"1")
    with pytest.raises(ValueError, match=r"s3://bucket/pictures/x/v: is a folder of pictures"):
        load_videos("s3://bucket/pictures")
    store.put("odd/x/../../../../etc/v.mp4", b"1")
    with pytest.raises((StorageError, FileNotFoundError)):
        load_videos("s3://bucket/odd")


def test_predict_gives_the_answers_of_the_local_files(both, capsys):
    here, there = both
    wanted = None
    for home in both:
        told = answers(
            capsys,
            "predict",
            f"{home}/best.safetensors",
            f"{home}/data/val",
            "--json",
            "--precision",
            "float32",
        )
        rows = [json.loads(line.replace(home, "")) for line in told.splitlines()]
        assert len(rows) == 6
        assert wanted in (None, rows)
        wanted = rows
    some = answers(
        capsys, "predict", f"{here}/best.safetensors", f"{there}/data/**/1.mp4", "--json", "--workers", "2"
    )
    assert len(some.splitlines()) == 4
    events = answers(
        capsys,
        "predict",
        f"{there}/best.safetensors",
        f"{there}/data/val/going left/0.mp4",
        "--window",
        "0.5s",
    )
    assert events.startswith(f"{there}/data/val/going left/0.mp4")


def test_evaluate_and_check_and_prepare_find_what_they_find_locally(both, tmp_path, capsys, store):
    found = {}
    for home in both:
        for data in ("data", "shards"):
            told = answers(
                capsys,
                "evaluate",
                f"{home}/best.safetensors",
                f"{home}/{data}",
                "--json",
                "--precision",
                "float32",
            )
            found.setdefault(data, []).append(told.replace(home, ""))
    for first, second in found.values():
        assert _without_speed(json.loads(first)) == _without_speed(json.loads(second))
    store.put("a/data/train/going left/bad.mp4", b"no video")
    told = answers(
        capsys, "data", "check", "s3://bucket/a/data", "--output", tmp_path / "check", "--json", status=1
    )
    assert [(one["kind"], one["path"]) for one in json.loads(told)["findings"]] == [
        ("unreadable", "s3://bucket/a/data/train/going left/bad.mp4")
    ]
    quarantine = tmp_path / "check/quarantine.txt"
    assert len(load_videos("s3://bucket/a/data", split="train", quarantine=quarantine)) == 6
    listed = store.put("a/quarantine.txt", b"data/train/going left/bad.mp4\tbad\n")
    assert len(load_videos("s3://bucket/a/data", split="train", quarantine=listed)) == 6
    told = answers(
        capsys, "data", "prepare", "s3://bucket/a/data", tmp_path / "out", "--quarantine", quarantine,
        "--format", "lossless",
    )  # fmt: skip
    assert len(load_videos(tmp_path / "out", split="train")) == 6


def _without_speed(value):
    if isinstance(value, dict):
        return {k: _without_speed(v) for k, v in value.items() if "second" not in k and "checkpoint" not in k}
    return [_without_speed(one) for one in value] if isinstance(value, list) else value


def test_training_from_storage_with_faults_has_the_weights_of_training_from_files(both, tmp_path, store):
    here, there = both
    local = train(tiny_recipe(f"{here}/data", tmp_path / "local", epochs=1))[0]
    turns = [0]

    def now_and_then(handler):  # every third answer breaks
        turns[0] += 1
        if handler.command != "GET" or turns[0] % 3:
            return False
        return (
            store.refuse(handler, 503, "SlowDown") if turns[0] % 2 else store.answer(handler, cut_after=300)
        )

    store.misbehave = now_and_then
    far = train(tiny_recipe(f"{there}/data", tmp_path / "far", epochs=1))[0]
    assert turns[0] > 20
    ours, theirs = (load_checkpoint(path).model.state_dict() for path in (local, far))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_loader_processes_read_from_storage(both, capsys):
    here, there = both
    told = answers(
        capsys, "evaluate", f"{there}/best.safetensors", f"{there}/data", "--json", "--workers", "2",
        "--precision", "float32",
    )  # fmt: skip
    alone = answers(
        capsys, "evaluate", f"{there}/best.safetensors", f"{here}/data", "--json", "--workers", "0",
        "--precision", "float32",
    )  # fmt: skip
    assert _figures(told) == _figures(alone)


def _figures(text):
    figures = re.findall(r'"(?:top1|nll|ece)": ([^,\n]+)', text)
    assert figures
    return figures


def test_a_checkpoint_is_fetched_once_and_again_when_it_has_changed(both, store, made):
    _, there = both
    address = f"{there}/best.safetensors"
    first = fetch(address)
    assert first.read_bytes() == (made / "best.safetensors").read_bytes()
    store.requests.clear()
    assert fetch(address) == first
    assert [request.split()[0] for request in store.requests] == ["HEAD"]
    store.put("a/model/model.safetensors", first.read_bytes())
    assert load_checkpoint(f"{there}/model").class_names == CLASSES
    store.put("a/best.safetensors", first.read_bytes()[:-10])
    with pytest.raises(Exception, match="not a complete safetensors file"):
        load_checkpoint(address)
    with pytest.raises(Exception, match="SHA-256"):
        fetch(f"{address}#sha256={'0' * 64}")


DENIED = "no permission to read it"


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (["predict", "CHECKPOINT", "s3://bucket/a/data/val/going left/9.mp4"], "9.mp4: there is no such file"),
        (["predict", "CHECKPOINT", "s3://bucket/none/"], "s3://bucket/none/: no video file there"),
        (["predict", "CHECKPOINT", "s3://no-bucket/v.mp4"], "there is no bucket 'no-bucket'"),
        (["predict", "s3://bucket/none.safetensors", "v.mp4"], "s3://bucket/none.safetensors: there is no such file"),
        (["evaluate", "CHECKPOINT", "s3://bucket/none"], "s3://bucket/none: there is no such file or folder"),
        (["evaluate", "CHECKPOINT", "s3://no-bucket/data"], "there is no bucket 'no-bucket'"),
        (["data", "check", "s3://bucket/none", "--output", "OUT"], "there is no such file or folder"),
        (["data", "check", "s3://bucket/a/data", "--output", "s3://bucket/out"], "--output s3://bucket/out: is in"),
        (["data", "prepare", "s3://bucket/a/data", "s3://bucket/a/shards"], "/a/shards holds prepared data"),
        (["train", "s3://bucket/none", "--output", "OUT"], "there is no such file or folder"),
    ],
)  # fmt: skip
def test_what_is_not_there_or_can_not_be_is_one_line(both, tmp_path, capsys, verb, words):
    here, _ = both
    argv = [
        one.replace("CHECKPOINT", f"{here}/best.safetensors").replace("OUT", str(tmp_path / "out"))
        for one in verb
    ]
    assert main(argv) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
    assert "/tmp/frameflex-" not in told


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_storage_that_fails_is_no_bad_video(both, tmp_path, capsys, store, workers):
    """The work stops and says why; nothing is counted as bad, skipped, or put into a quarantine list."""
    here, there = both
    store.misbehave = times(
        99, lambda handler: store.refuse(handler, 403, "AccessDenied", "Access Denied"), of="left/1.mp4"
    )
    for argv in (
        ["predict", f"{here}/best.safetensors", f"{there}/data/val"],
        ["evaluate", f"{here}/best.safetensors", f"{there}/data", "--on-bad-video", "skip"],
        ["data", "check", f"{there}/data", "--output", str(tmp_path / "check")],
        ["data", "prepare", f"{there}/data", str(tmp_path / "out"), "--on-bad-video", "skip"],
    ):
        if argv[0] == "data" and workers == "0":
            continue
        assert main([*argv, "--workers", workers]) == 1
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith(f"frameflex: {there}/data/"), last
        assert "no permission to read it (Access Denied)" in last
    assert not (tmp_path / "check/quarantine.txt").exists()
    assert not (tmp_path / "out/index.json").exists()


def test_without_credentials_and_without_the_package_one_line_says_what_to_do(both, capsys, monkeypatch):
    here, there = both
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec = pytest.importorskip("fsspec")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    argv = ["predict", f"{here}/best.safetensors", f"{there}/data/val/going left/0.mp4"]
    assert main(argv) == 1
    assert "no credentials" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert main(argv) == 1
    assert "pip install frameflex[s3]" in capsys.readouterr().err
