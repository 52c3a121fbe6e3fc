"""The precision that networks compute in: chosen by what is fast, refused where it can't be, and close to float32."""

import copy

import numpy as np
import pytest
import torch

from frameflex.cli.options import PRECISIONS as OPTIONS
from frameflex.models import CausalStep, create_model, make_frame_flexible
from frameflex.models.precision import (
    PRECISIONS,
    chosen_precision,
    computing_in,
    fast_precision,
    possible_precisions,
)

needs_bfloat16 = pytest.mark.skipif(
    "bfloat16" not in possible_precisions("cpu"), reason="this CPU can't compute in bfloat16"
)


def network(**options):
    return create_model("test_resnet", num_classes=5, **options).eval()


def on_a_cpu_with(monkeypatch, *flags, bfloat16=True):
    monkeypatch.setattr("frameflex.models.precision.cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("avx512f", "avx512_bf16", "amx_bf16"), "bfloat16"),
        (("avx512f", "avx512_bf16"), "bfloat16"),
        (("avx512f", "avx512_vnni"), "float32"),  # bfloat16 runs there, converted to and fro
        ((), "float32"),
    ],
)
def test_auto_is_bfloat16_only_where_a_cpu_has_instructions_for_it(monkeypatch, flags, expected):
    on_a_cpu_with(monkeypatch, *flags)
    assert possible_precisions("cpu") == ("float32", "bfloat16")
    assert chosen_precision("auto", "cpu") == expected
    assert chosen_precision("bfloat16", "cpu") == "bfloat16"


def test_auto_names_the_instructions_it_went_by(monkeypatch):
    on_a_cpu_with(monkeypatch, "avx512_bf16", "amx_bf16")
    assert fast_precision("cpu") == ("bfloat16", "this CPU has amx_bf16")


def test_instructions_that_torch_may_not_use_are_not_fast(monkeypatch):
    on_a_cpu_with(monkeypatch, "amx_bf16", bfloat16=False)
    assert chosen_precision("auto", "cpu") == "float32"


@pytest.mark.parametrize(
    ("capability", "expected", "possible"),
    [
        ((9, 0), "bfloat16", ("float32", "bfloat16", "float16")),
        ((8, 0), "bfloat16", ("float32", "bfloat16", "float16")),
        ((7, 5), "float16", ("float32", "float16")),
        ((6, 1), "float32", ("float32", "float16")),
    ],
)
def test_auto_on_a_gpu_goes_by_its_compute_capability(monkeypatch, capability, expected, possible):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert chosen_precision("auto", "cuda:0") == expected
    assert possible_precisions("cuda:0") == possible


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("float16", "'float16', which cpu can't do here; expected auto, float32, bfloat16"),
        ("int8", r"on cpu it has auto, float32, bfloat16\. int8 needs a graph: frameflex export --int8"),
        ("double", "precision is 'double'; expected one of auto, float32, bfloat16, float16, int8"),
    ],
)
def test_a_precision_that_cannot_be_names_those_that_can(monkeypatch, precision, message):
    on_a_cpu_with(monkeypatch)
    with pytest.raises(ValueError, match=message):
        chosen_precision(precision, "cpu")


def test_the_options_of_the_command_line_are_the_precisions():
    assert OPTIONS == PRECISIONS


@needs_bfloat16
@pytest.mark.parametrize("options", [{}, {"shift": "causal"}, {"shift": "none"}])
def test_bfloat16_is_another_computation_of_nearly_the_same_answer(options):
    model, clip = network(**options), torch.randn(2, 3, 4, 32, 32)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        exact = model(clip)
        with computing_in("bfloat16", "cpu"):
            got = model(clip)
    assert got.dtype == torch.float32
    assert not torch.equal(got, exact)
    torch.testing.assert_close(got, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@needs_bfloat16
def test_logits_keep_the_classifiers_precision():
    model, clip = network(), torch.randn(1, 3, 2, 32, 32)
    with torch.inference_mode(), computing_in("bfloat16", "cpu"):
        logits = model.forward_frames(clip)
    assert not torch.equal(logits, logits.bfloat16().float())


@needs_bfloat16
def test_a_frame_flexible_network_computes_in_bfloat16_at_every_count():
    model = make_frame_flexible(network(), (2, 4)).eval()
    for count in (1, 2, 4):
        clip = torch.randn(1, 3, count, 32, 32)
        with torch.inference_mode():
            exact = model(clip)
            with computing_in("bfloat16", "cpu"):
                got = model(clip)
        torch.testing.assert_close(got, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


@needs_bfloat16
def test_a_causal_step_in_bfloat16_equals_the_offline_model_in_it():
    model = network(shift="causal")
    step, clip = CausalStep(model), torch.randn(1, 3, 4, 32, 32)
    state = step.init_state(1, 32)
    with torch.inference_mode(), computing_in("bfloat16", "cpu"):
        offline = model.forward_frames(clip)[0]
        for t in range(4):
            logits, state = step(state, clip[:, :, t].contiguous(memory_format=torch.channels_last))
            np.testing.assert_allclose(logits[0], offline[t], atol=0.02 * offline.abs().max().item())


def test_float32_is_exact_inside_another_precision():
    model, clip = network(), torch.randn(1, 3, 2, 32, 32)
    with torch.inference_mode():
        exact = model(clip)
        with torch.autocast("cpu", torch.bfloat16), computing_in("float32", "cpu"):
            assert torch.equal(model(clip), exact)
