"""Long lists of videos: parts that a restart keeps, with the answers of predict, whoever shares the work."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import moving_bar, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.locking import lock
from frameflex.data.manifest import read_manifest
from frameflex.data.records import VideoRecord
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.batch import BatchOptions, predict_manifest, read_parts
from frameflex.deploy.recognizer import Recognizer
from frameflex.models import create_model
from frameflex.sharing import Here
from frameflex.video import VideoError

NUM_VIDEOS = 14


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint and a manifest of sound videos but for one broken and one absent file."""
    folder = tmp_path_factory.mktemp("batch")
    model = create_model("test_resnet", num_classes=3)
    pixels = Preprocessing(short_side=32, crop_size=32)
    save_checkpoint(folder / "net.safetensors", Checkpoint(model, ["left", "right", "up"], pixels, (2, 4)))
    names = []
    for i in range(NUM_VIDEOS - 2):
        write_video(
            folder / "videos" / f"{i} é.mp4", moving_bar(8 + i, rightwards=bool(i % 2), seed=i, size=32)
        )
        names.append(f"videos/{i} é.mp4")
    (folder / "videos" / "broken.mp4").write_bytes(b"not a video")
    names[5:5] = ["videos/broken.mp4"]
    names.append("videos/absent.mp4")
    (folder / "list.csv").write_text(
        "id,path\n" + "".join(f"{i},{n}\n" for i, n in enumerate(names)), "utf-8"
    )
    (folder / "list.txt").write_text("\n".join(names), "utf-8")
    (folder / "list.jsonl").write_text("\n".join(json.dumps({"path": n}) for n in names), "utf-8")
    return folder


def batch(place, out, **options):
    return predict_manifest(
        Recognizer.from_checkpoint(place / "net.safetensors", device="cpu"),
        place / "list.csv",
        out,
        **{"checkpoint_digest": "of the net", "rows_a_part": 4, "batch_size": 3, **options},
    )


def command(place, out, *more):
    return [
        *(
            sys.executable,
            "-m",
            "frameflex",
            "predict",
            str(place / "net.safetensors"),
            "--precision",
            "float32",
        ),
        *("--manifest", str(place / "list.csv"), "--out", str(out), "--rows-a-part", "4"),
        *("--workers", "0", "--device", "cpu", *more),
    ]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def answers_of(out):
    return [(row["video"], row["label"], row["predictions"]) for row in read_parts(out)]


@pytest.mark.parametrize("part_format", ["parquet", "jsonl"])
def test_parts_hold_exactly_the_answers_of_predict_and_the_reasons_of_bad_videos(
    place, tmp_path, part_format
):
    if part_format == "parquet":
        pytest.importorskip("pyarrow")
    report = batch(place, tmp_path / "out", part_format=part_format)
    assert (report.num_rows, report.num_recognised, report.num_bad) == (NUM_VIDEOS, NUM_VIDEOS - 2, 2)
    rows = list(read_parts(tmp_path / "out"))
    assert [row["row"] for row in rows] == list(range(NUM_VIDEOS))
    recognizer = Recognizer.from_checkpoint(place / "net.safetensors", device="cpu")
    truth = dict(recognizer.recognize_many([place / row["video"] for row in rows], batch_size=8))
    for row in rows:
        expected = truth[place / row["video"]]
        if isinstance(expected, VideoError):
            assert row["error"] == str(expected)
            assert row["label"] is row["predictions"] is None
            continue
        assert row["error"] is None
        assert row["label"] == expected[0].label
        assert [p["label"] for p in row["predictions"]] == [p.label for p in expected]
        for found, wanted in zip(row["predictions"], expected, strict=True):
            assert found["index"] == wanted.index
            assert found["probability"] == pytest.approx(wanted.probability, abs=1e-6)
    summary = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert summary["num_bad"] == sum(summary["reasons"].values()) == 2
    bad = [json.loads(line) for line in (tmp_path / "out" / "_bad.jsonl").read_text("utf-8").splitlines()]
    assert [line["video"] for line in bad] == ["videos/broken.mp4", "videos/absent.mp4"]
    assert "not a video file" in bad[0]["reason"]


def test_the_folder_is_one_parquet_data_set_for_other_readers(place, tmp_path):
    dataset = pytest.importorskip("pyarrow.dataset")
    batch(place, tmp_path / "out", part_format="parquet")
    table = dataset.dataset(tmp_path / "out", format="parquet").to_table()
    assert sorted(table.column("row").to_pylist()) == list(range(NUM_VIDEOS))


def test_the_number_of_processes_changes_no_bit_of_an_answer(place, tmp_path):
    batch(place, tmp_path / "one")
    batch(place, tmp_path / "three", engine=Here(3))
    batch(place, tmp_path / "alone", batch_size=1)
    assert answers_of(tmp_path / "three") == answers_of(tmp_path / "one") == answers_of(tmp_path / "alone")


@pytest.mark.parametrize("num_videos", [1, 3, 5])
def test_a_batch_that_is_filled_up_has_the_answers_of_its_videos(place, num_videos):
    recognizer = Recognizer.from_checkpoint(place / "net.safetensors", device="cpu")
    rule = recognizer.clip_rule(None, "2x1", budget="auto")
    paths = [place / "videos" / f"{i} é.mp4" for i in range(num_videos)]
    videos = [rule.decode(VideoRecord(path, None, str(path))) for path in paths]
    each = [video.clips(rule.transform) for video in videos]
    clips = {count: torch.stack([one[count] for one in each]) for count in rule.frame_counts}
    filled = recognizer.look(clips, 0.5, list(map(str, paths)), batch_size=5)
    for clip, logits in zip(each, filled, strict=True):
        alone = recognizer.look({t: one[None] for t, one in clip.items()}, 0.5, ["it"])[0]
        torch.testing.assert_close(logits, alone)


