"""Frame-flexible networks against a plain TSM that holds one count's parts, and the loss against its formula."""

import copy
import math

import pytest
import torch
from torch import nn

from frameflex.engine.objective import FrameFlexibleObjective
from frameflex.models import TSM, FrameNorm, FrameScale, create_model, make_frame_flexible
from frameflex.models.counts import blend_weight, nearest_count
from frameflex.models.frame_flexible import add_norms, serve_untrained
from frameflex.models.temporal_shift import TemporalShift

COUNTS = (2, 4, 8)


def flexible(seed=0, counts=COUNTS, **options):
    """A tiny flexible network whose counts really differ."""
    torch.manual_seed(seed)
    model = create_model("test_resnet", num_classes=5, frame_counts=counts, dropout=0.0, **options)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "norms." in name and tensor.is_floating_point():
            tensor.data = tensor.data + 0.3 * torch.rand_like(tensor)
        elif ".scales." in name:
            nn.init.normal_(tensor, std=0.3)
    nn.init.normal_(model.head.weight)
    return model


def plain_twin(model, count):
    """A plain TSM built from one count's parts: its norms as they are, its scales folded into the convolution."""
    state = {}
    for key, value in model.state_dict().items():
        if ".norms." in key:
            before, after = key.split(".norms.")
            number, rest = after.split(".", 1)
            if int(number) == count:
                state[f"{before}.{rest}"] = value
        elif ".scale.scales." not in key:
            state[key] = value
    for key, value in model.state_dict().items():
        if key.endswith(f".scale.scales.{count}"):
            weight = key.replace(f".scale.scales.{count}", ".net.weight")
            state[weight] = state[weight] * (1 + value)[None, :, None, None]
    twin = TSM("test_resnet", num_classes=5, dropout=0.0)
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("count", COUNTS)
def test_at_a_trained_count_it_equals_a_plain_tsm_with_that_counts_parts(count):
    model = flexible().eval()
    clip = torch.randn(2, 3, count, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), plain_twin(model, count).eval()(clip), rtol=1e-4, atol=1e-5)
        others = [c for c in COUNTS if c != count]
        assert not any(
            torch.allclose(model(clip), plain_twin(model, c).eval()(clip), atol=1e-3) for c in others
        )


@pytest.mark.parametrize(("num_frames", "count"), [(1, 2), (3, 4), (5, 4), (6, 8), (7, 8), (20, 8)])
def test_an_untrained_count_uses_the_nearest_set_and_ties_go_to_the_larger(num_frames, count):
    assert nearest_count(COUNTS, num_frames) == count
    model = flexible().eval()
    clip = torch.randn(1, 3, num_frames, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), plain_twin(model, count).eval()(clip), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("counts", [(2, 4, 8), (4, 8, 12, 16), (3,)])
def test_every_norm_and_shift_gets_parts_for_any_set_of_counts(counts):
    model = flexible(counts=counts)
    bare = [
        name
        for name, m in model.backbone.named_modules()
        if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)) and ".norms." not in f".{name}"
    ]
    assert bare == []
    norms = [m for m in model.modules() if isinstance(m, FrameNorm)]
    assert norms
    assert all(sorted(map(int, m.norms)) == list(counts) for m in norms)
    shifts = [m for m in model.modules() if isinstance(m, TemporalShift)]
    assert all(sorted(map(int, m.scale.scales)) == list(counts) for m in shifts)


def test_copies_start_from_the_pretrained_norm_and_scales_near_zero():
    model = TSM("test_resnet", num_classes=3)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.running_mean)
    before = copy.deepcopy(model.backbone.bn1.state_dict())
    make_frame_flexible(model, (4, 16))
    for count in ("4", "16"):
        copied = model.backbone.bn1.norms[count].state_dict()
        assert all(torch.equal(copied[key], value) for key, value in before.items())
    drawn = torch.cat([p.flatten() for n, p in model.named_parameters() if ".scales." in n])
    assert 0.5e-3 < drawn.std() < 2e-3


def test_norms_fused_with_an_activation_are_found():
    from timm.layers import BatchNormAct2d

    norm = FrameNorm(BatchNormAct2d(4), (2, 4)).eval()
    assert torch.all(norm(torch.randn(3, 4, 5, 5)) >= 0)
    parent = TSM("test_resnet", num_classes=3)
    parent.backbone.bn1 = BatchNormAct2d(parent.backbone.bn1.num_features)
    make_frame_flexible(parent, (2, 4))
    assert isinstance(parent.backbone.bn1, FrameNorm)


