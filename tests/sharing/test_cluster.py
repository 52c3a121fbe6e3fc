"""Work shared by a Ray cluster: two machines' worth of Ray on this one, which is a cluster as far as Ray knows."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from helpers import bar_folder, moving_bar, write_video
from sharing_tasks import leave_marks, load, read

import frameflex
from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.datasets import load_to_measure
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.batch import read_parts
from frameflex.engine.evaluation import evaluate
from frameflex.engine.measuring import Shared
from frameflex.engine.separate_networks import load_model
from frameflex.models import create_model
from frameflex.sharing import Here, Work
from frameflex.sharing.cluster import Cluster, ClusterError, on_cluster
from frameflex.sharing.joining import check_machines
from frameflex.video.isolated import Lost

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@contextmanager
def started(**options):
    """A cluster with a head without CPUs and the machines that are added to it."""
    for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
        os.environ.pop(name, None)
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    # Else they wait until all other tests are done. Ray spells it so.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **options}
    )
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def cluster():
    with started() as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")  # what --ray then uses
        yield cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint and a manifest of sound videos but for one broken and one absent file."""
    folder = tmp_path_factory.mktemp("cluster")
    model = create_model("test_resnet", num_classes=3)
    pixels = Preprocessing(short_side=32, crop_size=32)
    save_checkpoint(folder / "net.safetensors", Checkpoint(model, ["left", "right", "up"], pixels, (2, 4)))
    names = [f"videos/{i}.mp4" for i in range(12)]
    for i, name in enumerate(names):
        write_video(folder / name, moving_bar(8 + i, rightwards=bool(i % 2), seed=i, size=32))
    (folder / "videos" / "broken.mp4").write_bytes(b"not a video")
    (folder / "list.txt").write_text("\n".join([*names, "videos/broken.mp4", "videos/absent.mp4"]), "utf-8")
    return folder


def predict(place, out, *more):
    return main(
        [
            *(
                "predict",
                str(place / "net.safetensors"),
                "--manifest",
                str(place / "list.txt"),
                "--out",
                str(out),
            ),
            *("--device", "cpu", "--precision", "float32", "--workers", "1", *more),
        ]
    )


