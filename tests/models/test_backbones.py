"""Every family's shift: where it sits, and what each frame can see."""

import pytest
import timm
import torch
from torch import nn

from frameflex.models import TSM, TemporalShift, create_model
from frameflex.models.backbones import (
    architectures_by_family,
    family_of,
    pretrained_tags,
    shift_sites,
    supported_architectures,
)
from frameflex.models.non_local import NonLocal, TemporalPool

# timm's tiny CNNs, and one small member of each family that people put on a CPU or a phone. Few channels and low
# resolution keep them quick; what is tested does not depend on either.
TINY = [
    *("test_resnet", "test_byobnet", "test_convnext", "test_convnext2", "test_convnext3", "test_nfnet"),
    *("test_efficientnet", "test_efficientnet_evos", "test_efficientnet_gn", "test_efficientnet_ln"),
    "test_mambaout",
]
SMALL = [
    *("mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "lcnet_035"),
    *("efficientnet_b0", "efficientnet_lite0", "tf_efficientnetv2_b0", "mixnet_s"),
    *("regnetx_002", "regnety_002", "convnext_atto", "convnextv2_atto"),
    *("resnet18d", "resnext50_32x4d", "seresnet18", "ghostnet_050", "ghostnetv2_100"),
    *("repvgg_a0", "mobileone_s0"),
]
SIZE = {"ghostnetv2_100": 64}  # pixels; its attention halves the last stage once more


def build(name, **options):
    """A network whose every parameter counts: none starts at zero, or so small that it hides a whole branch."""
    torch.manual_seed(0)
    model = TSM(name, num_classes=3, **options)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if (parameter.ndim < 2 and parameter.abs().max() < 0.2) or key in ("gamma", "skipinit_gain"):
                nn.init.uniform_(parameter, 0.1, 0.4)
        if hasattr(module, "gain") and isinstance(
            module.gain, nn.Parameter
        ):  # scaled standardised convolutions
            nn.init.ones_(module.gain)
        if isinstance(module, nn.BatchNorm2d):  # of a network that has seen data
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(model.head.weight)
    return model.eval()


def shifts(model):
    return [module for module in model.modules() if isinstance(module, TemporalShift)]


def seen(model, frame, num_frames, size=None):
    """Which frames of a clip the logits of one frame depend on, by their gradients."""
    size = size or SIZE.get(model.config["backbone"], 32)
    clip = torch.randn(1, 3, num_frames, size, size, requires_grad=True)
    model.forward_frames(clip)[0, frame].square().sum().backward()
    return clip.grad.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()


class _Off(nn.Module):
    """A shift that is switched off, for good."""

    def __init__(self, shift):
        super().__init__()
        self.net = shift.net

    def forward(self, x):
        return self.net(x)


def keep_one_shift(model, kept):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TemporalShift) and child is not kept:
                setattr(parent, name, _Off(child))


@pytest.mark.parametrize("name", [*TINY, *SMALL])
def test_each_family_takes_clips_of_any_length_and_keeps_them_apart(name):
    model = build(name)
    with torch.no_grad():
        for num_frames in (1, 3, 8):
            clips = torch.randn(2, 3, num_frames, SIZE.get(name, 32), SIZE.get(name, 32))
            together = model(clips)
            assert together.shape == (2, 3)
            for clip, logits in zip(clips, together, strict=True):
                torch.testing.assert_close(model(clip[None])[0], logits, rtol=1e-3, atol=1e-4)
            other = clips.clone()
            other[1] = torch.randn_like(other[1])
            torch.testing.assert_close(model(other)[0], together[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*TINY, *SMALL])
def test_gradients_reach_every_parameter_of_each_family(name):
    # Statistics of the batch itself would let a mean that nothing depends on hide its gradient.
    model = build(name)
    model(torch.randn(2, 3, 3, 64, 64)).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", [*TINY, *SMALL])
def test_one_shift_alone_shows_each_frame_its_two_neighbours_and_no_other(name):
    last = len(shifts(build(name))) - 1
    for index in {0, last}:
        model = build(name)
        keep_one_shift(model, shifts(model)[index])
        assert seen(model, 2, 5) == [1, 2, 3]
        assert seen(model, 0, 5) == [0, 1]
        assert seen(model, 4, 5) == [3, 4]


