"""Checkpoints of other code bases against networks written out here, and against their own published arithmetic."""

import gzip
import json
import os
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

from frameflex.checkpoint import load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.convert import ConversionError, convert, read_class_names
from frameflex.data.transforms import EvalTransform
from frameflex.models import TemporalShift

# ------------------------------------------------------------------------------- networks of the sources


class Shift(nn.Module):
    """The shift written from its formula around a module, with the name ``net`` that TSM's code gives it."""

    def __init__(self, net, num_frames, div=8):
        super().__init__()
        self.net, self.num_frames, self.div = net, num_frames, div

    def forward(self, x):
        fold, out = x.shape[1] // self.div, x.clone()
        for n in range(x.shape[0]):
            t = n % self.num_frames
            out[n, :fold] = x[n + 1, :fold] if t + 1 < self.num_frames else 0
            out[n, fold : 2 * fold] = x[n - 1, fold : 2 * fold] if t else 0
        return self.net(out)


class Pool(nn.Module):
    def __init__(self, net, num_frames):
        super().__init__()
        self.net, self.num_frames = net, num_frames

    def forward(self, x):
        clips = x.split(self.num_frames)
        pooled = [clip[max(t - 1, 0) : t + 2].amax(0) for clip in clips for t in range(0, self.num_frames, 2)]
        return self.net(torch.stack(pooled))


