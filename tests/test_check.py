"""Every bad file of a data set is found, whatever its layout."""

import json

from helpers import bar_folder, moving_bar, write_video

from frameflex.cli import main
from frameflex.data.check import check_videos
from frameflex.data.datasets import all_videos


def test_every_split_is_decoded_and_bad_files_are_named(tmp_path, capsys):
    data = bar_folder(tmp_path / "data", per_class=2)
    assert main(["data", "check", str(data), "--workers", "0"]) == 0
    broken = data / "val" / "going left" / "broken.mp4"
    broken.write_bytes(b"nothing")
    whole = (data / "train" / "going left" / "0.mp4").read_bytes()
    (data / "train" / "going left" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert main(["data", "check", str(data), "--workers", "2", "--json", str(tmp_path / "bad.json")]) == 1
    captured = capsys.readouterr()
    assert "broken.mp4" in captured.out
    assert "cut.mp4" in captured.out
    assert "12 videos decoded, 2 of them bad" in captured.err
    listed = json.loads((tmp_path / "bad.json").read_text())
    assert listed["num_videos"] == 12
    assert {item["name"] for item in listed["bad"]} == {"going left/broken.mp4", "going left/cut.mp4"}


def test_a_folder_without_a_layout_is_checked_too(tmp_path):
    write_video(tmp_path / "one.mp4", moving_bar(5, rightwards=True))
    (tmp_path / "two.mp4").write_bytes(b"")
    videos = all_videos(tmp_path)
    assert [bad.name for bad in check_videos(videos)] == ["two.mp4"]


def test_a_list_with_a_split_column_is_read_whole(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", moving_bar(5, rightwards=True))
    (tmp_path / "list.csv").write_text("path,label,split\na.mp4,x,train\nb.mp4,x,val\n")
    assert sorted(record.name for record in all_videos(tmp_path / "list.csv")) == ["a.mp4", "b.mp4"]
