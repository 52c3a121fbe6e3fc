"""What a Ray cluster makes of lost machines, long videos and more workers, beside the simplest thing that does it.

    python benchmarks/ray_cluster.py [--only kills|skew|scaling] [--json FILE]

The cluster is Ray's own local one: a head without CPUs and machines of one CPU each, all on this machine. Kills: a
node, a process that reads, and the command itself with SIGKILL, then the same command again; every video has to be
there once, with the answer of one machine. Skew: 5 % of tasks take 50 times as long; a worker's idle share is what it
waited while others worked. Scaling: tasks a second with one worker and two, in turns, by the clock and by the user
time that their processes got; where others use the machine, too, only the latter says something. Needs
`pip install 'frameflex[ray]'`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, sys.path)])  # of the cluster's machines

import ray  # noqa: E402
from ray.cluster_utils import Cluster as RayCluster  # noqa: E402

from frameflex.sharing import Here, Work  # noqa: E402
from frameflex.sharing.cluster import on_cluster  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["kills", "skew", "scaling"])
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name, measure in (("kills", kills), ("skew", skew), ("scaling", scaling)):
        if args.only in (None, name):
            print(f"{name}:", flush=True)
            found[name] = measure()
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))
    return 0


@contextmanager
def cluster_of(num_machines: int) -> Iterator[RayCluster]:
    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.machines = [cluster.add_node(num_cpus=1) for _ in range(num_machines)]
        cluster.wait_for_nodes()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


# Kills


def kills() -> dict[str, Any]:
    """The command line over real videos, and what is killed under it."""
    with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
        place = Path(folder)
        num_videos = make_videos(place)
        predict(place, place / "here")
        truth = answers(place / "here", num_videos)
        found: dict[str, Any] = {"videos": num_videos, "bad": sum(row["error"] is not None for row in truth)}
        for what, kill in (
            ("nothing", None),
            ("node", kill_node),
            ("worker", kill_worker),
            ("driver", kill_driver),
        ):
            out = place / what
            with cluster_of(2) as cluster:
                start = time.monotonic()
                running = predict(place, out, "--ray", cluster.address, wait=False)
                begun = 0
                if kill is not None:
                    begun = wait_for_parts(out, 3, running)
                    kill(cluster, running)
                status = running.wait()
                kept = 0
                if kill is kill_driver:
                    kept = len(list(out.glob("part-*")))
                    status = predict(place, out, "--ray", cluster.address, wait=False).wait()
                seconds = time.monotonic() - start
            equal = status == 0 and answers(out, num_videos) == truth
            print(
                f"  {what} killed with {begun} parts there: status {status}, every video once with one machine's "
                f"bits: {equal}, {kept} parts kept, {seconds:.0f} s",
                flush=True,
            )
            found[what] = {"status": status, "equal": equal, "parts_kept": kept, "seconds": seconds}
        return found


def make_videos(place: Path, number: int = 100) -> int:
    """Videos, one of which is broken and one absent, a list of them and a network that takes some time for each."""
    import av
    import numpy as np

    from frameflex.checkpoint import Checkpoint, save_checkpoint
    from frameflex.data.transforms import Preprocessing
    from frameflex.models import create_model

    random_numbers = np.random.default_rng(0)
    for i in range(number - 2):
        with av.open(str(place / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width = stream.height = 128
            for _ in range(24):
                pixels = random_numbers.integers(0, 255, (16, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())
    (place / "broken.mp4").write_bytes(b"not a video")
    names = [f"{i}.mp4" for i in range(number - 2)]
    names[50:50] = ["broken.mp4", "absent.mp4"]
    (place / "list.txt").write_text("\n".join(names))
    model = create_model("resnet18", num_classes=5)
    pixels = Preprocessing(short_side=112, crop_size=112)
    save_checkpoint(place / "net.safetensors", Checkpoint(model, list("abcde"), pixels, (8,)))
    return number


def predict(place: Path, out: Path, *more: str, wait: bool = True) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "frameflex", "predict", str(place / "net.safetensors")]
    command += ["--manifest", str(place / "list.txt"), "--out", str(out), "--rows-a-part", "8"]
    command += ["--device", "cpu", "--precision", "float32", "--workers", "2", *more]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    if wait and running.wait() != 0:
        raise RuntimeError(f"status {running.returncode} of {' '.join(command)}")
    return running


def answers(out: Path, num_videos: int) -> list[dict[str, Any]]:
    from frameflex.deploy.batch import read_parts

    rows = list(read_parts(out))
    assert [row["row"] for row in rows] == list(range(num_videos)), "a video is missing, or there twice"
    return rows


def wait_for_parts(out: Path, number: int, running: subprocess.Popen[bytes]) -> int:
    while running.poll() is None:
        if (there := len(list(out.glob("part-*")))) >= number:
            return there
        time.sleep(0.05)
    raise RuntimeError("it ended before it could be killed")


def kill_node(cluster: RayCluster, _: Any) -> None:
    cluster.remove_node(cluster.machines[0], allow_graceful=False)


def kill_worker(*_: Any) -> None:
    """The first process of Ray's that reads."""
    import psutil

    for process in psutil.process_iter(["cmdline", "create_time"]):
        if any("MapWorker(MapBatches(_Reader))" in part for part in process.info["cmdline"] or ()):
            process.send_signal(signal.SIGKILL)
            return
    raise RuntimeError("no process reads")


