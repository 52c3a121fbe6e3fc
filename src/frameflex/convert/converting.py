"""Checkpoints of other code bases into ours: recognised by their tensors' names, never by the file's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from frameflex.checkpoint import load_checkpoint
from frameflex.convert import ffn, mit, mmaction2, timm, torchvision
from frameflex.convert.assembling import Conversion, assemble
from frameflex.convert.class_names import check_class_names
from frameflex.convert.network import Network
from frameflex.convert.reading import ConversionError, Hints, is_own, read_content, state_dict

# Asked in this order; a new code base is a file with `recognise`, and a row here.
CODE_BASES: tuple[tuple[str, Callable[[Mapping[str, Tensor], Hints], Network | None]], ...] = (
    ("FFN-pytorch", ffn.recognise),
    ("mit-han-lab temporal-shift-module", mit.recognise),
    ("mmaction2 TSM and TSN", mmaction2.recognise),
    ("torchvision image weights with their classifier", torchvision.recognise),
    ("timm image weights with their classifier", timm.recognise),
)


def convert(
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    frame_counts: Sequence[int] | None = None,
    backbone: str | None = None,
    shift: str | None = None,
    shift_div: int | None = None,
    non_local: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    license: str = "",
    trust_pickle: bool = False,
    ema: bool = False,
    allow_nan: bool = False,
) -> Conversion:
    """Turn a checkpoint of another code base into one of ours, with every tensor accounted for.

    Known are: mit-han-lab's temporal-shift-module (ResNet, MobileNetV2, non-local blocks, temporal pooling, both
    shift places, any number of segments), mmaction2's TSM and TSN (0.x and 1.x; ResNet, MobileNetV2, MobileOne),
    FFN-pytorch's 2D networks (each of its counts becomes one of ours), image weights of torchvision (ResNets,
    MobileNetV2 and V3, EfficientNet and its V2, RegNet, ConvNeXt) and of timm (every architecture with a row in the
    table of backbones), and frameflex's own.

    Args:
        path: ``.pth``, ``.pt``, ``.tar`` or ``.safetensors``; what is inside decides, the name doesn't matter.
        class_names: one for each logit; by default those that the file has, or else "class 0", "class 1", …
        frame_counts: T's that it was trained at, where the file doesn't tell.
        backbone: architecture of timm, where names and shapes fit several.
        shift: "bidirectional" or "none", where the file doesn't tell.
        shift_div: one channel in so many moved in each direction; weights don't tell. By default 8, as published.
        non_local: how non-local blocks compare, where the file doesn't tell: see `TSM`.
        sampling: how frames were picked, as in `Checkpoint`; by default segments.
        preprocessing: fields of `Preprocessing` that differ from its code base's own.
        license: of the weights, to be kept with them.
        trust_pickle: let the file run code while it is read.
        ema: take averaged weights where the file has others beside them.
        allow_nan: take weights with values that are NaN or infinite.

    Raises:
        ConversionError: if the file is of no known kind, or a tensor is left over, missing or of another shape (all
            are listed), or a weight is NaN or infinite.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    if is_own(path):
        return _renew(path, class_names, preprocessing, license)
    content, unread = read_content(path, trust_pickle=trust_pickle)
    state, taken = state_dict(path, content, ema=ema, allow_nan=allow_nan)
    hints = Hints(content, backbone=backbone, shift=shift, shift_div=shift_div, non_local=non_local)
    network = next((found for _, recognise in CODE_BASES if (found := recognise(state, hints))), None)
    if network is None:
        raise ConversionError(_unknown_kind(path, state))
    conversion = assemble(
        path,
        network,
        class_names=class_names,
        frame_counts=frame_counts,
        sampling=sampling,
        preprocessing=preprocessing,
        license=license,
    )
    conversion.notes += taken + unread
    return conversion


def _renew(
    path: Path,
    class_names: Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
    license: str,
) -> Conversion:
    checkpoint = load_checkpoint(path)
    if class_names is not None:
        check_class_names(class_names, checkpoint.model.config["num_classes"])
        checkpoint.class_names = list(class_names)
    checkpoint.preprocessing = replace(checkpoint.preprocessing, **(preprocessing or {}))
    checkpoint.license = license or checkpoint.license
    config = checkpoint.model.config
    note = (
        f"found: a checkpoint of frameflex already, {config['backbone']} with {config['num_classes']} classes; "
        "written again in the present format"
    )
    return Conversion(checkpoint, "frameflex", [note])


def _unknown_kind(path: Path, state: Mapping[str, Tensor]) -> str:
    some = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in list(state.items())[:4])
    return (
        f"{path} holds {len(state)} tensors of no kind that is known ({some}, …). Known are: "
        f"{', '.join(name for name, _ in CODE_BASES)}, frameflex. For a backbone whose names several architectures "
        "share, give --backbone"
    )
