"""The kernels in Triton: their arithmetic in Triton's interpreter, what the compiler makes of them, who calls them.

The interpreter is chosen when kernels are defined, so the checks named ``interpreted_...`` run in one process of
their own, which is this file run as a script.
"""

import json
import os
import re
import subprocess
import sys
import traceback

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frameflex.models import TemporalShift, fused_shift
from frameflex.models.fused_shift import Shift

triton = pytest.importorskip(
    "triton", minversion="3.4", reason="Triton comes with CUDA builds of torch alone"
)

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}  # the interpreter truncates bfloat16


# ------------------------------------------------------------------------------------------ arithmetic


def slow_shift(x, shift):
    out = torch.zeros_like(x)
    for n in range(x.shape[0]):
        clip, t = divmod(n, shift.num_frames)
        for c in range(x.shape[1]):
            step = -1 if shift.fold <= c < 2 * shift.fold else 1 if c < shift.fold and not shift.causal else 0
            if 0 <= t + step < shift.num_frames:
                out[n, c] = x[clip * shift.num_frames + t + step, c]
    return out


def fenced(shape, dtype):
    """Random channels-last features with NaN before and behind them, so that a read past an end is seen."""
    n, c, h, w = shape
    memory = torch.full((n + 4, h, w, c), float("nan"), dtype=dtype)
    memory[2:-2] = torch.randn(n, h, w, c).to(dtype)
    return memory[2:-2].permute(0, 3, 1, 2)


def check(clips, shift, channels, out, height, width, dtype, bias):
    """Output and gradients against the loop written from the formula, in double precision."""
    from frameflex.models import triton_shift

    shape = (clips * shift.num_frames, channels, height, width)
    x, grad = fenced(shape, dtype), fenced((shape[0], out, height, width), dtype)
    weight = (torch.randn(out, channels, 1, 1) / 8).to(dtype)
    offset = torch.randn(out).to(dtype) if bias else None
    before = x.clone()
    got = [triton_shift.forward(x, weight, offset, shift)]
    got += triton_shift.gradients(grad, x, weight, shift, [True, True, bias])
    assert torch.equal(x, before)
    exact = [value.double().requires_grad_() for value in (x, weight, *([offset] if bias else []))]
    expected = F.conv2d(slow_shift(exact[0], shift), *exact[1:])
    wanted = [expected, *torch.autograd.grad(expected, exact, grad.double(), materialize_grads=True)]
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for value, right in zip(got, wanted + [None] * (not bias), strict=True):
        if right is None:
            assert value is None
            continue
        assert value.dtype == dtype
        tolerance = TOLERANCE[dtype] * (float(right.detach().abs().max()) + 1e-3)
        torch.testing.assert_close(value.double(), right.detach(), rtol=0, atol=tolerance)
    return got


def interpreted_kernels_equal_the_loop_for_random_shapes():
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(max_examples=15, deadline=None, database=None)
    @given(st.data())
    def run(data):
        dtype = data.draw(st.sampled_from([torch.float32, *HALF]))
        vector = 16 // dtype.itemsize
        fold = vector * data.draw(st.integers(1, 5))
        channels = -(-2 * fold // 16) * 16 + 16 * data.draw(st.integers(0, 5))
        shift = Shift(data.draw(st.integers(1, 6)), fold, data.draw(st.booleans()))
        out = 16 * data.draw(st.integers(1, 5))
        torch.manual_seed(data.draw(st.integers(0, 99)))
        height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
        check(
            data.draw(st.integers(1, 3)), shift, channels, out, height, width, dtype, data.draw(st.booleans())
        )

    run()


def interpreted_every_choice_of_tiles_gives_the_same_result():
    from frameflex.models import triton_shift

    for name in ("_forward_kernel", "_input_gradient_kernel", "_weight_gradient_kernel"):
        kernel = getattr(triton_shift, name)
        for config in kernel.configs:
            for fold, channels in (
                (8, 80),
                (64, 144),
            ):  # tiles of several frames and of one, and the rest of one
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(kernel, "configs", [config])
                    check(2, Shift(3, fold, False), channels, 80, 5, 6, torch.float16, True)


def interpreted_gradients_of_weights_summed_in_parts_are_right_and_repeat():
    from frameflex.models import triton_shift

    summed = []
    launch = triton_shift._launch

    def watched(kernel, grid, *args, **constants):
        summed.extend([len(args[2])] if kernel is triton_shift._weight_gradient_kernel else [])
        launch(kernel, grid, *args, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_shift, "_launch", watched)
        runs = []
        for _ in range(2):
            torch.manual_seed(0)
            runs.append(check(2, Shift(4, 8, False), 64, 32, 19, 23, torch.float32, False)[2])
    assert summed == [3, 3]  # 3496 rows
    assert torch.equal(*runs)


def interpreted_the_tuner_times_the_tiles_that_fit_and_leaves_results_alone():
    from frameflex.models import triton_shift

    for dtype in (torch.float32, torch.bfloat16):
        timed = {}

        def launch(kernel, grid, *args, timed=timed, **constants):
            def bench(call, quantiles):
                call()
                timed[kernel] = timed.get(kernel, 0) + 1
                return [1.0] * len(quantiles)

            kernel.do_bench = bench
            kernel[grid](*args, **constants)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_shift, "_launch", launch)
            for _ in range(2):  # the second time nothing is timed
                check(1, Shift(3, 8, False), 64, 32, 4, 5, dtype, True)
        for kernel, number in timed.items():
            sizes = [triton_shift.shared_bytes(config, dtype.itemsize) for config in kernel.configs]
            assert number == sum(size <= 99 << 10 for size in sizes) > 2
        assert len(timed) == 3


