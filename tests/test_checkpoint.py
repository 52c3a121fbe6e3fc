"""The public format: readable without frameflex, old versions load, new ones say so; near and far."""

import hashlib
import io
import json
import shutil
import urllib.request

import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frameflex.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    CheckpointError,
    TrainingState,
    fetch,
    load_checkpoint,
    model_card,
    save_checkpoint,
)
from frameflex.data.transforms import Preprocessing
from frameflex.models import create_model


def checkpoint(**changes):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3, frame_counts=(2, 4)).eval()
    metrics = {
        "validation": {
            "protocol": {"views": "1x1", "num_videos": 40},
            "results": [{"num_frames": 4, "top1": 0.812, "top5": 1.0, "gflops": 0.31}],
        }
    }
    values = {
        "model": model,
        "class_names": ["opening | a door", "closing", "nothing"],
        "preprocessing": Preprocessing(short_side=72, crop_size=64, channel_order="bgr", geometry="tsm"),
        "frame_counts": (2, 4),
        "metrics": metrics,
        "license": "cc-by-4.0",
        "source": "rendered in a test",
    }
    return Checkpoint(**values | changes)


def same(first, second):
    assert first.class_names == second.class_names
    assert first.preprocessing == second.preprocessing
    assert first.frame_counts == second.frame_counts
    assert (first.metrics, first.license, first.source) == (second.metrics, second.license, second.source)
    clip = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first.model(clip), second.model(clip))


def rewrite_header(path, change):
    """Edit the header of a file as someone without frameflex would."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["frameflex"])
    change(header)
    save_file(load_file(path), path, metadata={"frameflex": json.dumps(header)})


def test_everything_comes_back(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", checkpoint())
    same(load_checkpoint(tmp_path / "a.safetensors"), checkpoint())


def test_a_checkpoint_is_readable_without_frameflex(tmp_path):
    original = checkpoint(
        model=create_model("test_resnet", num_classes=3, shift="none").eval(), frame_counts=(4,)
    )
    save_checkpoint(tmp_path / "a.safetensors", original)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["frameflex"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header["format_version"] == FORMAT_VERSION
    assert header["class_names"][1] == "closing"
    assert header["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert header["preprocessing"]["interpolation"] == "bilinear"
    backbone = timm.create_model(header["architecture"]["backbone"], num_classes=0).eval()
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in tensors.items() if k[:4] == "back"})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = backbone(images) @ tensors["head.weight"].T + tensors["head.bias"]
        torch.testing.assert_close(original.model(images[:, :, None]), logits)


def test_a_file_of_the_first_format_still_loads(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint(preprocessing=Preprocessing(short_side=72, crop_size=64)))

    def as_version_1(header):
        header["format_version"] = 1
        del header["license"], header["source"]
        del header["preprocessing"]["channel_order"], header["preprocessing"]["geometry"]
        for option in ("shift_place", "shift_every", "temporal_pool", "non_local"):
            del header["architecture"][option]

    rewrite_header(path, as_version_1)
    loaded = load_checkpoint(path)
    assert (loaded.license, loaded.preprocessing.channel_order) == ("", "rgb")
    with torch.no_grad():
        clip = torch.randn(1, 3, 2, 32, 32)
        assert torch.equal(loaded.model(clip), checkpoint().model(clip))


def test_a_newer_format_is_a_clear_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint())
    rewrite_header(path, lambda header: header.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(
        CheckpointError, match=rf"format {FORMAT_VERSION + 1}.*reads up to {FORMAT_VERSION}.*Update"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header.pop("class_names"), "doesn't hold together"),
        (lambda header: header["class_names"].pop(), "2 class names for 3 logits"),
        (lambda header: header.update(format_version="new"), "unreadable"),
        (
            lambda header: header["architecture"].update(backbone="test_convnext"),
            "don't fit the architecture",
        ),
    ],
)
def test_a_header_that_was_edited_wrongly_is_a_clear_error(change, words, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint())
    rewrite_header(path, change)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


def test_a_damaged_file_is_a_clear_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_checkpoint(path)


# ------------------------------------------------------------------------------------------ near and far


def test_a_saved_folder_loads_and_holds_a_card_and_a_config_without_the_state_of_a_run(tmp_path):
    unfinished = checkpoint(training=TrainingState({"epoch": 3}, {"momentum": torch.ones(5)}))
    folder = unfinished.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    same(Checkpoint.from_pretrained(folder), checkpoint())
    same(Checkpoint.from_pretrained(str(folder)), checkpoint())
    assert load_checkpoint(folder / "model.safetensors", training=True).training is None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"][2] == "nothing"


def test_the_card_tells_what_a_checkpoint_is():
    card = model_card(checkpoint())
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "frameflex"
    assert front["pipeline_tag"] == "video-classification"
    for words in (
        "opening \\| a door",
        "2, 4: one network",
        "rendered in a test",
        "| 4 | 81.2 | 100.0 | 0.31 |",
        "BGR",
    ):
        assert words in card
    unknown = model_card(checkpoint(license="", source="", metrics={}))
    assert yaml.safe_load(unknown.split("---")[1])["license"] == "unknown"
    assert "ask their author" in unknown
    assert "Nothing yet." in unknown


class Hub:
    """The hub's client over a local folder."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, repo_id, *, private, exist_ok):
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})()

    def hf_hub_download(self, repo_id, filename, *, revision):
        if revision not in (None, "v1"):
            raise ValueError(f"Revision {revision} not found\nand more")
        path = self.root / repo_id / filename
        if not path.exists():
            raise ValueError(f"404 Entry {filename} not found")
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda token: hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.hf_hub_download)
    return hub


