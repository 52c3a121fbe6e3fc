"""The page's room Teach with a few clips of each class: how soon does it answer, how soon is a network fine-tuned?

    python benchmarks/teach.py motion.safetensors FOLDER --classes left,right,circlecc --clips 10 --minutes 2.5

FOLDER holds labels.csv with the columns path, label and scene. The clips of each class that are taught come first by
scene, all others are asked, of which those in a scene that was taught are left out. Talks to `frameflex app` as a tab
does. Prints seconds from the first clip sent to the first answer and to the trained network, and how many of the
asked clips the first answer, and the trained network, tell right.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from frameflex.engine.confidence import wilson_interval

_PIECE = 1 << 16


class Tab:
    """What a tab of the page sends and gets."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def ask(self, **message: Any) -> None:
        self._socket.send(json.dumps(message))

    def get(self, *types: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv())
            if message["type"] == "error":
                raise RuntimeError(message["text"])
            if message["type"] in types:
                return message

    def send(self, path: Path, **then: Any) -> None:
        self.ask(type="upload")
        data = path.read_bytes()
        for start in range(0, len(data), _PIECE):
            self._socket.send(data[start : start + _PIECE])
        self.ask(**then)


def divide(args: argparse.Namespace) -> tuple[dict[str, list[Path]], list[tuple[Path, str]]]:
    """Clips to teach, by class, and (clip, class) to ask, in scenes that were not taught."""
    rows = list(csv.DictReader((args.folder / "labels.csv").open(encoding="utf-8")))
    rows.sort(key=lambda row: (row["scene"], row["path"]))
    rows.sort(key=lambda row: int(row["scene"]) if row["scene"].isdigit() else 0)
    of_class = {label: [row for row in rows if row["label"] == label] for label in args.classes}
    taught = {label: found[: args.clips] for label, found in of_class.items()}
    scenes = {row["scene"] for found in taught.values() for row in found}
    asked = [
        (args.folder / row["path"], label)
        for label, found in of_class.items()
        for row in found[args.clips :]
        if row["scene"] not in scenes
    ]
    return {label: [args.folder / row["path"] for row in found] for label, found in taught.items()}, asked


def shown(right: int, number: int) -> str:
    low, high = wilson_interval(right, number)
    return f"{right} of {number} right ({100 * right / number:.0f} %, {100 * low:.0f} to {100 * high:.0f})"


def talk(tab: Tab, args: argparse.Namespace) -> Path:
    taught, asked = divide(args)
    started = time.monotonic()
    for label in taught:
        tab.ask(type="add-class", name=label)
        tab.get("class-added")
    for number in range(args.clips):
        for label, clips in taught.items():
            tab.send(clips[number], type="teach", label=label)
            tab.get("taught")
    sent = time.monotonic() - started
    right = 0
    for number, (path, label) in enumerate(asked):
        tab.send(path, type="ask")
        right += tab.get("told")["predictions"][0]["label"] == label
        if not number:
            first = time.monotonic() - started
            print(f"{sent:.1f} s for all clips to be sent and kept, {first:.1f} s to the first answer")
    print(f"first answer: {shown(right, len(asked))}", flush=True)
    started = time.monotonic()
    tab.ask(type="train", minutes=args.minutes)
    while (report := tab.get("training"))["state"] == "running":
        pass
    if report["state"] != "done":
        raise RuntimeError("\n".join(report["lines"]))
    print(f"fine-tuned in {time.monotonic() - started:.0f} s, {report['num_steps']} steps")
    network = Path(report["output"]) / "best.safetensors"
    command = [sys.executable, "-m", "frameflex", "predict", str(network)]
    command += [*(str(path) for path, _ in asked), "--json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    answers = [json.loads(line)["predictions"][0]["label"] for line in said]
    right = sum(answer == label for answer, (_, label) in zip(answers, asked, strict=True))
    print(f"fine-tuned: {shown(right, len(asked))}")
    return network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=lambda text: text.split(","), required=True)
    parser.add_argument("--clips", type=int, default=10, help="of each class")
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--port", type=int, default=8766)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frameflex-teach-") as folder:
        command = [sys.executable, "-m", "frameflex", "app", args.checkpoint, "--port", str(args.port)]
        command += ["--no-browser", "--videos", f"{folder}/taught", "--runs", f"{folder}/runs"]
        page = subprocess.Popen(command)
        try:
            with opened(args.port) as socket:
                talk(Tab(socket), args)
        finally:
            page.terminate()
            page.wait()


def opened(port: int, seconds: float = 60.0) -> ClientConnection:
    """A tab's connection, as soon as the page is there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect(
                f"ws://127.0.0.1:{port}/talk", origin=Origin(f"http://127.0.0.1:{port}"), max_size=None
            )
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