def test_scale_is_residual():
    scale = FrameScale(3, (2, 4))
    x = torch.randn(5, 3, 2, 2)
    expected = x + scale.scales["4"][None, :, None, None] * x
    torch.testing.assert_close(scale(x), expected)


def test_resnet50_with_three_counts_adds_the_copies_and_nothing_else():
    model = create_model("resnet50", num_classes=174, frame_counts=(4, 8, 16))
    total = sum(p.numel() for p in model.parameters())
    norm_parameters, shifted_channels = 53_120, 13_120
    plain = 23_864_558
    assert total == plain + 2 * norm_parameters + 3 * shifted_channels
    assert total < 1.01 * plain


def test_state_dict_names_say_what_they_are():
    keys = flexible().state_dict().keys()
    assert {"backbone.bn1.norms.4.weight", "backbone.bn1.norms.8.running_var"} <= keys
    assert "backbone.layer1.0.conv1.scale.scales.2" in keys


def test_config_builds_the_network_again():
    for options in ({}, {"frame_norms": False}, {"frame_scales": False}):
        model = flexible(**options)
        again = create_model(**model.config)
        again.load_state_dict(model.state_dict())
        assert again.config == model.config


def test_bad_counts_are_refused():
    for counts in ((), (0, 4), (4, 4)):
        with pytest.raises(
            ValueError, match="expected different T's|frame_counts is 0; expected a whole number"
        ):
            make_frame_flexible(TSM("test_resnet", num_classes=3), counts)
    with pytest.raises(ValueError, match="frame-flexible already"):
        make_frame_flexible(flexible(), (2, 4))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 8, 12])
def test_logits_do_not_depend_on_neighbours_in_the_batch(num_frames, training):
    """Fails for code that shifts every stream in groups of the largest count: clips of 2 would share a group."""
    model = flexible().train(training)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()  # frozen norms: what is left of training mode must not mix videos either
    video, other, another = torch.randn(3, 1, 3, num_frames, 32, 32).unbind()
    with torch.no_grad():
        alone = model(video)[0]
        torch.testing.assert_close(model(torch.cat([video, other]))[0], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(torch.cat([another, video]))[1], alone, rtol=1e-4, atol=1e-5)


def test_the_way_of_grouping_frames_of_published_code_fails_that_test():
    model = flexible().eval()

    def grouped(clips):  # two clips of 4 shifted as if they were one of 8
        frames = clips.transpose(1, 2).flatten(0, 1)
        merged = frames.unflatten(0, (-1, 8)).transpose(1, 2)
        return model.forward_frames(merged).flatten(0, 1).unflatten(0, (-1, 4)).mean(1)

    video, other, another = torch.randn(3, 1, 3, 4, 32, 32).unbind()
    with torch.no_grad():
        first, second = (grouped(torch.cat([video, neighbour]))[0] for neighbour in (other, another))
    assert not torch.allclose(first, second, atol=1e-3)


def clips_and_labels():
    return {t: torch.randn(3, 3, t, 32, 32) for t in COUNTS}, torch.tensor([0, 3, 4])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("student_cross_entropy", "reverse_kl"), [(False, False), (True, False), (False, True)]
)
def test_loss_equals_a_loop_written_from_the_formula(temperature, student_cross_entropy, reverse_kl):
    model = flexible().eval()
    clips, labels = clips_and_labels()
    objective = FrameFlexibleObjective(
        model,
        kl_weight=0.7,
        temperature=temperature,
        student_cross_entropy=student_cross_entropy,
        reverse_kl=reverse_kl,
    )
    loss, logits = objective(clips, labels)
    outputs = {t: model(clip).double().tolist() for t, clip in clips.items()}

    def probabilities(scores, tau=1.0):
        exponentials = [math.exp(s / tau) for s in scores]
        return [e / sum(exponentials) for e in exponentials]

    expected = 0.0
    for i, label in enumerate(labels.tolist()):
        expected -= math.log(probabilities(outputs[8][i])[label])
        q = probabilities(outputs[8][i], temperature)
        for t in (2, 4):
            p = probabilities(outputs[t][i], temperature)
            first, second = (p, q) if reverse_kl else (q, p)
            divergence = sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))
            expected += 0.7 * temperature**2 * divergence
            if student_cross_entropy:
                expected -= math.log(probabilities(outputs[t][i])[label])
    assert float(loss.detach()) == pytest.approx(expected / 3, rel=1e-5)
    torch.testing.assert_close(logits, model(clips[8]).detach())