def test_what_is_pushed_to_the_hub_comes_back_from_it(hub):
    assert checkpoint().push_to_hub("someone/door") == "https://hub/someone/door/commit/1"
    for source in (
        "someone/door",
        "hf://someone/door",
        "hf://someone/door@v1",
        "hf://someone/door/model.safetensors",
    ):
        same(Checkpoint.from_pretrained(source), checkpoint())
    same(load_checkpoint("hf://someone/door"), checkpoint())
    with pytest.raises(CheckpointError, match="Revision v9 not found"):
        load_checkpoint("hf://someone/door@v9")
    with pytest.raises(CheckpointError, match="other.safetensors can't be had"):
        load_checkpoint("hf://someone/door/other.safetensors")
    with pytest.raises(CheckpointError, match="expected hf://owner/name"):
        load_checkpoint("hf://door")


def test_an_address_on_the_web_needs_a_checksum_and_is_checked_against_it(tmp_path, monkeypatch):
    folder = checkpoint().save_pretrained(tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "kept"))
    address = f"https://example.org/tsm.safetensors#sha256={digest}"
    same(load_checkpoint(address), checkpoint())
    same(load_checkpoint(address), checkpoint())
    assert asked == ["https://example.org/tsm.safetensors"]  # once; then from the disk
    with pytest.raises(CheckpointError, match="expected a checksum"):
        fetch("https://example.org/tsm.safetensors")
    with pytest.raises(CheckpointError, match="64 hexadecimal digits"):
        fetch("https://example.org/tsm.safetensors#sha256=12")
    with pytest.raises(CheckpointError, match="expected https"):
        fetch(f"http://example.org/tsm.safetensors#sha256={digest}")
    with pytest.raises(CheckpointError, match=f"SHA-256 {digest}, expected 0000"):
        fetch(f"https://example.org/other.safetensors#sha256={'0' * 64}")
    assert [path.name for path in (tmp_path / "kept" / "frameflex").iterdir()] == [f"{digest}.safetensors"]


def test_a_kept_download_that_was_changed_on_disk_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    digest = hashlib.sha256(b"good").hexdigest()
    (tmp_path / "frameflex").mkdir()
    (tmp_path / "frameflex" / f"{digest}.safetensors").write_bytes(b"evil")
    with pytest.raises(CheckpointError, match="not used"):
        fetch(f"https://example.org/a.safetensors#sha256={digest}")


def test_an_unreachable_address_is_one_line(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"can't be downloaded \(no route to host\)"):
        fetch(f"https://example.org/a.safetensors#sha256={'1' * 64}")
    assert list((tmp_path / "frameflex").iterdir()) == []


def test_a_path_that_is_nowhere_is_not_looked_for_on_the_hub():
    with pytest.raises(FileNotFoundError, match=r"best\.safetensors"):
        load_checkpoint("runs/motion/best.safetensors")


@pytest.mark.parametrize(
    "hostile",
    [
        {"pretrained": True},
        {"backbone_options": {"checkpoint_path": "/etc/passwd"}},
        {"backbone": "hf-hub:x/y"},
    ],
)
def test_a_header_cannot_make_us_open_or_download_anything(tmp_path, hostile):
    model = create_model("test_resnet", num_classes=2)
    save_checkpoint(tmp_path / "good.safetensors", Checkpoint(model, ["a", "b"], Preprocessing(), (8,)))
    with safe_open(tmp_path / "good.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["frameflex"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header["architecture"] |= hostile
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"frameflex": json.dumps(header)})
    with pytest.raises(CheckpointError, match="bad.safetensors"):
        load_checkpoint(tmp_path / "bad.safetensors")
