"""Every form of the shift and its convolution against the loop written from the formula."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from frameflex.models import TSM, TemporalShift, create_model, fused_shift
from frameflex.models.folding import fold_norms
from frameflex.models.frame_flexible import FrameScale


def slow_shift(x, num_frames, fold, causal):
    out = torch.zeros_like(x)
    for n in range(x.shape[0]):
        clip, t = divmod(n, num_frames)
        for c in range(x.shape[1]):
            step = -1 if fold <= c < 2 * fold else 1 if c < fold and not causal else 0
            if 0 <= t + step < num_frames:
                out[n, c] = x[clip * num_frames + t + step, c]
    return out


def always(monkeypatch, form):
    monkeypatch.setattr(sys.modules["frameflex.models.temporal_shift"], "choose_form", lambda x, net: form)


convolutions = st.sampled_from(["1x1", "1x1 strided", "3x3", "depthwise", "grouped"])


def convolution(kind, channels, out, bias, dtype):
    options = {
        "1x1": {"kernel_size": 1},
        "1x1 strided": {"kernel_size": 1, "stride": 2},
        "3x3": {"kernel_size": 3, "padding": 1},
        "depthwise": {"kernel_size": 3, "padding": 1, "groups": channels},
        "grouped": {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2 if channels % 2 == 0 else 1},
    }[kind]
    out = channels if kind == "depthwise" else 2 * out
    return nn.Conv2d(channels, out, bias=bias, dtype=dtype, **options)


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 3),
    num_frames=st.integers(1, 6),
    channels=st.integers(2, 20),
    out=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    div=st.integers(2, 9),
    kind=convolutions,
    form=st.sampled_from(["copy", "plain"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    channels_last=st.booleans(),
    causal=st.booleans(),
    bias=st.booleans(),
    scaled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_form_equals_the_loop_in_its_output_and_its_gradients(
    batch,
    num_frames,
    channels,
    out,
    height,
    width,
    div,
    kind,
    form,
    dtype,
    channels_last,
    causal,
    bias,
    scaled,
    seed,
):
    torch.manual_seed(seed)
    scaled = scaled and dtype != torch.bfloat16  # whose gradient, a sum over all pixels, cancels to few bits
    conv = convolution(kind, channels, out, bias, dtype)
    x = torch.randn(batch * num_frames, channels, height, width, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        conv = conv.to(memory_format=torch.channels_last)
    before = x.clone()
    x.requires_grad_()
    module = TemporalShift(conv, num_frames, div if div <= channels else channels, causal=causal)
    if scaled:
        module.scale = FrameScale(channels, (num_frames,)).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        always(patch, form)
        result = module(x)
        grad = torch.randn_like(result)
        gradients = torch.autograd.grad(result, [x, *module.parameters()], grad)
    shifted = slow_shift(x, num_frames, channels // module.shift_div, causal)
    gain = 1 if not scaled else 1 + module.scale.scales[str(num_frames)].view(-1, 1, 1)
    expected = conv(shifted * gain)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 6e-2}[dtype]
    scale = float(expected.detach().abs().max()) + 1e-3
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance * scale)
    assert torch.equal(x, before)
    wanted_gradients = torch.autograd.grad(
        expected, [x, *module.parameters()], grad, allow_unused=True, materialize_grads=True
    )
    for got, wanted in zip(gradients, wanted_gradients, strict=True):
        scale = float(wanted.abs().max()) + 1e-3
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_exact_in_double_precision_once_and_twice(causal):
    shift, geometry = fused_shift.Shift(3, 2, causal), fused_shift.Geometry((1, 1), (0, 0), (1, 1), 1)
    x = torch.randn(6, 5, 2, 1, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(3, 5, 1, 1, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    inputs = [value.requires_grad_() for value in (x, weight, bias)]

    def run(x, weight, bias):
        return fused_shift._ShiftedConv.apply(x, weight, bias, shift, geometry)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_gradients_of_a_strided_grouped_convolution_are_exact_in_double_precision():
    conv = nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=2, dtype=torch.float64)
    module = TemporalShift(conv, 2, 4)
    x = torch.randn(4, 8, 4, 3, dtype=torch.float64, requires_grad=True)
    assert fused_shift.choose_form(x, conv) == "copy"
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)


def test_frozen_parts_get_no_gradient_and_the_rest_the_right_one():
    x = torch.randn(4, 8, 3, 3)
    for form in ("copy", "plain"):
        module = TemporalShift(nn.Conv2d(8, 2, 1), 4)
        with pytest.MonkeyPatch.context() as patch:
            always(patch, form)
            data = x.contiguous(memory_format=torch.channels_last).clone().requires_grad_()
            module.net.weight.requires_grad_(False)
            module(data).sum().backward()
            assert module.net.weight.grad is None
            expected = torch.autograd.grad(module.net(slow_shift(data, 4, 1, False)).sum(), data)[0]
            torch.testing.assert_close(data.grad, expected)
            module.net.weight.requires_grad_()
            module(data.detach()).sum().backward()
            moved = slow_shift(data.detach(), 4, 1, False)
            expected = torch.autograd.grad(module.net(moved).sum(), module.net.weight)[0]
            torch.testing.assert_close(module.net.weight.grad, expected)


def test_the_copy_that_keeps_nothing_runs_before_plain_convolutions_only():
    x = torch.empty(2, 8, 4, 4)
    for plain in (nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)):
        assert fused_shift.choose_form(x, plain) == "copy"
    for other in (
        nn.Sequential(nn.Conv2d(8, 4, 1)),
        nn.Conv2d(8, 4, 3, padding="same"),
        nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"),
    ):
        assert fused_shift.choose_form(x, other) == "plain"


def test_a_hook_on_the_convolution_sees_the_shifted_features():
    module, seen = TemporalShift(nn.Conv2d(8, 4, 1), 3), []
    module.net.register_forward_pre_hook(lambda conv, args: seen.append(args[0]))
    x = torch.randn(3, 8, 2, 2)
    module(x)
    assert torch.equal(seen[0], slow_shift(x, 3, 1, False))


def test_training_keeps_no_tensor_for_the_shift_that_the_plain_network_does_not_keep():
    def kept(shift):
        torch.manual_seed(0)
        model = TSM("test_resnet", num_classes=5, shift=shift).train()
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        clip = torch.randn(1, 3, 4, 32, 32)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(clip).sum()  # held: else storages would be freed and their addresses used again
        total = sum(storages.values())
        loss.backward()
        return total

    assert kept("bidirectional") == kept("none")


def test_forms_agree_in_a_network_under_threads_and_leave_its_identity_path_alone(monkeypatch):
    torch.manual_seed(0)
    model = TSM("resnet26d", num_classes=5).eval().to(memory_format=torch.channels_last)
    nn.init.normal_(model.head.weight)
    clips = {t: torch.randn(2, 3, t, 32, 32) for t in (1, 2, 5)}
    answers = {}
    for form in ("plain", "copy"):
        monkeypatch.undo()
        always(monkeypatch, form)
        with torch.no_grad(), ThreadPoolExecutor(3) as pool:
            answers[form] = list(pool.map(lambda t: model(clips[t]), [1, 2, 5] * 3))
    for got, wanted in zip(answers["copy"], answers["plain"], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_autocast_gives_half_precision_and_gradients_in_the_weights_own_precision():
    torch.manual_seed(0)
    module = TemporalShift(nn.Conv2d(16, 4, 1), 3)
    x = torch.randn(6, 16, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(x)
        expected = module.net(slow_shift(x, 3, 2, False))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected)
    result.float().sum().backward()
    assert (module.net.weight.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("counts", [(), (2, 4)])
def test_a_model_with_folded_norms_answers_like_the_original(counts):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=5, frame_counts=counts)
    nn.init.normal_(model.head.weight)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    clip = torch.randn(2, 3, 4, 32, 32)
    folded = fold_norms(model, num_frames=4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(clip), model(clip), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.soak
@pytest.mark.parametrize("form", ["copy", "plain"])
@pytest.mark.parametrize("counts", [(), (2, 4)])
def test_a_compiled_model_equals_the_eager_one_in_answers_and_gradients(form, counts, monkeypatch):
    torch.manual_seed(0)
    always(monkeypatch, form)
    model = create_model("test_resnet", num_classes=5, frame_counts=counts).eval()
    model.to(memory_format=torch.channels_last)
    nn.init.normal_(model.head.weight)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for num_frames in (4, 2):
        clip = torch.randn(2, 3, num_frames, 32, 32)
        expected = torch.autograd.grad(F.mse_loss(model(clip), torch.ones(2, 5)), model.head.weight)
        expected += torch.autograd.grad(
            F.mse_loss(model(clip), torch.ones(2, 5)), model.backbone.layer1[0].conv1.net.weight
        )
        loss = F.mse_loss(compiled(clip), torch.ones(2, 5))
        got = torch.autograd.grad(loss, [model.head.weight, model.backbone.layer1[0].conv1.net.weight])
        for value, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
        with torch.no_grad():
            torch.testing.assert_close(compiled(clip), model(clip), rtol=1e-4, atol=1e-4)
