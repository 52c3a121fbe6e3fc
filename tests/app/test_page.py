"""The page of `frameflex app`, talked to as a tab does: each answer is that of the command line."""

import asyncio

import pytest
import torch
from checkpoints import CLASSES, said_by_predict, save_tiny
from helpers import moving_bar, write_video

from frameflex.deploy.recognizer import Recognizer
from frameflex.export import export

pytest.importorskip("starlette", reason="needs frameflex[app]")
pytest.importorskip("httpx2", reason="needs httpx2, for Starlette's test client")

from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from tab import HERE, Tab, page_of

from frameflex.app.page import PAGE_LIMITS, STATIC


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    save_tiny(root / "tiny.safetensors")
    write_video(root / "clip.mp4", moving_bar(40, rightwards=True))
    write_video(root / "long.mp4", moving_bar(120, rightwards=False))
    (root / "text.mp4").write_text("just text")
    return root


@pytest.fixture(scope="module")
def client(things):
    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    with TestClient(page_of(recognizer, things), base_url=HERE) as client:
        yield client


@pytest.fixture
def tab(client):
    with Tab(client) as tab:
        yield tab


@pytest.mark.parametrize("frames", [None, 1, 5, 32])
def test_an_answer_is_that_of_predict_at_any_number_of_frames(tab, things, capsys, frames):
    tab.upload((things / "clip.mp4").read_bytes(), frames=frames)
    answer = tab.get("look")
    options = [] if frames is None else ["--frames", str(frames)]
    [expected] = said_by_predict(things, capsys, "clip.mp4", *options)
    assert answer["frames"] == frames or 8
    assert [one["label"] for one in answer["predictions"]] == [
        one["label"] for one in expected["predictions"]
    ]
    assert [one["probability"] for one in answer["predictions"]] == pytest.approx(
        [one["probability"] for one in expected["predictions"]], abs=1e-5
    )
    assert len(answer["strip"]) == len(answer["frame_numbers"]) == answer["frames"]
    assert answer["gflops"] > 0
    assert answer["milliseconds"] > 0
    assert (answer["num_frames"], answer["size"]) == (40, [48, 48])


def test_the_curve_has_every_number_of_frames_with_the_answers_of_the_recognizer(tab, things):
    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    tab.upload((things / "clip.mp4").read_bytes())
    tab.get("look")
    tab.ask(type="curve", video=1, classes=[2, 0])
    points = {}
    while (message := tab.get("point", "curve-done"))["type"] == "point":
        points[message["frames"]] = message
    assert sorted(points) == list(range(1, 33))
    for frames in (1, 3, 8, 31):
        expected = recognizer.logits(things / "clip.mp4", num_frames=frames).softmax(-1)
        assert points[frames]["values"] == pytest.approx(expected[[2, 0]].tolist(), abs=1e-5)
        assert points[frames]["best"] == CLASSES[int(expected.argmax())]


def test_the_timeline_of_a_long_video_is_that_of_predict_with_windows(tab, things, capsys):
    tab.upload((things / "long.mp4").read_bytes())
    tab.get("look")
    tab.ask(type="timeline", video=1, window=1.0, threshold=0.4, frames=4)
    windows, events = [], []
    while (message := tab.get("window", "event", "timeline-done"))["type"] != "timeline-done":
        (windows if message["type"] == "window" else events).append(message)
    said = said_by_predict(
        things, capsys, "long.mp4", "--window", "1s", "--threshold", "0.4", "--frames", "4"
    )
    expected = [one["event"] for one in said if "event" in one]
    assert [one["label"] for one in events] == [one["label"] for one in expected] != []
    for one, right in zip(events, expected, strict=True):
        for key in ("start_seconds", "end_seconds", "probability"):
            assert one[key] == pytest.approx(right[key], abs=1e-5)
    expected_windows = [one for one in said if "predictions" in one]
    assert [one["start"] for one in windows] == pytest.approx(
        [one["start_seconds"] for one in expected_windows]
    )
    assert message["duration_seconds"] == pytest.approx(10.0)
    assert message["troubles"] == []


def test_what_is_no_video_is_said_and_the_tab_goes_on(tab, things):
    tab.upload((things / "text.mp4").read_bytes(), video=1)
    error = tab.socket.receive_json()
    assert (error["type"], error["video"]) == ("error", 1)
    assert error["text"].startswith("the video: not a video file")
    tab.upload(b"", video=2)
    assert "empty" in tab.socket.receive_json()["text"]
    tab.upload((things / "clip.mp4").read_bytes(), video=3)
    assert tab.get("look")["video"] == 3


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("no JSON", "can't be understood"),
        ("[1, 2]", "can't be understood"),
        ('{"type": "nothing"}', "can't be understood"),
        ('{"type": "look", "video": 1, "frames": 33}', "frames is 33; expected 1 to 32"),
        ('{"type": "look", "video": 1, "frames": true}', "frames is True"),
        ('{"type": "look", "video": 1, "frames": 2.5}', "expected a whole number"),
        ('{"type": "look", "video": 7, "frames": 4}', "not here any more"),
        ('{"type": "timeline", "video": 1, "window": 0, "threshold": 0.5, "frames": 4}', "window is 0"),
        ('{"type": "timeline", "video": 1, "window": 1, "threshold": "x", "frames": 4}', "threshold is 'x'"),
        ('{"type": "curve", "video": 1}', "can't be understood"),
    ],
)
def test_a_message_that_makes_no_sense_is_said(tab, things, message, words):
    tab.upload((things / "clip.mp4").read_bytes())
    tab.get("look")
    tab.socket.send_text(message)
    error = tab.socket.receive_json()
    assert error["type"] == "error"
    assert words in error["text"]


