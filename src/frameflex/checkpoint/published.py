"""Published weights by name: published.json has a row for each, which is all there is to adding one.

The first use of a name downloads the file that its makers published, converts it without running code from it, and
keeps the result; docs/how-to/published-weights.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from frameflex.arguments import shown
from frameflex.checkpoint.downloading import cache_folder, locked
from frameflex.checkpoint.errors import CheckpointError


@dataclass(frozen=True)
class Published:
    """Weights that someone else has trained and published.

    Attributes:
        name: ``NETWORK.DATA_FRAMES``.
        backbone: architecture of timm.
        num_frames: T that they were trained at.
        sampling: how frames are picked, as in `Checkpoint`.
        data: the data set whose classes they know.
        classes: name of the list of these classes beside this file.
        metrics: published figures in percent, ``top1`` and sometimes ``top5``, each with its ``protocol``, and with
            ``views`` where ours has that protocol.
        license: of the weights.
        terms: of the data set, which bind what the weights may be used for.
        address: of the file.
        sha256: of the file, or the first digits of it.
        non_local: how non-local blocks compare, or "none".
        shift_place: what is shifted, as for `create_model`.
    """

    name: str
    backbone: str
    num_frames: int
    sampling: Mapping[str, Any]
    data: str
    classes: str
    metrics: tuple[Mapping[str, Any], ...]
    license: str
    terms: str
    address: str
    sha256: str
    non_local: str = "none"
    shift_place: str = "residual"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """One for each logit."""
        path = Path(__file__).with_name("classes") / f"{self.classes}.txt"
        return path.read_text(encoding="utf-8").splitlines()

    @property
    def path(self) -> Path:
        """Where the converted checkpoint is kept, if it was ever used."""
        return cache_folder() / "published" / f"{self.name}-{self.sha256[:8]}.safetensors"

    @property
    def download_path(self) -> Path:
        """Where the file as published goes: also one that was fetched by hand."""
        return cache_folder() / "published" / "downloads" / urlsplit(self.address).path.rsplit("/", 1)[-1]


@cache
def published() -> dict[str, Published]:
    """All published weights by their names."""
    table = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    pixels = table["preprocessing"]
    pixels |= {key: tuple(round(value / 255, 9) for value in pixels[key]) for key in ("mean", "std")}
    rows = [{"preprocessing": pixels, **row, "metrics": tuple(row["metrics"])} for row in table["weights"]]
    return {row["name"]: Published(**row) for row in rows}


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Names of what can be built or loaded.

    Args:
        pattern: such as ``resnet*`` or ``*.ssv2*``.
        pretrained: the published weights, for `frameflex.load`, instead of the backbones, for `create_model`.

    Examples:
        >>> list_models("tsm_resnet50.ssv2*", pretrained=True)
        ['tsm_resnet50.ssv2_16f', 'tsm_resnet50.ssv2_16f_2021', 'tsm_resnet50.ssv2_8f', 'tsm_resnet50.ssv2_8f_2021']
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern is {shown(pattern)}; expected text, such as 'resnet*'")
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained is {shown(pretrained)}; expected True or False. A pattern comes first")
    if pretrained:
        return sorted(name for name in published() if fnmatch(name, pattern))
    from frameflex.models.backbones import supported_architectures

    return sorted(name for name in supported_architectures() if fnmatch(name, pattern))


def fetch(name: str) -> Path | None:
    """The local checkpoint of published weights, made at their first use; None if the name is nobody's.

    Raises:
        CheckpointError: if the name is nearly one that there is, its file can't be had or isn't what the table says.
    """
    weights = published().get(name)
    if weights is None:
        close = _close(name)
        if close:
            raise CheckpointError(
                f"{name}: no such file, and no published weights of that name; did you mean {' or '.join(close)}? "
                "frameflex models --weights lists them"
            )
        return None
    if weights.path.is_file():
        return weights.path
    from frameflex.convert.fetching import make_checkpoint  # a room above this one, asked once for each name

    with locked(weights.path):
        if not weights.path.is_file():  # else another process has made it while this one waited
            make_checkpoint(weights)
    return weights.path


def _close(name: str) -> list[str]:
    """Names that may be meant, where it may be a name rather than a file's."""
    if "/" in name or name.endswith(".safetensors"):
        return []
    begun = [known for known in published() if name.startswith("tsm_") and known.startswith(name)]
    return get_close_matches(name.lower(), published(), n=3, cutoff=0.8) or begun[:3]


def delete(name: str) -> list[tuple[Path, int]]:
    """Remove what is kept of published weights; returns what was removed, each with its size in bytes.

    Raises:
        CheckpointError: if there are no weights of that name.
    """
    if name not in published():
        close = get_close_matches(name, published(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "frameflex models --weights lists them"
        raise CheckpointError(f"{name}: no published weights of that name; {hint}")
    weights = published()[name]
    part = weights.download_path.with_name(f".{weights.download_path.name}.part")
    with locked(weights.path):
        there = [
            (path, path.stat().st_size)
            for path in (weights.path, weights.download_path, part)
            if path.is_file()
        ]
        for path, _ in there:
            path.unlink()
    return there
