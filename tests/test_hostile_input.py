"""Whatever a file holds, each parser ends with what it holds or with a clear error of ours, in little memory."""

import ast
import importlib.util
import itertools
import json
import os
import resource
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import av
import pytest
import torch
from helpers import moving_bar, write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import frameflex
from frameflex.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.data.datasets import load_videos
from frameflex.data.manifest import read_manifest
from frameflex.data.quarantine import read_quarantine
from frameflex.data.shards import ShardError, read_index
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.live.sources import LiveSource, running
from frameflex.engine.recipe import RecipeError, check_keys, read_yaml
from frameflex.models import create_model
from frameflex.video import Limits, VideoError, open_video
from frameflex.video.sequential import SequentialReader

OURS = (VideoError, CheckpointError, RecipeError, ShardError, ValueError, FileNotFoundError)
FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(10**12), st.just(-1)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@st.composite
def spoiled(draw, content: bytes) -> bytes:
    """A sound file with a few parts overwritten, removed or repeated."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from((1, 2, 8, 64)))
        patch = draw(
            st.sampled_from((b"", b"..", b"../", b"\0", b"\xff" * 8, b'"', b"[" * 50, b"9" * 20, b"\n", b","))
        )
        how = draw(st.integers(0, 3))
        if how == 0:
            data[at : at + len(patch)] = patch
        elif how == 1:
            del data[at : at + length]
        elif how == 2:
            data[at:at] = data[at : at + length] * draw(st.integers(1, 3))
        else:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(data)


def error_of(parse, *arguments) -> Exception | None:
    """None where it parses; else the error, which has to be one of ours."""
    try:
        parse(*arguments)
    except OURS as error:
        return error
    return None


def ends_well(parse, *arguments) -> None:
    """It parses, or says in words of ours why not."""
    error = error_of(parse, *arguments)
    assert error is None or str(error).strip()


def network(path: Path, **architecture) -> Path:
    model = create_model("test_resnet", num_classes=2, **architecture)
    pixels = Preprocessing(short_side=32, crop_size=32)
    save_checkpoint(path, Checkpoint(model, ["a", "b"], pixels, (2, 4)))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return network(tmp_path_factory.mktemp("net") / "net.safetensors")


def with_header(source: Path, target: Path, header) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(load_file(source), target, metadata={"frameflex": text})
    return target


def header_of(path: Path) -> dict:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["frameflex"])


# Checkpoints


@FUZZ
@given(data=st.data())
def test_any_bytes_as_a_checkpoint_give_a_checkpoint_or_a_checkpoint_error(checkpoint, tmp_path, data):
    content = checkpoint.read_bytes()
    num_header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "x.safetensors"
    # Damage in the weights themselves is not of this test: they are numbers.
    path.write_bytes(data.draw(spoiled(content[:num_header])) + content[num_header:])
    ends_well(load_checkpoint, path)


@FUZZ
@given(data=st.data())
def test_any_value_at_any_place_of_the_header_gives_a_checkpoint_or_a_checkpoint_error(
    checkpoint, tmp_path, data
):
    header = header_of(checkpoint)
    key = data.draw(st.sampled_from(sorted(header)))
    if isinstance(header[key], dict) and header[key] and data.draw(st.booleans()):
        header[key][data.draw(st.sampled_from(sorted(header[key])))] = data.draw(values)
    else:
        header[key] = data.draw(values)
    error = error_of(load_checkpoint, with_header(checkpoint, tmp_path / "x.safetensors", header))
    assert error is None or isinstance(error, CheckpointError)


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 10**9},
        {"num_classes": 10**30},
        {"backbone_options": {"channels": [10**9] * 4}},
        {"backbone_options": {"channels": [500_000] * 4}},
        {"backbone_options": {"layers": [10**9] * 4}},
        {"backbone_options": {"layers": [100_000] * 4}},
        {"backbone_options": {"base_width": 1_000_000}},
        {"backbone_options": {"act_layer": "os.system"}},
        {"backbone_options": {"block": "__import__"}},
        {"backbone_options": {"pretrained": True}},
        {"backbone_options": {"checkpoint_path": "/etc/passwd"}},
        {"backbone": "hf-hub:someone/network"},
        {"backbone": "local-dir:/etc"},
        {"backbone": "resnet152"},
        {"pretrained": True},
        {"frame_counts": list(range(1, 5000))},
        {"shift_div": 0},
    ],
    ids=str,
)
def test_absurd_architectures_are_refused_before_memory_is_touched(checkpoint, tmp_path, change):
    header = header_of(checkpoint)
    header["architecture"] |= change
    if "num_classes" in change and change["num_classes"] < 10**10:
        header["class_names"] = ["a", "b"]
    path = with_header(checkpoint, tmp_path / "x.safetensors", header)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024  # KiB


@pytest.mark.parametrize(
    "change",
    [
        {"preprocessing": {"short_side": 10**9, "crop_size": 10**9}},
        {"frame_counts": [10**12]},
        {"frame_counts": [0]},
        {"sampling": {"sampling": "dense", "window": 10**12}},
        {"sampling": {"on_error": "error", "videos": []}},
        {"class_names": ["a"] * 100_000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_header_can_not_ask_for_absurd_clips(checkpoint, tmp_path, change):
    path = with_header(checkpoint, tmp_path / "x.safetensors", header_of(checkpoint) | change)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("claimed", [0, 10**9, 10**12, 2**63, 2**64 - 1])
def test_a_checkpoint_whose_header_claims_more_than_the_file_has_is_refused(tmp_path, claimed):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + b"{}" * 50)
    with pytest.raises(CheckpointError, match="header"):
        load_checkpoint(path)


def test_tensors_that_claim_more_than_the_file_has_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    text = json.dumps({"__metadata__": {"frameflex": "{}"}, "head.weight": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(100))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_deeply_nested_json_in_a_header_is_an_error_and_no_crash(checkpoint, tmp_path):
    path = with_header(checkpoint, tmp_path / "x.safetensors", "[" * 200_000)
    with pytest.raises(CheckpointError, match="header"):
        load_checkpoint(path)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = tmp_path / "x.safetensors"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


# Recipes


def read_recipe(path: Path) -> None:
    check_keys(read_yaml(path), str(path))


@FUZZ
@given(data=st.data())
def test_any_bytes_as_a_recipe_give_a_recipe_or_a_recipe_error(tmp_path, data):
    text = (
        b"data: {train: videos}\nclip:\n  frame_counts: [4, 8]\nmodel: {backbone: resnet50, pretrained: no}\n"
    )
    path = tmp_path / "r.yaml"
    path.write_bytes(data.draw(st.one_of(spoiled(text), st.binary(max_size=60), st.text().map(str.encode))))
    error = error_of(read_recipe, path)
    assert error is None or (isinstance(error, RecipeError) and str(path) in str(error))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n"
        + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in itertools.pairwise("abcdefghi")),
        "model: !!python/object/apply:os.system ['touch sprung']\n",
        "model: !!python/name:os.system\n",
        "[" * 2_000,
        "{a: " * 2_000,
        "? [x]\n: y\n",
        "seed: 9999-99-99\n",
        "seed: " + "9" * 10_000 + "\n",
        "#" * (2**16 + 1),
        "- 1\n- 2\n",
        "\x00",
    ],
    ids=["alias bomb", "call", "name", "lists", "maps", "key", "date", "number", "long", "list", "nul"],
)
def test_recipes_that_would_run_code_or_eat_memory_are_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        read_recipe(path)
    assert not (tmp_path / "sprung").exists()


def test_train_says_in_one_line_what_is_wrong_with_an_alias_bomb(tmp_path, capsys):
    from frameflex.cli import main

    path = tmp_path / "bomb.yaml"
    path.write_text("a: &a [1]\nb: *a\n")
    assert main(["train", str(path)]) == 1
    assert "alias" in capsys.readouterr().err


# Lists, manifests, labels


@FUZZ
@given(data=st.data(), suffix=st.sampled_from((".txt", ".csv", ".tsv", ".jsonl")))
def test_any_bytes_as_a_manifest_give_rows_or_a_value_error(tmp_path, data, suffix):
    text = {
        ".txt": b"a/b.mp4\nc.mp4\n",
        ".csv": b'id,path\n1,a.mp4\n2,"b,c.mp4"\n',
        ".tsv": b"path\tlabel\na.mp4\tx\n",
        ".jsonl": b'{"path": "a.mp4"}\n{"path": "b.mp4", "id": 3}\n',
    }[suffix]
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data.draw(st.one_of(spoiled(text), st.binary(max_size=80))))
    home = os.path.abspath(tmp_path)

    def read() -> None:
        for row in read_manifest(path):
            assert os.path.isabs(row.video) or os.path.abspath(row.path).startswith(home)

    error = error_of(read)
    assert error is None or str(path) in str(error)


@FUZZ
@given(data=st.data())
def test_any_bytes_as_a_parquet_manifest_give_rows_or_a_value_error(tmp_path, data):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sound = tmp_path / "sound.parquet"
    if not sound.exists():
        parquet.write_table(
            arrow.table({"path": [f"{i}.mp4" for i in range(50)], "n": list(range(50))}), sound
        )
    path = tmp_path / "m.parquet"
    path.write_bytes(data.draw(spoiled(sound.read_bytes())))
    error = error_of(lambda: list(read_manifest(path)))
    assert error is None or str(path) in str(error)


@pytest.mark.parametrize("name", ["m.txt", "m.csv", "m.jsonl", "m.parquet"])
@pytest.mark.parametrize("video", ["../outside.mp4", "a/../../outside.mp4", "a\0b.mp4", "x" * 5000, ""])
def test_a_manifest_can_not_name_what_lies_outside_of_its_folder(tmp_path, name, video):
    path = tmp_path / name
    if name == "m.parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"path": [video]}), path)
    else:
        path.write_text(
            {"m.txt": video, "m.csv": f'path\n"{video}"', "m.jsonl": json.dumps({"path": video})}[name]
        )
    with pytest.raises(ValueError, match=r"leaves the folder|expected the path|names no video|NUL"):
        list(read_manifest(path))


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "m.txt"
    with path.open("wb") as file:
        file.truncate(4 * 2**30)  # a sparse file of 4 GiB zeros
    tracemalloc.start()
    with pytest.raises(ValueError, match="longer than"):
        list(read_manifest(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


@FUZZ
@given(data=st.data())
def test_any_bytes_as_a_list_or_as_labels_give_videos_or_a_clear_error(tmp_path, data):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "videos").mkdir(exist_ok=True)
    (tmp_path / "videos" / "1.webm").touch()
    kind = data.draw(st.sampled_from(("list", "kinetics", "labels", "train")))
    sound = {
        "list": b"path,label,start_seconds,end_seconds\na.mp4,x,0,1\na.mp4,y,1,2\n",
        "kinetics": b"label,youtube_id,time_start,time_end,split\nx,abc,0,10,train\n",
        "labels": b'{"x": "0", "y": "1"}',
        "train": b'[{"id": "1", "template": "x"}]',
    }
    content = data.draw(st.one_of(spoiled(sound[kind]), values.map(lambda v: json.dumps(v).encode())))
    if kind in ("list", "kinetics"):
        (tmp_path / "list.csv").write_bytes(content)
        ends_well(lambda: load_videos(tmp_path / "list.csv", on_missing="skip"))
    else:
        for name in ("labels", "train"):
            (tmp_path / f"{name}.json").write_bytes(content if name == kind else sound[name])
        ends_well(lambda: load_videos(tmp_path, split="train", on_missing="skip"))


@FUZZ
@given(data=st.data())
def test_any_bytes_as_a_quarantine_list_give_paths_or_a_value_error(tmp_path, data):
    suffix = data.draw(st.sampled_from((".txt", ".json")))
    text = (
        b"# list\na.mp4\tbroken\n"
        if suffix == ".txt"
        else b'{"quarantine": [{"path": "a.mp4", "reason": "x"}]}'
    )
    path = tmp_path / f"q{suffix}"
    path.write_bytes(data.draw(st.one_of(spoiled(text), values.map(lambda v: json.dumps(v).encode()))))
    ends_well(read_quarantine, path)


# Shards


def shard_index(size: int = 10240) -> dict:
    video = [0, "a", 0, "000000.mp4", 512, 100, zlib.crc32(bytes(100))]
    return {
        "format": "frameflex shards",
        "version": 1,
        "encoding": {},
        "classes": ["x"],
        "splits": [],
        "left_out": [],
        "columns": ["position", "name", "label", "member", "offset", "num_bytes", "crc32"],
        "shards": [
            {"file": "00000.tar", "split": "", "num_bytes": size, "sha256": "0" * 64, "videos": [video]}
        ],
    }


@FUZZ
@given(data=st.data())
def test_any_bytes_as_an_index_of_shards_give_an_index_or_a_shard_error(tmp_path, data):
    (tmp_path / "00000.tar").write_bytes(bytes(10240))
    content = json.dumps(shard_index()).encode()
    (tmp_path / "index.json").write_bytes(
        data.draw(st.one_of(spoiled(content), values.map(lambda v: json.dumps(v).encode())))
    )
    try:
        index = read_index(tmp_path)
    except ShardError:
        return
    home = os.path.abspath(tmp_path)
    for shard in index.shards:
        assert os.path.dirname(os.path.abspath(os.path.join(home, shard.file))) == home


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../outside.tar"},
        {"file": "/etc/passwd"},
        {"num_bytes": 10**12},
        {"videos": [[0, "a", 0, "../../x.mp4", 512, 100, 0]]},
        {"videos": [[0, "a", 0, "000000.mp4", 512, 10**12, 0]]},
        {"videos": [[0, "a", 0, "000000.mp4", -512, 100, 0]]},
    ],
    ids=str,
)
def test_an_index_of_shards_can_not_name_what_is_outside_or_not_there(tmp_path, change):
    (tmp_path / "00000.tar").write_bytes(bytes(10240))
    content = shard_index()
    content["shards"][0] |= change
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(ShardError):
        read_index(tmp_path)


# Videos


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    return write_video(path, moving_bar(12, rightwards=True, size=32))


def gif(num_frames: int, width: int, height: int) -> bytes:
    """A GIF whose frames are one pixel each on a canvas of any size: 23 bytes a frame."""
    frame = b"\x21\xf9\x04\0\1\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + frame * num_frames + b";"


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def test_an_index_of_billions_of_frames_is_refused(video, tmp_path):
    content = video.read_bytes()
    for name, offset in ((b"stsz", 12), (b"stts", 12)):
        spoiled_file = bytearray(content)
        at = content.index(name) + offset
        spoiled_file[at - 4 : at] = struct.pack(">I", 2**32 - 1)
        ends_well(open_video, bytes(spoiled_file))


def test_more_frames_than_the_limit_are_refused_in_the_index_and_while_counting(video):
    with pytest.raises(VideoError, match="expected at most 5"):
        open_video(video, limits=Limits(max_frames=5))
    with pytest.raises(VideoError, match="expected at most 5"):
        open_video(gif(20, 16, 16), limits=Limits(max_frames=5))
    with open_video(video, limits=Limits(max_frames=12)) as reader:
        assert reader.num_frames == 12


@pytest.mark.parametrize(("width", "height"), [(65535, 65535), (65535, 1000), (20000, 20000)])
def test_frames_of_absurd_size_are_refused(width, height):
    with pytest.raises(VideoError):
        open_video(gif(3, width, height))


def test_a_video_of_100000_by_100000_is_refused():
    y4m = b"YUV4MPEG2 W100000 H100000 F25:1 C420\nFRAME\n" + bytes(1000)
    with pytest.raises(VideoError):
        open_video(y4m)


def test_small_files_of_large_frames_can_not_ask_for_more_than_a_gigabyte_at_once():
    with open_video(gif(60, 4000, 2500)) as reader:
        assert reader.num_frames == 60
        assert reader.frames([0, 59]).shape == (2, 3, 2500, 4000)
        with pytest.raises(VideoError, match=r"60 frames of 4000x2500 take 1716 MiB; expected at most 1024"):
            reader.frames(range(60))
    with open_video(gif(3, 64, 64), limits=Limits(max_bytes=10_000)) as reader, pytest.raises(VideoError):
        reader.frames([0])


def test_time_is_limited_where_that_is_asked_for():
    with pytest.raises(VideoError, match=r"not decoded after 0\.2 s"):
        open_video(gif(500, 4000, 2500), limits=Limits(max_seconds=0.2))


def test_playlists_and_scripts_are_no_videos(video, tmp_path):
    named = video.as_posix()
    for content in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{named}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{named}'\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        f'<?xml version="1.0"?><MPD><BaseURL>{named}</BaseURL></MPD>',
    ):
        path = tmp_path / "list.mp4"
        path.write_text(content)
        with pytest.raises(VideoError, match="not a video file"):
            open_video(path)


def test_every_file_is_opened_for_reading_in_one_place():
    package = Path(frameflex.__file__).parent
    callers = set()
    for path in package.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            modes = [value.value for value in call.args[1:] if isinstance(value, ast.Constant)]
            if ast.unparse(call.func) == "av.open" and "w" not in modes:
                callers.add(path.relative_to(package).as_posix())
    assert callers == {"video/containers.py"}


@pytest.mark.parametrize("way", ["open_video", "in one pass", "live", "data check", "predict --window"])
def test_a_list_that_calls_itself_a_video_leads_nowhere(video, tmp_path, capsys, way):
    """FFmpeg tells a playlist by its first bytes, and a name beside it by its ending."""
    secret = tmp_path / "elsewhere" / "secret.mp4"
    secret.parent.mkdir()
    secret.write_bytes(video.read_bytes())
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret.as_posix()}\n#EXT-X-ENDLIST\n"
    )
    path = tmp_path / "clip.mp4"
    for content in (
        "ffconcat version 1.0\nfile 'list.m3u8'\n",
        f"ffconcat version 1.0\nfile '{secret.name}'\n",
    ):
        path.write_text(content)
        if way == "open_video":
            with pytest.raises(VideoError, match="not a video file"):
                open_video(path)
        elif way == "in one pass":
            with pytest.raises(VideoError, match="not a video file"):
                SequentialReader(path)
        elif way == "live":
            source = LiveSource(str(path), every_frame=True)
            with running([source]) as wake:
                while not source.ended:
                    wake.wait(0.05)
                    source.poll()
            assert source.failed
            assert source.num_frames == 0
        elif way == "data check":
            (tmp_path / "all.csv").write_text("clip.mp4,a\n")
            arguments = ["data", "check", str(tmp_path / "all.csv"), "--workers", "1"]
            assert main([*arguments, "--output", str(tmp_path / "found")]) == 1
            assert "not a video file" in (tmp_path / "found" / "report.json").read_text()
        else:
            torch.manual_seed(0)
            model = create_model("test_resnet", num_classes=2).eval()
            made = Checkpoint(model, ["a", "b"], Preprocessing(short_side=32, crop_size=32), (4,))
            save_checkpoint(tmp_path / "model.safetensors", made)
            arguments = ["predict", str(tmp_path / "model.safetensors"), str(path), "--window", "1s"]
            assert main([*arguments, "--annotate", str(tmp_path / "out.mp4")]) == 1
            assert "not a video file" in capsys.readouterr().err
            assert not (tmp_path / "out.mp4").exists()


def test_an_index_that_claims_too_much_is_refused_before_one_pass_begins(video, tmp_path):
    content = bytearray(video.read_bytes())
    place = content.index(b"stsz") + 12
    content[place : place + 4] = (2**30).to_bytes(4, "big")
    path = tmp_path / "claims.mp4"
    path.write_bytes(content)
    for reader in (open_video, SequentialReader):
        with pytest.raises(VideoError, match="its index claims 1073741824 frames"):
            reader(path)


@pytest.mark.parametrize("field", ["max_pixels", "max_frames", "max_bytes", "max_seconds"])
def test_limits_out_of_range_are_refused(field):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})


def test_an_image_of_a_folder_that_claims_too_much_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "00001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + box(b"IDAT", b"")[:8] + bytes(4))
    with pytest.raises(VideoError):
        open_video(tmp_path)


def fuzz_videos():
    name = "fuzz_videos"
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory by /proc")
def test_mutated_videos_never_crash_hang_or_eat_memory(tmp_path):
    output = tmp_path / "fuzz.json"
    arguments = ["--files", "60", "--seed", "1", "--output", str(output), "--deadline", "60"]
    script = str(BENCHMARKS / "fuzz_videos.py")
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(output.read_text())["counts"]
    assert counts["frames"] + counts["refused"] == 60
    assert min(counts["frames"], counts["refused"]) > 5


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory by /proc")
@pytest.mark.parametrize(
    ("behave", "expected"),
    [
        (lambda _: os.kill(os.getpid(), 9), "crash"),
        (lambda _: __import__("time").sleep(60), "hang"),
        (lambda _: len(bytearray(os.urandom(1)) * (1536 << 20)), "memory"),
        (lambda _: 1 / 0, "exception"),
        (lambda _: (_ for _ in ()).throw(VideoError("no")), "refused"),
    ],
    ids=["crash", "hang", "memory", "exception", "refused"],
)
def test_the_fuzzer_sees_crashes_hangs_and_memory(monkeypatch, tmp_path, behave, expected):
    fuzz = fuzz_videos()
    monkeypatch.setattr(fuzz, "read_everything", behave)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    used = pages * os.sysconf("SC_PAGE_SIZE") >> 20
    end, *_ = fuzz.decode_apart(
        tmp_path / "v.mp4", deadline=3 if expected == "hang" else 60, memory_mib=used + 200
    )
    assert end == expected


def test_tar_files_are_read_by_their_index_alone(tmp_path):
    """A member may claim any size or name: the index says where a video lies, and is held to the file."""
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        member = tarfile.TarInfo("../../outside.mp4")
        member.size = 0
        tar.addfile(member)
    content = shard_index((tmp_path / "00000.tar").stat().st_size)
    (tmp_path / "index.json").write_text(json.dumps(content))
    place, _, _ = next(iter(read_index(tmp_path).videos("")))
    assert place.read() == bytes(100)
    with pytest.raises(VideoError, match="not a video file"):
        open_video(place.open())
    assert not (tmp_path.parent.parent / "outside.mp4").exists()


def test_the_decoder_is_never_given_the_network(video, monkeypatch):
    seen = {}
    opened = av.open

    def watching(*arguments, **options):
        seen.update(options)
        return opened(*arguments, **options)

    monkeypatch.setattr(av, "open", watching)
    with open_video(video):
        assert seen["container_options"]["protocol_whitelist"] == "file"
        assert not {"hls", "dash", "concat", "sdp"} & set(
            seen["container_options"]["format_whitelist"].split(",")
        )
