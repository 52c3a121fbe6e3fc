"""Checkpoints of other code bases against networks written out here, and against their own published arithmetic."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
import torchvision
from published_networks import (
    MobileOneTSM,
    Shift,
    mmaction2_name,
    mobilenet,
    randomise,
    reference_keys,
    reference_tensor,
    resnet,
    same_logits,
    save,
)
from safetensors.torch import save_file

from frameflex.checkpoint import save_checkpoint
from frameflex.convert import ConversionError, convert
from frameflex.models import TemporalShift


@pytest.mark.parametrize("source", ["mit_tsm_resnet50_8f", "mmaction2_tsm_resnet50_8f", "ffn_tsm_resnet50"])
def test_a_converted_checkpoint_gives_the_logits_that_its_own_code_computed(source, tmp_path):
    with gzip.open(Path(__file__).parents[1] / "data" / "reference_logits.json.gz") as file:
        reference = json.load(file)[source]
    state = {key: reference_tensor(key, shape) for key, shape in reference_keys(source).items()}
    torch.save({"epoch": 50, "state_dict": state, "best_prec1": 61.0}, tmp_path / "anything.pth.tar")
    conversion = convert(tmp_path / "anything.pth.tar")
    assert f"matched: all {len(state)} tensors" in conversion.notes
    counts = tuple(int(count) for count in reference["logits"])
    assert conversion.checkpoint.frame_counts == counts
    for num_frames in counts:
        generator = torch.Generator().manual_seed(reference["input_seed"])
        frames = torch.randn(2, num_frames, 3, 64, 64, generator=generator)
        with torch.no_grad():
            logits = conversion.checkpoint.model(frames.transpose(1, 2))
        expected = torch.tensor(reference["logits"][str(num_frames)])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


def test_mit_resnets_of_any_number_of_segments(tmp_path):
    for num_frames in (1, 3, 5):
        model = resnet(18, num_frames)
        path = save(tmp_path / f"{num_frames}.pth", model, name=lambda key: f"module.{key}", epoch=1)
        conversion = same_logits(path, model, num_frames, frame_counts=[num_frames])
        assert conversion.source == "mit-han-lab temporal-shift-module, resnet18"
        assert conversion.checkpoint.frame_counts == (num_frames,)


def test_mit_deep_resnets_have_a_shift_in_every_second_block(tmp_path):
    model = resnet(101, 2, every=2)
    conversion = same_logits(save(tmp_path / "a.pth", model), model, 2, size=32)
    assert conversion.checkpoint.model.config["shift_every"] is None  # that is what our ResNet-101 has anyway


def test_mit_temporal_pooling_and_shifted_blocks(tmp_path):
    for number, options in enumerate(({"pool": True}, {"place": "block"}, {"place": "block", "pool": True})):
        model = resnet(18, 4, **options)
        same_logits(save(tmp_path / f"{number}.pth", model), model, 4)


def test_another_share_of_shifted_channels_has_to_be_told(tmp_path):
    model = resnet(18, 4, div=4)
    path = save(tmp_path / "a.pth", model)
    same_logits(path, model, 4, shift_div=4)
    with pytest.raises(AssertionError):
        same_logits(path, model, 4)


def test_mit_non_local_blocks(tmp_path):
    model = resnet(50, 3, non_local=True)
    conversion = same_logits(save(tmp_path / "a.pth", model), model, 3)
    assert "non-local blocks (embedded_gaussian)" in conversion.notes[0]


@pytest.mark.parametrize(
    ("how", "config"),
    [
        ({"mode": "dot_product"}, "non_local_cfg=dict(sub_sample=True, use_scale=False, mode='dot_product')"),
        ({"scaled": True}, "non_local_cfg=dict(sub_sample=True,\n use_scale=True, mode='embedded_gaussian')"),
    ],
)
def test_mmaction2_non_local_blocks_compare_as_the_configuration_beside_them_says(how, config, tmp_path):
    model = resnet(50, 2, non_local=True, **how)
    for name, parameter in model.named_parameters():
        if ".theta." in name:  # products of features without a softmax would grow from block to block
            parameter.data.mul_(0.01 if "mode" in how else 1)
    path = save(tmp_path / "a.pth", model, name=mmaction2_name, meta={"config": config})
    same_logits(path, model, 2)


def test_mmaction2_gaussian_non_local_blocks_have_no_embeddings(tmp_path):
    model = resnet(50, 2, non_local=True)
    state = {k: v for k, v in model.state_dict().items() if ".theta." not in k and ".phi." not in k}
    torch.save({"state_dict": {mmaction2_name(k): v for k, v in state.items()}}, tmp_path / "a.pth")
    conversion = convert(tmp_path / "a.pth")
    assert conversion.checkpoint.model.config["non_local"] == "gaussian"


def test_mit_mobilenetv2(tmp_path):
    model = mobilenet(4)
    assert sum(isinstance(module, Shift) for module in model.modules()) == 10
    conversion = same_logits(save(tmp_path / "a.pth", model), model, 4)
    assert conversion.source == "mit-han-lab temporal-shift-module, MobileNetV2"
    assert conversion.checkpoint.model.config["backbone"] == "mobilenetv2_100"


@pytest.mark.parametrize(
    "make", [lambda: resnet(18, 4), lambda: mobilenet(4), lambda: resnet(18, 4, place="none")]
)
def test_mmaction2_of_both_generations(make, tmp_path):
    model = make()
    old = {
        "meta": {
            "config": "model = dict(backbone=dict(num_segments=4, shift_div=8))\n"
            "img_norm_cfg = dict(mean=[104.0, 117.0, 128.0], std=[1.0, 1.0, 1.0], to_bgr=True)\n",
            "CLASSES": [f"name {i}" for i in range(7)],
        }
    }
    conversion = same_logits(save(tmp_path / "0x.pth", model, name=mmaction2_name, **old), model, 4)
    assert conversion.checkpoint.frame_counts == (4,)
    assert conversion.checkpoint.class_names[6] == "name 6"
    pixels = conversion.checkpoint.preprocessing
    assert (pixels.channel_order, pixels.geometry) == ("bgr", "mmaction2")
    assert pixels.mean == pytest.approx((128 / 255, 117 / 255, 104 / 255))  # of R, G and B
    assert pixels.std == pytest.approx((1 / 255,) * 3)
    state = {mmaction2_name(key): value for key, value in model.state_dict().items()}
    state["data_preprocessor.mean"] = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1)
    state["data_preprocessor.std"] = torch.tensor([50.0, 60.0, 70.0]).view(3, 1, 1)
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": ["a"]}}}, tmp_path / "1x.pth")
    conversion = same_logits(tmp_path / "1x.pth", model, 4)
    assert conversion.checkpoint.class_names[6] == "class 6"
    assert conversion.checkpoint.preprocessing.mean == pytest.approx((10 / 255, 20 / 255, 30 / 255))
    assert conversion.checkpoint.frame_counts == (8,)
    assert any("assumed: 8 frames" in note for note in conversion.notes)


@pytest.mark.parametrize(("size", "place"), [("s0", True), ("s0", False), ("s4", True)])
def test_mmaction2_mobileone_with_every_block_shifted(size, place, tmp_path):
    model = randomise(MobileOneTSM(size, 4, place=place))
    conversion = same_logits(save(tmp_path / "a.pth", model), model, 4)
    config = conversion.checkpoint.model.config
    assert (config["backbone"], config["shift"]) == (
        f"mobileone_{size}",
        "bidirectional" if place else "none",
    )
    assert conversion.source == f"mmaction2, mobileone_{size}"


def ffn_state(model, counts):
    """A frame-flexible network's tensors under FFN-pytorch's names, and its branches as plain networks."""
    state, branches = {}, {}
    generator = torch.Generator().manual_seed(5)
    for key, value in model.state_dict().items():
        norm = re.fullmatch(r"base_model\.(.*?)(bn\d|downsample\.1)\.(\w+)", key)
        if norm:
            for count in counts:
                drawn = (
                    value if value.ndim == 0 else (value + torch.rand(value.shape, generator=generator) * 0.2)
                )
                which = norm[2].replace("downsample.1", "downsample_bn")
                state[f"base_model.{norm[1]}{which}_{count}.{norm[3]}"] = drawn
                branches.setdefault(count, {})[key] = drawn
        else:
            state[key.replace("downsample.0", "downsample_conv").replace("conv1.net.", "conv1.")] = value
        if block := re.fullmatch(r"base_model\.(layer\d\.\d+\.)conv1\.net\.weight", key):
            for count in counts:
                scale = torch.randn(value.shape[1], generator=generator) * 0.2
                state[f"base_model.{block[1]}adaconv_{count}.weight"] = scale[:, None, None, None]
                # x + w·x before a convolution is the convolution with each input channel scaled.
                branches.setdefault(count, {})[key] = value * (1 + scale)[:, None, None]
    return state, branches


@pytest.mark.parametrize(("depth", "counts"), [(18, (4, 8, 16)), (18, (2, 6)), (101, (2,))])
def test_ffn_of_any_depth_and_set_of_counts(depth, counts, tmp_path):
    model = resnet(depth, counts[-1])  # a shift in every block, also of the deep ones
    state, branches = ffn_state(model, counts)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    conversion = convert(tmp_path / "a.pth")
    assert conversion.checkpoint.frame_counts == conversion.checkpoint.model.frame_counts == counts
    for count in counts:
        branch = resnet(depth, count)
        branch.load_state_dict(model.state_dict() | branches[count])
        clip = torch.randn(2, 3, count, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(conversion.checkpoint.model(clip), branch(clip), rtol=1e-4, atol=1e-4)


def test_names_that_two_code_bases_share_have_to_be_told_apart(tmp_path):
    plain, shifted = resnet(18, 3, place="none"), resnet(18, 3)
    path = save(tmp_path / "a.pth", plain)
    with pytest.raises(ConversionError, match=r"TSN.*--shift none or --shift bidirectional"):
        convert(path)
    same_logits(path, plain, 3, shift="none")
    state = {key.replace(".net.", "."): value for key, value in shifted.state_dict().items()}
    torch.save(state, path)
    conversion = same_logits(path, shifted, 3, shift="bidirectional")
    assert conversion.source == "FFN-pytorch plain TSM, resnet18"


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"]
)
def test_image_weights_of_torchvision_classify_each_frame_as_torchvision_does(name, tmp_path):
    image_network = randomise(getattr(torchvision.models, name)(num_classes=11))
    torch.save(image_network.state_dict(), tmp_path / "a.pth")

    def frame_by_frame(clip):
        return torch.stack([image_network(clip[:, :, t]) for t in range(clip.shape[2])]).mean(0)

    conversion = same_logits(tmp_path / "a.pth", frame_by_frame, 3)
    assert conversion.checkpoint.preprocessing.mean == (0.485, 0.456, 0.406)
    assert conversion.checkpoint.frame_counts == (1,)


@pytest.mark.parametrize("name", ["test_convnext", "regnety_002", "ghostnet_050"])
def test_image_weights_of_timm_are_found_by_names_and_shapes(name, tmp_path):
    import timm

    image_network = randomise(timm.create_model(name, num_classes=9))
    save_file(dict(image_network.state_dict()), tmp_path / "weights.bin")  # the ending plays no part

    def frame_by_frame(clip):
        return torch.stack([image_network(clip[:, :, t]) for t in range(clip.shape[2])]).mean(0)

    conversion = convert(tmp_path / "weights.bin")
    assert conversion.checkpoint.model.config["backbone"] == name
    clip = torch.randn(1, 3, 2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            conversion.checkpoint.model(clip), frame_by_frame(clip), rtol=1e-4, atol=1e-4
        )
    config = image_network.pretrained_cfg
    assert conversion.checkpoint.preprocessing.mean == pytest.approx(config["mean"])
    assert conversion.checkpoint.preprocessing.crop_size == config["input_size"][-1]


def test_image_weights_that_fit_networks_with_other_arithmetic_have_to_be_named(tmp_path):
    import timm

    names = ("efficientnet_lite0", "tf_efficientnet_lite0")  # the second pads as TensorFlow does
    image_network = randomise(timm.create_model(names[1], num_classes=9))
    torch.save(image_network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ConversionError, match=f"fit {names[0]}, {names[1]}.*--backbone"):
        convert(tmp_path / "a.pth")
    model = convert(tmp_path / "a.pth", backbone=names[1]).checkpoint.model
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images[:, :, None]), image_network(images), rtol=1e-4, atol=1e-4)


def test_image_weights_can_start_a_network_with_the_shift(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    conversion = convert(tmp_path / "a.pth", shift="bidirectional")
    assert sum(isinstance(module, TemporalShift) for module in conversion.checkpoint.model.modules()) == 8
    assert any("not trained with" in note for note in conversion.notes)


def test_a_checkpoint_of_our_own_is_written_again_with_what_was_added(tmp_path):
    source = tmp_path / "a.safetensors"
    model = resnet(18, 2)
    save_checkpoint(source, convert(save(tmp_path / "a.pth", model)).checkpoint)
    source.rename(tmp_path / "b.pth")
    conversion = convert(tmp_path / "b.pth", class_names=[f"c{i}" for i in range(7)], license="cc-by-4.0")
    assert conversion.source == "frameflex"
    assert (conversion.checkpoint.class_names[2], conversion.checkpoint.license) == ("c2", "cc-by-4.0")
