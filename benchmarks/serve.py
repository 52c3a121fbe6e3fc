"""`frameflex serve` under load: is every answer that of `frameflex predict`, and does memory stay flat?

    python benchmarks/serve.py best.safetensors clip.mp4 [more.mp4 ...] --clients 16 --seconds 60

Prints answers a second, latencies, differences from `predict`, and the resident memory of the service and its
decoders, in the first quarter and in the rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    precision = ["--precision", "float32"]
    said = subprocess.run(
        [sys.executable, "-m", "frameflex", "predict", args.checkpoint, *args.videos, "--json", *precision],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    expected = [json.loads(line)["predictions"] for line in said]
    command = [
        sys.executable,
        "-m",
        "frameflex",
        "serve",
        args.checkpoint,
        "--port",
        str(args.port),
        *precision,
    ]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{args.port}"
        wait_for(f"{address}/healthz")
        report(run(address, args, expected, psutil.Process(service.pid)))
    finally:
        service.terminate()
        service.wait()


def wait_for(address: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{address}: no answer after a minute")


def run(address: str, args: argparse.Namespace, expected: list, service: psutil.Process) -> dict:
    """Let the clients ask for as long as that, watching memory."""
    contents = [path.read_bytes() for path in args.videos]
    end = time.monotonic() + args.seconds
    latencies: list[float] = []
    differences: list[float] = []
    failures: list[str] = []

    def ask(client: int) -> None:
        number = client
        while time.monotonic() < end:
            which = number % len(contents)
            number += 1
            started = time.monotonic()
            request = urllib.request.Request(f"{address}/predict", data=contents[which], method="POST")
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    got = json.loads(answer.read())["predictions"]
            except OSError as error:
                failures.append(str(error))
                continue
            latencies.append(time.monotonic() - started)
            same = [one["label"] for one in got] == [one["label"] for one in expected[which]]
            pairs = zip(got, expected[which], strict=True)
            worst = max(abs(a["probability"] - b["probability"]) for a, b in pairs)
            differences.append(worst if same else 1.0)

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(args.clients)]
    memory = []
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        family = [service, *service.children(recursive=True)]
        memory.append(sum(process.memory_info().rss for process in family if process.is_running()) / 2**20)
        time.sleep(0.5)
    return {
        "seconds": args.seconds,
        "latencies": sorted(latencies),
        "differences": differences,
        "failures": failures,
        "memory": memory,
    }


def report(result: dict) -> None:
    latencies, memory = result["latencies"], result["memory"]
    quarter = len(memory) // 4
    print(f"answers: {len(latencies)}, {len(latencies) / result['seconds']:.1f} a second")
    print(f"refused or failed: {len(result['failures'])} {result['failures'][:1]}")
    print(f"seconds to an answer, median: {statistics.median(latencies):.3f}")
    print(f"seconds to an answer, 95 %: {latencies[int(0.95 * len(latencies))]:.3f}")
    print(f"largest difference of a probability from predict's: {max(result['differences']):.1e}")
    early, late = max(memory[: quarter + 1]), max(memory[quarter:])
    print(f"memory in MiB, largest of the first quarter: {early:.0f}, of the rest: {late:.0f}")


if __name__ == "__main__":
    main()
