"""Every verb ends: in time, with the right status, in one line, and leaves no process, whatever befalls it."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.models import create_model

SECONDS = 10.0
VERBS = {  # with {workers} where a verb has them
    "train": "train recipe.yaml --output NEW/run --data.num_workers {workers}",
    "evaluate": "evaluate CHECKPOINT data --workers {workers} --batch-size 1",
    "calibrate": "calibrate CHECKPOINT data --frames 3 --workers {workers} --batch-size 1 --output NEW/a.safetensors",
    "export --int8": "export CHECKPOINT --format onnx --frames 4 --int8 data --workers {workers} --output NEW/graphs",
    "predict": "predict CHECKPOINT data --workers {workers} --batch-size 1",
    "predict --on-bad-video error": "predict CHECKPOINT data --workers {workers} --batch-size 1 --on-bad-video error",
    "predict --window": "predict CHECKPOINT data/val --window 1s",
    "predict --manifest": "predict CHECKPOINT --manifest list.txt --out NEW/parts --workers {workers} --batch-size 1 "
    "--on-bad-video error --part-format jsonl",
    "stream": "stream CAUSAL data/val/left/0.mp4 data/val/left/1.mp4 --every-frame --print-every 1ms",
    "data check": "data check data --output NEW/check --workers 2",
    "data prepare": "data prepare data NEW/shards --workers 2",
}
FAULTS = ["bad video", "error in the model", "NaN", "Ctrl-C", "SIGTERM", "closed stdout"]
WORDS = {
    "bad video": "broken.mp4|0.mp4",
    "error in the model": "the network fell over",
    "NaN": "NaN or infinite|the loss is",
    "Ctrl-C": "stopped",
    "SIGTERM": "terminated|stopped",
}


def cases():
    quick = {
        ("evaluate", "bad video", 2),
        ("train", "bad video", 2),
        ("calibrate", "NaN", 2),
        ("predict", "closed stdout", 2),
        ("predict --on-bad-video error", "bad video", 2),
        ("evaluate", "Ctrl-C", 2),
        ("evaluate", "SIGTERM", 2),
        ("data check", "SIGTERM", None),
        ("stream", "error in the model", None),
    }
    for verb, words in VERBS.items():
        for fault in FAULTS:
            if verb.startswith("data") and fault in ("error in the model", "NaN"):
                continue  # no network in it
            for workers in (0, 2) if "{workers}" in words else (None,):
                case = (verb, fault, workers)
                name = f"{verb}, {fault}" + ("" if workers is None else f", {workers} workers")
                yield pytest.param(*case, id=name, marks=[] if case in quick else [pytest.mark.slow])


def status_of(verb, fault):
    if fault == "Ctrl-C":
        return {130}
    if fault == "SIGTERM":  # a stream ends as by Ctrl-C, once it runs
        return {"train": {130}, "stream": {130, 143}}.get(verb, {143})
    if fault == "closed stdout":
        return {0} if verb == "predict --manifest" else {141}  # which prints nothing there
    return {1}


def checkpoint(path, *, shift="bidirectional", spoilt=False):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=2, shift=shift)
    with torch.no_grad():
        for module in model.modules():
            if spoilt and isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.fill_(-1e30)
        if spoilt:
            model.head.bias.fill_(3.3e38)
    pixels = Preprocessing(short_side=32, crop_size=32)
    save_checkpoint(path, Checkpoint(model.eval(), ["left", "right"], pixels, (4,)))


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    root = tmp_path_factory.mktemp("ending")
    for split, number in (("train", 3), ("val", 3)):
        for name in ("left", "right"):
            for i in range(number):
                frames = moving_bar(24, rightwards=name == "right", seed=i)
                write_video(root / "data" / split / name / f"{i}.mp4", frames)
    files = sorted(str(file) for file in (root / "data").rglob("*.mp4"))
    shutil.copytree(root / "data", root / "bad")
    for broken in ("val/left/0.mp4", "train/left/broken.mp4"):
        (root / "bad" / broken).write_bytes(b"no video" * 40)
    (root / "list.txt").write_text("\n".join(files))
    (root / "bad.txt").write_text("\n".join(files).replace("/data/", "/bad/"))
    for shift in ("bidirectional", "causal"):
        checkpoint(root / f"{shift}.safetensors", shift=shift)
        checkpoint(root / f"spoilt-{shift}.safetensors", shift=shift, spoilt=True)
    recipe = tiny_recipe(Path("data"), Path("unused"), epochs=1).to_dict()
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture(scope="module")
def server():
    if not sys.platform.startswith("linux"):
        pytest.skip("leftover processes are looked for in /proc")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ending_server.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    lines = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    yield process, lines
    process.stdin.close()
    process.wait(20)


def session_of(leader):
    """Processes of a session that live, zombies not counted."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == leader and state != "Z":
            found.append((int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def wait_until(what, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def arguments_of(verb, fault, workers, tmp_path):
    words = VERBS[verb].format(workers=workers)
    causal = "spoilt-causal.safetensors" if fault == "NaN" else "causal.safetensors"
    plain = "spoilt-bidirectional.safetensors" if fault == "NaN" else "bidirectional.safetensors"
    words = words.replace("CHECKPOINT", plain).replace("CAUSAL", causal).replace("NEW", str(tmp_path))
    if fault == "bad video":
        words = words.replace(" data", " bad").replace("list.txt", "bad.txt")
        words += " --data.train bad" if verb == "train" else ""
    if fault == "NaN" and verb == "train":
        words += f" --model.init {plain}"
    if fault in ("Ctrl-C", "SIGTERM") and verb == "train":
        words += " --training.batch_size 1"
    return words.split()


@pytest.mark.parametrize(("verb", "fault", "workers"), list(cases()))
def test_it_ends_in_time_with_the_right_status_and_no_process_left(
    verb, fault, workers, ground, server, tmp_path
):
    if verb == "export --int8":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    process, lines = server
    out, err, ready = tmp_path / "out", tmp_path / "err", tmp_path / "ready"
    run = {
        "arguments": arguments_of(verb, fault, workers, tmp_path),
        "fault": fault,
        "folder": str(ground),
        **{name: str(path) for name, path in (("out", out), ("err", err), ("ready", ready))},
    }
    print(json.dumps(run), file=process.stdin, flush=True)
    leader = int(lines.get(timeout=60))
    start = time.monotonic()
    try:
        if fault in ("Ctrl-C", "SIGTERM"):
            assert wait_until(ready.exists, 60), err.read_text()
            time.sleep(0.1)
            start = time.monotonic()
            # A terminal sends Ctrl-C to all processes of its group, a service manager SIGTERM to the one it started.
            os.killpg(leader, signal.SIGINT) if fault == "Ctrl-C" else os.kill(leader, signal.SIGTERM)
        try:
            works = fault not in ("Ctrl-C", "SIGTERM") and verb.split()[0] in ("train", "export")
            status = int(lines.get(timeout=SECONDS + (20 if works else 0)))
        except queue.Empty:
            left = session_of(leader)
            os.kill(leader, signal.SIGKILL)
            lines.get(timeout=60)
            pytest.fail(
                f"not ended after {time.monotonic() - start:.0f} s; {left}; {err.read_text()[-3000:]}"
            )
        told = err.read_text()
        assert wait_until(lambda: not session_of(leader), 2), f"left: {session_of(leader)}; {told}"
    finally:
        for left, _ in session_of(leader):
            os.kill(left, signal.SIGKILL)
    assert status in status_of(verb, fault), told
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    assert max((len(line) for line in told.splitlines()), default=0) < 600, told
    if fault in WORDS:
        assert any(word in told + out.read_text() for word in WORDS[fault].split("|")), told