def test_with_one_count_the_loss_is_cross_entropy():
    model = flexible(counts=(8,)).eval()
    clips, labels = clips_and_labels()
    loss, _ = FrameFlexibleObjective(model, label_smoothing=0.1)({8: clips[8]}, labels)
    expected = nn.functional.cross_entropy(model(clips[8]), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_the_teacher_gets_exactly_no_gradient_from_its_students():
    model = flexible().train()
    clips, _ = clips_and_labels()
    objective = FrameFlexibleObjective(model)
    teacher = model(clips[8])
    teacher.retain_grad()
    student = model(clips[2])
    objective._divergence(student, teacher.detach()).backward()
    assert teacher.grad is None
    own = [p.grad for n, p in model.named_parameters() if ".norms.8." in n or n.endswith("scales.8")]
    assert own
    assert all(grad is None for grad in own)


def test_gradients_of_one_step_equal_the_sum_of_the_parts():
    model = flexible().eval()
    clips, labels = clips_and_labels()

    def gradients(*losses):
        model.zero_grad()
        for loss in losses:
            loss.backward()
        return {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        }

    together = gradients(FrameFlexibleObjective(model)(clips, labels)[0])
    target = model(clips[8]).detach().log_softmax(1)
    parts = [nn.functional.cross_entropy(model(clips[8]), labels)]
    for t in (2, 4):
        parts.append(
            nn.functional.kl_div(
                model(clips[t]).log_softmax(1), target, reduction="batchmean", log_target=True
            )
        )
    for name, gradient in gradients(*parts).items():
        torch.testing.assert_close(gradient, together[name], rtol=1e-4, atol=1e-6)


def test_a_count_added_to_a_blended_network_starts_between_its_neighbours():
    model = create_model("test_resnet", num_classes=2, frame_counts=(2, 8), untrained="blend").eval()
    norms = model.backbone.bn1.norms
    norms["2"].running_mean.fill_(1.0)
    norms["8"].running_mean.fill_(3.0)
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        before = model(clip)
        add_norms(model, [4])
        torch.testing.assert_close(model(clip), before)
    assert norms["4"].running_mean.unique().tolist() == [2.0]
    assert norms["2"].running_mean.unique().tolist() == [1.0]
    assert all(isinstance(p, torch.nn.Parameter) for p in norms["4"].parameters())
    assert len(list(norms["4"].parameters())) == 2


def test_blending_interpolates_in_log_t():
    assert blend_weight((4, 8, 16), 8) == (8, 8, 0.0)
    assert blend_weight((4, 8, 16), 2) == (4, 4, 0.0)
    assert blend_weight((4, 8, 16), 40) == (16, 16, 0.0)
    below, above, weight = blend_weight((4, 16), 8)
    assert (below, above) == (4, 16)
    assert weight == pytest.approx(0.5)


def test_a_blended_network_equals_a_plain_one_with_interpolated_parts():
    model = flexible(counts=(2, 8)).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    nearest = model(clip)
    serve_untrained(model, "blend")
    expected = flexible(counts=(2, 8))
    for name, tensor in [*expected.named_parameters(), *expected.named_buffers()]:
        if "norms.8." in name or name.endswith("scales.8"):
            other = model.get_buffer(name.replace("norms.8.", "norms.2.")) if "running" in name else None
            if other is None and tensor.is_floating_point():
                other = model.get_parameter(
                    name.replace("norms.8.", "norms.2.").replace("scales.8", "scales.2")
                )
            if other is not None:
                tensor.data = (tensor.data + other.data) / 2
    with torch.no_grad():
        got = model(clip)
        torch.testing.assert_close(got, plain_twin(expected, 8).eval()(clip), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, nearest)
    again = create_model(**model.config)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(clip), got)
    model.train()
    assert (
        model.backbone.bn1.at_num_frames(4) is model.backbone.bn1.norms["2"]
    )  # training: nearest, on its own scale
