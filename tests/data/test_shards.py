"""Shards give the clips that the files give, wherever they lie; hostile ones are refused."""

import contextlib
import http.server
import json
import tarfile
import threading
from functools import partial

import pytest
import torch
from helpers import bar_folder
from torch.utils.data import DataLoader

from frameflex.cli import main
from frameflex.data.clips import ClipDataset, collate
from frameflex.data.datasets import load_split, load_videos, survey
from frameflex.data.preparing import Encoding, prepare
from frameflex.data.shard_stream import ShardStream, check_member_name
from frameflex.data.shards import ShardError, ShardMember, read_index
from frameflex.data.shards.members import pack_member, unpack_member
from frameflex.data.transforms import EvalTransform, Preprocessing, TrainTransform
from frameflex.storage import StorageError
from frameflex.video import VideoError

PIXELS = Preprocessing(short_side=32, crop_size=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set and its lossless shards, three videos in each."""
    root = tmp_path_factory.mktemp("shards")
    data = bar_folder(root / "data", per_class=4)
    prepare(survey(data), root / "out", encoding=Encoding("lossless"), videos_per_shard=3)
    return data, root / "out"


@pytest.fixture
def broken(made, tmp_path):
    """A copy of the index, to change."""
    for file in made[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = json.loads((tmp_path / "index.json").read_text())
    return tmp_path, index


def clips(videos, *, training=False, **options):
    transform = TrainTransform(PIXELS) if training else EvalTransform(PIXELS)
    return ClipDataset(videos, frame_counts=(2, 5), transform=transform, training=training, seed=3, **options)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    ranges = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.translate_path(self.path)
        try:
            content = open(path, "rb").read()  # noqa: SIM115
        except OSError:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        if asked and self.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or len(content)), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes" if self.ranges else "none")
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def served(folder, *, ranges=True):
    handler = type("Handler", (RangeHandler,), {"ranges": ranges})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_shards_hold_the_same_videos_in_the_same_order_as_the_files(made):
    data, out = made
    for split in ("train", "validation"):
        files, shards = load_videos(data, split=split), load_videos(out, split=split)
        assert [(r.name, r.label) for r in shards] == [(r.name, r.label) for r in files]
        assert shards.classes == files.classes
    assert load_split(out, "train").splits == ("train", "validation")
    reversed_classes = load_videos(out, split="val", classes=["going right", "going left"])
    assert reversed_classes.labels == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("training", [False, True])
def test_lossless_shards_give_the_very_clips_of_the_files(made, training):
    data, out = made
    ours, theirs = (clips(load_videos(source, split="train"), training=training) for source in (out, data))
    for key in ((0, 0), (5, 2)):
        a, b = ours[key], theirs[key]
        assert a.label == b.label
        for count in (2, 5):
            assert torch.equal(a.clips[count], b.clips[count])


@pytest.mark.parametrize("where", ["http", "memory"])
def test_shards_at_an_address_give_the_clips_of_the_local_ones(made, where):
    fsspec = pytest.importorskip("fsspec")
    out = made[1]
    here = clips(load_videos(out, split="train"))
    with contextlib.ExitStack() as stack:
        if where == "http":
            pytest.importorskip("aiohttp")
            address = stack.enter_context(served(out))
        else:
            address, memory = "memory://bucket/shards", fsspec.filesystem("memory")
            for file in out.iterdir():
                memory.pipe(f"/bucket/shards/{file.name}", file.read_bytes())
        far = clips(load_videos(address, split="train"))
        assert torch.equal(far[3].clips[5], here[3].clips[5])
        stream = {sample.index: sample for sample in ShardStream(far)}
        assert torch.equal(stream[6].clips[2], here[6].clips[2])
        if where == "http":  # in processes that inherit nothing but the addresses
            batches = list(DataLoader(far, batch_size=3, num_workers=2, collate_fn=collate))
            assert torch.equal(batches[1].clips[5][0], here[3].clips[5])
        else:
            memory.rm("/bucket", recursive=True)


def test_a_server_without_ranges_is_an_error_and_not_a_download_of_everything(made):
    pytest.importorskip("aiohttp")
    with served(made[1], ranges=False) as address:
        member = load_videos(address, split="train")[0].path
        with pytest.raises(StorageError, match="support range requests"):
            ShardMember(member.shard, member.name, 512, 100, 0).read()
        with pytest.raises(ShardError, match="can't be read"):
            load_videos(address + "/nowhere")


@pytest.mark.parametrize("training", [False, True])
def test_a_stream_deals_each_video_once_an_epoch_with_the_samples_of_the_dataset(made, training):
    pytest.importorskip("webdataset")
    dataset = clips(load_videos(made[1], split="train"), training=training)
    orders = []
    for epoch in range(4):  # three shards have six orders
        seen = []
        for rank in (0, 1):
            stream = ShardStream(dataset, rank=rank, world=2)
            stream.set_epoch(epoch)
            loader = DataLoader(stream, batch_size=2, num_workers=rank * 2, collate_fn=collate)
            for batch in loader:
                for place, index in enumerate(batch.indices.tolist()):
                    seen.append(index)
                    assert torch.equal(batch.clips[5][place], dataset[index, epoch].clips[5])
        assert sorted(seen) == list(range(8))
        orders.append(seen)
    assert all(order == orders[0] for order in orders) is not training


def test_webdataset_reads_the_shards_by_itself(made):
    webdataset = pytest.importorskip("webdataset")
    out = made[1]
    files = sorted(str(path) for path in out.glob("train-*.tar"))
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode())
    assert len(samples) == 8
    about = {sample["json"]["name"]: sample["json"] for sample in samples}
    assert about["going left/2.mp4"]["class"] == "going left"
    assert about["going left/2.mp4"]["num_frames"] == 12
    assert all(isinstance(sample["mkv"], bytes) for sample in samples)


def test_a_quarantine_list_reaches_into_shards(made, tmp_path):
    first = load_videos(made[1], split="train")[0]
    (tmp_path / "q.txt").write_text(f"{first.path}\tdull\n")
    left = load_videos(made[1], split="train", quarantine=tmp_path / "q.txt")
    assert (len(left), left.left_out[0].name) == (7, first.name)
    pytest.importorskip("webdataset")
    assert len(list(ShardStream(clips(left)))) == 7


def test_a_member_survives_being_packed():
    member = ShardMember("s3://bucket/with::colons/x.tar", "000001.mp4", 512, 7, 9)
    assert unpack_member(pack_member(member)) == member


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.update(version=2), "version is 2"),
        (lambda i: i.pop("shards"), "'shards' is missing"),
        (lambda i: i["shards"][0].update(file="../x.tar"), "expected a plain name"),
        (lambda i: i["shards"][0].update(file="/etc/x.tar"), "expected a plain name"),
        (lambda i: i["shards"][0]["videos"][0].__setitem__(3, "../../000001.mkv"), "a member is called"),
        (lambda i: i["shards"][0]["videos"][0].__setitem__(5, 10**12), "inside of the"),
        (lambda i: i["shards"][0]["videos"][0].__setitem__(4, -1), "a number from 0"),
        (lambda i: i["shards"][0]["videos"][0].__setitem__(2, 2), "label is 2"),
        (lambda i: i["shards"][0].update(num_bytes=10**12), "expected 1000000000000 bytes"),
        (lambda i: i["shards"][0].update(split="test"), "which is not listed"),
        (lambda i: i.update(splits=["../up"]), "expected some of train"),
    ],
)
def test_an_index_that_lies_is_refused(broken, change, words):
    folder, index = broken
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises((ShardError, ValueError), match=words.replace("(", r"\(")):
        load_videos(folder, split="train")


def test_a_changed_byte_is_named_and_a_missing_shard_is_an_error(broken):
    folder, _ = broken
    member = load_videos(folder, split="train")[0].path
    with open(member.shard, "r+b") as file:
        file.seek(member.offset + member.num_bytes // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    videos = load_videos(folder, split="train")
    with pytest.raises(VideoError, match="its checksum"):
        clips(videos)[0]
    skipped = clips(videos, on_bad_video="skip")[0]
    assert member.name in skipped.reason
    (folder / "train-00000.tar").unlink()
    with pytest.raises(ShardError, match="is not there"):
        load_videos(folder, split="train")


def test_a_stream_refuses_names_that_lead_out_and_files_that_unpack(broken):
    pytest.importorskip("webdataset")
    folder, _ = broken
    dataset = clips(load_videos(folder, split="validation"))
    shard = folder / "validation-00000.tar"
    content, size = shard.read_bytes(), shard.stat().st_size
    with tarfile.open(shard, "w") as tar:
        tar.addfile(tarfile.TarInfo("../../evil.mkv"))
    with pytest.raises(ShardError, match="expected a name inside"):
        list(ShardStream(dataset))
    import gzip

    shard.write_bytes(gzip.compress(b"\0" * size))
    with pytest.raises(ShardError, match="no plain tar"):
        list(ShardStream(dataset))
    shard.write_bytes(content[: size // 3])
    with pytest.raises(ShardError, match=r"can't be read to its end|lacks"):
        list(ShardStream(dataset))
    for name in ("/abs", "a/../b", "C:/x", "..\\x"):
        with pytest.raises(ShardError):
            check_member_name(name, "x.tar")


def test_index_reads_by_its_own_path_and_an_unknown_protocol_is_one_line(made):
    assert read_index(made[1] / "index.json").classes == ("going left", "going right")
    pytest.importorskip("fsspec")
    with pytest.raises(StorageError, match="nosuch"):
        load_videos("nosuch://bucket/x")


def test_verbs_take_shards_like_any_data_set(made, tmp_path, capsys):
    assert main(["data", "check", str(made[1]), "--output", str(tmp_path / "check")]) == 0
    assert "14 videos: 0 bad" in capsys.readouterr().err
