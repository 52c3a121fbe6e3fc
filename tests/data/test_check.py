"""Everything that is wrong with a data set is found, and no file can keep the check from the others."""

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import bar_folder, moving_bar, write_video

from frameflex.cli import main
from frameflex.data import checking
from frameflex.data.checking import check
from frameflex.data.datasets import load_videos, survey
from frameflex.data.journal import Journal
from frameflex.data.quarantine import read_quarantine, write_quarantine
from frameflex.video.isolated import Lost, run_isolated

CLIPS = Path(__file__).parents[2] / ".." / "shared" / "clips"


def kinds(found):
    return {(finding.kind, finding.name) for finding in found.findings}


def test_every_split_is_decoded_and_bad_files_are_named(tmp_path, capsys):
    data = bar_folder(tmp_path / "data", per_class=2)
    assert main(["data", "check", str(data), "--output", str(tmp_path / "good")]) == 0
    assert json.loads((tmp_path / "good" / "report.json").read_text())["findings"] == []
    (data / "val" / "going left" / "broken.mp4").write_bytes(b"nothing")
    whole = (data / "train" / "going left" / "0.mp4").read_bytes()
    (data / "train" / "going left" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    output = tmp_path / "check"
    assert main(["data", "check", str(data), "--workers", "2", "--output", str(output)]) == 1
    captured = capsys.readouterr()
    assert "broken.mp4" in captured.out
    assert "cut.mp4" in captured.out
    assert "12 videos: 2 bad, 0 doubtful, 2 in quarantine" in " ".join(captured.err.split())
    report = json.loads((output / "report.json").read_text())
    assert report["num_videos"] == 12
    assert {(f["kind"], f["name"]) for f in report["findings"]} == {
        ("unreadable", "going left/broken.mp4"),
        ("truncated", "going left/cut.mp4"),
    }
    assert "broken.mp4" in (output / "report.txt").read_text()
    assert not (output / "journal.jsonl").exists()
    for name in ("report.json", "quarantine.txt"):
        listed = read_quarantine(output / name)
        assert {Path(path).name for path in listed} == {"broken.mp4", "cut.mp4"}
        left = load_videos(data, split="train", quarantine=output / name)
        assert len(left) == 4
        assert [bad.name for bad in left.left_out] == ["going left/cut.mp4"]
    quiet = ["data", "check", str(data), "--quarantine", str(output / "quarantine.txt")]
    assert main([*quiet, "--output", str(tmp_path / "again")]) == 0


def write_sound(path):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_each_kind_of_wrong_file_is_called_what_it_is(tmp_path):
    data = bar_folder(tmp_path / "data", per_class=2)
    folder = data / "train" / "going left"
    (folder / "empty.mp4").touch()
    write_sound(folder / "sound.mp4")
    write_video(folder / "short.mp4", moving_bar(1, rightwards=True, seed=9))
    shutil.copy(folder / "0.mp4", folder / "twice.mp4")
    shutil.copy(folder / "1.mp4", data / "train" / "going right" / "contradicts.mp4")
    shutil.copy(data / "val" / "going left" / "1.mp4", folder / "leaks.mp4")
    shutil.copy(folder / "short.mp4", folder / "lies.avi")
    found = check(survey(data))
    assert kinds(found) == {
        ("empty", "going left/empty.mp4"),
        ("audio-only", "going left/sound.mp4"),
        ("too-short", "going left/short.mp4"),
        ("too-short", "going left/lies.avi"),
        ("wrong-extension", "going left/lies.avi"),
        ("duplicate", "going left/short.mp4"),
        ("duplicate", "going left/twice.mp4"),
        ("duplicate", "going right/contradicts.mp4"),
        ("mislabelled", "going right/contradicts.mp4"),
        ("leak", "going left/leaks.mp4"),
    }
    assert {finding.name for finding in found.findings if finding.bad} == {
        "going left/empty.mp4",
        "going left/sound.mp4",
    }
    assert found.num_doubtful == 5
    stricter = check(survey(data), also_quarantine=["leak"])
    assert {Path(path).name for path in stricter.quarantine()} == {"empty.mp4", "sound.mp4", "leaks.mp4"}


def test_what_a_list_gets_wrong_is_found_without_stopping_at_the_first(tmp_path):
    for name in ("a", "b", "extra"):
        write_video(tmp_path / "videos" / f"{name}.mp4", moving_bar(12, rightwards=name == "a"))
    (tmp_path / "labels.json").write_text('{"x": "0", "y": "1"}')
    (tmp_path / "validation.json").write_text('[{"id": "b", "template": "y"}]')
    (tmp_path / "train.json").write_text('[{"id": "a", "template": "z"}, {"id": "gone", "template": "x"}]')
    found = check(survey(tmp_path))
    assert kinds(found) == {("mislabelled", "a"), ("missing", "gone"), ("unlisted", "extra.mp4")}
    write_quarantine(tmp_path / "quarantine.txt", found.quarantine())
    with pytest.raises(ValueError, match="names all 2 videos"):
        load_videos(tmp_path, split="train", quarantine=tmp_path / "quarantine.txt")
    (tmp_path / "late.csv").write_text("path,label,start_seconds,end_seconds\nvideos/a.mp4,x,90,99\n")
    assert kinds(check(survey(tmp_path / "late.csv"))) == {("mislabelled", "videos/a.mp4")}


def test_a_folder_without_a_layout_is_checked_too(tmp_path):
    write_video(tmp_path / "one.mp4", moving_bar(5, rightwards=True))
    (tmp_path / "two.mp4").write_bytes(b"")
    assert kinds(check(survey(tmp_path))) == {("empty", "two.mp4")}


def test_a_list_with_a_split_column_is_read_whole(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", moving_bar(5, rightwards=name == "a"))
    (tmp_path / "list.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,x,val\n")
    data = survey(tmp_path / "list.csv")
    assert sorted(record.name for record in data.videos) == ["a.mp4", "b.mp4"]
    assert sorted(data.splits) == ["train", "validation"]


def _obey(task):
    if task == "hang":
        time.sleep(60)
    if task == "crash":
        faulthandler.disable()  # pytest's, inherited: its traceback would stand in the output of a green run
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "raise":
        raise KeyError("a bug")
    return task.upper()


def test_a_task_that_hangs_or_crashes_takes_nothing_else_along():
    tasks = ["a", "crash", "b", "hang", "c", "crash", "d"]
    results = list(run_isolated(_obey, tasks, num_workers=2, timeout_seconds=1.0))
    assert sorted(task for task, _ in results) == sorted(tasks)
    lost = [(task, result) for task, result in results if isinstance(result, Lost)]
    assert sorted((task, result.kind) for task, result in lost) == [
        *[("crash", "crashed")] * 2,
        ("hang", "timed-out"),
    ]
    assert all("SIGSEGV" in result.reason for task, result in lost if task == "crash")
    assert all(result == task.upper() for task, result in results if not isinstance(result, Lost))


def test_a_bug_in_the_work_is_raised_and_not_taken_for_a_bad_file():
    with pytest.raises(RuntimeError, match="a bug"):
        list(run_isolated(_obey, ["a", "raise"], num_workers=1, timeout_seconds=30))


def _hang_or_crash(task):
    return _obey("hang" if "0.mp4" in task.path else "crash" if "1.mp4" in task.path else "raise")


def test_files_that_hang_or_crash_the_decoder_are_named(tmp_path, monkeypatch):
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", moving_bar(5, rightwards=True, seed=number))
    monkeypatch.setattr(checking, "_inspect", _hang_or_crash)
    found = check(survey(tmp_path), num_workers=2, timeout_seconds=1.0)
    assert kinds(found) == {("timed-out", "0.mp4"), ("crashed", "1.mp4")}
    assert found.num_bad == 2


def test_a_stopped_check_goes_on_and_decodes_only_what_is_left(tmp_path, monkeypatch):
    data = bar_folder(tmp_path / "data", per_class=1)
    (data / "val" / "going left" / "bad.mp4").write_bytes(b"nothing")
    journal = tmp_path / "journal.jsonl"

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(survey(data), journal=journal, on_progress=stop)
    with journal.open("ab") as file:
        file.write(b'{"path": "torn')  # by a kill in the middle of a line
    changed = next(iter(Journal(journal, {"format": "frameflex check", "version": 1}).entries))["path"]
    os.utime(changed, (1, 1))
    seen = []
    found = check(survey(data), journal=journal, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (3, 9)  # the changed file is decoded again
    assert seen[-1] == (9, 9)
    assert kinds(found) == {("unreadable", "going left/bad.mp4")}
    assert not journal.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_killed_check_is_resumed_and_leaves_no_process(tmp_path, how):
    data = bar_folder(tmp_path / "data", per_class=8)
    command = [
        sys.executable,
        "-m",
        "frameflex",
        "data",
        "check",
        str(data),
        "--output",
        str(tmp_path / "out"),
    ]
    journal = tmp_path / "out" / "journal.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(getattr(signal, how))
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before it could be stopped")
    assert process.returncode == (130 if how == "SIGINT" else -signal.SIGKILL)
    assert "Traceback" not in err
    kept = journal.read_bytes().count(b"\n")
    assert kept > 2
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["num_files"] == 22


def test_a_journal_belongs_to_one_work_and_one_process(tmp_path):
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        journal.add({"b": "ü"})
        code = (
            "import sys; from pathlib import Path; from frameflex.data.journal import Journal; "
            "Journal(Path(sys.argv[1]), {})"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "j")], capture_output=True, text=True
        )
        assert "is in use" in other.stderr
    with pytest.raises(ValueError, match="a is '1' there and '2' here"):
        Journal(tmp_path / "j", {"a": 2})
    assert Journal(tmp_path / "j", {"a": 1}).entries == [{"b": "ü"}]


def test_a_quarantine_list_survives_odd_names_and_refuses_what_is_none(tmp_path):
    videos = {"/data/plain.mp4": "bad", '/data/"q"\t#.mp4': "two\nlines", "/data/é.mp4": ""}
    write_quarantine(tmp_path / "q.txt", videos)
    assert read_quarantine(tmp_path / "q.txt") == {**videos, '/data/"q"\t#.mp4': "two lines"}
    (tmp_path / "relative.txt").write_text("# mine\nsub/../a.mp4\tshaky\n\n")
    assert read_quarantine(tmp_path / "relative.txt") == {str(tmp_path / "a.mp4"): "shaky"}
    for text in ("[1, 2]", '{"videos": []}', '[{"path": 3}]', "{"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="quarantine"):
            read_quarantine(tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError, match="frameflex data check"):
        read_quarantine(tmp_path / "nowhere")


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of awkward clips is not here")
def test_awkward_real_clips_are_judged_as_their_table_says(tmp_path):
    (tmp_path / "list.txt").write_text(
        "".join(f"{p.resolve()}\n" for p in sorted(CLIPS.iterdir()) if p.suffix != ".md")
    )
    found = check(survey(tmp_path / "list.txt"), num_workers=2)
    assert {(f.kind, Path(f.path).name) for f in found.findings} == {
        ("unreadable", "corrupted.mp4"),
        ("empty", "derived_empty.mp4"),
        ("unreadable", "derived_text.mp4"),
        ("truncated", "derived_truncated_moov_missing.mp4"),
        ("audio-only", "nasa_audio_only.mp3"),
        ("truncated", "derived_truncated.avi"),
        ("too-short", "derived_one_frame.mp4"),
        ("non-square", "mmaction_part_0.mp4"),
        ("non-square", "mmaction_demo_armwrestling.mp4"),
        ("non-square", "carphone_distorted.mp4"),
        ("non-square", "derived_odd_171x97_yuv444.mp4"),
    }
