"""Checkpoints that are elsewhere: addresses of the Hugging Face hub and of the web."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tempfile
import urllib.request
from pathlib import Path

import torch

from frameflex.checkpoint.errors import CheckpointError

WEIGHTS_NAME = "model.safetensors"  # what a repository or a folder calls its checkpoint


def fetch(source: str | Path) -> Path:
    """The local file behind an address; a local path as it is.

    Args:
        source: a path, or one of

            - ``hf://owner/name`` for ``model.safetensors`` of a repository of the Hugging Face hub, or
              ``hf://owner/name/path/to/file``; ``hf://owner/name@revision`` pins a branch, tag or commit;
            - ``https://host/file#sha256=0123…``: what arrives must have that SHA-256 checksum, because nothing
              else tells whether it is the file that you mean. ``hf://`` addresses take one, too.

    Returns:
        Where the file is; downloads are kept and found again.

    Raises:
        CheckpointError: if an address makes no sense, can't be reached, or gives a file with another checksum.
    """
    found = re.fullmatch(r"(hf|https?):/{1,2}([^#]+)(?:#(.*))?", str(source))  # a Path makes "//" to "/"
    if not found:
        return Path(source)
    scheme, address, fragment = found.groups()
    checksum = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment or "")
    if fragment and not checksum:
        raise CheckpointError(f"address {source}: expected #sha256= and 64 hexadecimal digits behind the #")
    expected = checksum[1].lower() if checksum else None
    if scheme == "hf":
        return _fetch_from_hub(address, expected)
    if scheme == "http":
        raise CheckpointError(
            f"address {source}: expected https://; what http:// gives can be changed on its way"
        )
    if expected is None:
        raise CheckpointError(
            f"address {source}: expected a checksum behind it, {source}#sha256=…, so that only the file that you "
            "mean is used. sha256sum FILE shows it"
        )
    return _fetch_from_web(f"https://{address}", expected)


def _fetch_from_hub(address: str, expected: str | None) -> Path:
    import huggingface_hub

    parts = address.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise CheckpointError(f"address hf://{address}: expected hf://owner/name, or hf://owner/name/file")
    name, _, revision = parts[1].partition("@")
    file = "/".join(parts[2:]) or WEIGHTS_NAME
    try:
        path = Path(huggingface_hub.hf_hub_download(f"{parts[0]}/{name}", file, revision=revision or None))
    except Exception as error:  # the hub's client raises a dozen kinds; each is the same to the caller
        raise CheckpointError(f"hf://{address}: {file} can't be had ({first_line(error)})") from error
    if expected is not None:
        _check_sum(f"hf://{address}", path, expected)
    return path


def _fetch_from_web(url: str, expected: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "frameflex"
    path = folder / f"{expected}{Path(url.partition('?')[0]).suffix}"
    if path.is_file():
        _check_sum(url, path, expected)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=60) as response:
            shutil.copyfileobj(response, file)
        _check_sum(url, Path(temporary), expected)
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(f"{url} can't be downloaded ({first_line(error)})") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _check_sum(address: str, path: Path, expected: str) -> None:
    running = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            running.update(chunk)
    digest = running.hexdigest()
    if digest != expected:
        raise CheckpointError(
            f"{address}: the file has SHA-256 {digest}, expected {expected}. It was changed or arrived damaged; it "
            "is not used"
        )


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
