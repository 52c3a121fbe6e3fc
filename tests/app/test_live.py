"""The room Live, talked to as a tab does: what it says is what `frameflex stream` would."""

import io
import json
import struct

import pytest
from checkpoints import CLASSES, save_tiny
from helpers import moving_bar, write_video
from PIL import Image

from frameflex.cli import main
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.deploy.recognizer import Recognizer

pytest.importorskip("starlette", reason="needs frameflex[app]")
pytest.importorskip("httpx2", reason="needs httpx2, for Starlette's test client")

import numpy as np
from starlette.testclient import TestClient
from tab import HERE, page_of

START = {"type": "start", "frames": 4, "rate": 12, "threshold": 0.5, "min_seconds": 0, "nothing": "nothing"}


def jpeg(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    root = tmp_path_factory.mktemp("live")
    save_tiny(root / "window.safetensors")
    save_tiny(root / "causal.safetensors", shift="causal")
    write_video(root / "film.mp4", moving_bar(24, rightwards=True))
    return root


@pytest.fixture(scope="module", params=["window", "causal"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def client(things, kind):
    recognizer = Recognizer.from_checkpoint(things / f"{kind}.safetensors", device="cpu")
    page = page_of(recognizer, things, sources=[str(things / "film.mp4")])
    with TestClient(page, base_url=HERE) as client:
        yield client


@pytest.fixture
def socket(client):
    with client.websocket_connect("/live", headers={"origin": HERE, "host": "127.0.0.1:8010"}) as socket:
        assert socket.receive_json()["type"] == "hello"
        yield socket


def test_pictures_of_the_camera_are_answered_as_the_stream_would(socket, things, kind):
    pictures = [jpeg(frame) for frame in moving_bar(12, rightwards=True, size=64)]
    options = {"num_frames": 4} if kind == "causal" else {"window": 4}
    stream = StreamingRecognizer(
        things / f"{kind}.safetensors", stride=1, max_gap_seconds=3.0, device="cpu", **options
    )
    socket.send_text(json.dumps(START))
    started = socket.receive_json()
    assert started == {
        "type": "started", "causal": kind == "causal", "window": None if kind == "causal" else 4, "hop": 1
    }  # fmt: skip
    for i, picture in enumerate(pictures):
        socket.send_bytes(struct.pack("<d", i / 8) + picture)
        said = socket.receive_json()
        expected = stream.push(np.array(Image.open(io.BytesIO(picture))), i / 8)
        probabilities = {one["label"]: one["probability"] for one in said["predictions"]}
        assert [probabilities[name] for name in CLASSES] == pytest.approx(
            expected.probabilities.tolist(), abs=1e-5
        )
        assert (said["seconds"], said["num_seen"]) == (i / 8, i + 1)
        assert (said["event"] or {}).get("label") == (expected.event.label if expected.event else None)
        assert [one["label"] for one in said["ended"]] == [one.label for one in expected.ended]
        assert said["network_milliseconds"] > 0


def test_a_source_of_the_start_has_the_events_of_the_stream_command(socket, things, kind, capsys):
    socket.send_text(json.dumps({**START, "source": 0}))
    events, pictures = {}, 0
    while (said := socket.receive_json())["type"] != "source-ended":
        for event in [*said.get("ended", ()), *([said["event"]] if said.get("event") else [])]:
            events[event["start_seconds"]] = event["label"]
        pictures += "picture" in said
    events.update({event["start_seconds"]: event["label"] for event in said["ended"]})
    assert not said["failed"]
    assert pictures > 12  # of 24; on a busy machine some are dropped
    options = ["--frames", "4"] if kind == "causal" else ["--window", "4"]
    capsys.readouterr()
    argv = ["stream", things / f"{kind}.safetensors", things / "film.mp4", "--rate", 12, "--device", "cpu"]
    assert main([*map(str, argv), *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = {line["start_seconds"]: line["label"] for line in lines if line["type"] == "event"}
    assert list(events.values())[:1] == list(expected.values())[:1] != []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 33}, "frames is 33"),
        ({"threshold": 0}, "threshold is 0"),
        ({"nothing": "sleeping"}, "nothing is 'sleeping', which is no class"),
        ({"source": 1}, "source is 1; expected 0 to 0"),
        ({"source": "/etc/passwd"}, "source is '/etc/passwd'"),
        ({"min_seconds": None}, "min seconds is None"),
    ],
)
def test_what_can_not_be_watched_is_said(socket, change, words):
    socket.send_text(json.dumps({**START, **change}))
    error = socket.receive_json()
    assert error["type"] == "error"
    assert words in error["text"]


def test_what_is_no_picture_is_said_and_the_next_one_seen(socket):
    socket.send_text(json.dumps(START))
    assert socket.receive_json()["type"] == "started"
    huge = jpeg(np.zeros((1500, 2000, 3), np.uint8))
    for data, words in ((b"no picture", "can't be decoded"), (huge, "2000x1500 pixels")):
        socket.send_bytes(struct.pack("<d", 0.0) + data)
        error = socket.receive_json()
        assert words in error["text"]
    socket.send_bytes(struct.pack("<d", 0.0) + jpeg(np.zeros((48, 64, 3), np.uint8)))
    assert socket.receive_json()["num_seen"] == 1


def test_a_source_that_is_not_there_is_said_before_the_page_starts(things, capsys):
    argv = ["app", str(things / "window.safetensors"), "--no-browser", "--source", str(things / "none.mp4")]
    assert main(argv) == 1
    assert "there is no such file" in capsys.readouterr().err
