"""The network against loops written from the formula."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from frameflex.models import TSM, TemporalShift, TSMResNet50, create_model, temporal_shift


def slow_shift(x, num_frames, shift_div, causal=False):
    """The formula of the paper, one value at a time in t and c."""
    fold = x.shape[1] // shift_div
    out = torch.zeros_like(x)
    for n in range(x.shape[0]):
        clip, t = divmod(n, num_frames)
        for c in range(x.shape[1]):
            source = t + 1 if c < fold and not causal else t - 1 if fold <= c < 2 * fold else t
            if 0 <= source < num_frames:
                out[n, c] = x[clip * num_frames + source, c]
    return out


def tiny(**options):
    torch.manual_seed(0)
    model = TSM("test_resnet", num_classes=5, **options)
    nn.init.normal_(model.head.weight)  # the published start is so small that differences would not show
    return model


@given(
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(2, 20),
    st.integers(2, 9),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_shift_equals_the_loop_written_from_the_formula(
    batch, num_frames, channels, div, channels_last, double, causal
):
    if div > channels:
        div = channels
    x = torch.randn(batch * num_frames, channels, 3, 2, dtype=torch.float64 if double else torch.float32)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    shifted = temporal_shift(x, num_frames, div, causal=causal)
    assert torch.equal(shifted, slow_shift(x, num_frames, div, causal))
    assert torch.equal(x, before)


def test_shift_draws_the_picture_in_its_docstring():
    # Value 10 * frame + channel stands for "frame, channel letter".
    x = torch.tensor([[10.0 * t + c for c in range(8)] for t in range(4)])[:, :, None, None] + 100
    expected = torch.tensor(
        [
            [110, 111, 0, 0, 104, 105, 106, 107],
            [120, 121, 102, 103, 114, 115, 116, 117],
            [130, 131, 112, 113, 124, 125, 126, 127],
            [0, 0, 122, 123, 134, 135, 136, 137],
        ],
        dtype=torch.float32,
    )
    assert torch.equal(temporal_shift(x, 4, shift_div=4)[:, :, 0, 0], expected)


@pytest.mark.parametrize("causal", [False, True])
def test_shift_gradients_are_exact(causal):
    x = torch.randn(6, 5, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: temporal_shift(x, 3, 2, causal=causal), x)
    assert torch.autograd.gradgradcheck(lambda x: temporal_shift(x, 3, 2, causal=causal), x)


def test_shift_keeps_the_memory_format():
    x = torch.randn(4, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    assert temporal_shift(x, 2).is_contiguous(memory_format=torch.channels_last)


def test_module_shifts_and_then_applies_its_net():
    conv = nn.Conv2d(16, 4, 1)
    x = torch.randn(8, 16, 3, 3)
    torch.testing.assert_close(TemporalShift(conv, num_frames=4)(x), conv(slow_shift(x, 4, 8)))


def test_the_causal_shift_leaves_alone_what_the_other_takes_from_the_future():
    x = torch.randn(8, 16, 3, 3)
    both, past = temporal_shift(x, 4), temporal_shift(x, 4, causal=True)
    assert torch.equal(past[:, :2], x[:, :2])
    assert torch.equal(past[:, 2:], both[:, 2:])


def test_no_frame_of_a_causal_model_depends_on_a_later_one():
    clip = torch.randn(1, 3, 6, 32, 32)
    changed = clip.clone()
    changed[:, :, 4:] = torch.randn(1, 3, 2, 32, 32)
    for shift, same in (("causal", True), ("bidirectional", False)):
        model = tiny(shift=shift).eval()
        with torch.no_grad():
            before, after = model.forward_frames(clip), model.forward_frames(changed)
        assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6) is same
        assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_a_causal_model_refuses_what_looks_ahead():
    with pytest.raises(ValueError, match="'causal' but temporal_pool looks at later frames"):
        TSM("resnet18", num_classes=3, shift="causal", temporal_pool=True)
    with pytest.raises(ValueError, match="temporal_pool and non_local look at later frames"):
        TSM("resnet18", num_classes=3, shift="causal", temporal_pool=True, non_local="gaussian")


def test_resnet50_maps_clips_to_174_logits_and_counts_its_parameters():
    model = TSMResNet50()
    assert sum(p.numel() for p in model.parameters()) == 23_864_558
    shifted = [name for name, module in model.named_modules() if isinstance(module, TemporalShift)]
    blocks = [f"backbone.layer{i + 1}.{b}" for i, n in enumerate((3, 4, 6, 3)) for b in range(n)]
    assert shifted == [f"{block}.conv1" for block in blocks]
    assert model(torch.randn(2, 3, 16, 32, 32)).shape == (2, 174)


def test_resnet101_shifts_every_second_block():
    model = TSM("resnet101", num_classes=3)
    shifted = [name for name, module in model.named_modules() if isinstance(module, TemporalShift)]
    expected = [
        f"backbone.layer{i + 1}.{b}.conv1" for i, n in enumerate((3, 4, 23, 3)) for b in range(0, n, 2)
    ]
    assert shifted == expected


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "resnet26d"])
def test_other_resnets_take_the_shift(name):
    model = TSM(name, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 3, 32, 32)).shape == (1, 3)


def test_gradients_reach_every_parameter():
    model = tiny()
    model(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("causal", [False, True])
def test_the_model_equals_a_backbone_whose_shifts_are_slow_loops(causal):
    model = tiny(shift="causal" if causal else "bidirectional").eval()
    plain = tiny(shift="none").eval()
    plain.load_state_dict({k.replace(".net.", "."): v for k, v in model.state_dict().items()})
    for block in plain.backbone.modules():
        if hasattr(block, "conv1") and block is not plain.backbone:
            block.conv1.register_forward_pre_hook(lambda module, args: (slow_shift(args[0], 5, 8, causal),))
    clip = torch.randn(2, 3, 5, 32, 32)
    frames = torch.stack([clip[b, :, t] for b in range(2) for t in range(5)])
    with torch.no_grad():
        expected = plain.head(plain.backbone(frames)).reshape(2, 5, 5).mean(1)
        torch.testing.assert_close(model(clip), expected)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 8, 16])
def test_a_batch_equals_each_clip_alone_at_any_num_frames(num_frames):
    model = tiny().eval()
    clips = torch.randn(3, 3, num_frames, 32, 32)
    with torch.no_grad():
        together = model(clips)
        for clip, logits in zip(clips, together, strict=True):
            torch.testing.assert_close(model(clip[None])[0], logits)


def test_time_is_transposed_and_not_reshaped_into_colour():
    model = tiny(shift="none").eval()
    clip = torch.zeros(1, 3, 4, 32, 32)
    clip[:, 0], clip[:, 1], clip[:, 2] = 1.0, -1.0, 3.0  # each frame is the same flat colour
    with torch.no_grad():
        frames = model.forward_frames(clip)
        still = model.head(model.backbone(clip[:, :, 0]))
    torch.testing.assert_close(frames, still[:, None].expand_as(frames))


def test_order_of_frames_matters_with_the_shift_and_not_without():
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        for shift, differs in (("bidirectional", True), ("none", False)):
            model = tiny(shift=shift).eval()
            assert (not torch.allclose(model(clip), model(clip.flip(2)), atol=1e-4)) is differs


def test_threads_run_one_model_at_different_num_frames_at_once():
    model = tiny().eval()
    clips = {t: torch.randn(1, 3, t, 32, 32) for t in (2, 3, 8)}
    with torch.no_grad():
        alone = {t: model(clip) for t, clip in clips.items()}

    def run(num_frames):
        with torch.no_grad():
            return num_frames, model(clips[num_frames])

    with ThreadPoolExecutor(3) as pool:
        for num_frames, logits in pool.map(run, [2, 3, 8] * 20):
            assert torch.equal(logits, alone[num_frames])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_forward_uses_the_num_frames_that_it_had(use_reentrant):
    model = tiny().eval()
    clips = [torch.randn(1, 3, t, 32, 32, requires_grad=True) for t in (8, 3)]

    def gradients():
        model.zero_grad()
        sum(model(clip).square().sum() for clip in clips).backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    stage_type = type(model.backbone.layer1)

    class Checkpointed(stage_type):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=use_reentrant)

    for name in ("layer1", "layer2", "layer3", "layer4"):
        getattr(model.backbone, name).__class__ = Checkpointed
    torch.testing.assert_close(gradients(), expected)


def test_grad_checkpointing_of_timm_gives_the_same_gradients_at_two_counts_in_one_step():
    model = tiny().eval()
    clips = [torch.randn(1, 3, t, 32, 32) for t in (4, 2)]

    def gradients():
        model.zero_grad()
        sum(model(clip).square().sum() for clip in clips).backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(), expected)


def test_a_forward_leaves_no_trace_in_the_model():
    model = tiny().eval()
    before = [m.num_frames for m in model.modules() if isinstance(m, TemporalShift)]
    model(torch.randn(1, 3, 2, 32, 32))
    assert [m.num_frames for m in model.modules() if isinstance(m, TemporalShift)] == before


def test_hooks_on_inner_modules_still_fire():
    model, seen = tiny().eval(), []
    model.backbone.layer2.register_forward_hook(lambda m, args, out: seen.append(out.shape[0]))
    model(torch.randn(1, 3, 5, 32, 32))
    assert seen == [5]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 8, 32, 32), "clip\\[None\\]"),
        ((1, 4, 8, 32, 32), "4 colour channels"),
        ((1, 8, 3, 32, 32), "colour axis comes before time"),
        ((1, 3, 0, 32, 32), "no frame"),
    ],
)
def test_a_wrong_clip_is_told_what_was_expected(shape, words):
    with pytest.raises(ValueError, match=words):
        tiny()(torch.zeros(shape))


def test_impossible_shifts_are_refused():
    with pytest.raises(ValueError, match="shift_div is 128 but there are only 16 channels"):
        TemporalShift(nn.Conv2d(16, 4, 1), shift_div=128)
    with pytest.raises(ValueError, match="at least 2"):
        temporal_shift(torch.zeros(4, 8, 1, 1), 4, shift_div=1)
    with pytest.raises(ValueError, match="no multiple of num_frames = 3"):
        temporal_shift(torch.zeros(4, 8, 1, 1), 3)
    with pytest.raises(ValueError, match="at least 1"):
        temporal_shift(torch.zeros(4, 8, 1, 1), 0)
    with pytest.raises(ValueError, match="shift_div is 5000"):
        create_model("test_resnet", num_classes=3, shift_div=5000)


def test_an_architecture_without_a_row_lists_those_with_one():
    with pytest.raises(ValueError, match="vit_tiny_patch16_224.*no row.*resnet50"):
        TSM("vit_tiny_patch16_224", num_classes=3)
    with pytest.raises(ValueError, match="unknown to timm. Did you mean resnet50"):
        TSM("resnet5O", num_classes=3)


def test_pretrained_weights_come_from_a_file(tmp_path):
    source = tiny(shift="none")
    weights = dict(source.backbone.state_dict())
    weights |= {"fc.weight": torch.zeros(1000, 96), "fc.bias": torch.zeros(1000)}
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        model = TSM("test_resnet", num_classes=5, pretrained=tmp_path / name)
        loaded = {k.replace(".net.", "."): v for k, v in model.backbone.state_dict().items()}
        assert all(torch.equal(loaded[k], v) for k, v in source.backbone.state_dict().items())
    del weights["bn1.weight"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(RuntimeError, match=r"1 missing \(bn1.weight"):
        TSM("test_resnet", num_classes=5, pretrained=tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TSM("test_resnet", num_classes=5, pretrained="nowhere.safetensors")


def test_missing_network_is_one_line_that_names_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("cannot reach the hub\nwith a long tail of details")

    monkeypatch.setattr("frameflex.models.tsm.timm.create_model", offline)
    with pytest.raises(RuntimeError, match="cannot reach the hub") as caught:
        TSM("resnet18", num_classes=3, pretrained=True)
    assert 'pretrained="path.safetensors"' in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.soak
def test_a_compiled_model_equals_the_eager_one_at_every_num_frames():
    model = tiny().eval()
    compiled = torch.compile(model)
    with torch.no_grad():
        for num_frames in (4, 2, 4):
            clip = torch.randn(1, 3, num_frames, 32, 32)
            torch.testing.assert_close(compiled(clip), model(clip), rtol=1e-4, atol=1e-5)
