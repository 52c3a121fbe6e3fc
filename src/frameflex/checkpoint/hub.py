"""Checkpoints that are elsewhere: addresses of the Hugging Face hub and of the web."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from frameflex.checkpoint import published
from frameflex.checkpoint.downloading import (
    cache_folder,
    checksum,
    download,
    first_line,
    locked,
    megabytes,
)
from frameflex.checkpoint.errors import CheckpointError
from frameflex.storage import address_of, copy_to, is_stored, is_stored_folder, look

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
WEIGHTS_NAME = "model.safetensors"  # what a repository or a folder calls its checkpoint


def fetch(source: str | Path) -> Path:
    """The local file behind an address or a name; a local path as it is.

    Args:
        source: a path, or one of

            - the name of published weights, such as ``tsm_resnet50.ssv2_8f``: see `list_models`;
            - ``hf://owner/name`` for ``model.safetensors`` of a repository of the Hugging Face hub, or
              ``hf://owner/name/path/to/file``; ``hf://owner/name@revision`` pins a branch, tag or commit;
            - ``s3://bucket/key`` and other object storage: what is there now, fetched again when it has changed;
            - ``https://host/file#sha256=0123…``: what arrives must have that SHA-256 checksum, because nothing
              else tells whether it is the file that you mean. ``hf://`` addresses take one, too.

    Returns:
        Where the file is; downloads are kept and found again.

    Raises:
        CheckpointError: if an address makes no sense, can't be reached, or gives a file with another checksum; if a
            name is nearly one of the published weights'.
        StorageError, FileNotFoundError: if object storage can't be read, or has no such file.
    """
    if is_stored(source):
        return _fetch_from_storage(address_of(source))
    found = re.fullmatch(r"(hf|https?):/{1,2}([^#]+)(?:#(.*))?", str(source))  # a Path makes "//" to "/"
    if not found:
        return Path(source) if Path(source).exists() else published.fetch(str(source)) or Path(source)
    scheme, address, fragment = found.groups()
    expected = _checksum_in(source, fragment or "")
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
    path = cache_folder() / "web" / f"{expected}{Path(url.partition('?')[0]).suffix}"
    with locked(path):
        if path.is_file():
            _check_sum(url, path, expected)
        else:
            download(url, path, sha256=expected)
    return path


def _checksum_in(source: str | Path, fragment: str) -> str | None:
    given = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not given:
        raise CheckpointError(f"address {source}: expected #sha256= and 64 hexadecimal digits behind the #")
    return given[1].lower() if given else None


def _fetch_from_storage(source: str) -> Path:
    address, _, fragment = source.partition("#")
    expected = _checksum_in(source, fragment)
    address = address.rstrip("/")
    if not address.endswith(SUFFIX) and is_stored_folder(address):
        address += f"/{WEIGHTS_NAME}"
    now = look(address)
    key = hashlib.sha256(f"{address} {now.num_bytes} {now.version}".encode()).hexdigest()[:32]
    path = cache_folder() / "storage" / key / now.name
    with locked(path):
        if not path.is_file():
            logger.warning("fetching %s (%s)", address, megabytes(now.num_bytes))
            copy_to(address, path)
    if expected is not None:
        _check_sum(address, path, expected)
    return path


def _check_sum(address: str, path: Path, expected: str) -> None:
    digest = checksum(path)
    if digest != expected:
        raise CheckpointError(
            f"{address}: the file has SHA-256 {digest}, expected {expected}. It was changed or arrived damaged; it "
            "is not used"
        )