def test_a_folder_is_written_by_one_process_at_a_time(place, tmp_path):
    batch(place, tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; from frameflex.deploy.parts import Parts; "
        f"parts = Parts(Path({str(tmp_path / 'out')!r}), 14, None, None); parts.begin(dict(parts=1))"
    )
    with (tmp_path / "out" / ".lock").open("ab") as held:
        assert lock(held)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
        )
    assert "another process writes predictions there" in done.stderr


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_with_what_is_left(place, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    batch(place, whole, part_format="jsonl", rows_a_part=1)
    arguments = [*command(place, out, "--part-format", "jsonl"), "--rows-a-part", "1", "--batch-size", "1"]
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 2 <= len(done) <= NUM_VIDEOS
    (out / ".part-0000013.jsonl.1.partial").write_text("half of a part")
    again = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} parts were there already" in again.stderr
    assert not list(out.glob(".part-*"))
    assert all((out / name).stat().st_mtime_ns == time for name, time in done.items())
    assert answers_of(out) == answers_of(whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"checkpoint_digest": "of another net"}, "checkpoint_sha256"),
        ({"options": BatchOptions(num_frames=2)}, "num_frames"),
        ({"options": BatchOptions(top=1)}, "top"),
        ({"rows_a_part": 5}, "rows_a_part"),
        ({"quarantine": {"/some/video.mp4": "bad"}}, "quarantine_sha256"),
    ],
)
def test_another_checkpoint_or_option_is_refused_in_the_same_folder(place, tmp_path, change, named):
    batch(place, tmp_path / "out")
    with pytest.raises(ValueError, match=f"something else .*{named}"):
        batch(place, tmp_path / "out", **change)


def test_a_changed_manifest_is_refused_in_the_same_folder(place, tmp_path):
    manifest = place / "changing.txt"
    manifest.write_text("videos/0 é.mp4\n", "utf-8")
    recognizer = Recognizer.from_checkpoint(place / "net.safetensors", device="cpu")
    predict_manifest(recognizer, manifest, tmp_path / "out", checkpoint_digest="")
    manifest.write_text("videos/1 é.mp4\n", "utf-8")
    with pytest.raises(ValueError, match="manifest_sha256"):
        predict_manifest(recognizer, manifest, tmp_path / "out", checkpoint_digest="")


def test_the_first_bad_video_stops_where_errors_are_asked_for(place, tmp_path, capsys):
    with pytest.raises(VideoError, match="row 5 of the manifest.*broken"):
        batch(place, tmp_path / "out", on_bad_video="error")
    assert main([*command(place, tmp_path / "out2", "--on-bad-video", "error")[3:]]) == 1
    assert "row 5 of the manifest" in capsys.readouterr().err


def test_quarantined_videos_have_their_reason_and_are_not_decoded(place, tmp_path):
    listed = {str(place / "videos" / "0 é.mp4"): "shows nothing"}
    report = batch(place, tmp_path / "out", quarantine=listed)
    assert report.num_bad == 3
    assert next(iter(read_parts(tmp_path / "out")))["error"] == (
        "left out by the quarantine list: shows nothing"
    )


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".jsonl", ".parquet"])
def test_every_kind_of_manifest_names_the_same_videos(place, tmp_path, suffix):
    names = [row.video for row in read_manifest(place / "list.csv")]
    path = place / f"list{suffix}"
    if suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")

        path = tmp_path / "list.parquet"
        parquet.write_table(arrow.table({"id": list(range(len(names))), "path": names}), path)
    rows = list(read_manifest(path, video_dir=place))
    assert [row.video for row in rows] == names
    assert [row.number for row in rows] == list(range(len(names)))
    assert rows[0].path == place / names[0]


def test_a_manifest_is_read_a_row_at_a_time(tmp_path):
    import tracemalloc

    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("path,id\n")
        file.writelines(f"folder/{i:09d}.mp4,{i}\n" for i in range(100_000))
    tracemalloc.start()
    assert sum(1 for _ in read_manifest(path)) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # up to 8 MB, most of it Python's table of strings; a list of the rows takes 45


def test_half_a_part_never_has_a_parts_name(place, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        batch(place, tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))
    monkeypatch.undo()
    assert batch(place, tmp_path / "out").num_recognised == NUM_VIDEOS - 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "out"], "--out goes with --manifest"),
        ([], "no video is given"),
        (["--manifest", "list.csv"], "--manifest needs --out"),
        (["clip.mp4", "--ray"], "--ray goes with --manifest"),
        (["clip.mp4", "--manifest", "list.csv", "--out", "out"], "expected one of them"),
    ],
)
def test_options_that_do_not_go_together_are_told_in_one_line(place, capsys, arguments, said):
    assert main(["predict", str(place / "net.safetensors"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_parts_are_named_by_their_place_in_the_manifest(place, tmp_path):
    batch(place, tmp_path / "out", part_format="jsonl")
    content = (tmp_path / "out" / "part-0000000.jsonl").read_text("utf-8")
    first = [json.loads(line) for line in content.splitlines()]
    assert [row["row"] for row in first] == [0, 1, 2, 3]
