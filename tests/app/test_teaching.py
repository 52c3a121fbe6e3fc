"""The room Teach, talked to as a tab does: what is taught is a folder that `frameflex train` takes."""

import json
import os
import time

import pytest
import torch
from checkpoints import save_tiny
from helpers import moving_bar, write_video

from frameflex.data.finding import find_video_files
from frameflex.deploy.recognizer import Recognizer
from frameflex.video import open_video

pytest.importorskip("starlette", reason="needs frameflex[app]")
pytest.importorskip("httpx2", reason="needs httpx2, for Starlette's test client")

from starlette.testclient import TestClient
from tab import HERE, Tab, page_of

from frameflex.app.first_answer import FirstAnswer
from frameflex.app.lessons import THROWN_OUT, Clip, Lessons, checked_name
from frameflex.engine.confidence import wilson_interval


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    root = tmp_path_factory.mktemp("teach")
    save_tiny(root / "tiny.safetensors")
    for name in ("left", "right"):
        for i in range(4):
            frames = moving_bar(16, rightwards=name == "right", seed=i)
            write_video(root / f"{name}{i}.mp4", frames)
    (root / "text.mp4").write_text("just text")
    return root


@pytest.fixture
def client(things, tmp_path):
    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    with TestClient(page_of(recognizer, tmp_path, name=things / "tiny.safetensors"), base_url=HERE) as client:
        yield client


def teach(tab, path, label):
    tab.ask(type="upload")
    tab.send_file(path.read_bytes())
    tab.ask(type="teach", label=label)
    return tab.get("taught")["file"]


def settled(tab):
    """The list, and how it stands, when everything asked before is done."""
    tab.ask(type="lessons")
    listed = tab.get("lessons")
    while True:
        standing = tab.get("standing", "lessons")
        if standing["type"] == "standing":
            return listed, standing
        listed = standing


def names_of(listed):
    return {one["name"]: one["clips"] for one in listed["classes"]}


def test_what_is_taught_is_a_folder_for_each_class_that_training_reads(client, things, tmp_path):
    with Tab(client) as tab:
        for name in ("going left", "going right"):
            tab.ask(type="add-class", name=name)
            assert tab.get("class-added")["name"] == name
        files = {name: [] for name in ("going left", "going right")}
        for i in range(3):
            for side in ("left", "right"):
                files[f"going {side}"].append(teach(tab, things / f"{side}{i}.mp4", f"going {side}"))
        time.sleep(0.1)
        tab.ask(type="lessons")
        while sum(map(len, names_of(tab.get("lessons")).values())) < 6:
            tab.ask(type="lessons")
        standing = tab.get("standing")
        while standing.get("number") != 6:
            standing = tab.get("standing")
    assert {path.parent.name: 0 for path in find_video_files([tmp_path / "taught"])} == dict.fromkeys(
        files, 0
    )
    for name, clips in files.items():
        for clip in clips:
            with open_video(tmp_path / "taught" / name / clip) as reader:
                assert reader.num_frames == 16
    low, high = wilson_interval(standing["right"], 6)
    assert standing["interval"] == [low, high]
    assert len(standing["confusions"]) == 6 - standing["right"]


