"""A network, and videos for it."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys

import torch

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.models import create_model

CLASSES = ["going left", "going right", "nothing"]


def save_tiny(path, *, classes=CLASSES, **options):
    """A network whose answers differ from video to video, of random weights."""
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=len(classes), pretrained=False, **options).eval()
    torch.nn.init.normal_(model.head.weight, std=3.0)
    save_checkpoint(path, Checkpoint(model, list(classes), Preprocessing(short_side=32, crop_size=32), (8,)))
    return path


@contextlib.contextmanager
def command(*arguments, env=None):
    """``frameflex`` with its server in a process of its own; gives the port once it listens, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "frameflex", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://[^ ]*:(\d+)", line):
                yield int(found[1]), process
                break
        else:
            raise AssertionError("".join(said))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def post(port, body, *, query="", headers=None):
    """Status and answer of a POST to /predict."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", f"/predict{query}", body, headers or {})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def said_by_predict(things, capsys, name, *options):
    """The lines of ``frameflex predict --json`` on one of the videos, with the tiny network."""
    capsys.readouterr()
    video = [things / "tiny.safetensors", things / name]
    argv = ["predict", *video, "--json", "--workers", 0, "--device", "cpu"]
    assert main([*map(str, argv), *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
