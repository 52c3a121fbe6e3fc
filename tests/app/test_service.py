"""`frameflex serve`: each answer is that of `predict`, and nobody who asks hurts another."""

import asyncio
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpoints import CLASSES, command, post, said_by_predict, save_tiny
from helpers import moving_bar, write_video

from frameflex.cli import main
from frameflex.cli.serve import TOKEN_VARIABLE, _parser
from frameflex.deploy.recognizer import Recognizer

pytest.importorskip("starlette", reason="needs frameflex[app]")
pytest.importorskip("httpx2", reason="needs httpx2, for Starlette's test client")

from dying import DieFor
from starlette.testclient import TestClient

from frameflex.app.answers import Answers, UploadLimits
from frameflex.app.service import make_service

HERE = {"base_url": "http://127.0.0.1"}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    root = tmp_path_factory.mktemp("service")
    save_tiny(root / "tiny.safetensors")
    for i in range(16):
        write_video(root / f"{i}.mp4", moving_bar(10 + 3 * i, rightwards=bool(i % 2), seed=i))
    write_video(root / "long.mp4", moving_bar(61, rightwards=True))
    return root


def service(things, *, limits=None, **options):
    answers = Answers(
        Recognizer.from_checkpoint(things / "tiny.safetensors", device="cpu"),
        limits=limits or UploadLimits(),
        num_processes=1,
    )
    return make_service(answers, **options)


@pytest.fixture(scope="module")
def client(things):
    limits = UploadLimits(max_bytes=300_000, max_video_seconds=5.0, max_pixels=64 * 64, max_frames=16)
    with TestClient(service(things, limits=limits), **HERE) as client:
        yield client


def assert_same(answer, expected):
    assert [(one["label"], one["index"]) for one in answer] == [
        (one["label"], one["index"]) for one in expected
    ]
    assert [one["probability"] for one in answer] == pytest.approx(
        [one["probability"] for one in expected], abs=1e-5
    )


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", []),
        ("?frames=3&top=2", ["--frames", "3", "--top", "2"]),
        ("?views=2x3&frames=4", ["--views", "2x3", "--frames", "4"]),
    ],
)
def test_an_answer_is_that_of_predict(client, things, capsys, query, options):
    response = client.post(f"/predict{query}", content=(things / "5.mp4").read_bytes())
    assert response.status_code == 200
    assert_same(
        response.json()["predictions"], said_by_predict(things, capsys, "5.mp4", *options)[0]["predictions"]
    )


def test_sixteen_requests_at_once_get_the_answers_of_predict(client, things, capsys):
    expected = [
        said_by_predict(things, capsys, f"{i}.mp4", "--frames", "4")[0]["predictions"] for i in range(16)
    ]
    with ThreadPoolExecutor(16) as threads:
        responses = list(
            threads.map(
                lambda i: client.post("/predict?frames=4", content=(things / f"{i}.mp4").read_bytes()),
                range(16),
            )
        )
    assert len({round(answer[0]["probability"], 4) for answer in expected}) > 8  # they can be told apart
    for response, answer in zip(responses, expected, strict=True):
        assert_same(response.json()["predictions"], answer)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?frames=0", 400, "frames is '0'; expected a whole number from 1 to 16"),
        ("?frames=17", 400, "1 to 16"),
        ("?frames=٣", 400, "1 to 16"),
        ("?top=x", 400, "top is 'x'"),
        ("?views=9x9", 400, "expected one of 1x1"),
        ("?frame=8", 400, "unknown option 'frame'"),
    ],
)
def test_a_wrong_option_is_named(client, things, query, status, words):
    response = client.post(f"/predict{query}", content=(things / "0.mp4").read_bytes())
    assert response.status_code == status
    assert words in response.json()["error"]


def test_files_beyond_the_limits_are_refused_with_the_limit(client, things, tmp_path):
    too_wide = write_video(tmp_path / "wide.mp4", moving_bar(3, rightwards=True, size=128)).read_bytes()

    def pieces():
        for _ in range(4):
            yield bytes(100_000)

    for content, status, words in (
        (b"", 400, "no body"),
        (b"just text", 422, "the video"),
        (bytes(300_001), 413, "0.2861 MiB"),
        (pieces(), 413, "0.2861 MiB"),  # whose length nobody stated
        ((things / "long.mp4").read_bytes(), 422, "lasts 5.1 s; expected at most 5 s"),
        (too_wide, 422, "pixels"),
    ):
        response = client.post("/predict", content=content)
        assert (response.status_code, words in response.json()["error"]) == (status, True), response.text
        assert "upload-" not in response.text
        assert "frameflex data check" not in response.text  # who sends a file has no list of videos
    response = client.post("/predict", files={"file": b"x"})
    assert response.status_code == 415
    assert "--data-binary" in response.json()["error"]


