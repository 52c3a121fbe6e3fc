"""What is prepared is what was there, however often the work was stopped."""

import re
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import bar_folder, moving_bar, write_video
from store import times

from frameflex.cli import main
from frameflex.data import encoding, preparing
from frameflex.data.checking import check
from frameflex.data.datasets import load_videos, survey
from frameflex.data.encoding import Task
from frameflex.data.journal import Journal
from frameflex.data.preparing import Encoding, prepare
from frameflex.data.shards import ShardError
from frameflex.data.stored_journal import StoredJournal, open_journal
from frameflex.video import VideoError, open_video


def content(folder):
    """Every file's checksum, and that of each member of the shards."""
    found = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.iterdir())}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {(path.name, m.name): zlib.crc32(tar.extractfile(m).read()) for m in tar.getmembers()}
    return found


def stopping_behind_the_second(add, packed):
    """A journal's `add` that keeps the names of the shards and stops the work at the second."""

    def stop_behind_the_second(journal, entry):
        add(journal, entry)
        packed.extend([entry["shard"]] if "shard" in entry else [])
        if len(packed) == 2:
            raise KeyboardInterrupt

    return stop_behind_the_second


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return bar_folder(tmp_path_factory.mktemp("prepare") / "data", per_class=3)


@pytest.mark.parametrize("format", ["h264", "jpeg", "lossless"])
def test_frames_sizes_and_times_come_back(tmp_path, format):
    source = write_video(tmp_path / "in" / "one.mp4", moving_bar(14, rightwards=True, size=96), fps=25)
    index = prepare(survey(source.parent), tmp_path / "out", encoding=Encoding(format, short_side=48))
    assert index.splits == ()
    [record] = load_videos(tmp_path / "out")
    with open_video(source) as before, record.open() as after:
        assert (after.num_frames, after.height, after.width) == (14, 48, 48)
        assert np.allclose(after.timestamps, before.timestamps, atol=0.001)
        fields = [  # 12 x 12 of them: compression keeps no single pixel of noise
            torch.nn.functional.adaptive_avg_pool2d(r.frames(range(14)).float(), 12) for r in (before, after)
        ]
        assert (fields[0] - fields[1]).abs().mean() < 4
        backwards = after.frames([13, 0, 7])
        assert torch.equal(backwards[1], after.frames([0])[0])


def test_lossless_keeps_every_value(tmp_path):
    frames = moving_bar(6, rightwards=True, size=54)[:, :50, :36]
    source = write_video(tmp_path / "in" / "narrow.mp4", np.ascontiguousarray(frames))
    prepare(survey(source.parent), tmp_path / "out", encoding=Encoding("lossless"))
    with open_video(source) as before, load_videos(tmp_path / "out")[0].open() as after:
        assert torch.equal(after.frames(range(6)), before.frames(range(6)))


def test_key_frames_come_as_often_as_asked(tmp_path):
    source = write_video(tmp_path / "in" / "one.mp4", moving_bar(14, rightwards=True), fps=25)
    prepare(survey(source.parent), tmp_path / "out", encoding=Encoding("h264", key_every=4))
    import av

    with av.open(load_videos(tmp_path / "out")[0].path.open()) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 4, 8, 12]
    assert all(packet.pts == packet.dts for packet in packets)  # no frame waits for a later one


def test_only_the_stretch_that_a_list_names_is_stored(tmp_path):
    write_video(tmp_path / "a.mp4", moving_bar(20, rightwards=True), fps=10)
    (tmp_path / "list.csv").write_text("path,label,start_seconds,end_seconds\na.mp4,x,0.5,1.0\n")
    prepare(survey(tmp_path / "list.csv"), tmp_path / "out", encoding=Encoding("lossless"))
    [record] = load_videos(tmp_path / "out")
    assert record.start_seconds is None
    with open_video(tmp_path / "a.mp4") as before, record.open() as after:
        assert torch.equal(after.frames(range(5)), before.frames(range(5, 10)))
        assert after.num_frames == 5


def test_bad_videos_follow_the_policy_and_are_noted(tmp_path, capsys):
    data = bar_folder(tmp_path / "data", per_class=2)
    (data / "train" / "going left" / "bad.mp4").write_bytes(b"nothing")
    out = tmp_path / "out"
    with pytest.raises(VideoError, match=r"bad\.mp4.*--on-bad-video skip"):
        prepare(survey(data), out)
    with pytest.raises(FileExistsError, match="other files"):
        prepare(survey(data), tmp_path / "data")
    assert main(["data", "prepare", str(data), str(out), "--on-bad-video", "skip"]) == 0
    assert "left out: train: going left/bad.mp4" in capsys.readouterr().err
    videos = load_videos(out, split="train")
    assert [(bad.name, "not a video" in bad.reason) for bad in videos.left_out] == [
        ("going left/bad.mp4", True)
    ]
    with pytest.raises(FileExistsError, match="prepared data already"):
        prepare(survey(data), out)
    for number in range(3):
        (data / "val" / "going left" / f"bad{number}.mp4").write_bytes(b"nothing")
    with pytest.raises(VideoError, match="4 of 1[0-9] videos can't be decoded, more than 1% and more than 3"):
        prepare(survey(data), tmp_path / "out2", on_bad_video="skip")


