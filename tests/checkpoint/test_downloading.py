"""Downloads against a server that breaks: resumed, checked, and never half there under their own name."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from frameflex.checkpoint import CheckpointError, downloading
from frameflex.checkpoint.downloading import cache_folder, download, locked

CONTENT = bytes(range(256)) * 4000  # 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(web):
    web.files["weights.pth"] = CONTENT
    return web.address + "weights.pth"


@pytest.fixture
def path(web):
    return cache_folder() / "published" / "weights.pth"


def whole(path):
    return path.read_bytes() == CONTENT and not path.with_name(f".{path.name}.part").exists()


def ranges(web):
    return [request.headers.get("Range") for request in web.requests]


def test_a_file_arrives(file, path):
    download(file, path, sha256=SHA256[:8])
    assert whole(path)


def test_a_transfer_that_breaks_goes_on_where_it_was(web, file, path):
    web.misbehave = lambda handler: len(web.requests) <= 3 and web.answer(handler, cut_after=300_000)
    download(file, path, sha256=SHA256)
    assert whole(path)
    assert ranges(web) == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_broken_transfer_is_resumed_by_a_later_call(web, file, path, monkeypatch):
    web.misbehave = lambda handler: web.answer(handler, cut_after=300_000 if len(web.requests) == 1 else 0)
    with pytest.raises(
        CheckpointError, match=r"can't be downloaded.*goes on from what has arrived"
    ) as caught:
        download(file, path, sha256=SHA256)
    assert str(path) in str(caught.value)
    assert not path.exists()
    web.misbehave = lambda handler: False
    web.requests.clear()
    download(file, path, sha256=SHA256)
    assert whole(path)
    assert ranges(web) == ["bytes=300000-"]


def test_a_server_without_ranges_sends_everything_again(web, file, path):
    web.ranges = False
    web.misbehave = lambda handler: len(web.requests) == 1 and web.answer(handler, cut_after=1000)
    download(file, path, sha256=SHA256)
    assert whole(path)


def test_a_part_of_another_file_is_thrown_away(web, file, path):
    path.parent.mkdir(parents=True)
    part = path.with_name(".weights.pth.part")
    for old in (b"an older file" * 99, b"longer" * 999_999, CONTENT):
        part.write_bytes(old)
        download(file, path, sha256=SHA256)
        assert whole(path)


def test_an_answer_that_does_not_go_on_where_asked_is_asked_again(web, file, path):
    def other_part(handler):
        if len(web.requests) != 2:
            return len(web.requests) == 1 and web.answer(handler, cut_after=1000)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-99/{len(CONTENT)}")
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(CONTENT[:100])
        return True

    web.misbehave = other_part
    download(file, path, sha256=SHA256)
    assert whole(path)


def test_another_file_is_refused_and_leaves_nothing(web, file, path):
    with pytest.raises(CheckpointError, match=rf"SHA-256 {SHA256}, expected 00000000….*not used"):
        download(file, path, sha256="00000000")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_answer_that_waiting_does_not_mend_is_told_at_once(status, web, file, path):
    web.misbehave = lambda handler: handler.send_error(status) or True
    with pytest.raises(CheckpointError, match=rf"the server answers {status}.*by hand and put it at {path}"):
        download(file, path, sha256=SHA256)
    assert len(web.requests) == 1


def test_a_busy_server_is_asked_again(web, file, path):
    statuses = [503, 429, 500]
    web.misbehave = lambda handler: bool(statuses) and (handler.send_error(statuses.pop(0)) or True)
    download(file, path, sha256=SHA256)
    assert whole(path)


def test_a_page_in_place_of_a_file_is_refused(web, file, path):
    def page(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html; charset=utf-8")
        handler.end_headers()
        handler.wfile.write(b"<html>Please log in</html>")
        return True

    web.misbehave = page
    with pytest.raises(CheckpointError, match=r"web page \(text/html\), not a file"):
        download(file, path, sha256=SHA256)
    assert list(path.parent.iterdir()) == []


def test_a_redirect_is_followed(web, file, path):
    def elsewhere(handler):
        if handler.path != "/here":
            return False
        handler.send_response(302)
        handler.send_header("Location", file)
        handler.end_headers()
        return True

    web.misbehave = elsewhere
    download(web.address + "here", path, sha256=SHA256)
    assert whole(path)


def test_a_slow_server_is_waited_for_and_a_silent_one_is_given_up(web, file, path, monkeypatch):
    web.misbehave = lambda handler: web.answer(handler, wait=0.02)
    download(file, path, sha256=SHA256)
    assert whole(path)
    path.unlink()
    monkeypatch.setattr(downloading, "TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(downloading, "TRIES", 2)
    web.misbehave = lambda handler: web.answer(handler, wait=1.0)
    with pytest.raises(CheckpointError, match="timed out"):
        download(file, path, sha256=SHA256)


def test_nobody_there_is_a_clear_error(path):
    with pytest.raises(CheckpointError, match="can't be downloaded.*refused"):
        download("http://127.0.0.1:9/a.pth", path, sha256=SHA256)


def test_a_disk_without_room_is_told_before_and_while_it_fills(web, file, path, monkeypatch):
    free = shutil.disk_usage(os.getcwd())._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(downloading.shutil, "disk_usage", lambda folder: free)
        with pytest.raises(CheckpointError, match=r"it needs 1 MB, 0 MB are free.*FRAMEFLEX_CACHE"):
            download(file, path, sha256=SHA256)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloading, "_bar", full)  # where the file is open
        with pytest.raises(CheckpointError, match=r"No space left on device.*FRAMEFLEX_CACHE"):
            download(file, path, sha256=SHA256)
    assert not path.exists()
    download(file, path, sha256=SHA256)
    assert whole(path)


def test_a_folder_that_cannot_be_written_to_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"cache folder .* can't be used.*FRAMEFLEX_CACHE"),
        locked(tmp_path / "file" / "a.pth"),
    ):
        pass


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FRAMEFLEX_CACHE", str(tmp_path / "ours"))
    assert cache_folder() == tmp_path / "ours"
    monkeypatch.delenv("FRAMEFLEX_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "frameflex"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "frameflex"


FETCH = """
import sys
from pathlib import Path
from frameflex.checkpoint.downloading import download, locked
url, path, digest = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
with locked(path):
    if not path.is_file():
        download(url, path, sha256=digest)
"""


@pytest.mark.slow  # two further processes import torch
def test_two_processes_download_once(web, file, path):
    web.misbehave = lambda handler: web.answer(handler, wait=0.1)
    command = [sys.executable, "-c", FETCH, file, str(path), SHA256]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert whole(path)
    assert len(web.requests) == 1
