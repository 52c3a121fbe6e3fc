"""One way to search a folder."""

from pathlib import Path

from frameflex.data.datasets import load_videos
from frameflex.data.finding import find_video_files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_what_is_hidden_is_passed_over_in_one_way(tmp_path):
    seen = ["run/a.mp4", "walk/deep/b.mp4"]
    hidden = ["run/._a.mp4", "run/.ipynb_checkpoints/a.mp4", "__MACOSX/run/a.mp4", ".cache/c.mp4"]
    touch(*(tmp_path / name for name in (*seen, *hidden)))
    assert [path.relative_to(tmp_path).as_posix() for path in find_video_files([tmp_path])] == seen
    assert [record.name for record in load_videos(tmp_path)] == seen
    assert find_video_files([tmp_path / "run" / "._a.mp4"]) == [
        tmp_path / "run" / "._a.mp4"
    ]  # asked for by name


def test_a_link_that_leads_back_is_not_followed(tmp_path, caplog):
    touch(tmp_path / "data/run/a.mp4", tmp_path / "data/walk/b.mp4", tmp_path / "more/c.mp4")
    (tmp_path / "data/run/circle").symlink_to(tmp_path / "data")
    (tmp_path / "data/up").symlink_to(tmp_path)
    (tmp_path / "data/itself").symlink_to(tmp_path / "data/itself")
    (tmp_path / "data/jump").symlink_to(tmp_path / "more")  # a class that lies elsewhere
    (tmp_path / "more/back").symlink_to(tmp_path / "data/jump")
    seen = ["jump/c.mp4", "run/a.mp4", "walk/b.mp4"]
    found = find_video_files([tmp_path / "data"])
    assert [path.relative_to(tmp_path / "data").as_posix() for path in found] == seen
    assert [record.name for record in load_videos(tmp_path / "data")] == seen
    assert caplog.text.count("run/circle: leads back to") == 1  # of find_video_files
    assert any("run/circle: leads back to" in note for note in load_videos(tmp_path / "data").notes)
