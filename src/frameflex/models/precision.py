"""The precision in which a network computes: what this hardware can do, and what it does fast.

To support a precision is not to be fast in it: a CPU without instructions for bfloat16 converts every number there
and back. So "auto" goes by instructions, not by what runs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Instructions that multiply bfloat16 at more than float32's rate, as the kernel names them.
_FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16")


def check_precision(precision: str) -> str:
    """A precision that someone asked for. Raises ValueError where there is none of that name."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return precision


def possible_precisions(device: str | torch.device) -> tuple[str, ...]:
    """The precisions that PyTorch computes in on a device, by hardware and not by emulation, float32 first."""
    kind = torch.device(device).type
    if kind == "cpu":
        own = torch.ops.mkldnn
        found = {"bfloat16": own._is_mkldnn_bf16_supported(), "float16": own._is_mkldnn_fp16_supported()}
    elif kind == "cuda":
        found = {"bfloat16": _capability(device) >= (8, 0), "float16": True}
    elif kind == "mps":
        found = {"float16": True}
    else:
        found = {"bfloat16": torch.amp.is_autocast_available(kind)}
    return ("float32", *(name for name, possible in found.items() if possible))


def fast_precision(device: str | torch.device) -> tuple[str, str]:
    """The precision that "auto" stands for on a device, and why, for people.

    bfloat16 on CPUs with AMX or AVX512-BF16 and on GPUs from compute capability 8.0; float16 on GPUs from 7.0, whose
    tensor cores know nothing else; float32 wherever nothing faster is known.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        fast = [flag for flag in _FAST_BFLOAT16 if flag in cpu_flags()]
        if fast and "bfloat16" in possible_precisions(device):
            return "bfloat16", f"this CPU has {fast[0]}"
        return "float32", "this CPU has neither AMX nor AVX512-BF16"
    if kind == "cuda":
        major, minor = _capability(device)
        why = f"this GPU has compute capability {major}.{minor}"
        return ("bfloat16" if major >= 8 else "float16" if major >= 7 else "float32"), why
    return "float32", f"nothing faster has been measured on {kind}"


def chosen_precision(precision: str, device: str | torch.device) -> str:
    """What a network of PyTorch computes in on a device, "auto" resolved.

    Raises:
        ValueError: if there is no such precision, or the device can't do it.
    """
    if check_precision(precision) == "auto":
        return fast_precision(device)[0]
    possible = possible_precisions(device)
    if precision == "int8":
        raise ValueError(
            f"precision is 'int8', which a checkpoint in PyTorch doesn't have; on {device} it has "
            f"{_listed(possible)}. int8 needs a graph: frameflex export --int8 VIDEO, whose folder stands for the "
            "checkpoint"
        )
    if precision not in possible:
        raise ValueError(
            f"precision is {precision!r}, which {device} can't do here; expected {_listed(possible)}"
        )
    return precision


def computing_in(precision: str, device: str | torch.device) -> AbstractContextManager[object]:
    """A block in which networks on a device compute in a precision, weights and norms kept in float32."""
    kind = torch.device(device).type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    if precision not in _DTYPES:
        return torch.autocast(kind, enabled=False)
    return torch.autocast(kind, dtype=_DTYPES[precision])


def classified(head: nn.Module, features: Tensor) -> Tensor:
    """Logits of features, at the classifier's own precision also where the backbone computes in a lower one.

    Rounded to bfloat16 a logit of 10 is off by up to 0.03, and its probability by 3 %; the classifier is a thousandth
    of a network's arithmetic.
    """
    kind = features.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # shapes alone have no precision
        return head(features)
    own = next((parameter.dtype for parameter in head.parameters()), torch.float32)
    with torch.autocast(kind, enabled=False):
        return head(features.to(own))


def cpu_flags() -> frozenset[str]:
    """What this CPU's instructions are called by Linux; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, []))


def _capability(device: str | torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(torch.device(device))


def _listed(precisions: tuple[str, ...]) -> str:
    return ", ".join(("auto", *precisions))