class Attention(nn.Module):
    """The non-local block with three-dimensional convolutions, under mit-han-lab's names."""

    def __init__(self, channels):
        super().__init__()
        pool = nn.MaxPool3d((1, 2, 2))
        self.g = nn.Sequential(nn.Conv3d(channels, channels // 2, 1), pool)
        self.W = nn.Sequential(nn.Conv3d(channels // 2, channels, 1), nn.BatchNorm3d(channels))
        self.theta = nn.Conv3d(channels, channels // 2, 1)
        self.phi = nn.Sequential(nn.Conv3d(channels, channels // 2, 1), pool)

    def forward(self, x, mode="embedded_gaussian", scaled=False):  # (1, C, T, H, W)
        theta, phi, g = (m(x)[0].flatten(1) for m in (self.theta, self.phi, self.g))
        products = theta.T @ phi
        if scaled:
            products = products / theta.shape[0] ** 0.5
        weights = products / phi.shape[1] if mode == "dot_product" else products.softmax(1)
        return x + self.W((g @ weights.T).view(1, -1, *x.shape[2:]))


class Attended(nn.Module):
    def __init__(self, block, channels, num_frames, **how):
        super().__init__()
        self.block, self.nl, self.num_frames, self.how = block, Attention(channels), num_frames, how

    def forward(self, x):
        clips = self.block(x).split(self.num_frames)
        return torch.cat([self.nl(c.transpose(0, 1)[None], **self.how)[0].transpose(0, 1) for c in clips])


class Published(nn.Module):
    """mit-han-lab's network: an image network without its last layer, ``new_fc``, a mean over frames."""

    def __init__(self, base_model, num_features, num_classes=7):
        super().__init__()
        self.base_model = base_model
        self.new_fc = nn.Linear(num_features, num_classes)

    def forward(self, clip):  # (B, 3, T, H, W)
        frames = clip.transpose(1, 2).flatten(0, 1)
        return self.new_fc(self.base_model(frames)).unflatten(0, (clip.shape[0], -1)).mean(1)


def randomise(model):
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
        elif value.ndim == 1 and name.endswith("weight"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
        elif value.ndim == 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / value[0].numel()) ** 0.5)
    return model.eval()


def resnet(depth, num_frames, *, place="blockres", pool=False, non_local=False, every=1, div=8, **how):
    """torchvision's ResNet with the parts of TSM."""
    net = getattr(torchvision.models, f"resnet{depth}")()
    features, net.fc = net.fc.in_features, nn.Dropout()
    for number in (1, 2, 3, 4):
        stage = net.get_submodule(f"layer{number}")
        left = num_frames // 2 if pool and number > 1 else num_frames
        for i, block in enumerate(stage):
            if place == "block":
                stage[i] = Shift(block, left, div)
            elif place == "blockres" and i % every == 0:
                block.conv1 = Shift(block.conv1, left, div)
        if non_local and number in (2, 3):
            for i in range(0, len(stage), 2):
                channels = (512, 1024)[number - 2]
                stage[i] = Attended(stage[i], channels, num_frames, **how)
    if pool:
        net.layer2 = Pool(net.layer2, num_frames)
    return randomise(Published(net, features))


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden = inputs * expand
        layers = (
            []
            if expand == 1
            else [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        )
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)]
        layers += [nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    """The network of arXiv 1801.04381, table 2, with the layers of a block counted in one row."""

    def __init__(self):
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())]
        inputs = 32
        for expand, outputs, repeats, stride in (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ):
            for i in range(repeats):
                layers.append(Inverted(inputs, outputs, stride if i == 0 else 1, expand))
                inputs = outputs
        layers.append(nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()))
        self.features = nn.Sequential(*layers)

    def forward(self, x):
        return self.features(x).mean((2, 3))


def mobilenet(num_frames, div=8):
    net = MobileNetV2()
    for block in net.features:
        if isinstance(block, Inverted) and block.skip and len(block.conv) == 8:
            block.conv[0] = Shift(block.conv[0], num_frames, div)
    return randomise(Published(net, 1280))


def mmaction2_name(key):
    """mmaction2's name of one of mit-han-lab's tensors."""
    if key.startswith("new_fc."):
        return key.replace("new_fc.", "cls_head.fc_cls.")
    key = key.replace("base_model.", "backbone.")
    if "features." in key:
        if stem := re.fullmatch(r"backbone\.features\.(0|18)\.([01])\.(\w+)", key):
            return f"backbone.conv{1 if stem[1] == '0' else 2}.{('conv', 'bn')[int(stem[2])]}.{stem[3]}"
        number, inside = re.fullmatch(r"backbone\.features\.(\d+)\.conv\.(.+)", key).groups()
        index, stage = int(number) - 1, 0
        for repeats in (1, 2, 3, 4, 3, 3, 1):
            if index < repeats:
                break
            index, stage = index - repeats, stage + 1
        shifted = inside.startswith("0.net.")
        layer, tensor = re.fullmatch(r"(\d)\.(?:net\.)?(\w+)", inside).groups()
        # The whole ConvModule is shifted, and so its norm is inside "net" too.
        wrapped = stage in (1, 2, 3, 4, 5) and index > 0 and int(layer) < 3
        assert wrapped or not shifted
        unit = f"{int(layer) // 3}.{'net.' if wrapped else ''}{('conv', 'bn')[int(layer) % 3]}"
        return f"backbone.layer{stage + 1}.{index}.conv.{unit}.{tensor}"
    if ".nl." in key:
        place, inside = key.split(".nl.")
        inside = re.sub(r"^(g|phi)\.0\.", r"\1.0.conv.", inside)
        inside = re.sub(r"^theta\.", "theta.conv.", inside)
        inside = inside.replace("W.0.", "conv_out.conv.").replace("W.1.", "conv_out.bn.")
        return f"{place}.non_local_block.{inside}"
    key = re.sub(r"\bconv(\d)\.", r"conv\1.conv.", key)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
    return key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")


def save(path, model, *, name=lambda key: key, **beside):
    torch.save(
        {"state_dict": {name(key): value for key, value in model.state_dict().items()}, **beside}, path
    )
    return path


def same_logits(path, model, num_frames, *, size=64, **options):
    """Convert, save, load, and compare with the source's own network."""
    conversion = convert(path, **options)
    out = path.with_suffix(".safetensors")
    save_checkpoint(out, conversion.checkpoint)
    loaded = load_checkpoint(out)
    clip = torch.randn(2, 3, num_frames, size, size)
    with torch.no_grad():
        expected = model(clip)
        assert expected.std() > 0.05
        torch.testing.assert_close(loaded.model(clip), expected, rtol=1e-4, atol=1e-4)
    return conversion


# ------------------------------------------------------------------------------------------- parity


def reference_tensor(key, shape):
    """The rule that rebuilds the weights behind the reference logits: a generator for each tensor."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.removeprefix("module.").encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        return torch.rand(shape, generator=generator) * 0.5 + 0.75
    if key.endswith("running_mean"):
        return torch.randn(shape, generator=generator) * 0.1
    if len(shape) == 1 and key.endswith(".weight"):
        return torch.rand(shape, generator=generator) * 0.5 + 0.5
    if len(shape) <= 1:
        return torch.randn(shape, generator=generator) * 0.05
    drawn = torch.randn(shape, generator=generator)
    return drawn * (1.5 / drawn[0].numel()) ** 0.5


def reference_keys(source):
    """The names in that code base's ResNet-50 and their shapes."""
    with torch.device("meta"):
        plain = torchvision.models.resnet50().state_dict()
    plain = {key: tuple(value.shape) for key, value in plain.items() if not key.startswith("fc.")}
    shifted = {re.sub(r"(layer\d\.\d\.conv1\.)", r"\1net.", key): shape for key, shape in plain.items()}
    head = {"new_fc.weight": (174, 2048), "new_fc.bias": (174,)}
    if source == "mit_tsm_resnet50_8f":
        keys = {f"base_model.{key}": shape for key, shape in shifted.items()} | head
    elif source == "mmaction2_tsm_resnet50_8f":
        keys = {f"base_model.{key}": shape for key, shape in shifted.items()} | head
        return {mmaction2_name(key): shape for key, shape in keys.items()}
    else:
        keys = {}
        for key, shape in plain.items():
            norm = re.fullmatch(r"(.*?)(bn\d|downsample\.1)\.(\w+)", key)
            if norm:
                which = norm[2].replace("downsample.1", "downsample_bn")
                keys |= {f"base_model.{norm[1]}{which}_{count}.{norm[3]}": shape for count in (4, 8, 16)}
            else:
                keys[f"base_model.{key.replace('downsample.0', 'downsample_conv')}"] = shape
            if block := re.fullmatch(r"(layer\d\.\d\.)conv1\.weight", key):
                scales = {f"base_model.{block[1]}adaconv_{count}.weight" for count in (4, 8, 16)}
                keys |= dict.fromkeys(scales, (shape[1], 1, 1, 1))
        keys |= head
    return {f"module.{key}": shape for key, shape in keys.items()}


@pytest.mark.parametrize("source", ["mit_tsm_resnet50_8f", "mmaction2_tsm_resnet50_8f", "ffn_tsm_resnet50"])
def test_a_converted_checkpoint_gives_the_logits_that_its_own_code_computed(source, tmp_path):
    with gzip.open(Path(__file__).parent / "data" / "reference_logits.json.gz") as file:
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


# ------------------------------------------------------------------------------------------------ pixels


def rendered(width, height, num_frames=2):
    """Pictures with edges, slopes, fine texture and writing, as videos have them."""
    pictures = []
    for t in range(num_frames):
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        draw = ImageDraw.Draw(picture)
        for i in range(0, width, 9):
            draw.line([(i, 0), (width - i, height)], fill=(i % 256, 40, 255 - i % 256), width=1 + i % 3)
        draw.ellipse([20 + 9 * t, 30, 90 + 9 * t, 100], fill=(250, 240, 20), outline=(0, 0, 90), width=5)
        draw.text((width // 3, height // 2), f"frame {t}: 0123456789", fill=(255, 255, 255))
        noise = Image.effect_noise((width, height), 40).convert("RGB")
        pictures.append(Image.blend(picture, noise, 0.3))
    return pictures


def pillow_road(pictures, *, crop, three, geometry):
    """Short side 256 by Pillow's bilinear filter and a crop, in whole pixels, as TSM's and mmaction2's code."""
    width, height = pictures[0].size
    longer = 256 * max(width, height) / min(width, height)
    longer = int(longer + 0.5) if geometry == "mmaction2" else int(longer)
    size = (longer, 256) if width >= height else (256, longer)
    spare = longer - 256
    if not three:
        places = [
            tuple(round((side - crop) / 2) if geometry == "tsm" else (side - crop) // 2 for side in size)
        ]
    elif geometry == "tsm":
        places = [(i * (spare // 4), 0) if width >= height else (0, i * (spare // 4)) for i in (0, 2, 4)]
    else:
        places = [(i * (spare // 2), 0) if width >= height else (0, i * (spare // 2)) for i in (0, 1, 2)]
    crops = []
    for x, y in places:
        row = [p.resize(size, Image.Resampling.BILINEAR).crop((x, y, x + crop, y + crop)) for p in pictures]
        crops.append(np.stack([np.asarray(p) for p in row]))
    return torch.from_numpy(np.stack(crops)).permute(0, 4, 1, 2, 3).float()  # (crops, 3, N, h, w), 0 to 255


@pytest.fixture(scope="module")
def imported_pixels(tmp_path_factory):
    """The preprocessing that a checkpoint of each source comes with."""
    folder, model = tmp_path_factory.mktemp("sources"), resnet(18, 8)
    bgr = {"meta": {"config": "mean=[0, 0, 0], std=[1, 1, 1], to_bgr=True"}}
    files = {
        "tsm": save(folder / "tsm.pth", model),
        "mmaction2": save(folder / "mm.pth", model, name=mmaction2_name),
        "mmaction2 in bgr": save(folder / "bgr.pth", model, name=mmaction2_name, **bgr),
    }
    return {source: convert(file).checkpoint.preprocessing for source, file in files.items()}


@pytest.mark.parametrize("size", [(320, 240), (427, 240), (240, 427), (500, 333), (171, 128)])
@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("source", ["tsm", "mmaction2", "mmaction2 in bgr"])
def test_an_imported_checkpoint_sees_its_sources_pixels_within_a_grey_level(
    size, three, source, imported_pixels
):
    geometry, pixels = source.split()[0], imported_pixels[source]
    pictures = rendered(*size)
    frames = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
    seen = EvalTransform(pixels, num_crops=3 if three else 1)(frames)
    expected = pillow_road(pictures, crop=256 if three else 224, three=three, geometry=geometry)
    if source.endswith("bgr"):  # from 0 to 255, blue first
        expected = expected.flip(1)
        scale = 1.0
    else:
        mean, std = (
            torch.tensor(values)[:, None, None, None]
            for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        expected = (expected / 255 - mean) / std
        scale = 255 * float(std.mean())
    assert seen.shape == expected.shape
    assert float((seen - expected).abs().mean()) * scale < 1
    assert float((seen - expected).abs().max()) * scale < 3


# -------------------------------------------------------------------------------------------- refusals


def test_left_over_and_missing_tensors_are_all_listed_and_nothing_is_saved(tmp_path, capsys):
    state = dict(resnet(18, 4).state_dict())
    del state["base_model.layer3.1.bn2.bias"], state["base_model.layer1.0.bn1.weight"]
    state["base_model.layer4.1.surprise.weight"] = torch.zeros(3)
    state["new_fc.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), "--to", str(tmp_path / "out.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "1 left over: base_model.layer4.1.surprise.weight" in error
    assert "2 missing: backbone.layer1.0.bn1.weight, backbone.layer3.1.bn2.bias" in error
    assert "new_fc.bias is (5,), expected (7,)" in error
    assert not (tmp_path / "out.safetensors").exists()


def test_counters_that_old_torch_did_not_keep_may_be_absent(tmp_path):
    model = resnet(18, 4)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    assert any("counters of batches" in note for note in same_logits(tmp_path / "a.pth", model, 4).notes)


class Dangerous:
    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_a_file_that_needs_code_is_refused_unless_its_author_is_trusted(tmp_path, capsys):
    danger = Dangerous()
    danger.place = str(tmp_path / "was run")
    torch.save({"state_dict": resnet(18, 4).state_dict(), "extra": danger}, tmp_path / "a.pth")
    arguments = ["convert", str(tmp_path / "a.pth"), "--to", str(tmp_path / "out.safetensors")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "mkdir" in error
    assert "--trust-pickle" in error
    assert "anything that you can do" in error
    assert not (tmp_path / "was run").exists()
    assert not (tmp_path / "out.safetensors").exists()
    assert main([*arguments, "--trust-pickle"]) == 0
    assert (tmp_path / "was run").exists()
    assert "code inside the file may run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"<html>not found</html>" * 9, "no file of torch.save"),
        (pickle.dumps({"a": 1}) + b" " * 99, "no file of torch.save"),
    ],
)
def test_files_without_weights_are_told_apart(content, words, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ConversionError, match=words):
        convert(tmp_path / "a.pth")


def test_other_networks_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"encoder.layer.0.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(ConversionError, match="no kind that is known.*encoder"):
        convert(path)
    state = dict(resnet(18, 4).state_dict())
    state["base_model.conv1.weight"] = torch.zeros(64, 10, 7, 7)
    torch.save(state, path)
    with pytest.raises(ConversionError, match="optical flow"):
        convert(path)
    torch.save({k: v for k, v in torchvision.models.resnet18().state_dict().items() if k[:3] != "fc."}, path)
    with pytest.raises(ConversionError, match="resnet18, but no classifier"):
        convert(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        convert("nowhere.pth")


def test_class_names_come_from_text_or_json(tmp_path):
    (tmp_path / "a.txt").write_text("Opening a door\n\nClosing a door\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"Closing": "1", "Opening": "0"}', encoding="utf-8")
    (tmp_path / "c.json").write_text('["x", "y", "z"]', encoding="utf-8")
    (tmp_path / "d.json").write_text('{"a": "0", "b": "5"}', encoding="utf-8")
    assert read_class_names(tmp_path / "a.txt") == ["Opening a door", "Closing a door"]
    assert read_class_names(tmp_path / "b.json") == ["Opening", "Closing"]
    assert read_class_names(tmp_path / "c.json") == ["x", "y", "z"]
    with pytest.raises(ConversionError, match="from 0 to 1"):
        read_class_names(tmp_path / "d.json")


def test_the_command_says_what_it_found_and_keeps_what_it_was_told(tmp_path, capsys):
    save(tmp_path / "tsm.pth", resnet(18, 4))
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg"), encoding="utf-8")
    out = tmp_path / "out.safetensors"
    arguments = [
        "convert",
        str(tmp_path / "tsm.pth"),
        "--to",
        str(out),
        "--classes",
        str(tmp_path / "labels.txt"),
    ]
    arguments += ["--frames", "4", "--mean", "104,117,128", "--std", "1,1,1", "--pixel-scale", "255"]
    assert main([*arguments, "--channel-order", "bgr", "--license", "cc-by-4.0", "--sampling", "dense"]) == 0
    text = capsys.readouterr().out
    assert "found: mit-han-lab temporal-shift-module, resnet18, 7 classes, a shift of 1/8 in 8" in text
    assert "matched: all" in text
    loaded = load_checkpoint(out)
    assert loaded.class_names == list("abcdefg")
    assert loaded.frame_counts == (4,)
    assert loaded.preprocessing.channel_order == "bgr"
    assert loaded.preprocessing.mean == pytest.approx((104 / 255, 117 / 255, 128 / 255))
    assert (loaded.license, loaded.sampling) == ("cc-by-4.0", {"sampling": "dense", "window": 64})
    assert main([*arguments[:4], "--classes", str(tmp_path / "tsm.pth")]) != 0


def test_wrong_numbers_of_class_names_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="2 class names for 7 logits"):
        convert(save(tmp_path / "a.pth", resnet(18, 4)), class_names=["a", "b"])