@pytest.mark.parametrize("labels", [("walk", "walk"), ("walk", "run")])
def test_a_file_that_is_listed_twice_is_two_videos_whichever_shards_they_fall_into(tmp_path, labels):
    for i in range(3):
        write_video(tmp_path / f"{i}.mp4", moving_bar(6, rightwards=True, seed=i))
    lines = [f"0.mp4,{labels[0]}", "1.mp4,walk", "2.mp4,run", f"0.mp4,{labels[1]}"]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    prepare(survey(tmp_path / "list.csv"), tmp_path / "out", videos_per_shard=1)
    videos = load_videos(tmp_path / "out")
    prepared = sorted((record.name, videos.classes[record.label]) for record in videos)
    assert prepared == sorted(tuple(line.split(",")) for line in lines)
    assert {record.open().num_frames for record in videos} == {6}


def test_skipping_a_wrong_label_leaves_the_right_entry_of_the_same_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, moving_bar(6, rightwards=True))
    (tmp_path / "list.csv").write_text("a.mp4,wlak\nb.mp4,walk\na.mp4,walk\n")
    listed = survey(tmp_path / "list.csv", classes=["run", "walk"])
    index = prepare(listed, tmp_path / "out", on_bad_video="skip")
    assert sorted(record.name for record in load_videos(tmp_path / "out")) == ["a.mp4", "b.mp4"]
    [(_, name, reason)] = index.left_out
    assert name == "a.mp4"
    assert "'wlak' is not among the 2" in reason
    [found] = [finding for finding in check(listed).findings if finding.kind == "mislabelled"]
    assert not found.bad  # a quarantine list would leave out the right entry, too


def test_a_stopped_call_goes_on_to_the_same_bytes(tmp_path, data):
    prepare(survey(data), tmp_path / "whole", encoding=Encoding("lossless"), videos_per_shard=4)
    out = tmp_path / "stopped"
    encoded = []

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(survey(data), out, encoding=Encoding("lossless"), videos_per_shard=4, on_progress=stop)
    assert not list(out.glob("*.tar"))
    assert not (out / "index.json").exists()
    with pytest.raises(ValueError, match="belongs to other work"):
        prepare(survey(data), out, encoding=Encoding("jpeg"))
    prepare(
        survey(data),
        out,
        encoding=Encoding("lossless"),
        videos_per_shard=4,
        on_progress=lambda *progress: encoded.append(progress),
    )
    assert encoded[0] == (5, 12)
    assert content(out) == content(tmp_path / "whole")


def test_a_call_that_is_stopped_between_two_shards_keeps_the_first(tmp_path, data, monkeypatch):
    prepare(survey(data), tmp_path / "whole", encoding=Encoding("lossless"), videos_per_shard=2)
    out, add, packed = tmp_path / "stopped", Journal.add, []

    monkeypatch.setattr(Journal, "add", stopping_behind_the_second(add, packed))
    with pytest.raises(KeyboardInterrupt):
        prepare(survey(data), out, encoding=Encoding("lossless"), videos_per_shard=2)
    times = {name: (out / name).stat().st_mtime_ns for name in packed}
    monkeypatch.setattr(Journal, "add", add)
    monkeypatch.setattr(preparing, "encode", None)  # nothing is encoded again
    prepare(survey(data), out, encoding=Encoding("lossless"), videos_per_shard=2)
    assert content(out) == content(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in packed} == times


def test_a_file_that_is_mended_meanwhile_is_encoded_and_the_others_are_not(tmp_path):
    data = bar_folder(tmp_path / "data", per_class=2)
    victim = data / "train" / "going left" / "1.mp4"
    good = victim.read_bytes()
    victim.write_bytes(b"nothing")
    with pytest.raises(VideoError):
        prepare(survey(data), tmp_path / "out")
    victim.write_bytes(good)
    prepare(survey(data), tmp_path / "out")
    assert len(load_videos(tmp_path / "out", split="train")) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_command_is_continued_to_the_same_bytes(tmp_path, data):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "frameflex",
        "data",
        "prepare",
        str(data),
        str(out),
        "--workers",
        "2",
        "--format",
        "lossless",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = out / ".parts" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    prepare(survey(data), tmp_path / "whole", encoding=Encoding("lossless"))
    assert content(out) == content(tmp_path / "whole")


def encoded(store):
    return [request for request in store.requests if re.match(r"PUT .*\.mkv", request)]


