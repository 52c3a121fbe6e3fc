"""Checkpoints of other code bases into ours: recognised by their tensors' names, never by the file's name."""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.models import TSM, create_model
from frameflex.models.backbones import architectures_by_family

logger = logging.getLogger(__name__)


class ConversionError(ValueError):
    """A file that can't be converted; the message says what was found and what to do."""


@dataclass
class Conversion:
    """What became of a file.

    Attributes:
        checkpoint: ready to be saved.
        source: which code base and network the tensors' names and shapes are of.
        notes: one line each: what was found, what was matched, and what the file doesn't say and was assumed.
    """

    checkpoint: Checkpoint
    source: str
    notes: list[str]


@dataclass
class _Network:
    """A network of ours, and the tensors of a file under our names."""

    source: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    origins: dict[str, str]
    unknown: list[str]
    notes: list[str]
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(geometry="tsm"))
    frame_counts: tuple[int, ...] = ()
    sampling: dict[str, Any] = field(default_factory=lambda: {"sampling": "segments"})
    class_names: list[str] | None = None


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
) -> Conversion:
    """Turn a checkpoint of another code base into one of ours, with every tensor accounted for.

    Known are: mit-han-lab's temporal-shift-module (ResNet, MobileNetV2, non-local blocks, temporal pooling, both
    shift places, any number of segments), mmaction2's TSM and TSN (0.x and 1.x; ResNet, MobileNetV2), FFN-pytorch's
    2D networks (each of its counts becomes one of ours), image weights of torchvision (ResNets, MobileNetV2 and V3,
    EfficientNet and its V2, RegNet, ConvNeXt) and of timm (every architecture with a row in the table of backbones),
    and frameflex's own.

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

    Raises:
        ConversionError: if the file is of no known kind, or a tensor is left over, missing or of another shape (all
            are listed), or it holds objects that only code can read.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    if _is_own(path):
        return _renew(path, class_names, preprocessing, license)
    content = read_file(path, trust_pickle=trust_pickle)
    state = _state_dict(path, content)
    hints = _Hints(content, backbone=backbone, shift=shift, shift_div=shift_div, non_local=non_local)
    for recognise in (_ffn, _mit, _mmaction2, _torchvision_mobilenet, _torchvision, _image_weights):
        network = recognise(state, hints)
        if network is not None:
            break
    else:
        raise ConversionError(_unknown_kind(path, state))
    return _assemble(
        path,
        network,
        class_names=class_names,
        frame_counts=frame_counts,
        sampling=sampling,
        preprocessing=preprocessing,
        license=license,
    )


# ---------------------------------------------------------------------------------------------- reading


def read_file(path: Path, *, trust_pickle: bool = False) -> dict[str, Any]:
    """What a file of weights holds. Runs no code from it unless ``trust_pickle`` is set.

    Raises:
        ConversionError: if it is no file of weights, is damaged, or needs code to be read.
    """
    with open(path, "rb") as file:
        start = file.read(16)
    if len(start) == 16 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ConversionError(f"{path} is a damaged safetensors file ({error}). Get it again") from error
    if path.stat().st_size < 64:
        raise ConversionError(
            f"{path} has {path.stat().st_size} bytes; expected a file of weights. Get it again"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # of no interest where it works
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ConversionError(_needs_code(path, error)) from error
    except (EOFError, RuntimeError, zipfile.BadZipFile, OSError, KeyError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"{path} is no file of torch.save or safetensors, or is damaged ({reason}). Get it again"
        ) from error
    return content if isinstance(content, dict) else {"": content}


def _needs_code(path: Path, error: Exception) -> str:
    text = str(error)
    asked = re.findall(r"(?:GLOBAL|global) ([\w.]+)", text)
    if zipfile.is_zipfile(path):
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path) or asked
    asked = sorted({name for name in asked if "." in name})
    if not asked:
        return f"{path} is no file of torch.save or safetensors, or is damaged. Get it again"
    return (
        f"{path} can't be read as plain weights: it asks for {', '.join(asked)}, and reading such objects runs "
        "code that the file chooses. Ask its author for a file with the state_dict alone. If you trust that author "
        "as you trust a program that you start, --trust-pickle reads it; a malicious file can then do anything that "
        "you can do on this machine"
    )


def _is_own(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return "frameflex" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _renew(
    path: Path,
    class_names: Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
    license: str,
) -> Conversion:
    checkpoint = load_checkpoint(path)
    if class_names is not None:
        _check_class_names(class_names, checkpoint.model.config["num_classes"])
        checkpoint.class_names = list(class_names)
    checkpoint.preprocessing = replace(checkpoint.preprocessing, **(preprocessing or {}))
    checkpoint.license = license or checkpoint.license
    config = checkpoint.model.config
    note = (
        f"found: a checkpoint of frameflex already, {config['backbone']} with {config['num_classes']} classes; "
        "written again in the present format"
    )
    return Conversion(checkpoint, "frameflex", [note])


_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")


def _state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights inside whatever they were saved with, as float32, without prefixes that wrappers leave."""
    inner: Any = content
    for _ in range(3):
        name = next((name for name in _WRAPPERS if isinstance(inner.get(name), Mapping)), None)
        if name is None:
            break
        inner = inner[name]
    state = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if not state or len(state) < len(inner) / 2:
        held = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(inner.items())[:8])
        raise ConversionError(
            f"{path} holds no weights under a name that is known; it holds {held or 'nothing'}"
        )
    for prefix in ("_orig_mod.", "module.", "_orig_mod.", "model."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


class _Hints:
    """What the caller said, and what a training code wrote beside the weights."""

    def __init__(self, content: Mapping[str, Any], **said: Any) -> None:
        self.said = said
        meta = content.get("meta")
        meta = meta if isinstance(meta, Mapping) else {}
        config = meta.get("config") or meta.get("cfg")
        self.config = config if isinstance(config, str) else ""
        dataset = meta.get("dataset_meta")
        classes = meta.get("CLASSES") or (dataset.get("classes") if isinstance(dataset, Mapping) else None)
        listed = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
        self.class_names: list[str] | None = list(classes) if listed else None  # type: ignore[arg-type]

    def setting(self, pattern: str) -> str | None:
        """The first group of ``pattern`` in mmaction2's configuration."""
        found = re.search(pattern, self.config, re.DOTALL)
        return found[1] if found else None

    def numbers(self, name: str) -> list[float] | None:
        found = self.setting(rf"\b{name}\s*=\s*[\[(]([^\])]*)[\])]")
        try:
            values = [float(value) for value in found.split(",") if value.strip()] if found else []
        except ValueError:
            return None
        return values if len(values) == 3 else None


# ------------------------------------------------------------------------------------------ ResNet sources

_CANONICAL_RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
_BLOCK = re.compile(r"layer(\d)\.(net\.)?(\d+)\.(.+)")
_MIT_NON_LOCAL = {"g": "value", "theta": "query", "phi": "key", "W.0": "out", "W.1": "norm"}
_MM_NON_LOCAL = {"g": "value", "theta": "query", "phi": "key", "conv_out.conv": "out", "conv_out.bn": "norm"}


@dataclass
class _ResNetParts:
    """What the names of a ResNet's tensors tell about it."""

    plain: dict[str, str] = field(
        default_factory=dict
    )  # source name -> name in a plain ResNet, or "nl:" + ours
    attending: set[tuple[int, int]] = field(default_factory=set)
    shifted: set[tuple[int, int]] = field(default_factory=set)
    shifted_blocks: set[tuple[int, int]] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    pooled: bool = False
    embeds: bool = False
    unknown: list[str] = field(default_factory=list)

    def add(self, key: str, name: str, inside: Callable[[str], str | None], non_local: str) -> None:
        """Sort in the tensor ``key`` whose name below the backbone is ``name``."""
        found = _BLOCK.fullmatch(name)
        if not found:
            plain = inside(name)
            if plain is None:
                self.unknown.append(key)
            else:
                self.plain[key] = plain
            return
        stage, index, rest = int(found[1]), int(found[3]), found[4]
        place = (stage, index)
        self.blocks.add(place)
        self.pooled |= found[2] is not None
        if rest.startswith(f"{non_local}."):
            self.attending.add(place)
            ours = _non_local_name(
                rest.removeprefix(f"{non_local}."), _MIT_NON_LOCAL if non_local == "nl" else _MM_NON_LOCAL
            )
            if ours is None:
                self.unknown.append(key)
            else:
                self.embeds |= ours.startswith("query.")
                self.plain[key] = f"layer{stage}.{index}.nl:{ours}"
            return
        if rest.startswith("block."):
            self.attending.add(place)
            rest = rest.removeprefix("block.")
        if rest.startswith("net."):
            self.shifted_blocks.add(place)
            rest = rest.removeprefix("net.")
        if ".net." in f".{rest}" and rest.startswith("conv1."):
            self.shifted.add(place)
            rest = rest.replace("net.", "", 1)
        plain = inside(rest)
        if plain is None:
            self.unknown.append(key)
        else:
            self.plain[key] = f"layer{stage}.{index}.{plain}"

    def options(self, architecture: str, *, shift_div: int, mode: str | None) -> dict[str, Any]:
        """Arguments of `create_model` for a network with these parts."""
        options: dict[str, Any] = {"backbone": architecture, "shift_div": shift_div}
        if self.pooled:
            options["temporal_pool"] = True
        if self.attending:
            options["non_local"] = mode or ("embedded_gaussian" if self.embeds else "gaussian")
        moved = self.shifted_blocks or self.shifted
        if not moved:
            return options | {"shift": "none"}
        if self.shifted_blocks:
            options["shift_place"] = "block"
        every = 2 if any(index == 1 for _, index in self.blocks - moved) else 1
        published = 2 if sum(stage == 3 for stage, _ in self.blocks) >= 23 else 1
        return options if every == published else options | {"shift_every": every}

    def ours(self, plain: str) -> str:
        """Our name of a tensor by its name in a plain ResNet."""
        found = _BLOCK.fullmatch(plain)
        if not found:
            return f"backbone.{plain}"
        place, rest = (int(found[1]), int(found[3])), found[4]
        prefix = f"backbone.layer{place[0]}.{place[1]}."
        if self.pooled and place == (2, 0):
            prefix += "net."
        if rest.startswith("nl:"):
            return prefix + rest.removeprefix("nl:")
        if place in self.attending:
            prefix += "block."
        if place in self.shifted_blocks:
            prefix += "net."
        elif place in self.shifted and rest.startswith("conv1."):
            rest = rest.replace("conv1.", "conv1.net.", 1)
        return prefix + rest


def _non_local_name(name: str, table: Mapping[str, str]) -> str | None:
    module, _, tensor = name.rpartition(".")
    if module in table:
        return f"{table[module]}.{tensor}"
    # The pooled embeddings are a Sequential (".0"), and mmaction2's convolutions sit inside a ConvModule (".conv").
    module = module.removesuffix(".conv").removesuffix(".0")
    return f"{table[module]}.{tensor}" if module in table and module in ("g", "theta", "phi") else None


def _resnet_network(
    parts: _ResNetParts,
    state: Mapping[str, Tensor],
    head: Mapping[str, str],
    hints: _Hints,
    *,
    source: str,
    mode: str | None = None,
    shift_div: int = 8,
) -> _Network:
    named = {plain: state[key] for key, plain in parts.plain.items() if "nl:" not in plain}
    architecture = hints.said["backbone"] or _resnet_architecture(named)
    if architecture is None:
        depth = [len({index for stage, index in parts.blocks if stage == i}) for i in (1, 2, 3, 4)]
        raise ConversionError(
            f"found {source}, but its ResNet with {depth} blocks has shapes of none of "
            f"{', '.join(_CANONICAL_RESNETS)}. Name its architecture of timm with --backbone"
        )
    options = parts.options(architecture, shift_div=shift_div, mode=mode)
    origins = {key: parts.ours(plain) for key, plain in parts.plain.items()} | dict(head)
    tensors = {
        ours: state[key].flatten(2)[..., None]
        if ours.split(".")[-2:][0] in ("value", "query", "key", "out") and state[key].ndim == 5
        else state[key]
        for key, ours in origins.items()
    }
    return _Network(source, options, tensors, {v: k for k, v in origins.items()}, parts.unknown, [])


def _resnet_architecture(named: Mapping[str, Tensor]) -> str | None:
    """The published ResNet that has the same blocks and filters."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in named.items()
        if name.endswith(".weight") and tensor.ndim == 4
    }
    for architecture in _CANONICAL_RESNETS:
        with torch.device("meta"):
            backbone = TSM(architecture, num_classes=1, shift="none").backbone
        own = {
            name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items() if tensor.ndim == 4
        }
        if own == shapes:
            return architecture
    return None


def _plain_name(name: str) -> str | None:
    """torchvision's names are timm's."""
    return name


def _head(state: Iterable[str], weight: str, bias: str) -> dict[str, str]:
    return {key: ours for key, ours in ((weight, "head.weight"), (bias, "head.bias")) if key in state}


# ------------------------------------------------------------------------------------------- mit-han-lab


def _mit(state: Mapping[str, Tensor], hints: _Hints) -> _Network | None:
    """mit-han-lab's temporal-shift-module: ``base_model.`` and ``new_fc`` (or ``base_model.fc`` without dropout)."""
    if not any(key.startswith("base_model.") for key in state):
        return None
    names = {key: key.removeprefix("base_model.") for key in state if key.startswith("base_model.")}
    kind = "mit-han-lab temporal-shift-module"
    head = _head(state, "new_fc.weight", "new_fc.bias")
    for last in ("fc", "classifier"):
        head |= _head(state, f"base_model.{last}.weight", f"base_model.{last}.bias")
    stray = [key for key in state if key not in names and key not in head]
    names = {key: name for key, name in names.items() if key not in head}
    if any(name.startswith("features.") for name in names.values()):
        network = _mobilenet_network(state, names, head, hints, source=f"{kind}, MobileNetV2")
    elif "conv1.weight" in names.values():
        colours = state["base_model.conv1.weight"].shape[1]
        if colours != 3:
            raise ConversionError(
                f"found {kind}, but its first convolution takes {colours} channels: a network for optical flow or "
                "differences of frames; frameflex takes RGB"
            )
        parts = _ResNetParts()
        for key, name in names.items():
            parts.add(key, name, _plain_name, "nl")
        network = _resnet_network(
            parts, state, head, hints, source=kind, shift_div=hints.said["shift_div"] or 8
        )
        network.source = f"{kind}, {network.options['backbone']}"
    elif "conv1_7x7_s2.weight" in names.values():
        raise ConversionError(
            f"found {kind} with BNInception, which timm doesn't have; expected ResNet or MobileNetV2"
        )
    else:
        return None
    network.unknown += stray
    if network.options.get("shift") == "none":
        _resolve_unshifted(network, hints)
    return network


def _resolve_unshifted(network: _Network, hints: _Hints) -> None:
    shift = hints.said["shift"]
    if shift is None:
        raise ConversionError(
            f"found names of {network.source} without the mark of a shift. TSN (no shift) of mit-han-lab and a plain "
            "TSM of FFN-pytorch (a shift in every block) both save these; say which: --shift none or "
            "--shift bidirectional"
        )
    if shift != "none":
        deep = network.options["backbone"] in (
            "resnet101",
            "resnet152",
            "resnext101_32x8d",
            "wide_resnet101_2",
        )
        network.options |= {"shift": shift, **({"shift_every": 1} if deep else {})}
        network.tensors = {_with_shift(name): tensor for name, tensor in network.tensors.items()}
        network.origins = {_with_shift(name): key for name, key in network.origins.items()}
        network.source = f"FFN-pytorch plain TSM, {network.options['backbone']}"


def _with_shift(name: str) -> str:
    return re.sub(r"(backbone\.layer\d\.\d+\.conv1\.)(?!net\.|scale\.)", r"\1net.", name)


# ------------------------------------------------------------------------------------------ FFN-pytorch

_FFN_NORM = re.compile(r"(.*?)(bn\d|downsample_bn)_(\d+)\.(\w+)")
_FFN_SCALE = re.compile(r"(.*?)adaconv_(\d+)\.weight")


def _ffn(state: Mapping[str, Tensor], hints: _Hints) -> _Network | None:
    """FFN-pytorch's 2D networks: a norm ``bn1_16`` and a scale ``adaconv_16`` for each count."""
    if not any(_FFN_NORM.fullmatch(key) for key in state):
        return None
    counts: set[int] = set()
    plain: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        name = key.removeprefix("base_model.")
        if scale := _FFN_SCALE.fullmatch(name):
            counts.add(int(scale[2]))
            ours = f"backbone.{scale[1]}conv1.scale.scales.{scale[2]}"
            tensor = tensor.flatten()
        elif norm := _FFN_NORM.fullmatch(name):
            counts.add(int(norm[3]))
            module = "downsample.1" if norm[2] == "downsample_bn" else norm[2]
            ours = f"backbone.{norm[1]}{module}.norms.{norm[3]}.{norm[4]}"
        elif name in ("new_fc.weight", "new_fc.bias", "fc.weight", "fc.bias"):
            ours = f"head.{name.split('.')[1]}"
        elif re.fullmatch(r"(layer\d\.\d+\.(conv\d|downsample_conv)|conv1)\.weight", name):
            ours = f"backbone.{name.replace('downsample_conv', 'downsample.0')}"
            ours = _with_shift(ours)
        else:
            unknown.append(key)
            continue
        plain[ours], origins[ours] = tensor, key
    shapes = {
        name.removeprefix("backbone.").replace(".net.", "."): tensor
        for name, tensor in plain.items()
        if name.startswith("backbone.") and tensor.ndim == 4
    }
    architecture = hints.said["backbone"] or _resnet_architecture(shapes)
    if architecture is None:
        raise ConversionError(
            "found FFN-pytorch, but its convolutions are of no published ResNet: TEA and other variants are not TSM. "
            "Expected its 2D network with the backbone resnet_TSM_FFN"
        )
    options: dict[str, Any] = {
        "backbone": architecture,
        "shift_div": hints.said["shift_div"] or 8,
        "frame_counts": sorted(counts),
        "frame_scales": any("adaconv" in key for key in state),
    }
    if architecture in ("resnet101", "resnet152"):
        options["shift_every"] = 1  # unlike mit-han-lab's, this code shifts every block of deep networks too
    notes = [f"its parts for {', '.join(map(str, sorted(counts)))} frames become frame counts of their own"]
    return _Network(
        f"FFN-pytorch, {architecture}",
        options,
        plain,
        origins,
        unknown,
        notes,
        frame_counts=tuple(sorted(counts)),
    )


# -------------------------------------------------------------------------------------------- mmaction2


def _mmaction2(state: Mapping[str, Tensor], hints: _Hints) -> _Network | None:
    """mmaction2's recognisers: ``backbone.`` and ``cls_head.fc_cls``, the same in 0.x and 1.x."""
    if "cls_head.fc_cls.weight" not in state or not any(key.startswith("backbone.") for key in state):
        return None
    head = _head(state, "cls_head.fc_cls.weight", "cls_head.fc_cls.bias")
    names = {key: key.removeprefix("backbone.") for key in state if key.startswith("backbone.")}
    pixels = [key for key in state if key.startswith("data_preprocessor.")]
    stray = [key for key in state if key not in names and key not in head and key not in pixels]
    shift_div = hints.said["shift_div"] or int(hints.setting(r"\bshift_div\s*=\s*(\d+)") or 8)
    kind = "mmaction2"
    if hints.setting(r"\bstyle\s*=\s*'(caffe)'"):
        raise ConversionError(
            f"found {kind} in caffe style, whose strides sit in other convolutions; expected pytorch style"
        )
    if any(re.fullmatch(r"layer\d\.\d+\.conv\.0\..+", name) for name in names.values()):
        network = _mobilenet_network(state, names, head, hints, source=f"{kind}, MobileNetV2")
        network.options["shift_div"] = shift_div
    elif "conv1.conv.weight" in names.values() and state["backbone.conv1.conv.weight"].ndim == 4:
        parts = _ResNetParts()
        for key, name in names.items():
            parts.add(key, name, _plain_name_mm, "non_local_block")
        mode = hints.said["non_local"] or hints.setting(r"non_local_cfg\s*=\s*dict\(.*?\bmode\s*=\s*'(\w+)'")
        if parts.embeds and mode == "gaussian":
            raise ConversionError(
                "its non-local blocks have embeddings, so they aren't gaussian; leave non_local out"
            )
        network = _resnet_network(parts, state, head, hints, source=kind, mode=mode, shift_div=shift_div)
        network.source = f"{kind}, {network.options['backbone']}"
        if parts.attending:
            _check_mm_non_local(network, state, hints, told=mode is not None)
    else:
        return None
    network.unknown += stray
    network.class_names = hints.class_names
    _apply_mm_config(network, state, hints)
    return network


def _plain_name_mm(name: str) -> str | None:
    """mmaction2's ConvModules in torchvision's names: ``conv1.bn`` is ``bn1``."""
    if found := re.fullmatch(r"conv(\d)\.(conv|bn)\.(\w+)", name):
        return f"{found[2]}{found[1]}.{found[3]}"
    if found := re.fullmatch(r"downsample\.(conv|bn)\.(\w+)", name):
        return f"downsample.{0 if found[1] == 'conv' else 1}.{found[2]}"
    return None


def _check_mm_non_local(network: _Network, state: Mapping[str, Tensor], hints: _Hints, *, told: bool) -> None:
    mode = network.options["non_local"]
    if not told and mode == "embedded_gaussian":
        network.notes.append(
            "how its non-local blocks compare isn't in its weights: embedded_gaussian is assumed; if it was trained "
            "with dot_product, give --non-local dot_product"
        )
    if not any(".non_local_block.g.0." in key for key in state):
        raise ConversionError(
            "its non-local blocks don't pool keys and values (sub_sample=False); expected those published"
        )
    scaled = hints.setting(r"non_local_cfg\s*=\s*dict\(.*?\buse_scale\s*=\s*(True|False)") == "True"
    if scaled and mode == "embedded_gaussian":
        # softmax(θ·φ / sqrt(C')) without a scale of our own: into θ.
        for name, tensor in network.tensors.items():
            if ".query." in name:
                network.tensors[name] = tensor / math.sqrt(state[network.origins[name]].shape[0])
        network.notes.append("the scale of its non-local blocks is folded into their weights")


def _apply_mm_config(network: _Network, state: Mapping[str, Tensor], hints: _Hints) -> None:
    """Pixels and frames as mmaction2's configuration has them, where the file carries it."""
    mean: Sequence[float] = hints.numbers("mean") or [123.675, 116.28, 103.53]
    std: Sequence[float] = hints.numbers("std") or [58.395, 57.12, 57.375]
    if "data_preprocessor.mean" in state and "data_preprocessor.std" in state:
        mean = state["data_preprocessor.mean"].flatten().tolist()
        std = state["data_preprocessor.std"].flatten().tolist()
    bgr = hints.setting(r"\bto_bgr\s*=\s*(True|False)") == "True"
    if bgr:  # its numbers are in the order that the network sees
        mean, std = mean[::-1], std[::-1]
    network.preprocessing = Preprocessing(
        mean=tuple(round(value / 255, 9) for value in mean),
        std=tuple(round(value / 255, 9) for value in std),
        channel_order="bgr" if bgr else "rgb",
        geometry="mmaction2",
    )
    segments = hints.setting(r"\bnum_segments\s*=\s*(\d+)") or hints.setting(r"\bnum_clips\s*=\s*(\d+)")
    if segments:
        network.frame_counts = (int(segments),)
    if hints.setting(r"type\s*=\s*'(DenseSampleFrames)'"):
        network.sampling = {
            "sampling": "dense",
            "window": int(hints.setting(r"\bsample_range\s*=\s*(\d+)") or 64),
        }


# -------------------------------------------------------------------------------------------- MobileNetV2

_WIDTHS = ("100", "050", "035", "075", "140", "110d", "120d")
_REPEATS = (1, 2, 3, 4, 3, 3, 1)


def _torchvision_mobilenet(state: Mapping[str, Tensor], hints: _Hints) -> _Network | None:
    """torchvision's MobileNetV2, and the image weights that mit-han-lab starts from."""
    if (
        "features.0.0.weight" not in state
        or not {"features.1.conv.0.weight", "features.1.conv.0.0.weight"} & state.keys()
    ):
        return None
    if "classifier.1.weight" in state:
        head, source = (
            _head(state, "classifier.1.weight", "classifier.1.bias"),
            "torchvision image weights, MobileNetV2",
        )
    else:
        head, source = _head(state, "classifier.weight", "classifier.bias"), "image weights, MobileNetV2"
    names = {key: key for key in state if key not in head}
    network = _mobilenet_network(state, names, head, hints, source=source)
    _as_image_network(network, hints)
    return network


def _mobilenet_network(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    head: Mapping[str, str],
    hints: _Hints,
    *,
    source: str,
) -> _Network:
    blocks: dict[tuple[int, int], dict[str, tuple[str, bool]]] = {}
    origins: dict[str, str] = {}
    unknown: list[str] = []
    for key, name in names.items():
        placed = _mobilenet_place(name)
        if placed is None:
            unknown.append(key)
        elif isinstance(placed, str):
            origins[placed] = key
        else:
            place, inside, shifted = placed
            blocks.setdefault(place, {})[key] = (inside, shifted)
    shifted_any = any(shifted for tensors in blocks.values() for _, shifted in tensors.values())
    counting = _mobilenet_counting(inside for tensors in blocks.values() for inside, _ in tensors.values())
    for (stage, index), tensors in blocks.items():
        for key, (inside, shifted) in tensors.items():
            ours = _mobilenet_tensor(inside, expands=stage > 0, counting=counting)
            if ours is None:
                unknown.append(key)
            else:
                if shifted:
                    ours = ours.replace("conv_pw.", "conv_pw.net.")
                origins[f"backbone.blocks.{stage}.{index}.{ours}"] = key
    tensors_by_name = {ours: state[key] for ours, key in origins.items()}
    origins |= {ours: key for key, ours in head.items()}
    tensors_by_name |= {ours: state[key] for key, ours in head.items()}
    stem = tensors_by_name.get("backbone.blocks.1.0.conv_pwl.weight")
    architecture = hints.said["backbone"]
    for width in _WIDTHS:
        if architecture or stem is None:
            break
        with torch.device("meta"):
            backbone = TSM(f"mobilenetv2_{width}", num_classes=1, shift="none").backbone.state_dict()
        own = {f"backbone.{name}": tensor.shape for name, tensor in backbone.items() if tensor.ndim == 4}
        given = {name.replace(".net.", "."): t.shape for name, t in tensors_by_name.items() if t.ndim == 4}
        if own == given:
            architecture = f"mobilenetv2_{width}"
    if architecture is None:
        raise ConversionError(
            f"found {source}, but no MobileNetV2 of timm has its shapes (widths {', '.join(_WIDTHS)}). Name one with "
            "--backbone"
        )
    options: dict[str, Any] = {"backbone": architecture, "shift_div": hints.said["shift_div"] or 8}
    if not shifted_any:
        options["shift"] = "none"
    return _Network(source, options, tensors_by_name, origins, unknown, [])


def _mobilenet_place(name: str) -> str | tuple[tuple[int, int], str, bool] | None:
    """Where a tensor of MobileNetV2 belongs: our name of it, or its block, its name inside, and if it is shifted."""
    if found := re.fullmatch(r"features\.(\d+)\.(\d)\.(\w+)", name):  # stem and last convolution
        which = {"0": ("conv_stem", "bn1"), str(sum(_REPEATS) + 1): ("conv_head", "bn2")}.get(found[1])
        return f"backbone.{which[int(found[2])]}.{found[3]}" if which and int(found[2]) < 2 else None
    if found := re.fullmatch(r"conv([12])\.(conv|bn)\.(\w+)", name):  # the same in mmaction2
        module = f"bn{found[1]}" if found[2] == "bn" else ("conv_stem" if found[1] == "1" else "conv_head")
        return f"backbone.{module}.{found[3]}"
    if found := re.fullmatch(r"features\.(\d+)\.conv\.(.+)", name):
        index, stage = int(found[1]) - 1, 0
        while stage < len(_REPEATS) and index >= _REPEATS[stage]:
            index, stage = index - _REPEATS[stage], stage + 1
        place = (stage, index)
    elif found := re.fullmatch(r"layer(\d)\.(\d+)\.conv\.(.+)", name):
        place = (int(found[1]) - 1, int(found[2]))
    else:
        return None
    inside = found[found.lastindex or 1]
    shifted = re.match(r"0\.net\.", inside) is not None
    return place, inside.replace("0.net.", "0.", 1) if shifted else inside, shifted


def _mobilenet_tensor(inside: str, *, expands: bool, counting: str) -> str | None:
    """The name inside one of timm's blocks."""
    layers = ["conv_dw", "bn1", "conv_pw", "bn2"]
    if expands:
        layers = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
    pairs = len(layers) // 2
    counts = {
        "flat": [
            str(3 * i + j) for i in range(pairs) for j in (0, 1)
        ],  # 0 1 3 4 6 7: between them activations
        # Pairs are modules of their own, but the last convolution and its norm stand alone.
        "torchvision": [f"{i}.{j}" for i in range(pairs - 1) for j in (0, 1)] + [str(pairs - 1), str(pairs)],
        "mmaction2": [f"{i}.{kind}" for i in range(pairs) for kind in ("conv", "bn")],
    }[counting]
    module, _, tensor = inside.rpartition(".")
    return f"{layers[counts.index(module)]}.{tensor}" if module in counts else None


def _mobilenet_counting(inside: Iterable[str]) -> str:
    """How a code base counts the layers of a block: flat, or as torchvision or mmaction2 do."""
    modules = [name.rpartition(".")[0] for name in inside]
    if any(module.endswith((".conv", ".bn")) for module in modules):
        return "mmaction2"
    return "torchvision" if any("." in module for module in modules) else "flat"


# ---------------------------------------------------------------------------- torchvision's other families

# torchvision's networks, as timm has them; it gives the norms of some another epsilon than timm does.
_TORCHVISION: dict[str, tuple[tuple[str, ...], Mapping[str, float]]] = {
    "EfficientNet": (tuple(f"efficientnet_b{i}" for i in range(5)), {}),
    "EfficientNet, large": (tuple(f"efficientnet_b{i}" for i in (5, 6, 7)), {"bn_eps": 1e-3}),
    "EfficientNetV2": (("efficientnetv2_s", "efficientnetv2_m", "efficientnetv2_l"), {"bn_eps": 1e-3}),
    "MobileNetV3": (("mobilenetv3_large_100", "mobilenetv3_small_100"), {"bn_eps": 1e-3}),
    "ConvNeXt": (("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"), {}),
    "RegNet": (
        (
            *(
                "regnety_004",
                "regnety_008",
                "regnety_016",
                "regnety_032",
                "regnety_080_tv",
                "regnety_160",
                "regnety_320",
            ),
            *(
                "regnetx_004_tv",
                "regnetx_008",
                "regnetx_016",
                "regnetx_032",
                "regnetx_080",
                "regnetx_160",
                "regnetx_320",
            ),
        ),
        {},
    ),
}


def _torchvision(state: Mapping[str, Tensor], hints: _Hints) -> _Network | None:
    """torchvision's other CNNs: the layers of timm's, in the same order under other names."""
    if "features.0.0.weight" not in state and "trunk_output.block1.block1-0.f.a.0.weight" not in state:
        return None
    keys = sorted(state, key=_torchvision_order(list(state)))
    known = _fingerprints()
    number = sum(not key.endswith("num_batches_tracked") for key in keys) - 2  # the classifier is not counted
    for family, (architectures, options) in _TORCHVISION.items():
        for architecture in architectures if hints.said["backbone"] is None else (hints.said["backbone"],):
            if not _close(known.get(architecture, (number,))[:1], (number,)):
                continue
            with torch.device("meta"):
                backbone = TSM(architecture, num_classes=1, shift="none").backbone
            own = {f"backbone.{name}": tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
            shapes = [*own.values(), None, None]  # and the classifier
            if len(keys) != len(shapes):
                continue
            # 1 x 1 convolutions may be linear layers there, and scales may have axes of size 1.
            if any(
                _essential(state[key].shape) != _essential(s)
                for key, s in zip(keys, shapes, strict=True)
                if s
            ):
                continue
            names = [*own, "head.weight", "head.bias"]
            origins = dict(zip(names, keys, strict=True))
            tensors = {
                name: state[key].reshape(own.get(name, state[key].shape)) for name, key in origins.items()
            }
            network = _Network(
                f"torchvision image weights, {family.split(',')[0]} ({architecture} in timm)",
                {
                    "backbone": architecture,
                    "backbone_options": dict(options),
                    "shift_div": hints.said["shift_div"] or 8,
                },
                tensors,
                origins,
                [],
                [],
            )
            _as_image_network(network, hints)
            pixels = _timm_preprocessing(architecture)
            network.preprocessing = replace(pixels, mean=Preprocessing.mean, std=Preprocessing.std)
            network.notes.append(
                "torchvision keeps resizing with each set of weights; the sizes here are timm's for them"
            )
            return network
    return None


def _essential(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _torchvision_order(keys: list[str]) -> Callable[[str], tuple[int, int, int]]:
    """torchvision's own order, but for RegNet, whose blocks have the shortcut first and in timm last."""
    blocks: dict[str, int] = {}
    for i, key in enumerate(keys):
        blocks.setdefault(key.split(".f.")[0].split(".proj.")[0], i)
    place = {key: i for i, key in enumerate(keys)}
    return lambda key: (blocks[key.split(".f.")[0].split(".proj.")[0]], int(".proj." in key), place[key])


# -------------------------------------------------------------------------------------------- image weights


def _image_weights(state: Mapping[str, Tensor], hints: _Hints) -> _Network | None:
    """torchvision's ResNets, and whatever timm builds: found by building and comparing."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    fitting = _fitting([hints.said["backbone"]] if hints.said["backbone"] else _candidates(state), shapes)
    if not fitting and not hints.said["backbone"]:
        # Where timm has changed an architecture since its fingerprint was taken, look at all of the family.
        fitting = _fitting(_candidates(state, fingerprints={}), shapes)
    if not fitting:
        return None
    architecture, classifier = _choose(fitting, state)
    head = _head(state, f"{classifier}.weight", f"{classifier}.bias")
    origins = {f"backbone.{key}": key for key in state if key not in head} | {
        ours: key for key, ours in head.items()
    }
    common = "torchvision or timm" if architecture in _CANONICAL_RESNETS else "timm"
    network = _Network(
        f"{common} image weights, {architecture}",
        {"backbone": architecture, "shift": "none", "shift_div": hints.said["shift_div"] or 8},
        {ours: state[key] for ours, key in origins.items()},
        origins,
        [],
        [],
    )
    others = [name for name, _ in fitting if name != architecture]
    if others:
        network.notes.append(
            f"names and shapes fit {', '.join(others)} too; if it is one of them, give --backbone"
        )
    _as_image_network(network, hints)
    return network


# A tensor that each family has, so that only its architectures are built to compare.
_SIGNS = {
    "resnet": ("layer4.0.conv1.weight",),
    "efficientnet": ("conv_stem.weight",),
    "mobilenetv3": ("conv_stem.weight",),
    "ghostnet": ("blocks.0.0.ghost1.primary_conv.0.weight",),
    "regnet": ("s1.b1.conv1.conv.weight", "s1.b1.conv1.weight"),
    "convnext": ("stages.0.blocks.0.conv_dw.weight",),
    "mambaout": ("stages.0.blocks.0.fc1.weight",),
    "nfnet": ("stages.0.0.conv3.gain", "stages.0.0.conv3.weight"),
    "byobnet": (
        "stem.conv.weight",
        "stem.conv1.conv.weight",
        "stem.conv_kxk.conv.weight",
        "stem.conv_kxk.0.conv.weight",
    ),
}


def _candidates(
    state: Mapping[str, Tensor], fingerprints: Mapping[str, Sequence[int]] | None = None
) -> list[str]:
    """Architectures that the tensors may be of: of a family with those names, and of that number and size."""
    fingerprints = _fingerprints() if fingerprints is None else fingerprints
    given = fingerprint({key: tensor.shape for key, tensor in state.items()})
    names = [
        name
        for family, members in architectures_by_family().items()
        if any(sign in state for sign in _SIGNS.get(family.timm_module, ()))
        for name in members
        if not fingerprints or _close(fingerprints.get(name), given)
    ]
    published = [name for name in _CANONICAL_RESNETS if name in names]
    return published + [name for name in names if name not in published]


def fingerprint(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Number and total size of a network's tensors, its classifier's and counters left out as well as names tell."""
    counted = {
        name: math.prod(shape)
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
        and not name.startswith(("fc.", "classifier.", "head.fc."))
    }
    return len(counted), sum(counted.values())


def _fingerprints() -> dict[str, list[int]]:
    """Of every architecture that can be built: made by benchmarks/fingerprints.py, so that few have to be built."""
    return json.loads(Path(__file__).with_name("fingerprints.json").read_text(encoding="utf-8"))


def _close(known: Sequence[int] | None, given: tuple[int, ...]) -> bool:
    return known is None or tuple(known) == given


def _fitting(candidates: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Those candidates whose names and shapes are the same, each with the name of its classifier."""
    found = ((name, _fits(name, shapes)) for name in candidates)
    return [(name, classifier) for name, classifier in found if classifier is not None]


def _fits(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of the classifier, if names and shapes but for a linear one's are those of the architecture."""
    with torch.device("meta"):
        backbone = TSM(architecture, num_classes=1, shift="none").backbone
    classifier = backbone.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    if not isinstance(classifier, str):
        return None
    own = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    given = {name: shape for name, shape in shapes.items() if not name.startswith(f"{classifier}.")}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    linear = len(shapes.get(f"{classifier}.weight", (1, 1))) == 2
    same = all(given.get(name) == shape for name, shape in own.items() if name not in counters)
    return classifier if linear and same and set(given) <= set(own) else None


def _choose(fitting: Sequence[tuple[str, str]], state: Mapping[str, Tensor]) -> tuple[str, str]:
    """One of the architectures that fit: torchvision's own, or any if all of them compute the same."""
    if fitting[0][0] in _CANONICAL_RESNETS or len(fitting) == 1:
        return fitting[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 65, 65, generator=generator)  # odd: padding on one side shows
    outputs = []
    for architecture, classifier in fitting:
        backbone = TSM(architecture, num_classes=1, shift="none").backbone.eval()
        backbone.load_state_dict(
            {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}, strict=False
        )
        with torch.no_grad():
            outputs.append(backbone(images))
    if all(torch.allclose(outputs[0], output, rtol=1e-4, atol=1e-5) for output in outputs[1:]):
        return fitting[0]
    raise ConversionError(
        f"its names and shapes fit {', '.join(name for name, _ in fitting)}, which compute different things "
        "(padding, activation or the epsilon of norms). Say which it is with --backbone"
    )


def _as_image_network(network: _Network, hints: _Hints) -> None:
    """Frames one by one, as the weights were trained; or with a shift, as a start for training."""
    shift = hints.said["shift"] or "none"
    network.options["shift"] = shift
    network.frame_counts = (1,)
    if shift == "none":
        network.notes.append(
            "an image network: each frame is classified on its own, and the answers are averaged"
        )
    else:
        with torch.device("meta"):
            names = TSM(num_classes=1, **network.options).state_dict()
        shifted = {name.replace(".net.", "."): name for name in names if ".net." in name}
        network.tensors = {shifted.get(name, name): tensor for name, tensor in network.tensors.items()}
        network.origins = {shifted.get(name, name): key for name, key in network.origins.items()}
        network.notes.append(
            "image weights with a shift that they were not trained with: a start for training only"
        )
    if "torchvision" in network.source:
        network.preprocessing = Preprocessing()
        return
    network.preprocessing = _timm_preprocessing(network.options["backbone"])


def _timm_preprocessing(architecture: str) -> Preprocessing:
    """What timm's first set of weights of an architecture expects."""
    config: Any = timm.get_pretrained_cfg(architecture)
    size = config.input_size[-1]
    return Preprocessing(
        short_side=max(size, math.floor(size / config.crop_pct)),
        crop_size=size,
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
    )


# ----------------------------------------------------------------------------------------------- assembly


def _assemble(
    path: Path,
    network: _Network,
    *,
    class_names: Sequence[str] | None,
    frame_counts: Sequence[int] | None,
    sampling: Mapping[str, Any] | None,
    preprocessing: Mapping[str, Any] | None,
    license: str,
) -> Conversion:
    weight = network.tensors.get("head.weight")
    if weight is None:
        raise ConversionError(
            f"found {network.source}, but no classifier; weights of a backbone alone go into a recipe as "
            "model.pretrained"
        )
    num_classes = int(weight.shape[0])
    model = create_model(**network.options, num_classes=num_classes)
    own = model.state_dict()
    # torch before 0.4.1 kept no counters; evaluation doesn't read them.
    counters = {name for name in own if name.endswith("num_batches_tracked")} - network.tensors.keys()
    tensors = network.tensors | {name: torch.zeros_like(own[name]) for name in counters}
    missing = sorted(own.keys() - tensors.keys())
    left_over = sorted([*network.unknown, *(network.origins[name] for name in tensors.keys() - own.keys())])
    misshapen = [
        f"{network.origins[name]} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if missing or left_over or misshapen:
        problems = [
            f"{len(keys)} {what}: {', '.join(keys)}"
            for what, keys in (
                ("left over", left_over),
                ("missing", missing),
                ("of another shape", misshapen),
            )
            if keys
        ]
        raise ConversionError(
            f"{path}: found {network.source}, but not every tensor fits; {'; '.join(problems)}"
        )
    model.load_state_dict(tensors)
    notes = [
        f"found: {network.source}, {num_classes} classes, {_describe(model)}",
        f"matched: all {len(network.tensors)} tensors"
        + (
            f"; {len(counters)} counters of batches, which only training reads, start at 0"
            if counters
            else ""
        ),
        *network.notes,
    ]
    counts = tuple(sorted(set(frame_counts or network.frame_counts or (8,))))
    if model.frame_counts:
        if frame_counts is not None and counts != model.frame_counts:
            raise ConversionError(f"the file has parts for {model.frame_counts} frames; leave --frames out")
    elif not frame_counts and not network.frame_counts:
        notes.append(
            "assumed: 8 frames; how many segments it was trained at isn't in the file, give --frames where it differs"
        )
    names = list(class_names) if class_names is not None else network.class_names
    if names is None or (class_names is None and len(names) != num_classes):
        names = [f"class {i}" for i in range(num_classes)]
        notes.append("no class names in the file: classes are numbered; give --classes labels.txt")
    _check_class_names(names, num_classes)
    checkpoint = Checkpoint(
        model=model.eval(),
        class_names=names,
        preprocessing=replace(network.preprocessing, **(preprocessing or {})),
        frame_counts=counts,
        sampling=dict(sampling or network.sampling),
        license=license,
        source=f"converted from {network.source} ({path.name})",
    )
    pixels = checkpoint.preprocessing
    notes.append(
        f"pixels: short side {pixels.short_side} ({pixels.interpolation}), crop {pixels.crop_size}, "
        f"{pixels.channel_order.upper()}, mean {_few(pixels.mean)}, std {_few(pixels.std)}; frames: "
        f"{checkpoint.sampling['sampling']}, T {', '.join(map(str, counts))}"
    )
    if not license:
        notes.append(
            "the licence of the weights isn't in the file; ask their source, and give it with --license"
        )
    return Conversion(checkpoint, network.source, notes)


def _describe(model: TSM) -> str:
    from frameflex.models import TemporalShift

    number = sum(isinstance(module, TemporalShift) for module in model.modules())
    config = model.config
    where = "whole blocks" if config["shift_place"] == "block" else "residual branches"
    parts = [f"a shift of 1/{config['shift_div']} in {number} {where}" if number else "no shift"]
    if config["temporal_pool"]:
        parts.append("temporal pooling")
    if config["non_local"] != "none":
        parts.append(f"non-local blocks ({config['non_local']})")
    return ", ".join(parts)


def _few(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _check_class_names(names: Sequence[str], num_classes: int) -> None:
    if len(names) != num_classes:
        raise ConversionError(
            f"{len(names)} class names for {num_classes} logits; expected one for each, in their order"
        )


def read_class_names(path: str | Path) -> list[str]:
    """Class names from a file: a text file with one a line, or JSON: a list, or names with their numbers.

    Raises:
        ConversionError: if numbers don't count from 0 without a gap.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"class names {path}: no such file")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConversionError(f"class names {path} are not JSON: {error}") from error
        if isinstance(values, Mapping):  # Something-Something's {"name": "0"}, or {"0": "name"}
            turned = (
                values
                if not all(str(key).isdecimal() for key in values)
                else {v: k for k, v in values.items()}
            )
            try:
                numbered = {int(number): str(name) for name, number in turned.items()}
            except (TypeError, ValueError) as error:
                raise ConversionError(
                    f"class names {path}: expected a list, or names with their numbers"
                ) from error
            if sorted(numbered) != list(range(len(values))):
                raise ConversionError(
                    f"class names {path}: expected numbers from 0 to {len(values) - 1}, each once"
                )
            return [numbered[i] for i in range(len(numbered))]
        if not isinstance(values, list):
            raise ConversionError(f"class names {path}: expected a list, or names with their numbers")
        return [str(value) for value in values]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _unknown_kind(path: Path, state: Mapping[str, Tensor]) -> str:
    some = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in list(state.items())[:4])
    return (
        f"{path} holds {len(state)} tensors of no kind that is known ({some}, …). Known are: mit-han-lab "
        "temporal-shift-module, mmaction2 TSM and TSN, FFN-pytorch, torchvision and timm image weights with their "
        "classifier, frameflex. For a backbone whose names several architectures share, give --backbone"
    )


__all__ = [
    "Conversion",
    "ConversionError",
    "convert",
    "read_class_names",
    "read_file",
]
