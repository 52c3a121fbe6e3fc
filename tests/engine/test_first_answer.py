"""The first answer: features that know order, and least squares over them."""

import pytest
import timm
import torch

from frameflex.engine.first_answer import LeastSquares, order_features
from frameflex.models import create_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("test_resnet", num_classes=3).eval()


def test_features_are_the_mean_before_the_last_stage_and_its_change():
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3, shift="none").eval()
    clips = torch.randn(2, 3, 5, 32, 32)
    plain = timm.create_model("test_resnet", num_classes=0).eval()
    plain.load_state_dict(model.backbone.state_dict())
    found = order_features(model, clips)
    for clip, row in zip(clips, found, strict=True):
        stages = [
            plain.forward_intermediates(frame[None], intermediates_only=True)[-2].mean((2, 3))[0]
            for frame in clip.unbind(1)
        ]
        mean = sum(stages) / 5
        change = (stages[3] + stages[4]) / 2 - (
            stages[0] + stages[1]
        ) / 2  # the middle one is of neither half
        torch.testing.assert_close(row, torch.cat([mean, change]).detach(), atol=1e-5, rtol=1e-4)


def test_a_clip_backwards_changes_the_other_way_without_a_shift():
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3, shift="none").eval()
    clip = torch.randn(1, 3, 8, 32, 32)
    there, back = order_features(model, clip)[0], order_features(model, clip.flip(2))[0]
    half = len(there) // 2
    torch.testing.assert_close(there[:half], back[:half])
    torch.testing.assert_close(there[half:], -back[half:])
    assert there[half:].abs().max() > 0.01


def test_one_frame_has_no_change_and_the_network_is_left_as_it_was(model):
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    found = order_features(model, torch.randn(2, 3, 1, 32, 32))
    assert found[:, found.shape[1] // 2 :].abs().max() == 0
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def test_channels_may_come_last():
    model = create_model("mambaout_femto", num_classes=2, shift="none").eval()
    assert order_features(model, torch.randn(1, 3, 2, 64, 64)).shape == (1, 2 * 192)


def test_a_held_out_score_is_that_of_a_fit_without_the_clip():
    torch.manual_seed(0)
    features, labels = torch.randn(9, 8), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    fit = LeastSquares(features, labels, 3)
    rows, targets = fit.rows, torch.eye(3, dtype=torch.double)[labels]
    for i in range(9):
        others = torch.arange(9) != i
        x, y = rows[others], targets[others] - 1 / 3
        weights = torch.linalg.solve(x.T @ x + 3 * torch.eye(8, dtype=torch.double), x.T @ y)
        torch.testing.assert_close(fit.held_out[i], rows[i] @ weights + 1 / 3)


def test_what_changes_apart_is_told_apart_whatever_the_places_are():
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    features = torch.randn(40, 12)
    features[:, 6] += 4 * (labels.float() - 0.5)  # the first of the changes
    fit = LeastSquares(features[:20], labels[:20], 2)
    assert (fit.scores(features[20:]).argmax(1) == labels[20:]).double().mean() >= 0.9
