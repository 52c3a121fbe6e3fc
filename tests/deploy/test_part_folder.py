"""Predictions of a long list at s3://: what they are in a folder here, whole objects, a restart that goes on."""

import json
import re

import pytest
from helpers import moving_bar, write_video
from store import times

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.batch import read_parts
from frameflex.models import create_model

CLASSES = ["left", "right", "up"]
PARTS = [f"out/part-{number:07d}.jsonl" for number in range(3)]
SUMS = ["out/_bad.jsonl", "out/_plan.json", "out/_summary.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Nine videos, one of them broken and one absent; lists of them in each format."""
    folder = tmp_path_factory.mktemp("stored-batch")
    model = create_model("test_resnet", num_classes=3)
    pixels = Preprocessing(short_side=32, crop_size=32)
    save_checkpoint(folder / "net.safetensors", Checkpoint(model, CLASSES, pixels, (2, 4)))
    for i in range(7):
        write_video(
            folder / "videos" / f"{i} v.mp4", moving_bar(8 + i, rightwards=i % 2 == 0, seed=i, size=32)
        )
    (folder / "videos" / "broken.mp4").write_bytes(b"not a video")
    names = [*(f"videos/{i} v.mp4" for i in range(7)), "videos/broken.mp4", "videos/absent.mp4"]
    (folder / "list.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    (folder / "list.txt").write_text("\n".join(names))
    (folder / "inside.csv").write_text(
        "path\n" + "".join(f"{name.removeprefix('videos/')}\n" for name in names)
    )
    (folder / "wrong.csv").write_text("path\nvideos/0 v.mp4\n../x.mp4\n")
    return folder


@pytest.fixture
def both(made, store):
    store.put_folder(made, "a")
    store.requests.clear()
    return made, "s3://bucket/a"


def predict(home, manifest, out, *more):
    return main(
        ["predict", f"{home}/net.safetensors", "--manifest", str(manifest), "--out", str(out), "--precision",
         "float32", "--rows-a-part", "3", "--workers", "2", "--device", "cpu", *map(str, more)]
    )  # fmt: skip


def answers_of(out):
    return [
        {k: v for k, v in row.items() if k != "error"} | {"bad": bool(row["error"])}
        for row in read_parts(out)
    ]


def test_a_list_and_its_predictions_in_storage_are_what_they_are_here(both, tmp_path, capsys, store):
    here, there = both
    assert predict(here, here / "list.csv", tmp_path / "out", "--part-format", "jsonl") == 0
    assert predict(there, f"{there}/list.csv", "s3://bucket/out", "--part-format", "jsonl") == 0
    said = capsys.readouterr().err
    assert "7 of 9 videos recognised, 2 bad, in 3 parts in s3://bucket/out" in said
    assert "each with its reason: s3://bucket/out/_bad.jsonl" in said
    assert answers_of("s3://bucket/out") == answers_of(tmp_path / "out")
    assert store.keys("out/") == sorted(SUMS + PARTS)
    bad = [json.loads(line) for line in store.get("out/_bad.jsonl").decode().splitlines()]
    assert [row["video"] for row in bad] == ["videos/broken.mp4", "videos/absent.mp4"]
    assert "s3://bucket/a/videos/absent.mp4: there is no such file" in bad[1]["reason"]


def test_lists_that_are_elsewhere_than_their_videos_and_parquet(both, tmp_path):
    pytest.importorskip("pyarrow")
    here, there = both
    assert predict(here, here / "list.csv", tmp_path / "wanted") == 0
    wanted = [row["probability"] for row in read_parts(tmp_path / "wanted")]
    assert predict(here, here / "inside.csv", "s3://bucket/1", "--video-dir", f"{there}/videos") == 0
    assert predict(there, f"{there}/inside.csv", tmp_path / "2", "--video-dir", here / "videos") == 0
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"path": f"{there}/videos/{row['video'].split('/')[1]}"}) + "\n"
                for row in read_parts(tmp_path / "wanted"))
    )  # fmt: skip
    assert predict(here, tmp_path / "list.jsonl", tmp_path / "3") == 0
    for out in ("s3://bucket/1", tmp_path / "2", tmp_path / "3"):
        assert [row["probability"] for row in read_parts(out)] == wanted


def test_faults_cost_nothing_and_a_storage_that_refuses_stops_the_work_which_goes_on_later(
    both, capsys, store
):
    here, there = both
    turns = [0]

    def now_and_then(handler):
        turns[0] += 1
        if turns[0] % 4:
            return False
        if handler.command == "GET":
            return store.answer(handler, cut_after=200)
        return store.refuse(handler, 503, "SlowDown")

    # The first part is written, then writing is refused: no other object is there, half-written or whole.
    refusing = times(
        99, lambda handler: store.refuse(handler, 403, "AccessDenied", "Access Denied"), of="PUT"
    )

    def refuse_later(handler):
        return "out/part-0000000" not in handler.path and "_plan" not in handler.path and refusing(handler)

    store.misbehave = refuse_later
    assert predict(here, f"{there}/list.csv", "s3://bucket/out", "--part-format", "jsonl") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match("frameflex: s3://bucket/out/part-000000[12].jsonl: no permission to write it", last)
    left = store.keys("out/")
    assert set(left) <= {"out/_plan.json", PARTS[0]}

    store.misbehave = now_and_then
    assert predict(here, f"{there}/list.csv", "s3://bucket/out", "--part-format", "jsonl") == 0
    assert turns[0] > 12
    said = capsys.readouterr().err
    if PARTS[0] in left:
        assert "1 parts were there already" in said
    assert "7 of 9 videos recognised, 2 bad" in said
    store.misbehave = lambda handler: False
    assert store.keys("out/") == sorted(SUMS + PARTS)
    assert predict(here, f"{there}/list.csv", "s3://bucket/out", "--top", "1") == 1
    assert (
        "s3://bucket/out: holds predictions of something else (top 5 there, 1 now)" in capsys.readouterr().err
    )


def test_a_video_that_storage_refuses_is_no_bad_row(both, capsys, store):
    here, there = both
    store.misbehave = times(
        99,
        lambda handler: store.refuse(handler, 403, "AccessDenied", "Access Denied"),
        of="GET /bucket/a/videos/4",
    )
    assert predict(here, f"{there}/list.csv", "s3://bucket/out", "--part-format", "jsonl") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "frameflex: s3://bucket/a/videos/4 v.mp4: no permission to read it (Access Denied)"
    )
    assert not any(row["error"] and "permission" in row["error"] for row in read_parts("s3://bucket/out"))


@pytest.mark.parametrize(
    ("manifest", "out", "words"),
    [
        ("s3://bucket/none.csv", "OUT", "s3://bucket/none.csv: there is no such file"),
        ("s3://no-bucket/list.csv", "OUT", "there is no bucket 'no-bucket'"),
        ("s3://bucket/a/list.csv", "s3://no-bucket/out", "there is no bucket 'no-bucket'"),
        (
            "s3://bucket/a/wrong.csv",
            "OUT",
            "manifest s3://bucket/a/wrong.csv, line 3: path '../x.mp4' leaves",
        ),
        (
            "s3://bucket/a/net.safetensors",
            "OUT",
            "manifest s3://bucket/a/net.safetensors: expected a name that ends",
        ),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(both, tmp_path, capsys, manifest, out, words):
    here, _ = both
    assert predict(here, manifest, out.replace("OUT", str(tmp_path / "out"))) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