def interpreted_a_batch_of_no_frames_gives_nothing():
    from frameflex.models import triton_shift

    x = torch.empty(0, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 64, 1, 1)
    assert triton_shift.forward(x, weight, None, Shift(4, 8, False)).shape == (0, 16, 3, 3)
    grads = triton_shift.gradients(x[:, :16], x, weight, Shift(4, 8, False), [True, True, True])
    assert grads[0].shape == x.shape
    assert not grads[1].any()
    assert not grads[2].any()


def on_triton(patch):
    """Let modules run the form, and count its forward and backward passes."""
    from frameflex.models import triton_shift

    calls = {"forward": 0, "gradients": 0}

    def count(name):
        run = getattr(triton_shift, name)

        def counted(*args):
            calls[name] += 1
            return run(*args)

        patch.setattr(triton_shift, name, counted)

    count("forward")
    count("gradients")
    module = sys.modules["frameflex.models.temporal_shift"]
    patch.setattr(module, "choose_form", lambda x, net: "triton")
    return calls


def plain(module, x):
    return module.net(slow_shift(x, Shift(module.num_frames, x.shape[1] // 8, module.causal)))


def same_gradients(result, expected, inputs):
    grad = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(result, inputs, grad.to(result.dtype)),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def features(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def interpreted_a_module_runs_them_and_copies_where_widths_do_not_fit():
    for channels, out, fits in ((64, 32, True), (32, 32, True), (64, 24, False), (24, 16, False)):
        module, x = TemporalShift(nn.Conv2d(channels, out, 1), 3), features(6, channels, 4, 5)
        with pytest.MonkeyPatch.context() as patch:
            calls = on_triton(patch)
            result = module(x)
            expected = plain(module, x)
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
            same_gradients(result, expected, [x, *module.parameters()])
            assert calls == {"forward": int(fits), "gradients": int(fits)}


def interpreted_gradients_of_gradients_are_right():
    module, x = TemporalShift(nn.Conv2d(32, 16, 1), 3), features(3, 32, 2, 3)
    seconds = []
    with pytest.MonkeyPatch.context() as patch:
        calls = on_triton(patch)
        for result in (module(x), plain(module, x)):
            (first,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
            seconds.append(torch.autograd.grad(first.square().sum(), module.net.weight)[0])
        assert calls["forward"] == 1
    torch.testing.assert_close(*seconds, rtol=1e-3, atol=1e-3 * float(seconds[1].abs().max()))


def interpreted_autocast_runs_them_in_half_precision():
    module, x = TemporalShift(nn.Conv2d(64, 32, 1), 4), features(4, 64, 3, 3)
    with pytest.MonkeyPatch.context() as patch:
        calls = on_triton(patch)
        with torch.autocast("cpu", torch.bfloat16):
            result = module(x)
            expected = plain(module, x)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)
        result.float().sum().backward()
    assert (module.net.weight.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32)
    assert calls == {"forward": 1, "gradients": 1}


def interpreted_they_are_one_operator_to_a_compiler():
    for channels, out, fits in ((64, 32, True), (64, 24, False)):
        module, x = TemporalShift(nn.Conv2d(channels, out, 1), 3), features(6, channels, 4, 5)
        with pytest.MonkeyPatch.context() as patch:
            calls = on_triton(patch)
            torch._dynamo.reset()
            result = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
            expected = plain(module, x)
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
            same_gradients(result, expected, [x, *module.parameters()])
            assert calls == {"forward": int(fits), "gradients": int(fits)}


CHECKS = sorted(name for name in globals() if name.startswith("interpreted_"))


@pytest.fixture(scope="module")
def outcomes():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FRAMEFLEX_TRITON": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_interpreted(outcomes, name):
    assert outcomes[name] is None, outcomes[name]


def run_interpreted():
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def dot(self, a, b, *rest):  # the interpreter multiplies bfloat16 as the integers that it keeps them in
        wide = [self.cast_impl(v, tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b)]
        return multiply(self, *wide, *rest)

    InterpreterBuilder.create_dot = dot
    torch.use_deterministic_algorithms(True)  # so that torch.empty holds NaN
    found = {}
    for name in CHECKS:
        torch.manual_seed(0)
        try:
            globals()[name]()
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


# -------------------------------------------------------------------------------------------- compiled


def ptxas(capability):
    from triton.backends.nvidia.compiler import get_ptxas

    try:
        return get_ptxas(capability).path
    except RuntimeError as error:
        pytest.skip(f"Triton has no ptxas here: {error}")


def compiled(kernel, config, dtype, unit, capability):
    """As `triton.jit` would for dense tensors at multiples of 16 bytes and widths that are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.fn.arg_names
    constants = {"UNIT": unit, "CAUSAL": False, "bias": None, **config.kwargs}
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else "i32" for name in names}
    for name in names:
        if name in ("x", "grad", "weight", "out", "of_x", "sums"):
            signature[name] = "*fp32" if name == "sums" else f"*{dtype}"
    aligned = [
        i for i, name in enumerate(names) if signature[name][0] == "*" or name in ("num_in", "num_out")
    ]
    source = ASTSource(kernel.fn, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )


def spilled_bytes(ptx, capability, tmp_path):
    path = tmp_path / "kernel.ptx"
    path.write_text(ptx)
    architecture = re.search(r"\.target (\w+)", ptx)[1]
    done = subprocess.run(
        [
            ptxas(capability),
            "-v",
            f"--gpu-name={architecture}",
            str(path),
            "-o",
            str(tmp_path / "kernel.cubin"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    stores = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert stores, done.stderr
    return sum(map(int, stores))


def check_code(name, capability, dtypes, choose, monkeypatch, tmp_path):
    from frameflex.models import triton_shift

    ptxas(capability)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel = getattr(triton_shift, f"_{name}_kernel")
    for dtype in dtypes:
        size = 4 if dtype == "fp32" else 2
        fitting = [c for c in kernel.configs if triton_shift.shared_bytes(c, size) <= 99 << 10]
        assert fitting[0] is kernel.configs[0]
        for config in choose(fitting):
            for unit in (16 // size, 64):
                code = compiled(kernel, config, dtype, unit, capability)
                ptx, case = code.asm["ptx"], (name, dtype, str(config), unit)
                copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (\w+)", ptx)
                assert copies, case  # memory -> shared memory without registers, ahead of its use
                if size == 2 or name == "forward":
                    assert {int(n, 0) for n in copies} == {16}, case
                assert not re.search(r"\bld\.global", ptx), case
                stores = re.findall(r"\bst\.global\S*", ptx)
                assert stores, case
                assert all(".v4." in store for store in stores), case
                tensor_cores = (
                    "wgmma.mma_async" if capability >= 90 and config.kwargs["BLOCK_M"] >= 64 else "mma.sync"
                )
                assert tensor_cores in ptx, case
                assert code.metadata.shared <= 99 << 10, case
                assert spilled_bytes(ptx, capability, tmp_path) <= (0 if size == 2 else 16), case


KERNELS = ("forward", "input_gradient", "weight_gradient")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_kernels_copy_16_bytes_at_once_use_tensor_cores_and_spill_nothing(
    name, capability, monkeypatch, tmp_path
):
    check_code(name, capability, ["bf16"], lambda configs: [configs[0], configs[-1]], monkeypatch, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_every_variant_compiles_likewise(name, capability, monkeypatch, tmp_path):
    check_code(name, capability, ["bf16", "fp16", "fp32"], lambda configs: configs, monkeypatch, tmp_path)


# -------------------------------------------------------------------------------------------- choosing


@pytest.fixture
def gpu(monkeypatch):
    """Features on a GPU that isn't there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv("FRAMEFLEX_TRITON", raising=False)

    def make(dtype=torch.bfloat16):
        with FakeTensorMode():
            return torch.empty(8, 64, 14, 14, dtype=dtype, device="cuda").to(
                memory_format=torch.channels_last
            )

    return make


def test_nothing_runs_on_triton_unless_asked(gpu, monkeypatch):
    conv = nn.Conv2d(64, 64, 1)
    assert fused_shift.choose_form(gpu(), conv) == "copy"
    monkeypatch.setenv("FRAMEFLEX_TRITON", "0")
    assert fused_shift.choose_form(gpu(), conv) == "copy"
    monkeypatch.setenv("FRAMEFLEX_TRITON", "1")
    assert fused_shift.choose_form(gpu(), conv) == "triton"


def test_triton_runs_for_half_precision_before_a_plain_1x1_convolution_on_gpus_since_8_0(gpu, monkeypatch):
    monkeypatch.setenv("FRAMEFLEX_TRITON", "1")
    conv = nn.Conv2d(64, 64, 1)
    assert fused_shift.choose_form(gpu(torch.float16), conv) == "triton"
    assert fused_shift.choose_form(gpu(torch.float64), conv) == "copy"
    assert fused_shift.choose_form(gpu().contiguous(), conv) == "copy"
    assert fused_shift.choose_form(gpu(), nn.Conv2d(64, 64, 1, stride=2)) == "copy"
    assert fused_shift.choose_form(gpu(), nn.Conv2d(64, 64, 3, padding=1)) == "copy"
    assert fused_shift.choose_form(gpu(), nn.Sequential(conv)) == "plain"
    assert fused_shift.choose_form(torch.randn(8, 64, 4, 4), conv) == "copy"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert fused_shift.choose_form(gpu(), conv) == "copy"


@pytest.fixture
def tf32():
    """Settings of products and of convolutions, put back afterwards."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]

    def allow(*values):
        for setting, value in zip(settings, values, strict=True):
            setting.allow_tf32 = value

    yield allow
    allow(*before)


def test_float32_runs_on_triton_only_where_tf32_is_allowed_or_autocast_makes_it_half(gpu, tf32, monkeypatch):
    monkeypatch.setenv("FRAMEFLEX_TRITON", "1")
    x, conv = gpu(torch.float32), nn.Conv2d(64, 64, 1)
    for matmul, cudnn in ((False, False), (False, True), (True, False), (True, True)):
        tf32(matmul, cudnn)
        assert fused_shift.choose_form(x, conv) == ("triton" if matmul and cudnn else "copy")
    tf32(False, True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert fused_shift.choose_form(x, conv) == "triton"


def test_a_compiler_takes_the_choice_for_a_constant(gpu, monkeypatch):
    def run(x):
        return x + fused_shift._triton_wanted(x.device, fused_shift._dtype_of_products(x))

    x = torch.zeros(2, dtype=torch.bfloat16)
    for asked in ("0", "1"):
        monkeypatch.setenv("FRAMEFLEX_TRITON", asked)
        torch._dynamo.reset()
        assert torch.compile(run, fullgraph=True, backend="eager")(x).tolist() == [float(asked)] * 2


def test_a_setting_that_means_nothing_is_refused(gpu, monkeypatch):
    monkeypatch.setenv("FRAMEFLEX_TRITON", "yes")
    with pytest.raises(ValueError, match="FRAMEFLEX_TRITON is 'yes'; expected 1"):
        fused_shift.choose_form(gpu(), nn.Conv2d(64, 64, 1))


def test_asking_where_triton_is_missing_says_how_to_get_it(gpu, monkeypatch):
    monkeypatch.setenv("FRAMEFLEX_TRITON", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        fused_shift.choose_form(gpu(), nn.Conv2d(64, 64, 1))


def test_frameflex_loads_no_kernels():
    code = "import sys, frameflex, frameflex.models; sys.exit('frameflex.models.triton_shift' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_widths_that_fit_are_those_of_whole_vectors_and_tensor_cores():
    from frameflex.models import triton_shift

    def fits(out, channels, fold, dtype=torch.bfloat16):
        return triton_shift.supports(torch.empty(out, channels, 1, 1, dtype=dtype), fold)

    assert all(fits(c, c, c // 8) for c in (64, 128, 256, 512, 1024, 2048))  # ResNet-50
    assert not fits(32, 32, 4)
    assert fits(32, 32, 4, torch.float32)
    assert not fits(24, 64, 8)
    assert not fits(64, 72, 8)


if __name__ == "__main__":
    run_interpreted()
