"""The network that graphs are traced from says what the model says."""

import pytest
import torch
from exportable import checkpoint, close
from torch import nn

from frameflex.export import export_network


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"flexible": True}),
        ("test_resnet", {"flexible": True, "counts": (3, 5), "untrained": "blend"}),
        ("test_resnet", {"shift": "none"}),
        ("test_resnet", {"shift": "causal"}),
        ("test_resnet", {"shift_place": "block"}),
        ("test_resnet", {"temporal_pool": True, "flexible": True}),
        ("test_resnet", {"non_local": "embedded_gaussian"}),
        ("test_efficientnet", {"flexible": True}),
        pytest.param("mobilenetv3_small_050", {"flexible": True}, marks=pytest.mark.slow),
        pytest.param("regnetx_002", {}, marks=pytest.mark.slow),
        ("test_convnext", {"flexible": True}),
        pytest.param("ghostnet_050", {"flexible": True}, marks=pytest.mark.slow),
        ("test_byobnet", {"flexible": True}),
        ("test_nfnet", {"flexible": True}),
        ("test_mambaout", {}),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        {"batch": "dynamic"},
        {"batch": "dynamic", "cut": True, "quantised": True},
        {"batch": 1, "cut": True, "divide": True},
    ],
)
def test_the_network_for_export_equals_the_model_in_every_family_and_variant(backbone, options, form):
    made = checkpoint(backbone, size=64, **options)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    for count in (1, 2, 4):
        network = export_network(made.model, count, crop_size=64, **form)
        clip = torch.randn(3 if form["batch"] == "dynamic" else 1, 3, count, 64, 64)
        with torch.no_grad():
            assert close(network(clip), made.model(clip))
    after = made.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_batch_norm_behind_a_convolution_is_folded():
    network = export_network(checkpoint(flexible=True).model, 4, crop_size=32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.slow
def test_a_scale_before_a_grouped_convolution_goes_to_the_right_channels():
    made = checkpoint("resnext50_32x4d", flexible=True)
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert close(export_network(made.model, 4, crop_size=32)(clip), made.model(clip))
