"""Temporal Shift Module networks: a 2D CNN of timm that classifies clips of any length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from frameflex.arguments import check_path, finite_number, shown, whole
from frameflex.models.backbones import Family, family_of, shift_sites, whole_blocks
from frameflex.models.clips import check_clip
from frameflex.models.non_local import NON_LOCALS, NonLocal, TemporalPool
from frameflex.models.precision import classified
from frameflex.models.temporal_shift import TemporalShift, at_num_frames, checked_shift_div, replace_module

SHIFTS = ("bidirectional", "causal", "none")
SHIFT_PLACES = ("residual", "block")


# A network's description, also one read from a file, must not make timm download or open anything.
_NOT_OF_THE_NETWORK = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "pretrained_strict",
}


class TSM(nn.Module):
    """Classify clips with a 2D CNN whose residual branches see their neighbours in time (TSM, arXiv 1811.08383).

    Every frame goes through the backbone; inside it a `TemporalShift` wraps the first convolution of each
    residual block. The shift thus acts on the *input* of ``conv1``, inside the residual branch ("before the
    convolution"; some published notes call the same thing "after conv1"), and the identity path never sees it.
    Predictions of the frames are averaged.

    T is read from the clip at every forward: the same weights take 1, 2, … 64 frames, in several threads at
    once too.

    Args:
        backbone: architecture of timm, for example ``"resnet50"``; see ``frameflex models``.
        num_classes: K.
        dropout: probability of dropping a pooled feature, before the classifier.
        shift_div: an eighth (8) of the channels moves in each direction.
        shift: ``"bidirectional"``; ``"causal"``, where frames see only the past, so that a video can be classified
            frame by frame while it runs (`CausalStep`); or ``"none"`` for the plain 2D network (a baseline that
            can't see order).
        shift_place: ``"residual"``, or ``"block"`` to shift the input of whole blocks, identity path included, as
            TSM's ablation does (ResNets; it costs accuracy) and mmaction2's MobileOne.
        shift_every: shift every so many blocks of a stage; None for what is published: all, and every second one
            of ResNets whose ``layer3`` has 23 or more.
        temporal_pool: halve the frames before ``layer2`` (ResNets only); predictions of ``ceil(T / 2)`` frames are
            averaged.
        non_local: ``"none"``, or attention over the whole clip behind every second block of ``layer2`` and
            ``layer3``, as published (ResNets only): ``"embedded_gaussian"``, ``"dot_product"`` or ``"gaussian"``.
        pretrained: ``True`` for timm's ImageNet weights (downloaded), or the path of a ``.safetensors`` or
            ``.pth`` file with weights of the same architecture, whose classifier is ignored.
        backbone_options: further arguments of ``timm.create_model``, for example ``{"channels": [16, 32, 64, 96]}``.

    Attributes:
        config: the arguments above but for ``pretrained``, enough for `create_model` to build the network again.
        frame_counts: the T's that the weights were made for, ascending; empty for a network that has one set
            of weights for every T.

    Raises:
        ValueError: for an architecture without a row in the table of backbones, an impossible ``shift_div``, or a
            causal shift beside what looks ahead (``temporal_pool``, ``non_local``).
        RuntimeError: if pretrained weights can't be had or don't fit.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int,
        dropout: float = 0.5,
        shift_div: int = 8,
        shift: str = "bidirectional",
        shift_place: str = "residual",
        shift_every: int | None = None,
        temporal_pool: bool = False,
        non_local: str = "none",
        pretrained: bool | str | Path = False,
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, str):
            raise ValueError(f"backbone is {shown(backbone)}; expected a name, such as 'resnet50'")
        if not isinstance(backbone_options, (Mapping, type(None))):
            raise ValueError(
                f"backbone_options is {shown(backbone_options)}; expected a dictionary of arguments for timm"
            )
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": whole(num_classes, "num_classes", least=1),
            "dropout": finite_number(dropout, "dropout", "a probability from 0 to 1", least=0, most=1),
            "shift_div": checked_shift_div(shift_div),
            "shift": shift,
            "shift_place": shift_place,
            "shift_every": None if shift_every is None else whole(shift_every, "shift_every", least=1),
            "temporal_pool": temporal_pool,
            "non_local": non_local,
            "backbone_options": dict(backbone_options or {}),
        }
        _check_config(self.config)
        family = family_of(backbone)
        self.frame_counts: tuple[int, ...] = ()
        self.backbone = _create_backbone(
            backbone, pretrained, {**family.options, **self.config["backbone_options"]}
        )
        if (shift_place, temporal_pool, non_local) != ("residual", False, "none"):
            _check_published_options(
                backbone, self.backbone, only_place=not temporal_pool and non_local == "none"
            )
        if shift != "none":
            _add_shifts(
                self.backbone,
                family,
                shift_div=shift_div,
                whole_block=shift_place == "block",
                every=shift_every,
                temporal_pool=temporal_pool,
                causal=shift == "causal",
            )
        if non_local != "none":
            _add_attention(self.backbone, non_local, time_stride=2 if temporal_pool else 1)
        if temporal_pool:
            replace_module(self.backbone, "layer2.0", TemporalPool(self.backbone.get_submodule("layer2.0")))
        self.dropout = nn.Dropout(dropout)
        self.head = _classifier(self.backbone, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Classify clips of any length.

        Args:
            clip: RGB, float ``(B, 3, T, H, W)``, normalised as in the checkpoint's preprocessing; any T ≥ 1.

        Returns:
            Logits ``(B, K)``, averaged over T.

        Raises:
            ValueError: if ``clip`` is not 5-D RGB with at least one frame.
        """
        return self.forward_frames(clip).mean(1)

    def forward_frames(self, clip: Tensor) -> Tensor:
        """The logits of every frame, ``(B, T, K)``, before they are averaged; arguments as in `forward`.

        With temporal pooling they are those of the ``ceil(T / 2)`` frames that are left.
        """
        check_clip(clip)
        num_frames = clip.shape[2]
        frames = clip.transpose(1, 2).flatten(0, 1)  # (B * T, 3, H, W)
        if torch.compiler.is_compiling():
            # A compiled graph is made for one T anyway; views made while tracing would break it.
            for module in self.backbone.modules():
                if hasattr(module, "at_num_frames"):
                    module.num_frames = num_frames  # type: ignore[assignment]
            features = self.backbone(frames)  # (B * T, F)
        else:
            features = self._features(frames, num_frames, tuple(clip.shape))  # (B * T, F)
        logits = classified(self.head, self.dropout(features))
        return logits.unflatten(0, (clip.shape[0], -1))  # (B, T, K)

    def _features(self, frames: Tensor, num_frames: int, shape: tuple[int, ...]) -> Tensor:
        try:
            return at_num_frames(self.backbone, num_frames)(frames)
        except RuntimeError as error:
            raise _in_our_words(error, frames, shape, self.backbone) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"clip has shape {shape}: in training one of the network's norms gets a single value of each "
                "channel, which has no variance; expected more clips, more frames or larger ones. To classify, call "
                "model.eval()"
            ) from error

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: keep no activations inside the backbone's stages."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]


class TSMResNet50(TSM):
    """The published network: ResNet-50 with a shift before each of its 16 blocks' ``conv1``.

    Clips ``(B, 3, T, H, W)`` in, logits ``(B, num_classes)`` out; 23,864,558 parameters at 174 classes
    (Something-Something V2). Arguments as in `TSM`.
    """

    def __init__(
        self,
        num_classes: int = 174,
        dropout: float = 0.5,
        shift_div: int = 8,
        pretrained: bool | str | Path = False,
    ) -> None:
        super().__init__(
            "resnet50", num_classes=num_classes, dropout=dropout, shift_div=shift_div, pretrained=pretrained
        )


def _in_our_words(
    error: RuntimeError, frames: Tensor, shape: tuple[int, ...], backbone: nn.Module
) -> Exception:
    """What is wrong with a clip that torch refused in its own words; the error itself where it is something else."""
    weight = next(backbone.parameters(), frames)
    if frames.device != weight.device:
        return ValueError(
            f"clip is on {frames.device}, the network on {weight.device}; give clip.to({str(weight.device)!r})"
        )
    if frames.dtype != weight.dtype and not torch.is_autocast_enabled(frames.device.type):
        clip, network = (str(one.dtype).removeprefix("torch.") for one in (frames, weight))
        return ValueError(
            f"clip is {clip}, the network's weights are {network}; give clip.to(torch.{network}), or call the "
            "network under torch.autocast"
        )
    if "Kernel size can't be greater than actual input size" in str(error):
        return ValueError(
            f"clip has shape {shape}, whose frames are too small for this network; expected larger ones, such as "
            "those of the checkpoint's preprocessing"
        )
    return error


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse what can't be built, before anything is."""
    temporal_pool, non_local = config["temporal_pool"], config["non_local"]
    shift, shift_place = config["shift"], config["shift_place"]
    foreign = sorted(_NOT_OF_THE_NETWORK & set(config["backbone_options"]))
    if foreign:
        raise ValueError(
            f"backbone_options has {', '.join(foreign)}, which say where weights come from, not what the network "
            "is; give pretrained instead"
        )
    if taken := sorted({"in_chans", "num_classes"} & set(config["backbone_options"])):
        raise ValueError(
            f"backbone_options has {', '.join(taken)}, which a network for RGB clips sets itself; leave it out, "
            "and give num_classes beside the backbone"
        )
    if shift not in SHIFTS:
        raise ValueError(f"shift is {shift!r}; expected one of {', '.join(SHIFTS)}")
    if shift_place not in SHIFT_PLACES:
        raise ValueError(f"shift_place is {shift_place!r}; expected one of {', '.join(SHIFT_PLACES)}")
    if non_local not in ("none", *NON_LOCALS):
        raise ValueError(f"non_local is {non_local!r}; expected none or one of {', '.join(NON_LOCALS)}")
    ahead = [
        name for name, on in (("temporal_pool", temporal_pool), ("non_local", non_local != "none")) if on
    ]
    if shift == "causal" and ahead:
        raise ValueError(
            f"shift is 'causal' but {' and '.join(ahead)} {'look' if ahead[1:] else 'looks'} at later frames; "
            "leave that out, or set shift to 'bidirectional'"
        )


def _create_backbone(
    architecture: str, pretrained: bool | str | Path, options: Mapping[str, Any]
) -> nn.Module:
    """timm's network without its classifier, ``(N, 3, H, W) -> (N, F)``."""
    if pretrained is not True:
        backbone = timm.create_model(architecture, num_classes=0, **options)
        if pretrained is not False and pretrained is not None:
            check_path(pretrained, "pretrained", "True, False, or the path of a .safetensors or .pth file")
            _load_backbone(backbone, Path(pretrained))
        return backbone
    try:
        return timm.create_model(architecture, pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub's client raises a dozen kinds; each is the same to the caller
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RuntimeError(
            f"ImageNet weights of {architecture!r} could not be loaded ({cause}). "
            'Without a network give a file: pretrained="path.safetensors"'
        ) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("state_dict", state))
    except (
        SafetensorError,
        UnpicklingError,
        RuntimeError,
        EOFError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        cause = "no tensors of torch's"  # its own words of a pickle are a page about weights_only
        if not isinstance(error, UnpicklingError):
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(
            f"pretrained weights {path} can't be read ({cause[:100]}); expected a .safetensors or .pth file of "
            "tensors"
        ) from error


def _load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load a file of weights into timm's network; every tensor but the classifier's must match."""
    if not path.is_file():
        found = "a folder; expected a .safetensors or .pth file" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"pretrained weights {path}: {found}")
    state = _read_weights(path)
    if any(key.startswith("backbone.") for key in state):
        raise RuntimeError(
            f"pretrained weights {path} are a whole network of frameflex; expected those of timm's backbone alone. "
            "frameflex.load reads the network, and a recipe's model.init trains from it"
        )
    named = backbone.pretrained_cfg.get("classifier") or "fc"  # type: ignore[union-attr, operator]
    classifiers = tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
    state = {key: value for key, value in state.items() if not key.startswith(classifiers)}
    own = backbone.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unknown or misshapen:
        problems = (("missing", missing), ("not in the network", unknown), ("of another shape", misshapen))
        listed = "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}, …)" for what, keys in problems if keys
        )
        raise RuntimeError(f"pretrained weights {path} don't fit the backbone: {listed}")
    backbone.load_state_dict(state)


def _check_published_options(architecture: str, backbone: nn.Module, *, only_place: bool) -> None:
    if only_place and architecture.startswith("mobileone"):
        return
    if not all(hasattr(backbone, f"layer{i}") for i in (1, 2, 3, 4)):
        raise ValueError(
            f"shift_place, temporal_pool and non_local are published for ResNets, and shift_place for "
            f"MobileOne; backbone is {architecture!r}. "
            'Leave them at "residual", false and "none", or choose a ResNet'
        )


def _add_shifts(
    backbone: nn.Module,
    family: Family,
    *,
    shift_div: int,
    whole_block: bool,
    every: int | None,
    temporal_pool: bool,
    causal: bool,
) -> None:
    """Wrap with a shift what the family says, or whole blocks; behind `temporal_pool` half of the frames are left."""
    names = {module: name for name, module in backbone.named_modules()}
    if whole_block:
        places = [names[block] for block in whole_blocks(family, backbone, every=every)]
    else:
        sites = shift_sites(family, backbone, every=every)
        places = [f"{names[block]}.{conv}" for block, conv in sites]
    for name in places:
        pooled = temporal_pool and not name.startswith("layer1.")
        shifted = TemporalShift(
            backbone.get_submodule(name),
            shift_div=shift_div,
            time_stride=2 if pooled else 1,
            causal=causal,
        )
        replace_module(backbone, name, shifted)


def _add_attention(backbone: nn.Module, mode: str, *, time_stride: int) -> None:
    """Attention over the clip behind every second block of the two middle stages."""
    for stage in ("layer2", "layer3"):
        for i in range(0, len(backbone.get_submodule(stage)), 2):  # type: ignore[arg-type]
            block = backbone.get_submodule(f"{stage}.{i}")
            attending = NonLocal(block, _out_channels(block), mode=mode, time_stride=time_stride)
            replace_module(backbone, f"{stage}.{i}", attending)


def _out_channels(block: nn.Module) -> int:
    """Of a ResNet's residual block: those of its last convolution."""
    last = [module for name, module in block.named_modules() if name.endswith(("conv1", "conv2", "conv3"))]
    return last[-1].out_channels


def _classifier(backbone: nn.Module, num_classes: int) -> nn.Linear:
    # MobileNets put a convolution behind the pooling: what the classifier sees is wider than the last stage.
    num_features = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    head = nn.Linear(int(num_features), num_classes)  # type: ignore[arg-type]
    nn.init.normal_(head.weight, std=0.001)  # as published; keeps the first predictions near uniform
    nn.init.zeros_(head.bias)
    return head
