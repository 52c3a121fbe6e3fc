"""Object storage: whole files or none; faults that pass are tried again, others are one line. A real S3 server."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from store import times

from frameflex import storage
from frameflex.storage import (
    StorageError,
    StoredFile,
    copy_to,
    files_below,
    is_stored,
    is_stored_folder,
    look,
    place_of,
    read_range,
    write,
)

CONTENT = bytes(range(256)) * 1200


def test_what_is_an_address_in_storage_and_what_is_a_path():
    for text in ("s3://bucket/a", Path("s3://bucket/a"), "gs://b", StoredFile("s3://bucket/a")):
        assert is_stored(text)
    for text in (
        "a.mp4",
        Path("/a/s3://b"),
        "https://host/a",
        "s3:",
        "S3",
        "hf://owner/name",
        None,
        b"s3://b",
        3,
    ):
        assert not is_stored(text)
    assert str(place_of(Path("s3://bucket/a b/c.mp4"))) == "s3://bucket/a b/c.mp4"
    assert place_of("a.mp4") == Path("a.mp4")
    file = StoredFile("s3://bucket/a/clip.1.mp4", 3, 4)
    assert (file.name, file.stem, pickle.loads(pickle.dumps(file))) == ("clip.1.mp4", "clip.1", file)


def test_a_file_is_read_whole_by_one_request(store):
    address = store.put("a/v.mp4", CONTENT)
    with StoredFile(address).open() as file:
        assert (file.read(), file.name) == (CONTENT, address)
    assert len(store.requests) == 1
    assert read_range(address, 5, 10) == CONTENT[5:15]
    assert read_range(address, len(CONTENT) - 3, 100) == CONTENT[-3:]
    assert read_range(address, len(CONTENT), 100) == b""
    assert StoredFile(store.put("empty", b"")).open().read() == b""
    assert StoredFile(address).state()[0] == len(CONTENT)
    assert StoredFile("s3://bucket/none").state() == (-1, -1)


@pytest.mark.parametrize(
    "fault",
    [
        lambda s: lambda h: s.answer(h, cut_after=100_000),
        lambda s: lambda h: s.answer(h, cut_after=0, reset=True),
        lambda s: lambda h: s.refuse(h, 503, "SlowDown"),
        lambda s: lambda h: s.refuse(h, 500, "InternalError"),
        lambda s: lambda h: s.answer(h, wait=0.02),
    ],
    ids=["cut", "reset", "503", "500", "slow"],
)
def test_a_fault_that_passes_is_tried_again_and_the_file_is_whole(store, fault, tmp_path):
    address = store.put("v.mp4", CONTENT)
    store.misbehave = times(2, fault(store))
    assert StoredFile(address).open().read() == CONTENT
    store.misbehave = times(1, fault(store))
    copy_to(address, tmp_path / "v.mp4")
    assert (tmp_path / "v.mp4").read_bytes() == CONTENT


@pytest.mark.parametrize("piece", [40_000, 100_000])
def test_a_large_file_comes_in_pieces_and_is_whole_whatever_is_cut(store, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(storage, "FIRST_BYTES", 20_000)
    monkeypatch.setattr(storage, "PIECE_BYTES", piece)
    address = store.put("v.mp4", CONTENT)
    store.misbehave = times(3, lambda handler: store.answer(handler, cut_after=10_000), of="GET")
    with StoredFile(address).open() as file:
        assert (file.read(), file.name, file.seek(0, os.SEEK_END)) == (CONTENT, address, len(CONTENT))
    copy_to(address, tmp_path / "v.mp4")
    assert (tmp_path / "v.mp4").read_bytes() == CONTENT


def test_a_large_file_that_changes_while_it_is_read_is_an_error_and_leaves_nothing(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr(storage, "FIRST_BYTES", 20_000)
    monkeypatch.setattr(storage, "PIECE_BYTES", 40_000)
    address = store.put("v.mp4", CONTENT)

    def change(handler):
        if "GET" in handler.command and len(store.requests) % 10 == 4:
            store.put("v.mp4", os.urandom(len(CONTENT)))
        return False

    store.misbehave = change
    store.requests.clear()
    with pytest.raises(StorageError, match="changed while it was read"):
        StoredFile(address).open()
    store.requests.clear()
    with pytest.raises(StorageError, match="changed while it was read"):
        copy_to(address, tmp_path / "v.mp4")
    assert list(tmp_path.glob("*v*")) == []


def test_less_than_was_listed_is_not_taken_for_the_file(store):
    address = store.put("v.mp4", CONTENT)
    listed = files_below("s3://bucket")[0]

    def shorten(handler):  # a cache between that says of a part that it is all
        if handler.command == "GET":
            handler.headers["Range"] = None
            handler.send_response_only(206)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(CONTENT[:1000])
            return True
        return False

    store.misbehave = shorten
    with pytest.raises(StorageError, match=f"gave 1000 bytes of {len(CONTENT)}"):
        listed.open()
    store.misbehave = lambda handler: False
    store.put("v.mp4", CONTENT[:500])  # another, shorter one since
    assert StoredFile(address, listed.num_bytes).open().read() == CONTENT[:500]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda s: lambda h: s.refuse(h, 403, "AccessDenied", "Access Denied"), "no permission to read it"),
        (lambda s: lambda h: s.refuse(h, 400, "ExpiredToken", "The token has expired."), "token has expired"),
        (lambda s: lambda h: s.refuse(h, 503, "ServiceUnavailable"), "can't be read .* after several tries"),
        (lambda s: lambda h: s.answer(h, cut_after=10), "can't be read .* after several tries"),
    ],
    ids=["denied", "expired", "503", "cut"],
)  # fmt: skip
def test_a_fault_that_stays_is_one_line(store, fault, words):
    address = store.put("v.mp4", CONTENT)
    store.misbehave = fault(store)
    with pytest.raises(StorageError, match=words) as error:
        StoredFile(address).open()
    assert str(error.value).startswith(address)
    assert "\n" not in str(error.value)
    assert "hush" not in str(error.value)


def test_no_such_file_no_such_bucket_no_credentials_and_no_server_are_told_apart(store, monkeypatch):
    import fsspec

    with pytest.raises(FileNotFoundError, match=r"s3://bucket/none.mp4: there is no such file"):
        StoredFile("s3://bucket/none.mp4").open()
    for ask in (lambda: StoredFile("s3://no-bucket/v.mp4").open(), lambda: files_below("s3://no-bucket/a")):
        with pytest.raises(StorageError, match="there is no bucket 'no-bucket'"):
            ask()
    with pytest.raises(StorageError, match="there is no bucket"):
        write("s3://no-bucket/v.mp4", b"1")
    with pytest.raises(StorageError, match="gcsfs"):
        StoredFile("gs://bucket/v.mp4").open()
    kinds = fsspec.get_filesystem_class("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    kinds.clear_instance_cache()
    with pytest.raises(StorageError, match="can't be read .*127.0.0.1:9"):
        StoredFile("s3://bucket/v.mp4").open()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    kinds.clear_instance_cache()
    with pytest.raises(StorageError, match="no credentials .*AWS_ACCESS_KEY_ID"):
        StoredFile("s3://bucket/v.mp4").open()


def test_a_listing_of_many_pages_is_complete_or_an_error(store):
    names = [f"a/{i:02d}/v.mp4" for i in range(13)] + ["a/list.csv", "ab/no.mp4"]
    for name in names:
        store.put(name, name.encode())
    store.most_keys = 3
    assert [file.address for file in files_below("s3://bucket/a")] == sorted(
        f"s3://bucket/{n}" for n in names[:-1]
    )
    assert [file.name for file in files_below("s3://bucket/a/", deep=False)] == ["list.csv"]
    pages = [request for request in store.requests if "list-type=2" in request]
    assert len(pages) > 5
    store.put("a/new.mp4", b"1")  # a listing is never one of before
    assert "s3://bucket/a/new.mp4" in [file.address for file in files_below("s3://bucket/a")]
    assert files_below("s3://bucket/none") == []
    assert is_stored_folder("s3://bucket/a")
    assert not is_stored_folder("s3://bucket/a/list.csv")

    store.misbehave = times(
        2, lambda handler: store.refuse(handler, 503, "SlowDown"), of="continuation-token"
    )
    assert len(files_below("s3://bucket/a")) == len(names)
    store.misbehave = times(
        99, lambda handler: store.refuse(handler, 503, "InternalError"), of="continuation-token"
    )
    with pytest.raises(StorageError, match="can't be listed"):
        files_below("s3://bucket/a")
    store.misbehave = times(
        1, lambda handler: store.refuse(handler, 400, "InvalidArgument", "The continuation token has expired"),
        of="continuation-token",
    )  # fmt: skip
    with pytest.raises(StorageError, match="token has expired"):
        files_below("s3://bucket/a")


def test_an_object_is_written_whole_and_not_over_another_where_it_must_be_new(store):
    write("s3://bucket/out/a.json", b"first")
    write("s3://bucket/out/a.json", b"second")
    assert store.get("out/a.json") == b"second"
    with pytest.raises(FileExistsError):
        write("s3://bucket/out/a.json", b"third", new=True)
    write("s3://bucket/out/b.json", b"new", new=True)
    assert (store.get("out/a.json"), store.get("out/b.json")) == (b"second", b"new")
    store.misbehave = times(1, lambda handler: store.refuse(handler, 503, "SlowDown"), of="PUT")
    write("s3://bucket/out/c.json", b"again")
    assert store.get("out/c.json") == b"again"
    store.misbehave = lambda handler: store.refuse(handler, 403, "AccessDenied", "Access Denied")
    with pytest.raises(StorageError, match="no permission to write"):
        write("s3://bucket/out/d.json", b"no")
    store.misbehave = lambda handler: False
    assert store.keys() == ["out/a.json", "out/b.json", "out/c.json"]


def test_a_version_tells_one_content_from_the_next(store):
    address = store.put("v.mp4", b"12345")
    before = look(address).state()
    store.put("v.mp4", b"54321")
    assert look(address).state() != before
    store.put("folder/v.mp4", b"1")
    with pytest.raises(FileNotFoundError):
        look("s3://bucket/folder")


def test_local_paths_need_no_fsspec(tmp_path):
    """It isn't even imported."""
    from helpers import bar_folder

    data = bar_folder(tmp_path / "data", per_class=1)
    code = (
        "import sys; from frameflex.data.datasets import load_videos; from frameflex import open_video;"
        f"videos = load_videos({str(data)!r}, split='train'); videos[0].open().close();"
        "sys.exit('fsspec' in sys.modules and 'fsspec was imported')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