def test_a_clip_is_cut_from_a_longer_one(client, things, tmp_path):
    long = write_video(tmp_path / "long.mp4", moving_bar(60, rightwards=True))
    with Tab(client) as tab:
        tab.ask(type="add-class", name="waving")
        tab.ask(type="upload")
        tab.send_file(long.read_bytes())
        tab.ask(type="source")
        tab.get("source-kept")
        tab.ask(type="cut", label="waving", start=1.0, end=2.5)
        file = tab.get("taught")["file"]
        for start, end, words in ((3.0, 2.0, "before it starts"), (100.0, 101.0, "no frame from 100.0")):
            tab.ask(type="cut", label="waving", start=start, end=end)
            assert words in tab.error()
    with open_video(tmp_path / "taught/waving" / file) as reader, open_video(long) as whole:
        assert reader.num_frames == 18  # at 12 a second
        first, original = reader.frames([0]).float(), whole.frames([12]).float()
    assert (first - original).abs().mean() < 12  # another compression of the same picture
    assert sorted(path.name for path in (tmp_path / "taught/waving").iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../x", "has '/'"),
        ("..", "begins or ends with a dot"),
        ("a\\b", "has '\\\\'"),
        ("/etc", "has '/'"),
        (".hidden", "begins or ends with a dot"),
        ("", "has no name"),
        ("  ", "has no name"),
        ("a\x00b", "has '\\x00'"),
        ("a\u202eb", "which no folder's name may have"),
        ("x" * 81, "81 characters"),
        ("train", "part of a data set"),
        ("C:", "has ':'"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(client, tmp_path, name, words):
    with Tab(client) as tab:
        tab.ask(type="add-class", name=name)
        assert words in tab.error()
        assert not (tmp_path / "taught").exists()


def test_a_class_that_differs_by_capitals_is_refused_and_names_are_tidied(tmp_path):
    lessons = Lessons(tmp_path / "taught")
    assert lessons.add_class("  going   left ") == "going left"
    with pytest.raises(ValueError, match="there is a class 'going left' already"):
        lessons.add_class("Going Left")
    assert checked_name("<3"[1:]) == "3"


def test_clips_outside_of_the_folder_are_out_of_reach(client, things, tmp_path):
    (tmp_path / "secret").mkdir()
    write_video(tmp_path / "secret/a.mp4", moving_bar(4, rightwards=True))
    with Tab(client) as tab:
        tab.ask(type="add-class", name="waving")
        tab.get("class-added")
        for kind in ("throw-out", "put-back"):
            for label, file in (
                ("../secret", "a.mp4"),
                ("waving", "../../secret/a.mp4"),
                ("waving", str(tmp_path / "secret/a.mp4")),
                (THROWN_OUT, "a.mp4"),
            ):
                tab.ask(type=kind, label=label, file=file)
                tab.error()
        for label in ("../secret", "..", THROWN_OUT, "sleeping"):
            tab.ask(type="throw-out-class", name=label)
            assert "there is no class" in tab.error()
            tab.ask(type="upload")
            tab.send_file((things / "left0.mp4").read_bytes())
            tab.ask(type="teach", label=label)
            assert "there is no class" in tab.error()
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["a.mp4"]
    assert list((tmp_path / "taught/waving").iterdir()) == []


def test_a_clip_that_was_thrown_out_can_be_put_back(client, things, tmp_path):
    with Tab(client) as tab, Tab(client) as other:
        tab.ask(type="add-class", name="waving")
        file = teach(tab, things / "left0.mp4", "waving")
        tab.ask(type="throw-out", label="waving", file=file)
        while names_of(other.get("lessons")) != {"waving": []}:
            pass  # the other tab hears of everything; in the end the clip is gone
        assert (tmp_path / "taught" / THROWN_OUT / "waving" / file).is_file()
        tab.ask(type="put-back", label="waving", file=file)
        while names_of(other.get("lessons")) != {"waving": [file]}:
            pass
        assert (tmp_path / "taught/waving" / file).is_file()
        tab.ask(type="throw-out-class", name="waving")
        while names_of(other.get("lessons")) != {}:
            pass
        assert (tmp_path / "taught" / THROWN_OUT / "waving" / file).is_file()


def test_what_is_no_video_leaves_no_clip(client, things, tmp_path):
    with Tab(client) as tab:
        tab.ask(type="add-class", name="waving")
        tab.get("class-added")
        tab.ask(type="upload")
        tab.send_file((things / "text.mp4").read_bytes())
        tab.ask(type="teach", label="waving")
        assert "not a video file" in tab.error()
        tab.ask(type="train")
        assert "training needs clips of two classes" in tab.error()
        tab.ask(type="stop-training")
        tab.ask(type="use")
        assert "no training has given a network" in tab.error()
    assert list((tmp_path / "taught/waving").iterdir()) == []


def test_another_clip_is_told_by_the_nearest_that_were_taught(client, things):
    with Tab(client) as tab:
        for side in ("left", "right"):
            tab.ask(type="add-class", name=side)
            tab.get("class-added")
            for i in range(3):
                teach(tab, things / f"{side}{i}.mp4", side)
        tab.ask(type="upload")
        tab.send_file((things / "left1.mp4").read_bytes())
        tab.ask(type="ask")
        told = tab.get("told")
    assert told["predictions"][0]["label"] == "left"  # one just like it was taught
    assert sum(one["probability"] for one in told["predictions"]) == pytest.approx(1)
    assert told["nearest"][0]["label"] == "left"
    assert told["nearest"][0]["picture"].startswith("data:image/jpeg;base64,")


def test_the_standing_asks_for_each_clip_without_it():
    torch.manual_seed(0)
    features, labels = torch.randn(9, 6), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    rows = (features - features.mean(0)) / features.std(0, correction=0) / 3**0.5
    rows[:, :3] /= 2
    right, confusions = 0, []
    for i in range(9):
        others = torch.arange(9) != i
        x, y = rows[others], torch.eye(3)[labels[others]] - 1 / 3
        scores = rows[i] @ torch.linalg.solve(x.T @ x + 3 * torch.eye(6), x.T @ y)
        said = int(scores.argmax())
        right += said == labels[i]
        if said != labels[i]:
            alike = torch.nn.functional.cosine_similarity(rows[i], rows, dim=1)
            confusions.append(
                (i, max((labels == said).nonzero()[:, 0].tolist(), key=lambda j: float(alike[j])))
            )
    standing = FirstAnswer(features, labels.tolist(), 3).standing()
    assert (standing.right, standing.confusions) == (right, confusions)
    assert 0 < right < 9


def test_probabilities_add_up_and_the_nearest_come_first():
    torch.manual_seed(0)
    labels = [i % 2 for i in range(12)]
    features = torch.randn(12, 6) + torch.tensor([0.0, 0, 0, 3, 0, 0]) * torch.tensor(labels)[:, None]
    answer = FirstAnswer(features, labels, 2)
    for i, label in enumerate(labels):
        probabilities = answer.probabilities(features[i])
        assert float(probabilities.sum()) == pytest.approx(1)
        assert int(probabilities.argmax()) == label
        assert answer.nearest(features[i])[0] == i
    assert len(answer.nearest(features[0])) == 5


@pytest.mark.slow
def test_a_training_is_followed_stopped_gone_on_with_and_used(client, things, tmp_path):
    with Tab(client) as tab:
        for side in ("left", "right"):
            tab.ask(type="add-class", name=side)
            tab.get("class-added")
            for i in range(4):
                teach(tab, things / f"{side}{i}.mp4", side)
        tab.ask(type="train", minutes=5)
        report = tab.get("training")
        assert report["state"] == "running"
        tab.ask(type="train", minutes=1)
        assert "a training is running" in tab.error()
        while len(report["steps"]) < 3:
            report = tab.get("training")
            assert report["state"] == "running", report["lines"]
    with Tab(client) as tab:  # the tab was closed meanwhile: nothing is lost
        tab.ask(type="lessons")
        assert tab.get("training")["state"] == "running"
        tab.ask(type="stop-training")
        while (report := tab.get("training"))["state"] in ("running", "stopping"):
            pass
        assert report["state"] == "stopped", report["lines"]
        output = report["output"]
        assert os.path.exists(os.path.join(output, "last.safetensors"))
        with open(os.path.join(output, "recipe.yaml")) as file:
            assert "tiny.safetensors" in file.read()
        tab.ask(type="train", go_on=True)
        stopped_at = report["steps"][-1][0]
        while (report := tab.get("training"))["steps"][-1][0] <= stopped_at:
            assert report["state"] == "running", report["lines"]
        assert report["output"] == output
        tab.ask(type="stop-training")
        while (report := tab.get("training"))["state"] in ("running", "stopping"):
            pass
    with Tab(client) as tab:
        tab.ask(type="train", minutes=0.3)
        while (report := tab.get("training"))["state"] == "running":
            pass
        assert report["state"] == "done", report["lines"]
        assert 0 <= report["validations"][-1]["top1"] <= 1
        tab.ask(type="use")
        hello = tab.get("hello")
        assert hello["classes"] == ["left", "right"]
        tab.upload((things / "left0.mp4").read_bytes())
        assert {one["label"] for one in tab.get("look")["predictions"]} == {"left", "right"}


@pytest.mark.slow
def test_the_page_ends_a_training_in_order(things, tmp_path):
    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    page = page_of(recognizer, tmp_path, name=things / "tiny.safetensors")
    for side in ("left", "right"):
        for i in range(4):
            target = tmp_path / "taught" / side / f"{i}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((things / f"{side}{i}.mp4").read_bytes())
    assert Lessons(tmp_path / "taught").clips()[0] == Clip("left", "0.mp4")
    with TestClient(page, base_url=HERE) as client, Tab(client) as tab:
        tab.ask(type="train", minutes=5)
        while len((report := tab.get("training"))["steps"]) < 2:
            assert report["state"] == "running", report["lines"]
    output = report["output"]
    assert os.path.exists(os.path.join(output, "last.safetensors"))
    with open(os.path.join(output, "log.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    time.sleep(1)
    with open(os.path.join(output, "log.jsonl")) as file:
        assert len(file.readlines()) == len(lines)  # nobody trains any more