def test_no_upload_is_left_behind(things, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TestClient(service(things), **HERE) as client:
        client.post("/predict", content=(things / "0.mp4").read_bytes())
        client.post("/predict", content=b"just text")
        [folder] = tmp_path.glob("frameflex-*")
        assert list(folder.iterdir()) == []
    assert list(tmp_path.glob("frameflex-*")) == []


def test_a_file_that_kills_its_decoder_or_hangs_costs_one_request(things, monkeypatch, capsys):
    monkeypatch.setattr("frameflex.app.answers.DecodeClips", DieFor)
    with TestClient(service(things, limits=UploadLimits(timeout_seconds=3.0)), **HERE) as client:
        good = (things / "3.mp4").read_bytes()
        crashed, hung = client.post("/predict", content=b"!"), client.post("/predict", content=b"?")
        assert (crashed.status_code, hung.status_code) == (422, 504)
        assert "SIGSEGV" in crashed.json()["error"]
        assert "not done after 3 s" in hung.json()["error"]
        answer = client.post("/predict", content=good).json()["predictions"]
        assert_same(answer, said_by_predict(things, capsys, "3.mp4")[0]["predictions"])


def test_requests_beyond_the_queue_are_told_to_come_again_and_slow_ones_end(things):
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "http_version": "1.1"}
    scope["headers"] = [(b"host", b"localhost")]

    async def ask(app, first_piece):
        """The status, when the body comes this piece at a time."""
        sent = []

        async def receive():
            return {"type": "http.request", "body": await first_piece(), "more_body": True}

        async def send(message):
            sent.append(message)

        await app({**scope}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    async def run():
        app = service(things, max_queue=1, timeout_seconds=0.5)
        begun = asyncio.Event()

        async def never():
            begun.set()
            await asyncio.sleep(60)

        async with app.app.router.lifespan_context(app.app):
            slow = asyncio.create_task(ask(app, never))
            await begun.wait()
            second = await ask(app, never)
            return await slow, second

    (slow, _), (second, headers) = asyncio.run(run())
    assert (slow, second) == (504, 503)
    assert headers[b"retry-after"] == b"1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, 403),
    ],
)
def test_pages_of_strangers_are_refused(client, headers, status):
    assert client.get("/openapi.json", headers=headers).status_code == status


def test_with_a_token_nothing_is_answered_without_it_but_the_health_check(things):
    token = "a-token-of-some-length"
    with TestClient(service(things, token=token), base_url="http://gpu-server:8000") as client:
        for path in ("/metrics", "/openapi.json"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get(path, headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.post("/predict", content=b"x").status_code == 401
        assert client.get("/metrics", headers={"authorization": "Bearer é".encode()}).status_code == 401
        assert client.get("/healthz").json() == {"status": "ok"}


def test_the_description_names_every_route_and_fits_what_is_answered(client, things):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            statuses = set(described["responses"])
            content = (things / "0.mp4").read_bytes() if method == "post" else None
            response = client.request(method, path, content=content)
            assert str(response.status_code) in statuses
    schema = document["components"]["schemas"]["Answer"]
    answer = client.post("/predict", content=(things / "0.mp4").read_bytes()).json()
    assert set(answer) == set(schema["properties"]) == set(schema["required"])
    options = {one["name"]: one["schema"] for one in document["paths"]["/predict"]["post"]["parameters"]}
    assert options["frames"] == {"type": "integer", "minimum": 1, "maximum": 16, "default": 8}
    assert client.get("/nothing").status_code == 404
    assert client.get("/predict").status_code == 405


def test_the_metrics_count_every_answer(things):
    with TestClient(service(things), **HERE) as client:
        for content in ((things / "0.mp4").read_bytes(), (things / "1.mp4").read_bytes(), b"just text"):
            client.post("/predict", content=content)
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['frameflex_requests_total{path="/predict",status="200"}'] == "2"
    assert lines['frameflex_requests_total{path="/predict",status="422"}'] == "1"
    assert (
        lines["frameflex_request_seconds_count"]
        == lines['frameflex_request_seconds_bucket{le="+Inf"}']
        == "3"
    )
    assert lines["frameflex_network_seconds_count"] == "2"
    assert lines["frameflex_requests_in_progress"] == "0"


def test_other_machines_need_a_token_and_a_port_that_is_taken_is_named(things, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main(["serve", str(things / "tiny.safetensors"), "--host", "0.0.0.0"]) == 1
    assert f"expected a token: set {TOKEN_VARIABLE}" in capsys.readouterr().err
    (tmp_path / "token").write_text("short\n")
    assert main(["serve", "x.safetensors", "--token-file", str(tmp_path / "token")]) == 1
    assert "at least 16 characters" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_answers_sixteen_at_once_and_ends_with_sigterm(things, capsys):
    expected = [said_by_predict(things, capsys, f"{i}.mp4")[0]["predictions"] for i in range(16)]
    options = ("--port", 0, "--device", "cpu", "--precision", "float32")  # the last as the tests' own
    with command("serve", things / "tiny.safetensors", *options) as (port, process):
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda i: post(port, (things / f"{i}.mp4").read_bytes()), range(16)))
        for (status, answer), right in zip(answers, expected, strict=True):
            assert status == 200
            assert_same(answer["predictions"], right)
        assert {one["label"] for one in answers[0][1]["predictions"]} == set(CLASSES)
        assert main(["serve", str(things / "tiny.safetensors"), "--port", str(port)]) == 1
        assert f"can't listen at 127.0.0.1:{port}" in capsys.readouterr().err
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143


def test_the_container_runs_a_command_that_exists_as_a_user_without_rights():
    lines = (Path(__file__).parents[2] / "Dockerfile").read_text(encoding="utf-8").splitlines()
    words = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith(("ENTRYPOINT", "CMD ["))]
    entry, arguments = words
    args = _parser().parse_args([*entry[2:], *arguments])
    assert args.host == "0.0.0.0"
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert not any(user.startswith(("0", "root")) for user in users)
    root = Path(__file__).parents[2]
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    let_in = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in
    assert all((root / name).exists() for name in copied)
    [check] = [line for line in lines if "urllib" in line]
    assert f"http://127.0.0.1:{args.port}/healthz" in check
    assert f"EXPOSE {args.port}" in lines


def test_class_names_that_are_no_text_are_answered():
    from frameflex.app.service import _NamesAsJSON

    answer = _NamesAsJSON({"label": "caf\udce9 [x]\x9b"})
    assert json.loads(answer.body) == {"label": "caf\\xe9 [x]\x9b"}
    assert answer.headers["content-type"] == "application/json"