@pytest.mark.parametrize("name", [*TINY, *SMALL])
def test_all_shifts_together_show_each_frame_as_many_neighbours_as_there_are_shifted_blocks(name):
    model = build(name)
    # Parallel branches of one block (MobileOne) shift the same features once.
    depth = len(
        {
            id(block)
            for block, _ in shift_sites(family_of(name), TSM(name, num_classes=2, shift="none").backbone)
        }
    )
    num_frames = min(depth + 3, 9)
    reach = range(max(0, 1 - depth), min(num_frames, 1 + depth + 1))
    assert seen(model, 1, num_frames) == list(reach)


@pytest.mark.parametrize("name", [*TINY, *SMALL])
def test_without_the_shift_a_frame_sees_itself_alone(name):
    assert seen(build(name, shift="none"), 1, 4) == [1]


# Without any identity path in the whole network there is nothing to keep clear of.
PLAIN = {"test_efficientnet", "test_efficientnet_evos", "test_efficientnet_gn", "test_efficientnet_ln"}


@pytest.mark.parametrize("name", sorted({*TINY, *SMALL} - PLAIN - {"lcnet_035"}))
def test_the_shift_is_inside_a_branch_that_the_identity_path_goes_around(name):
    model, size = build(name), SIZE.get(name, 32)
    plain = TSM(name, num_classes=3, shift="none")
    blocks = [
        model.get_submodule(n)
        for n, m in plain.named_modules()
        if m in {b for b, _ in shift_sites(family_of(name), plain.backbone)}
    ]
    assert blocks
    for block in {blocks[0], blocks[len(blocks) // 2], blocks[-1]}:
        inner = shifts(block)
        assert inner
        # Silence what is shifted: whatever still arrives came around it, and must be of the frame itself.
        handles = [shift.register_forward_hook(lambda m, args, out: torch.zeros_like(out)) for shift in inner]
        taken = []
        probe = block.register_forward_pre_hook(lambda m, args, taken=taken: taken.append(args[0].shape))
        with torch.no_grad():
            model(torch.randn(1, 3, 3, size, size))
        probe.remove()
        for shift in inner:
            shift.num_frames = 3
        x = torch.randn(taken[0], requires_grad=True)
        block(x)[1].square().sum().backward()
        assert x.grad.abs().amax(dim=(1, 2, 3)).nonzero().flatten().tolist() == [1]
        for handle in handles:
            handle.remove()


def test_mobilenetv2_shifts_before_conv_pw_of_the_ten_inverted_residuals_with_a_skip():
    model = TSM("mobilenetv2_100", num_classes=400)
    names = [name for name, module in model.named_modules() if isinstance(module, TemporalShift)]
    blocks = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (5, 1), (5, 2)]
    assert names == [f"backbone.blocks.{stage}.{block}.conv_pw" for stage, block in blocks]
    # torchvision's own count of MobileNetV2 without its classifier, and 400 classes.
    assert sum(p.numel() for p in model.parameters()) == 2_223_872 + 1280 * 400 + 400


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "mobilenetv4_conv_small_035", "ghostnet_050"])
def test_a_network_with_a_convolution_behind_its_pooling_gets_a_classifier_of_that_width(name):
    model = TSM(name, num_classes=3)
    assert model.head.in_features == model.backbone.head_hidden_size != model.backbone.num_features


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_efficientnet_evos", "convnextv2_atto", "regnety_002"]
)
def test_every_norm_of_a_family_gets_a_copy_for_each_frame_count(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, frame_counts=(2, 4)).eval()
    affine = ("weight", "bias")
    one_dimensional = {
        key
        for key, value in model.named_parameters()
        if key.startswith("backbone.") and value.ndim == 1 and key.rsplit(".", 1)[1] in affine
    }
    convolutions = {
        f"{key}.bias"
        for key, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None
    }
    assert one_dimensional - convolutions
    assert all(".norms.2." in key or ".norms.4." in key for key in one_dimensional - convolutions)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 3, 32, 32)).shape == (1, 3)