def test_into_object_storage_as_into_a_folder_and_a_stopped_call_goes_on(
    tmp_path, data, store, monkeypatch, capsys
):
    options = {"encoding": Encoding("lossless"), "videos_per_shard": 4}
    prepare(survey(data), tmp_path / "here", **options)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(survey(data), "s3://bucket/out", on_progress=stop, **options)
    with pytest.raises(ValueError, match="belongs to other work"):
        prepare(survey(data), "s3://bucket/out", encoding=Encoding("jpeg"))
    add, packed = StoredJournal.add, []

    store.requests.clear()
    with monkeypatch.context() as patched:
        patched.setattr(StoredJournal, "add", stopping_behind_the_second(add, packed))
        with pytest.raises(KeyboardInterrupt):
            prepare(survey(data), "s3://bucket/out", **options)
    assert len(encoded(store)) == 12 - 5
    assert "out/index.json" not in store.keys()  # noqa: SIM118
    store.requests.clear()
    command = [
        "data",
        "prepare",
        str(data),
        "s3://bucket/out",
        "--format",
        "lossless",
        "--videos-per-shard",
        "4",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == "s3://bucket/out"
    assert not encoded(store)
    assert {key.removeprefix("out/"): store.get(key) for key in list(store.keys())} == {
        path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()
    }
    [first, *_], [same, *_] = (
        load_videos(at, split="train") for at in ("s3://bucket/out", tmp_path / "here")
    )
    with first.open() as far, same.open() as near:
        assert torch.equal(far.frames([0]), near.frames([0]))
    assert main(command) == 1
    assert "holds prepared data already" in capsys.readouterr().err


def test_a_kill_loses_what_a_stored_journal_held_back_and_nothing_else(store):
    journal = open_journal("s3://bucket/work", {"work": 1})
    journal.add({"key": 1})
    journal.flush()
    journal.add({"key": 2})  # and killed
    with open_journal("s3://bucket/work", {"work": 1}) as later:
        assert later.entries == [{"key": 1}]
        later.add({"key": 3})
    assert open_journal("s3://bucket/work", {"work": 1}).entries == [{"key": 1}, {"key": 3}]


def test_storage_that_refuses_is_told_before_anything_is_encoded(store, data, capsys):
    command = ["data", "prepare", str(data)]
    assert main([*command, "s3://no-bucket/out"]) == 1
    assert "there is no bucket 'no-bucket'" in capsys.readouterr().err
    store.misbehave = times(99, lambda handler: store.refuse(handler, 403, "AccessDenied", "No"), of="PUT")
    assert main([*command, "s3://bucket/out"]) == 1
    assert "no permission to write it (No)" in capsys.readouterr().err
    assert store.keys() == []


def _full_disk(task):
    return {"fatal": "x.partial: No space left on device"}


def test_a_full_disk_stops_the_work_and_is_not_taken_for_a_bad_video(tmp_path, data, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(preparing, "encode", _full_disk)
        with pytest.raises(ShardError, match="No space left"):
            prepare(survey(data), tmp_path / "out", on_bad_video="skip")
    prepare(survey(data), tmp_path / "out", on_bad_video="skip")
    assert len(load_videos(tmp_path / "out", split="train")) == 6


def test_a_part_that_rots_before_it_is_packed_is_noticed(tmp_path, data, monkeypatch):
    pack = preparing._pack

    def rot(output, classes, task):
        part = Path(output, ".parts", task[1][0].part)
        part.write_bytes(part.read_bytes()[::-1])
        return pack(output, classes, task)

    monkeypatch.setattr(preparing, "_pack", rot)
    with pytest.raises(ShardError, match="has changed on the disk"):
        prepare(survey(data), tmp_path / "out", encoding=Encoding("lossless"))
    monkeypatch.setattr(preparing, "_pack", pack)
    prepare(survey(data), tmp_path / "out", encoding=Encoding("lossless"))
    prepare(survey(data), tmp_path / "whole", encoding=Encoding("lossless"))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_was_encoded_wrongly_is_noticed(tmp_path):
    write_video(tmp_path / "in" / "one.mp4", moving_bar(8, rightwards=True, size=64))
    [record] = survey(tmp_path / "in").videos
    task = Task("k", 0, record, "", str(tmp_path), Encoding("jpeg"))
    with record.open() as reader:
        written = encoding._write(reader, task, tmp_path / "part.mkv")
    encoding._verify(tmp_path / "part.mkv", written)
    written.fields[3] = written.fields[6]
    with pytest.raises(VideoError, match="frame 3 reads back as another one"):
        encoding._verify(tmp_path / "part.mkv", written)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "gif"}, "format is 'gif'"),
        ({"short_side": 4}, "short_side is 4"),
        ({"quality": 52}, "quality is 52; expected 0 to 51"),
        ({"format": "lossless", "quality": 1}, "expected none"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Encoding(**options)


def test_training_runs_from_shards_as_from_files(tmp_path, data):
    from helpers import tiny_recipe

    from frameflex.checkpoint import load_checkpoint
    from frameflex.engine.training import train

    prepare(survey(data), tmp_path / "out", encoding=Encoding("lossless"))
    weights = []
    for source in (data, tmp_path / "out"):
        [path] = train(tiny_recipe(source, tmp_path / f"run-{source.name}", epochs=1))
        weights.append(load_checkpoint(path).model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
