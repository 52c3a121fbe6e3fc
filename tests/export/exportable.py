"""Checkpoints that tests export."""

import pytest
from torch import nn

from frameflex.checkpoint import Checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.models import create_model

CLASSES = ["going left", "going right", "standing"]
TINY = {"channels": [16, 16, 16, 16]}


def checkpoint(
    backbone="test_resnet", *, counts=(2, 4), flexible=False, preprocessing=None, size=32, **options
) -> Checkpoint:
    """A network whose norms and logits are as far from trivial as a trained one's."""
    if backbone == "test_resnet":
        options.setdefault("backbone_options", TINY)
    model = create_model(
        backbone, num_classes=len(CLASSES), frame_counts=counts if flexible else (), **options
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    if flexible:
        for name, parameter in model.named_parameters():
            if ".scales." in name:
                nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(model.head.weight, std=1.0)
    pixels = preprocessing or Preprocessing(short_side=size, crop_size=size)
    return Checkpoint(model.eval(), list(CLASSES), pixels, tuple(counts))


def needs(format, *, int8=False):
    packages = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}.get(format, [])
    for package in [*packages, *(["nncf"] if int8 and format == "openvino" else [])]:
        pytest.importorskip(package)


def close(got, expected, tolerance=1e-4):
    return (got - expected).abs().max() <= tolerance * expected.abs().max()
