"""Published weights: from the file that their makers offer to a checkpoint in the cache."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from frameflex.checkpoint.downloading import checksum, download
from frameflex.checkpoint.errors import CheckpointError
from frameflex.checkpoint.format import save_checkpoint
from frameflex.checkpoint.published import Published
from frameflex.convert.assembling import Conversion
from frameflex.convert.converting import convert


def make_checkpoint(weights: Published) -> None:
    """Download published weights, check them, convert them, and keep the checkpoint at ``weights.path``.

    Another process must be kept from doing the same at once with `locked`.

    Raises:
        CheckpointError: if the file can't be had, or holds another network or other classes than its row says;
            nothing is kept then.
    """
    source = weights.download_path
    by_hand = source.is_file()
    if by_hand:
        _check_download(weights, source)
    else:
        host = urlsplit(weights.address).hostname
        what = f"{weights.name} from {host}; weights {weights.license}, {weights.terms}"
        download(weights.address, source, sha256=weights.sha256, what=what)
    try:
        conversion = _convert(weights, source)
        save_checkpoint(weights.path, conversion.checkpoint)
    except ValueError as error:
        raise CheckpointError(
            f"{weights.name}: {source.name} isn't what its row promises: {error}. Nothing was kept of it"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{weights.name}: {error}. Make room, or set FRAMEFLEX_CACHE to a folder on another disk"
        ) from error
    finally:
        if not by_hand:
            source.unlink()


def _check_download(weights: Published, path: Path) -> None:
    digest = checksum(path)
    if not digest.startswith(weights.sha256):
        raise CheckpointError(
            f"{path} has SHA-256 {digest}, expected {weights.sha256}…; it isn't the file of {weights.name}. Remove "
            f"it, or put the one of {weights.address} there"
        )


def _convert(weights: Published, source: Path) -> Conversion:
    """The checkpoint that a row promises.

    Raises:
        ValueError: if the file holds another network or other classes.
    """
    conversion = convert(
        source,
        class_names=weights.class_names,
        frame_counts=[weights.num_frames],
        non_local=None if weights.non_local == "none" else weights.non_local,
        sampling=weights.sampling,
        preprocessing=weights.preprocessing,
        license=weights.license,
    )
    config = conversion.checkpoint.model.config
    for key in ("backbone", "non_local", "shift_place"):
        if config[key] != getattr(weights, key):
            raise ValueError(f"its {key} is {config[key]}, expected {getattr(weights, key)}")
    if config["shift"] != "bidirectional":
        raise ValueError("it has no shift")
    conversion.checkpoint.source = f"{weights.address} ({weights.terms})"
    figures = [
        {"data": weights.data, "num_frames": weights.num_frames, **metric} for metric in weights.metrics
    ]
    conversion.checkpoint.metrics = {"published": figures}
    return conversion