def kill_driver(_: Any, running: subprocess.Popen[bytes]) -> None:
    running.send_signal(signal.SIGKILL)


# Skew


def skew(num_tasks: int = 800, unit_seconds: float = 0.05, num_workers: int = 2) -> dict[str, Any]:
    """Tasks that sleep, so that a busy machine changes little; each says who did it and when."""
    seconds = [unit_seconds * (50 if i % 20 == 7 else 1) for i in range(num_tasks)]
    random.Random(0).shuffle(seconds)
    found = {}
    for name, run in (
        ("plain halves", partial(halves, num_workers)),
        ("multiprocessing.Pool.map", partial(pool_map, num_workers)),
        ("multiprocessing.Pool.imap_unordered", partial(pool_imap, nap, num_workers)),
        (
            "frameflex, one machine",
            lambda tasks: [answer for _, answer in Here(num_workers).run(Work(nap), tasks)],
        ),
        ("frameflex --ray", partial(on_ray, nap, num_workers)),
    ):
        idle = idle_share(run(seconds), num_workers)
        print(f"  {name}: {idle:.1%} of the workers' time idle", flush=True)
        found[name] = idle
    return found


def nap(seconds: float) -> tuple[int, float, float]:
    start = time.time()
    time.sleep(seconds)
    return os.getpid(), start, time.time()


def idle_share(done: list[tuple[int, float, float]], num_workers: int) -> float:
    """Of the worker that idled most: from when all work to the last task's end."""
    workers = sorted({process for process, _, _ in done})
    assert len(workers) == num_workers, workers
    begin = max(min(start for process, start, _ in done if process == worker) for worker in workers)
    end = max(end for _, _, end in done)
    busy = {
        worker: sum(max(0.0, end - max(begin, start)) for process, start, end in done if process == worker)
        for worker in workers
    }
    return 1 - min(busy.values()) / (end - begin)


def halves(num_workers: int, tasks: list[float]) -> list[Any]:
    with multiprocessing.Pool(num_workers) as pool:
        shares = [
            tasks[i * len(tasks) // num_workers : (i + 1) * len(tasks) // num_workers]
            for i in range(num_workers)
        ]
        return [one for share in pool.map(nap_all, shares, chunksize=1) for one in share]


def nap_all(tasks: list[float]) -> list[Any]:
    return [nap(task) for task in tasks]


def pool_map(num_workers: int, tasks: list[float]) -> list[Any]:
    with multiprocessing.Pool(num_workers) as pool:
        return pool.map(nap, tasks)


def pool_imap(function: Callable[[float], Any], num_workers: int, tasks: list[float]) -> list[Any]:
    with multiprocessing.Pool(num_workers) as pool:
        return list(pool.imap_unordered(function, tasks))


def on_ray(function: Callable[[float], Any], num_workers: int, tasks: list[float]) -> list[Any]:
    with cluster_of(num_workers) as cluster, on_cluster(cluster.address) as engine:
        return [answer for _, answer in engine.run(Work(function), tasks)]


# Scaling


def scaling(seconds_of_work: float = 24.0, repeats: int = 2) -> dict[str, Any]:
    """Tasks of pure arithmetic in one thread; throughput is tasks a second while all workers work."""
    found: dict[str, Any] = {}
    per_task = 0.25
    tasks = [per_task] * int(seconds_of_work / per_task)
    ways: dict[str, Callable[[int, list[float]], list[Any]]] = {
        "multiprocessing.Pool.imap_unordered": partial(pool_imap, work),
        "frameflex, one machine": lambda n, t: [answer for _, answer in Here(n).run(Work(work), t)],
        "frameflex --ray": partial(on_ray, work),
    }
    for name, run in ways.items():
        rates: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for _ in range(repeats):
            for workers in (1, 2):
                rates[workers].append(rates_of(run(workers, tasks), workers))
        wall, user = (
            statistics.median(rates[2][i][k] / rates[1][i][k] for i in range(repeats)) for k in (0, 1)
        )
        print(
            f"  {name}: two workers {wall:.2f} times as fast by the clock, {user:.2f} times by user time",
            flush=True,
        )
        found[name] = {"by_clock": wall, "by_user_time": user}
    return found


def work(cpu_seconds: float) -> tuple[int, float, float, float]:
    """Sums until a fixed number of steps is done: as many on every machine, and what user time they took."""
    start, user = time.time(), time.process_time()
    total = 0
    for i in range(int(cpu_seconds * 2e7)):
        total += i
    return os.getpid(), start, time.time(), time.process_time() - user


def rates_of(done: list[Any], num_workers: int) -> tuple[float, float]:
    """Tasks a second while all work, by the clock; and by user time, less what the workers idled."""
    workers = sorted({one[0] for one in done})
    assert len(workers) == num_workers, workers
    begin = max(min(start for process, start, _, _ in done if process == worker) for worker in workers)
    inside = [one for one in done if one[1] >= begin]
    end = max(one[2] for one in inside)
    idle = 1 - sum(one[2] - one[1] for one in inside) / ((end - begin) * num_workers)
    by_user_time = num_workers * len(inside) / sum(one[3] for one in inside) * (1 - idle)
    return len(inside) / (end - begin), by_user_time


if __name__ == "__main__":
    import ray_cluster  # so that other processes find its functions by a name that is theirs, too

    sys.exit(ray_cluster.main())