def test_every_architecture_of_the_table_is_one_of_timms():
    names = supported_architectures()
    assert len(names) == len(set(names)) == sum(map(len, architectures_by_family().values())) > 300
    assert all(timm.is_model(name) for name in names)


def test_an_architecture_that_cannot_take_the_shift_says_why():
    with pytest.raises(ValueError, match="tf_efficientnet_cc_b0_4e.*second input"):
        TSM("tf_efficientnet_cc_b0_4e", num_classes=3)


def test_weights_that_timm_can_download_are_listed_by_name():
    assert "tv_in1k" in pretrained_tags("resnet50")
    assert pretrained_tags("resnet50_gn") != pretrained_tags("resnet50")


# ------------------------------------------------------------------------- options of the published model


def slow_pool(x, num_frames):
    """The largest of three neighbours, of every second frame, one clip and one frame at a time."""
    out = []
    for start in range(0, x.shape[0], num_frames):
        clip = x[start : start + num_frames]
        for t in range(0, num_frames, 2):
            near = clip[max(t - 1, 0) : t + 2]
            out.append(near.amax(0))
    return torch.stack(out)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
def test_temporal_pooling_equals_the_loop_and_later_shifts_see_the_frames_that_are_left(num_frames):
    x = torch.randn(2 * num_frames, 6, 3, 2)
    pool = TemporalPool(nn.Identity(), num_frames)
    torch.testing.assert_close(pool(x), slow_pool(x, num_frames))
    model = build("test_resnet", temporal_pool=True)
    left = -(-num_frames // 2)
    seen_by = {}
    for name, module in model.named_modules():
        if isinstance(module, TemporalShift):
            module.net.register_forward_hook(
                lambda m, args, out, name=name: seen_by.update({name: args[0].shape[0]})
            )
    clips = torch.randn(2, 3, num_frames, 32, 32)
    with torch.no_grad():
        logits = model(clips)
        torch.testing.assert_close(model(clips[1:])[0], logits[1])
        assert model.forward_frames(clips).shape == (2, left, 3)
    assert {n for name, n in seen_by.items() if "layer1" in name} == {2 * num_frames}
    assert {n for name, n in seen_by.items() if "layer1" not in name} == {2 * left}


def test_a_shift_behind_temporal_pooling_moves_between_the_frames_that_are_left():
    model = build("test_resnet", temporal_pool=True)
    plain = build("test_resnet", shift="none")
    state = {k.replace(".net.", "."): v for k, v in model.state_dict().items()}
    plain.load_state_dict({k.replace("layer2.0.net", "layer2.0"): v for k, v in state.items()})
    clip = torch.randn(1, 3, 6, 32, 32)

    def shifted(x, num_frames):
        fold, out = x.shape[1] // 8, x.clone()
        for t in range(num_frames):
            out[t, :fold] = x[t + 1, :fold] if t + 1 < num_frames else 0
            out[t, fold : 2 * fold] = x[t - 1, fold : 2 * fold] if t else 0
        return out

    net = plain.backbone
    for stage, num_frames in (("layer1", 6), ("layer2", 3), ("layer3", 3), ("layer4", 3)):
        for block in net.get_submodule(stage):
            block.conv1.register_forward_pre_hook(lambda m, args, t=num_frames: (shifted(args[0], t),))
    net.layer2.register_forward_pre_hook(lambda m, args: (slow_pool(args[0], 6),))
    with torch.no_grad():
        expected = plain.head(net(clip[0].transpose(0, 1))).mean(0)
        torch.testing.assert_close(model(clip)[0], expected)


def slow_attention(x, block, mode):
    """Non-local block over one clip (T, C, H, W), a query position at a time."""
    num_frames, _, height, width = x.shape

    def embed(conv, features):
        weight, bias = conv.weight[:, :, 0, 0], conv.bias
        return torch.einsum("kc,tchw->tkhw", weight, features) + bias[:, None, None]

    def halve(features):
        return torch.stack(
            [
                features[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((2, 3))
                for i in range(height // 2)
                for j in range(width // 2)
            ],
            2,
        )  # (T, C', positions)

    queries = x if mode == "gaussian" else embed(block.query, x)
    keys = halve(x if mode == "gaussian" else embed(block.key, x)).permute(0, 2, 1).flatten(0, 1)
    values = halve(embed(block.value, x)).permute(0, 2, 1).flatten(0, 1)
    found = torch.zeros(num_frames, values.shape[1], height, width)
    for t in range(num_frames):
        for i in range(height):
            for j in range(width):
                products = keys @ queries[t, :, i, j]
                weights = products / len(products) if mode == "dot_product" else products.softmax(0)
                found[t, :, i, j] = weights @ values
    out = embed(block.out, found)
    norm = block.norm
    out = (out - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    return x + out * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product", "gaussian"])
def test_non_local_block_equals_attention_written_out_a_position_at_a_time(mode):
    block = NonLocal(nn.Identity(), 6, mode=mode, num_frames=3).eval()
    nn.init.uniform_(block.norm.weight)
    nn.init.normal_(block.norm.bias)
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2)
    clips = torch.randn(2, 3, 6, 4, 5)  # an odd width: pooling drops its last column
    with torch.no_grad():
        fast = block(clips.flatten(0, 1)).unflatten(0, (2, 3))
        for clip, result in zip(clips, fast, strict=True):
            torch.testing.assert_close(result, slow_attention(clip, block, mode), rtol=1e-4, atol=1e-5)


def test_non_local_blocks_stand_behind_every_second_block_of_layers_2_and_3():
    with torch.device("meta"):
        model = TSM("resnet50", num_classes=3, non_local="embedded_gaussian")
    names = [name for name, module in model.named_modules() if isinstance(module, NonLocal)]
    assert names == [
        f"backbone.{name}" for name in ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")
    ]


def test_non_local_blocks_let_each_frame_see_the_whole_clip_and_no_other_clip():
    model = build("test_resnet", non_local="embedded_gaussian", shift="none")
    assert seen(model, 1, 7, size=64) == list(range(7))
    clips = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(clips[1:])[0], model(clips)[1])


def test_shift_place_block_shifts_the_identity_path_too():
    model = build("test_resnet", shift_place="block")
    names = [name for name, module in model.named_modules() if isinstance(module, TemporalShift)]
    assert names == [f"backbone.layer{i}.0" for i in (1, 2, 3, 4)]
    with torch.no_grad():
        assert model(torch.randn(1, 3, 3, 32, 32)).shape == (1, 3)


def test_shift_every_counts_blocks_of_each_stage_from_its_first():
    model = TSM("resnet18", num_classes=3, shift_every=2)
    names = [name for name, module in model.named_modules() if isinstance(module, TemporalShift)]
    assert names == [f"backbone.layer{i}.0.conv1" for i in (1, 2, 3, 4)]


def test_a_frame_flexible_network_with_pooling_and_attention_picks_parts_by_the_clips_own_length():
    model = create_model(
        "test_resnet", num_classes=3, frame_counts=(2, 4), temporal_pool=True, non_local="embedded_gaussian"
    ).eval()
    norms = model.backbone.layer4[0].bn1.norms
    used = []
    for count, norm in norms.items():
        norm.register_forward_hook(lambda m, args, out, count=count: used.append(count))
    with torch.no_grad():
        for num_frames, expected in ((4, "4"), (2, "2")):  # 2 frames are left of 4: still the parts of 4
            model(torch.randn(1, 3, num_frames, 64, 64))
            assert used.pop() == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shift_place": "blockres"}, "expected one of residual, block"),
        ({"non_local": "yes"}, "expected none or one of embedded_gaussian"),
        ({"shift_every": 0}, "at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TSM("test_resnet", num_classes=3, **options)


def test_options_published_for_resnets_are_refused_elsewhere():
    with pytest.raises(ValueError, match="published for ResNets.*test_convnext"):
        TSM("test_convnext", num_classes=3, temporal_pool=True)
