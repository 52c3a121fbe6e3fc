"""Near and far: folders, the hub, addresses on the web."""

import hashlib
import json
import shutil

import pytest
import torch
from making import checkpoint, same

import frameflex
from frameflex.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainingState,
    downloading,
    fetch,
    load_checkpoint,
)


def test_a_saved_folder_loads_and_holds_a_card_and_a_config_without_the_state_of_a_run(tmp_path):
    unfinished = checkpoint(training=TrainingState({"epoch": 3}, {"momentum": torch.ones(5)}))
    folder = unfinished.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    same(Checkpoint.from_pretrained(folder), checkpoint())
    same(Checkpoint.from_pretrained(str(folder)), checkpoint())
    assert load_checkpoint(folder / "model.safetensors", training=True).training is None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"][2] == "nothing"


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
    assert frameflex.load("someone/door", device="cpu").checkpoint.class_names[1] == "closing"
    with pytest.raises(CheckpointError, match="Revision v9 not found"):
        load_checkpoint("hf://someone/door@v9")
    with pytest.raises(CheckpointError, match="other.safetensors can't be had"):
        load_checkpoint("hf://someone/door/other.safetensors")
    with pytest.raises(CheckpointError, match="expected hf://owner/name"):
        load_checkpoint("hf://door")


@pytest.fixture
def far(web, monkeypatch):
    """https://example.org, which a server of the test plays."""

    def download(url, path, *, sha256):
        downloading.download(url.replace("https://example.org/", web.address), path, sha256=sha256)

    monkeypatch.setattr("frameflex.checkpoint.hub.download", download)
    return web


def test_an_address_on_the_web_needs_a_checksum_and_is_checked_against_it(tmp_path, far):
    folder = checkpoint().save_pretrained(tmp_path / "model")
    far.files["tsm.safetensors"] = far.files["other.safetensors"] = content = (
        folder / "model.safetensors"
    ).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    address = f"https://example.org/tsm.safetensors#sha256={digest}"
    same(load_checkpoint(address), checkpoint())
    same(load_checkpoint(address), checkpoint())
    assert [request.path for request in far.requests] == ["/tsm.safetensors"]  # once; then from the disk
    with pytest.raises(CheckpointError, match="expected a checksum"):
        fetch("https://example.org/tsm.safetensors")
    with pytest.raises(CheckpointError, match="64 hexadecimal digits"):
        fetch("https://example.org/tsm.safetensors#sha256=12")
    with pytest.raises(CheckpointError, match="expected https"):
        fetch(f"http://example.org/tsm.safetensors#sha256={digest}")
    with pytest.raises(CheckpointError, match=f"SHA-256 {digest}, expected 0000"):
        fetch(f"https://example.org/other.safetensors#sha256={'0' * 64}")
    kept = [path.name for path in (downloading.cache_folder() / "web").iterdir() if path.suffix != ".lock"]
    assert kept == [f"{digest}.safetensors"]


def test_a_kept_download_that_was_changed_on_disk_is_not_used(web):
    digest = hashlib.sha256(b"good").hexdigest()
    folder = downloading.cache_folder() / "web"
    folder.mkdir(parents=True)
    (folder / f"{digest}.safetensors").write_bytes(b"evil")
    with pytest.raises(CheckpointError, match="not used"):
        fetch(f"https://example.org/a.safetensors#sha256={digest}")


def test_what_the_hub_refuses_is_one_line(hub, monkeypatch):
    def refuse(*args, **options):
        raise ValueError("401 Unauthorized\nand more")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(
        CheckpointError, match=r"someone/door can't be uploaded \(401 Unauthorized\).*hf auth login"
    ):
        checkpoint().push_to_hub("someone/door")


def test_a_path_that_is_nowhere_is_not_looked_for_on_the_hub():
    with pytest.raises(FileNotFoundError, match=r"best\.safetensors"):
        load_checkpoint("runs/motion/best.safetensors")
