"""Features that graphs keep in two tensors, what moves in time and what stays."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frameflex.checkpoint import Checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.export import export, export_network
from frameflex.export.divided import Divided, DividedConv, divide_features
from frameflex.export.network import FlatShift
from frameflex.models import create_model

BOTTLENECKS = {
    "layers": [2, 2, 1, 1],
    "channels": [32, 32, 32, 32],
}  # features of 128 channels, of which 32 move


def model(**options):
    made = create_model("resnet50", num_classes=5, backbone_options=BOTTLENECKS, **options).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return made


def inputs_of_shifts(network, clip):
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for module in network.modules()
        if isinstance(module, FlatShift)
    ]
    with torch.no_grad():
        logits = network(clip)
    for hook in hooks:
        hook.remove()
    return seen, logits


@pytest.mark.parametrize("batch", [1, "dynamic"])
@pytest.mark.parametrize("num_frames", [1, 4, None])
def test_every_shift_but_the_first_of_a_bottleneck_network_reads_divided_features(batch, num_frames):
    made = model()
    network = export_network(made, num_frames, batch=batch, crop_size=32, cut=True, divide=True)
    clip = torch.randn(1 if batch == 1 else 3, 3, num_frames or 3, 32, 32)
    seen, logits = inputs_of_shifts(network, clip)
    # Behind the stem features come from a pooling, which nothing divides.
    assert [isinstance(x, Divided) for x in seen] == [False] + [True] * 5
    assert all((x.moved.shape[1], x.rest.shape[1]) == (32, 96) for x in seen[1:])
    with torch.no_grad():
        expected = made(clip)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_frame_flexible_network_is_divided_with_the_norms_and_scales_of_its_count():
    made = model(frame_counts=(2, 4))
    for name, parameter in made.named_parameters():
        if ".scales." in name:
            nn.init.normal_(parameter, std=0.3)
    for count in (2, 4):
        network = export_network(made, count, batch=1, crop_size=32, cut=True, divide=True)
        clip = torch.randn(1, 3, count, 32, 32)
        seen, logits = inputs_of_shifts(network, clip)
        assert sum(isinstance(x, Divided) for x in seen) == 5
        with torch.no_grad():
            expected = made(clip)
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_network_without_1x1_convolutions_behind_its_shifts_stays_as_it_is():
    made = create_model("resnet18", num_classes=5).eval()
    network = export_network(made, 2, batch=1, crop_size=32, cut=True, divide=True)
    assert not any(isinstance(module, DividedConv) for module in network.modules())


@pytest.mark.parametrize("in_at", [None, 3])
@pytest.mark.parametrize("out_at", [None, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_divided_convolution_equals_the_whole_one(in_at, out_at, bias, whole):
    conv = nn.Conv2d(8, 6, 1, stride=2, bias=bias).eval()
    x = torch.randn(2, 8, 5, 5)
    given = x if in_at is None and whole else Divided(x[:, :3], x[:, 3:])
    with torch.no_grad():
        got, expected = DividedConv(conv, in_at, out_at)(given), conv(x)
    if out_at is not None:
        assert (got.moved.shape[1], got.rest.shape[1]) == (2, 4)
        got = got.whole()
    assert torch.allclose(got, expected, atol=1e-6)


def test_divided_features_act_as_one_tensor():
    a, b = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3)
    divided, other = Divided(a[:, :2], a[:, 2:]), Divided(b[:, :2], b[:, 2:])
    for result, expected in (
        (F.relu(divided), F.relu(a)),
        (F.hardtanh(divided, 0, 6), F.hardtanh(a, 0, 6)),
        (divided + other, a + b),
        (torch.add(divided, other, alpha=2), torch.add(a, b, alpha=2)),
    ):
        assert isinstance(result, Divided)
        assert torch.equal(result.whole(), expected)
    for result, expected in (
        (divided + b, a + b),
        (b + divided, a + b),
        (F.avg_pool2d(divided, 2), F.avg_pool2d(a, 2)),
        (divided.mean((2, 3)), a.mean((2, 3))),
    ):
        assert torch.equal(result, expected)
    assert divided.shape == a.shape


class Gated(nn.Module):
    """Features that are no mere sum of convolutions: a gate multiplies them."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.shift = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), Shift()

    def forward(self, x):
        return self.shift(self.conv(x) * self.gate(x).sigmoid())


class Shift(nn.Identity):
    num_moved = 4


class Different(nn.Module):
    """A sum that two shifts want divided in different places."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 8, 1), Shift(), Shift()
        self.second.num_moved = 2

    def forward(self, x):
        x = self.conv(x).relu()
        return torch.cat([self.first(x), self.second(x)], 1)


def test_what_is_no_sum_of_convolutions_is_not_divided():
    network = Gated().eval()
    assert divide_features(network, [network.shift], torch.randn(1, 3, 2, 2)) == []
    assert type(network.conv) is nn.Conv2d


def test_features_are_divided_in_one_place():
    network, x = Different().eval(), torch.randn(1, 3, 2, 2)
    expected = network(x)
    assert divide_features(network, [network.first, network.second], x) == [network.first]
    assert torch.allclose(network(x), expected, atol=1e-6)


@pytest.mark.parametrize(("format", "half"), [("onnx", False), ("onnx", True), ("openvino", False)])
def test_a_divided_network_exports_and_says_what_its_model_says(format, half, tmp_path):
    for package in {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}[format]:
        pytest.importorskip(package)
    pixels = Preprocessing(short_side=32, crop_size=32)
    made = Checkpoint(model(), [str(i) for i in range(5)], pixels, (2, 4))
    manifest = export(made, tmp_path / "graph", format=format, half=half, frame_counts=(1, 4))
    assert {(row["num_frames"], row["batch"]) for row in manifest["parity"]} == {
        (1, 1),
        (1, 3),
        (4, 1),
        (4, 3),
    }
