"""Networks that were each trained at one frame count, as if they were one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from frameflex.checkpoint import WEIGHTS_NAME, Checkpoint, CheckpointError, load_checkpoint
from frameflex.engine.recipe import read_yaml
from frameflex.models.counts import nearest_count
from frameflex.models.frame_flexible import serve_untrained
from frameflex.models.tsm import TSM


class SeparateNetworks(nn.Module):
    """Plain networks, each trained at a count of its own; the one of the nearest count answers.

    Args:
        networks: by trained frame count.
    """

    def __init__(self, networks: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({str(count): network for count, network in sorted(networks.items())})
        self.frame_counts = ()

    def forward(self, clip: Tensor) -> Tensor:
        """Logits ``(B, K)`` of clips ``(B, 3, T, H, W)``."""
        return self.networks[str(nearest_count(map(int, self.networks), clip.shape[2]))](clip)


def load_networks(path: Path) -> Checkpoint:
    """A checkpoint, or a folder of separately trained ones ``{T}f/best.safetensors`` as if they were one.

    Raises:
        FileNotFoundError: if there is neither.
        CheckpointError: as `load_checkpoint`; also if the folder's networks differ in classes or preprocessing.
    """
    if not path.is_dir() or (path / WEIGHTS_NAME).is_file():
        return load_checkpoint(path)
    files = sorted(path.glob("*f/best.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"checkpoint {path}: a folder without {{T}}f/best.safetensors of separate training; give a file"
        )
    missing = sorted(_separate_folders(path) - {file.parent.name for file in files})
    if missing:
        raise CheckpointError(
            f"checkpoint {path}: {', '.join(missing)} of its separate training has no best.safetensors; without it "
            "a network of another frame count would answer. Go on with that training (--resume), or give the "
            "networks' own files"
        )
    members = [load_checkpoint(file) for file in files]
    first = members[0]
    for member in members:
        if (member.class_names, member.preprocessing) != (first.class_names, first.preprocessing):
            raise CheckpointError(f"checkpoint {path}: its networks differ in classes or preprocessing")
    networks = SeparateNetworks({member.num_frames: member.model for member in members})
    counts = tuple(sorted(member.num_frames for member in members))
    return replace(first, model=cast(TSM, networks), frame_counts=counts)


def _separate_folders(path: Path) -> set[str]:
    """Where the networks of a separate training are to be, by its folders and by its recipe."""
    folders = {
        folder.name for folder in path.iterdir() if folder.is_dir() and re.fullmatch(r"\d+f", folder.name)
    }
    recipe = path / "recipe.yaml"
    values = read_yaml(recipe) if recipe.is_file() else None
    clip = values.get("clip") if isinstance(values, Mapping) else None
    counts = clip.get("frame_counts") if isinstance(clip, Mapping) else None
    return folders | {f"{count}f" for count in counts or ()}


def load_model(path: str, untrained: str | None = None) -> nn.Module:
    """The network of `load_networks` alone, in a process that measures for others.

    Args:
        path: as for `load_networks`.
        untrained: which parts serve untrained counts; by default as saved.
    """
    model = load_networks(Path(path)).model
    if untrained and model.frame_counts:
        serve_untrained(model, untrained)
    return model
