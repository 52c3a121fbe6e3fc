"""Work shared by a Ray cluster: two machines' worth of Ray on this one, which is a cluster as far as Ray knows."""

import os
import shutil
import sys
from contextlib import contextmanager

import pytest
from helpers import moving_bar, write_video
from sharing_tasks import load, read

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.batch import read_parts
from frameflex.models import create_model
from frameflex.sharing import Work
from frameflex.sharing.cluster import ClusterError, on_cluster
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
