"""The public format: readable without frameflex, old versions load, new ones say so."""

import json

import pytest
import timm
import torch
from making import checkpoint, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frameflex.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from frameflex.data.transforms import Preprocessing
from frameflex.models import create_model


def rewrite_header(path, change):
    """Edit the header of a file as someone without frameflex would."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["frameflex"])
    change(header)
    save_file(load_file(path), path, metadata={"frameflex": json.dumps(header)})


def test_everything_comes_back(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", checkpoint())
    same(load_checkpoint(tmp_path / "a.safetensors"), checkpoint())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_a_network_that_is_built_without_random_numbers_has_all_weights_of_its_file(backbone, tmp_path):
    """With memory full of what a process left in it: whatever the file doesn't hold would be NaN."""
    model = create_model(backbone, num_classes=3, frame_counts=(2, 4)).eval()
    save_checkpoint(tmp_path / "a.safetensors", checkpoint(model=model))
    torch.use_deterministic_algorithms(True)  # which fills new memory with NaN
    try:
        assert torch.empty(9).isnan().all()
        loaded = load_checkpoint(tmp_path / "a.safetensors").model
    finally:
        torch.use_deterministic_algorithms(False)
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_loading_draws_no_random_numbers_for_weights_that_the_file_replaces(tmp_path):
    save_checkpoint(
        tmp_path / "a.safetensors", checkpoint(model=create_model("test_resnet", num_classes=3).eval())
    )
    before = torch.random.get_rng_state()
    load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    create_model("test_resnet", num_classes=3)
    assert not torch.equal(torch.random.get_rng_state(), before)


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