def test_a_cluster_goes_on_with_what_one_machine_began_bit_for_bit(cluster, place, tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    assert predict(place, here) == 0
    shutil.copytree(here, there)
    for name in (
        "_summary.json",
        "_bad.jsonl",
        *(f"part-{number:07d}.parquet" for number in (0, 1, 2, 4, 5, 6)),
    ):
        (there / name).unlink()
    assert predict(place, there, "--top", "1", "--ray", cluster.address) == 1
    assert "holds predictions of something else (top 5 there, 1 now)" in capsys.readouterr().err
    assert predict(place, there, "--ray", cluster.address) == 0
    said = capsys.readouterr().err
    assert "1 parts were there already" in said
    assert "12 of 14 videos recognised, 2 bad" in said
    assert list(read_parts(there)) == list(read_parts(here))
    for name in ("_summary.json", "_bad.jsonl", "_plan.json"):
        assert (there / name).read_bytes() == (here / name).read_bytes()


def test_stages_of_their_own_give_every_answer_once_and_a_dead_decoder_costs_its_task_alone(cluster):
    with on_cluster(cluster.address) as engine:
        work = Work(read, load, separate=True, batch_size=4, timeout_seconds=30)
        answers = dict(engine.run(work, [*range(10), "crash"]))
        crash = answers.pop("crash")
        assert isinstance(crash, Lost)
        assert "SIGSEGV" in crash.reason
        assert {task: answer for task, (answer, _) in answers.items()} == {i: 2 * i + 1 for i in range(10)}
        with pytest.raises(ValueError, match="can't do 13"):
            list(engine.run(work, range(20)))
        with pytest.raises(ClusterError, match="has 2 CPUs and 0 GPUs; expected at least 2 and 1"):
            list(engine.run(Work(read, load, separate=True, num_gpus=1), range(20)))


@pytest.mark.slow
def test_logits_of_a_cluster_are_those_of_one_machine_bit_for_bit(cluster, place, tmp_path):
    data = load_to_measure(str(bar_folder(tmp_path / "bars", per_class=1)))
    path = str(place / "net.safetensors")
    options = {
        "preprocessing": Preprocessing(short_side=32, crop_size=32),
        "frame_counts": (2, 4),
        "views": "2x1",
    }
    model = load_model(path)
    plain = evaluate(model, data, **options)
    here, there = (
        evaluate(model, data, **options, shared=Shared(engine, partial(load_model, path), "float32"))
        for engine in (Here(2), Cluster(check_machines()))
    )
    assert here.names == there.names == plain.names
    for count in (2, 4):
        assert torch.equal(here.logits[count], there.logits[count])
        torch.testing.assert_close(there.logits[count], plain.logits[count])
        assert there.at(count).gflops == plain.at(count).gflops
        assert there.at(count).top1 == plain.at(count).top1


@pytest.mark.slow
def test_a_cluster_checks_and_prepares_a_data_set_as_one_machine_does(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # relative paths mean the same everywhere
    data = bar_folder(tmp_path / "bars", per_class=2)
    (data / "train" / "going left" / "bad.mp4").write_bytes(b"nothing")
    for how in ([], ["--ray", cluster.address]):
        name = "there" if how else "here"
        assert main(["data", "check", "bars", "--output", f"check-{name}", *how]) == 1
        quarantine = ["--quarantine", f"check-{name}/quarantine.txt"]
        lossless = ["--format", "lossless", "--videos-per-shard", "4"]
        assert main(["data", "prepare", "bars", name, *lossless, *quarantine, *how]) == 0
    assert content(tmp_path / "check-there") == content(tmp_path / "check-here")
    assert content(tmp_path / "there") == content(tmp_path / "here")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# What is told before work starts


def test_a_path_that_only_this_machine_sees_is_told_at_once(cluster, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    seen_here = "/proc/self/cwd/list.txt"  # another folder in every process
    asked = [
        "predict",
        str(place / "net.safetensors"),
        "--manifest",
        seen_here,
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*asked, "--precision", "float32", "--ray", cluster.address]) == 1
    assert "does not see /proc/self/cwd/videos/0.mp4, which is here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_machine_of_another_version_is_told_at_once(cluster, place, tmp_path, capsys):
    package = tmp_path / "other" / "frameflex"
    shutil.copytree(Path(frameflex.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    init = package / "__init__.py"
    init.write_text(init.read_text().replace(f'"{frameflex.__version__}"', '"9.9.9"'))
    other = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(package.parent)})
    cluster.wait_for_nodes()
    try:
        assert predict(place, tmp_path / "out", "--ray", cluster.address) == 1
        said = capsys.readouterr().err
        assert f"has other versions (frameflex 9.9.9 there, {frameflex.__version__} here)" in said
        assert not (tmp_path / "out").exists()
    finally:
        cluster.remove_node(other)


def test_a_cluster_that_is_not_there_is_told_in_seconds(place, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given, said in (
        (address, "no Ray cluster can be joined"),
        ("best.safetensors", "expected auto for the cluster"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "frameflex", "data", "check", str(place / "videos"), "--ray", given],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


# What is killed


def marks(folder):
    """Which tasks were done, each as often as it was."""
    return sorted(int(path.name.partition(".")[0]) for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["machine", "process"])
def test_a_machine_or_a_process_that_is_lost_costs_no_task(tmp_path, what):
    ray.shutdown()
    with started() as cluster:
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        tasks = [(number, 0.1) for number in range(80)]
        with on_cluster(cluster.address) as engine:
            answers = []
            for task, answer in engine.run(Work(leave_marks(tmp_path)), tasks):
                answers.append((task[0], answer))
                if len(answers) == 10 and what == "machine":
                    cluster.remove_node(machines[0], allow_graceful=False)
                if len(answers) == 10 and what == "process":
                    kill_a_reader()
        assert sorted(answers) == [(number, number * number) for number in range(80)]
        assert set(marks(tmp_path)) == set(range(80))  # what the lost one was doing was done again


def kill_a_reader():
    """End the first process of this cluster that reads, as the system does where memory is short."""
    for process in psutil.process_iter(["cmdline"]):
        if any("MapWorker(MapBatches(_Reader))" in part for part in process.info["cmdline"] or ()):
            process.kill()
            return
    raise AssertionError("no process reads")


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_with_what_is_left(place, tmp_path):
    ray.shutdown()
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert predict(place, whole, "--rows-a-part", "1") == 0
    with started() as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        command = [sys.executable, "-m", "frameflex", "predict", str(place / "net.safetensors")]
        command += ["--manifest", str(place / "list.txt"), "--out", str(out), "--rows-a-part", "1"]
        command += ["--device", "cpu", "--precision", "float32", "--ray", cluster.address]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not list(out.glob("part-*")) and first.poll() is None:
            time.sleep(0.005)
        first.kill()
        first.wait()
        done = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
        again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} parts were there already" in again.stderr
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    assert list(read_parts(out)) == list(read_parts(whole))
