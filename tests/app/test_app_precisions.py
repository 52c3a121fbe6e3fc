"""`--precision` of the service and the page: answers in what was asked for, from the command line to the socket."""

import pytest
from checkpoints import said_by_predict, save_tiny
from helpers import moving_bar, write_video

from frameflex.cli import main
from frameflex.models.precision import possible_precisions

pytest.importorskip("starlette", reason="needs frameflex[app]")
pytest.importorskip("httpx2", reason="needs httpx2, for Starlette's test client")

from starlette.testclient import TestClient
from tab import HERE, Tab

OPTIONS = {"serve": ["--port", "0"], "app": ["--port", "0", "--no-browser"]}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    root = tmp_path_factory.mktemp("precisions")
    save_tiny(root / "tiny.safetensors")
    write_video(root / "clip.mp4", moving_bar(20, rightwards=True))
    return root


def answers_of(monkeypatch, verb, checkpoint, clip, *options):
    """The answers to a clip of the application that the command would serve."""
    made = []
    monkeypatch.setattr("frameflex.app.running.run_server", lambda app, **_: made.append(app))
    monkeypatch.chdir(clip.parent)
    assert main([verb, str(checkpoint), *OPTIONS[verb], *options]) == 0
    if verb == "serve":
        with TestClient(made[0], base_url="http://127.0.0.1") as client:
            return client.post("/predict", content=clip.read_bytes()).json()["predictions"]
    with TestClient(made[0], base_url=HERE) as client, Tab(client) as tab:
        tab.upload(clip.read_bytes())
        return tab.get("look")["predictions"]


def numbers(answers):
    return {one["label"]: one["probability"] for one in answers}


@pytest.mark.parametrize("verb", OPTIONS)
@pytest.mark.parametrize("flags", [["avx512_bf16"], []])
def test_answers_are_those_of_predict_in_the_same_precision(things, verb, flags, monkeypatch, capsys):
    monkeypatch.setattr("frameflex.models.precision.cpu_flags", lambda: frozenset(flags))
    can = "bfloat16" in possible_precisions("cpu")
    found = {}
    for precision in ("float32", "auto", *(["bfloat16"] if can else [])):
        options = ["--precision", precision]
        got = answers_of(
            monkeypatch, verb, things / "tiny.safetensors", things / "clip.mp4", "--device", "cpu", *options
        )
        said = capsys.readouterr().err
        assert ("computing in" in said) == (precision == "auto")
        expected = said_by_predict(things, capsys, "clip.mp4", *options)[0]["predictions"]
        found[precision] = numbers(got)
        assert found[precision] == pytest.approx(numbers(expected), abs=1e-5)
    fast = "bfloat16" if flags and can else "float32"
    assert found["auto"] == pytest.approx(found[fast], abs=1e-6)
    if can:
        assert found["float32"] != pytest.approx(found["bfloat16"], abs=1e-5)


@pytest.mark.parametrize("verb", OPTIONS)
def test_what_a_checkpoint_or_an_export_can_not_is_one_line_that_names_what_it_can(
    things, verb, tmp_path, capsys
):
    graphs = tmp_path / "graphs"
    made = ["export", str(things / "tiny.safetensors"), "--output", str(graphs), "--format", "torchscript"]
    assert main([*made, "--frames", "8"]) == 0
    capsys.readouterr()
    for checkpoint, precision, words in (
        (things / "tiny.safetensors", "int8", "on cpu it has auto, float32"),
        (
            graphs,
            "int8",
            "this torchscript export of float32 can't be computed in here; expected auto, float32",
        ),
    ):
        options = [*OPTIONS[verb], "--device", "cpu", "--precision", precision]
        assert main([verb, str(checkpoint), *options]) == 1
        said = capsys.readouterr().err
        assert f"precision is '{precision}'" in said
        assert words in said
        assert len(said.strip().splitlines()) == 1
    assert main([verb, str(things / "tiny.safetensors"), "--precision", "bf16"]) == 2
    assert "choose from" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("verb", OPTIONS)
def test_an_int8_export_answers_in_int8_and_refuses_float32(things, verb, tmp_path, monkeypatch, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    graphs = tmp_path / "graphs"
    made = ["export", str(things / "tiny.safetensors"), "--output", str(graphs), "--format", "onnx"]
    assert main([*made, "--frames", "8", "--int8", str(things / "clip.mp4"), "--min-agreement", "0"]) == 0
    exact = numbers(said_by_predict(things, capsys, "clip.mp4", "--precision", "float32")[0]["predictions"])
    for precision in ("int8", "auto"):
        got = numbers(answers_of(monkeypatch, verb, graphs, things / "clip.mp4", "--precision", precision))
        assert got != pytest.approx(exact, abs=1e-6)
        assert got == pytest.approx(exact, abs=0.3)
    capsys.readouterr()
    assert main([verb, str(graphs), *OPTIONS[verb], "--precision", "float32"]) == 1
    assert "onnx export of int8 can't be computed in here; expected auto, int8" in capsys.readouterr().err