def test_a_file_beyond_the_limit_is_refused_and_leaves_nothing(things, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr("frameflex.app.page.PAGE_LIMITS", replace(PAGE_LIMITS, max_bytes=300_000))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    with TestClient(page_of(recognizer, things), base_url=HERE) as client:
        with Tab(client) as tab:
            assert tab.hello["max_bytes"] == 300_000
            tab.upload(bytes(400_000))
            assert "which is the limit" in tab.socket.receive_json()["text"]
            assert list(tmp_path.rglob("upload-*")) == []
        with Tab(client) as tab, Tab(client) as other:  # two tabs, each with a video of its own
            for one, frames in ((tab, 2), (other, 3)):
                one.upload((things / "clip.mp4").read_bytes(), frames=frames)
            assert (tab.get("look")["frames"], other.get("look")["frames"]) == (2, 3)
            assert len(list(tmp_path.rglob("upload-*"))) == 2
            tab.upload((things / "clip.mp4").read_bytes(), video=2)
            tab.get("look")
            assert len(list(tmp_path.rglob("upload-*"))) == 2
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "host": "127.0.0.1:8010"},
        {"origin": "http://evil.example:8010", "host": "evil.example:8010"},
        {"origin": "http://127.0.0.1:9999", "host": "127.0.0.1:8010"},
        {"host": "127.0.0.1:8010"},
    ],
)
def test_pages_of_strangers_can_not_talk(client, headers):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/talk", headers=headers):
        pass


def test_the_page_is_whole_without_a_network_and_runs_no_foreign_script(client):
    response = client.get("/")
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "https://" not in text, path.name
        assert text.count("http://") == text.count("http://www.w3.org/") + text.count("http://localhost")
        assert client.get(f"/static/{path.name}").status_code == 200
    for path in ("/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/page.py"):
        assert client.get(path).status_code == 404


def test_a_network_of_several_labels_answers_with_one_probability_each(things, tmp_path):
    from dataclasses import replace

    from frameflex.checkpoint import load_checkpoint

    checkpoint = replace(load_checkpoint(things / "tiny.safetensors"), multi_label=True)
    recognizer = Recognizer(checkpoint, device="cpu")
    with (
        TestClient(
            page_of(recognizer, things),
            base_url=HERE,
        ) as client,
        Tab(client) as tab,
    ):
        tab.upload((things / "clip.mp4").read_bytes())
        answer = {one["label"]: one["probability"] for one in tab.get("look")["predictions"]}
    expected = torch.sigmoid(recognizer.logits(things / "clip.mp4"))
    assert [answer[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_reasons_are_those_of_explain(tab, things):
    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    expected = recognizer.explain(things / "clip.mp4", num_frames=4, label="nothing")
    tab.upload((things / "clip.mp4").read_bytes())
    tab.get("look")
    tab.ask(type="explain", video=1, frames=4, index=2)
    why = tab.get("why")
    assert (why["label"], why["text"], len(why["pictures"])) == ("nothing", "", 4)
    for key, predictions in (("predictions", expected.predictions), ("backwards", expected.backwards)):
        assert [one["label"] for one in why[key]] == [one.label for one in predictions]
        assert [one["probability"] for one in why[key]] == pytest.approx(
            [one.probability for one in predictions], abs=1e-5
        )
    lost = [tab.get("importance")["lost"] for _ in range(4)]
    assert lost == pytest.approx(expected.importance.tolist(), abs=1e-5)


def test_a_tab_that_does_not_listen_holds_nobody_up(things, tmp_path, monkeypatch):
    from frameflex.app.page import Folders, Page
    from frameflex.app.talking import TabClosed

    class Deaf:
        async def send(self, message):
            await asyncio.sleep(60)

    class Gone:
        async def send(self, message):
            raise TabClosed

    class Listening:
        def __init__(self):
            self.heard = []

        async def send(self, message):
            self.heard.append(message)

    monkeypatch.setattr("frameflex.app.page._PATIENCE_SECONDS", 0.1)
    recognizer = Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu")
    page = Page(recognizer, "tiny", (), Folders(tmp_path / "taught", tmp_path / "runs"), 1)
    last = Listening()
    page._talks = [Deaf(), Gone(), last]
    asyncio.run(page.tell_all({"type": "hello"}))
    page.answers.close()
    assert last.heard == [{"type": "hello"}]


def test_an_export_answers_and_says_what_it_can_not(things, tmp_path):
    export(things / "tiny.safetensors", tmp_path / "exported", format="torchscript")
    recognizer = Recognizer.from_checkpoint(tmp_path / "exported")
    with TestClient(page_of(recognizer, tmp_path), base_url=HERE) as client, Tab(client) as tab:
        tab.upload((things / "clip.mp4").read_bytes())
        answer = tab.get("look")
        [expected] = recognizer(things / "clip.mp4", top=1)
        assert answer["predictions"][0]["label"] == expected.label
        assert answer["predictions"][0]["probability"] == pytest.approx(expected.probability, abs=1e-5)
        tab.ask(type="explain", video=1, frames=8, index=None)
        why = tab.get("why")
        assert "an export can't be explained" in why["text"]
        assert len(why["pictures"]) == 8
        assert tab.get("importance")["frame"] == 0
        tab.ask(type="add-class", name="waving")
        tab.get("class-added")
        tab.ask(type="upload")
        tab.send_file((things / "clip.mp4").read_bytes())
        tab.ask(type="ask")
        assert "an export can't be taught" in tab.error()
