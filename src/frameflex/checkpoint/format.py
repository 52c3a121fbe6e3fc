"""One self-describing file: weights, architecture, frame counts, classes, preprocessing, recipe and metrics.

A checkpoint is a safetensors file. Its header holds one entry, ``frameflex``, with JSON; tensors have the names
of the model's ``state_dict``. A checkpoint of an unfinished run also holds the optimizer's tensors, under names
that begin with ``training/``, so that one rename makes both durable together. Nothing is ever unpickled.
docs/reference/checkpoint-format.md describes it for readers without frameflex.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from frameflex.arguments import check_path
from frameflex.checkpoint.card import model_card
from frameflex.checkpoint.downloading import first_line
from frameflex.checkpoint.errors import CheckpointError, NewerFormatError
from frameflex.checkpoint.hub import WEIGHTS_NAME, fetch
from frameflex.data.splits import Division
from frameflex.data.transforms import Preprocessing
from frameflex.models.counts import blend_weight
from frameflex.new_files import give_usual_rights
from frameflex.printable import to_json, writable

if TYPE_CHECKING:
    from frameflex.models import TSM

FORMAT_VERSION = 2
CONFIG_NAME, CARD_NAME = "config.json", "README.md"
_TRAINING = "training/"

# A file is not trusted: what it claims is held to these before memory is asked for.
MAX_HEADER_BYTES = 32 * 2**20
MAX_NUMBER = 1_000_000  # in an architecture: classes, channels, blocks
MAX_FRAME_COUNT = 4096
MAX_SIDE = 8192  # pixels


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: the network with its weights, in evaluation mode, on the CPU.
        class_names: one for each logit.
        preprocessing: what the model expects of its pixels.
        frame_counts: the T's that it was trained at, ascending.
        sampling: how frames were picked, ``{"sampling": "segments"}`` or ``{"sampling": "dense", "stride": 2}``.
        recipe: of the run that made it, as in its YAML file; empty where unknown.
        metrics: measured ones, each with its protocol.
        license: of the weights, as an SPDX name such as "cc-by-4.0"; empty where unknown.
        source: where the weights come from, for people; empty where unknown.
        multi_label: each class has a probability of its own (sigmoid), instead of one for all together (softmax).
        temperatures: what logits are divided by at a T before they become probabilities, fitted on held-out videos.
        videos: which ones it was trained on and which were held out; None where unknown.
        training: state of an unfinished run; None in a checkpoint that is only for use.
    """

    model: TSM
    class_names: list[str]
    preprocessing: Preprocessing
    frame_counts: tuple[int, ...]
    sampling: dict[str, Any] = field(default_factory=lambda: {"sampling": "segments"})
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    license: str = ""
    source: str = ""
    multi_label: bool = False
    temperatures: dict[int, float] = field(default_factory=dict)
    videos: Division | None = None
    training: TrainingState | None = None

    @property
    def num_frames(self) -> int:
        """The largest T that it was trained at: what to use where nothing else is asked for."""
        return max(self.frame_counts)

    def temperature(self, num_frames: int) -> float:
        """What logits at a T are divided by: that count's own temperature, or one between its two neighbours'."""
        if not self.temperatures:
            return 1.0
        below, above, weight = blend_weight(self.temperatures, num_frames)
        return self.temperatures[below] ** (1 - weight) * self.temperatures[above] ** weight

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Checkpoint:
        """Load from near or far; executes no code from what it loads.

        Args:
            source: a folder of `save_pretrained`, a ``.safetensors`` file, a repository ``owner/name`` of the
                Hugging Face hub, or an address that `fetch` knows.

        Raises:
            FileNotFoundError: if there is neither such a path nor could it name a repository.
            CheckpointError: as `load_checkpoint` and `fetch`.
        """
        named = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source)
        if named and not Path(source).exists():
            return load_checkpoint(f"hf://{source}")
        return load_checkpoint(source)

    def save_pretrained(self, directory: str | Path, *, repo_id: str | None = None) -> Path:
        """Write ``model.safetensors``, its header as ``config.json``, and a model card ``README.md``.

        Args:
            directory: made if it is not there; files of these names in it are replaced.
            repo_id: ``owner/name`` under which others will find it, for the card.

        Returns:
            The folder.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        alone = replace(self, training=None)  # where an unfinished run stands is of no use to others
        save_checkpoint(directory / WEIGHTS_NAME, alone)
        config = to_json(_header(alone), indent=2)
        (directory / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")
        (directory / CARD_NAME).write_text(writable(model_card(alone, repo_id)), encoding="utf-8")
        return directory

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Add a checkpoint of frameflex",
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub, made if it is not there.

        Args:
            repo_id: ``owner/name``.
            private: whether a new repository is; None leaves it to the owner's settings.
            token: None for the one that ``hf auth login`` keeps.
            commit_message: of the upload.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: if the hub refuses or can't be reached.
        """
        import huggingface_hub

        api = huggingface_hub.HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repo_id)
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
            except Exception as error:  # the hub's client raises a dozen kinds
                raise CheckpointError(
                    f"{repo_id} can't be uploaded ({first_line(error)}). Log in with `hf auth login`, or write a "
                    "folder with save_pretrained and upload that"
                ) from error
        return str(commit.commit_url)


@dataclass
class TrainingState:
    """Where a run stands: numbers that JSON can hold, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a file that is there already is replaced only by a complete one.

    Args:
        path: ends in ``.safetensors``.
        checkpoint: its model may be on any device.

    Raises:
        ValueError: if the path has another ending or the class names don't fit the model.
        OSError: if the disk is full or read-only; a former file is left whole.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"checkpoint {path}: expected a name that ends in .safetensors")
    num_classes = checkpoint.model.config["num_classes"]
    if len(checkpoint.class_names) != num_classes:
        raise ValueError(
            f"{len(checkpoint.class_names)} class names for {num_classes} logits; expected as many"
        )
    header = _header(checkpoint)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()
    }
    if checkpoint.training is not None:
        header["training"] = checkpoint.training.values
        for name, tensor in checkpoint.training.tensors.items():
            tensors[_TRAINING + name] = tensor.detach().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    # A folder, because safetensors makes a temporary file of a name of its own beside the one it is to write.
    temporary = path.with_name(f".{path.name}.{_writer()}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        save_file(tensors, temporary / path.name, metadata={"frameflex": json.dumps(header)})
        give_usual_rights(temporary / path.name)  # safetensors makes it for its owner alone
        _flush_to_disk(temporary / path.name, os.O_RDWR)
        os.replace(temporary / path.name, path)
        if os.name == "posix":
            with contextlib.suppress(
                OSError
            ):  # some file systems can't for a folder; the file itself is safe
                _flush_to_disk(path.parent, os.O_RDONLY)
    except (SafetensorError, OSError) as error:
        megabytes = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        raise OSError(
            f"checkpoint {path} could not be written: {error}. It needs {megabytes:.0f} MB; a former file of that "
            "name is untouched"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a writer of the checkpoint ``path`` that was killed left half-written beside it.

    Left alone for an hour after they were last written to are files of other machines, and of a process of this one
    that still runs.
    """
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        writer, process = folder.name.removesuffix(".tmp").rsplit(".", 2)[-2:]
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            ended = writer == _writer() and (process == str(os.getpid()) or not _runs(process))
            if ended or time.time() - folder.stat().st_mtime > 3600:
                shutil.rmtree(folder)


def _writer() -> str:
    """This machine, as part of a file's name."""
    return re.sub(r"[^\w-]", "-", platform.node()) or "unknown"


def _runs(process: str) -> bool:
    if os.name != "posix":  # where signal 0 is no question but an end
        return True
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True  # it belongs to another user
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return True


def _flush_to_disk(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "architecture": checkpoint.model.config,
        "class_names": list(checkpoint.class_names),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "frame_counts": sorted(checkpoint.frame_counts),
        "sampling": checkpoint.sampling,
        "recipe": checkpoint.recipe,
        "metrics": checkpoint.metrics,
        "license": checkpoint.license,
        "source": checkpoint.source,
        "multi_label": checkpoint.multi_label,
        "temperatures": {str(count): value for count, value in sorted(checkpoint.temperatures.items())},
        **({"videos": checkpoint.videos.to_dict()} if checkpoint.videos else {}),
    }


def _backbone_hint(given: str | Path) -> str:
    """More words where the name is an architecture's, which has no classes of its own."""
    from frameflex.models.backbones import supported_architectures

    if str(given) not in supported_architectures():
        return ""
    return (
        ". It is a backbone, without classes of videos: frameflex.create_model builds a network on it, and "
        "frameflex models --weights lists trained ones"
    )


def load_checkpoint(path: str | Path, *, training: bool = False) -> Checkpoint:
    """Read a checkpoint; executes no code from it.

    Args:
        path: a ``.safetensors`` file written by `save_checkpoint`, a folder written by `save_pretrained`, or an
            address that `fetch` knows.
        training: also read the state of an unfinished run, where there is one.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is no checkpoint of frameflex, or of a newer version, or damaged.
    """
    check_path(path, "checkpoint", "a path, an address or a name of published weights")
    given, path = path, fetch(path)
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.safetensors"))
        if inside and WEIGHTS_NAME not in inside:
            raise FileNotFoundError(f"checkpoint {path} is a folder; name a file in it: {', '.join(inside)}")
        path = path / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file{_backbone_hint(given)}")
    _check_header_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = _read_header(path, file.metadata())
            names = [name for name in file.keys() if training or not name.startswith(_TRAINING)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is not a complete safetensors file ({error}). A .pth file of another code base "
            "must be converted first; otherwise copy or download the file again"
        ) from error
    try:
        model = _build(header, {k: v for k, v in tensors.items() if not k.startswith(_TRAINING)})
        checkpoint = Checkpoint(
            model=model,
            class_names=[str(name) for name in header["class_names"]],
            preprocessing=Preprocessing.from_dict(header["preprocessing"]),
            frame_counts=tuple(int(count) for count in header["frame_counts"]),
            sampling=_checked_sampling(header.get("sampling") or {"sampling": "segments"}),
            recipe=dict(header.get("recipe") or {}),
            metrics=dict(header.get("metrics") or {}),
            license=str(header.get("license") or ""),
            source=str(header.get("source") or ""),
            multi_label=bool(header.get("multi_label", False)),
            temperatures=checked_temperatures(header.get("temperatures")),
            videos=Division.from_dict(header["videos"]) if header.get("videos") else None,
        )
        if len(checkpoint.class_names) != model.config["num_classes"] or not checkpoint.frame_counts:
            raise ValueError(
                f"{len(checkpoint.class_names)} class names for {model.config['num_classes']} logits, "
                f"{len(checkpoint.frame_counts)} frame counts"
            )
        if not all(1 <= count <= MAX_FRAME_COUNT for count in checkpoint.frame_counts):
            raise ValueError(
                f"frame counts are {checkpoint.frame_counts[:8]}; expected 1 to {MAX_FRAME_COUNT}"
            )
        longest = max(checkpoint.preprocessing.short_side, *checkpoint.preprocessing.size)
        if longest > MAX_SIDE:
            raise ValueError(f"frames of {longest} pixels; expected {MAX_SIDE} at most")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"checkpoint {path} has a header that doesn't hold together: {error}"
        ) from error
    _load_weights(path, model, {k: v for k, v in tensors.items() if not k.startswith(_TRAINING)})
    if training and "training" in header:
        state = {k.removeprefix(_TRAINING): v for k, v in tensors.items() if k.startswith(_TRAINING)}
        checkpoint.training = TrainingState(header["training"], state)
    return checkpoint


def _read_header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if not metadata or "frameflex" not in metadata:
        raise CheckpointError(
            f"checkpoint {path} holds weights but no frameflex header, so its architecture and classes are "
            "unknown. Weights of an image network go into a recipe as model.pretrained"
        )
    try:
        header = json.loads(metadata["frameflex"])
        version = int(header["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} has an unreadable frameflex header: {error!r}") from error
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"checkpoint {path} has format {version}; this frameflex reads up to {FORMAT_VERSION}. "
            "Update it: pip install -U frameflex"
        )
    return header


def _check_header_size(path: Path) -> None:
    """Refuse a header that is larger than any network's: it would be parsed before anything else is known."""
    with open(path, "rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
    if not 2 <= num_bytes <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise CheckpointError(
            f"checkpoint {path} is not a complete safetensors file: its header claims {num_bytes} bytes of "
            f"{path.stat().st_size}, expected at most {MAX_HEADER_BYTES}. A .pth file of another code base must be "
            "converted first; otherwise copy or download the file again"
        )


def _build(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TSM:
    """The network that a header describes, which may be anything: no larger one is made than the file has weights.

    Raises:
        ValueError: if the description makes no sense or no such network.
    """
    from frameflex.models import create_model  # here, because timm takes a second

    architecture = header["architecture"]
    if "pretrained" in architecture:  # a file must not make us download or open another one
        raise ValueError("architecture has the key 'pretrained'")
    if int(architecture["num_classes"]) != len(header["class_names"]):
        raise ValueError(f"{len(header['class_names'])} class names for {architecture['num_classes']} logits")
    _check_numbers(architecture)
    allowed = sum(tensor.numel() for tensor in tensors.values())
    here, seen, count = threading.get_ident(), 0, 0

    def weigh(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        # Called before a new parameter is filled, so that the memory for it has not been touched yet.
        nonlocal seen, count
        if threading.get_ident() != here or parameter is None:
            return
        seen, count = seen + parameter.numel(), count + 1
        # A layer that is put in the place of another is seen twice, and one of ImageNet's classifier is left out.
        if seen > 4 * allowed + 10_000_000 or count > 8 * len(tensors) + 1000:
            raise ValueError(f"the architecture is larger than the {allowed} weights in the file")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(weigh)
    try:
        with _WithoutInitialisation():
            return create_model(**architecture).eval()
    except Exception as error:  # options of timm's networks go to code that checks few of them
        raise ValueError(f"no network can be built from its architecture ({first_line(error)})") from error
    finally:
        hook.remove()


class _WithoutInitialisation(TorchFunctionMode):
    """Parameters of networks that are built inside keep the memory as it came: a file's tensors take their place.

    A ResNet-50's random numbers take longer to draw than its file takes to read. Unlike ``torch.device("meta")`` it
    leaves buffers, which a file need not hold, as the network computes them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        draws = func in _DRAWS or getattr(func, "__module__", None) == "torch.nn.init"
        filled = args[0] if args else (kwargs or {}).get("tensor")
        if draws and isinstance(filled, torch.nn.Parameter):
            return filled
        return func(*args, **(kwargs or {}))


_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


def _check_numbers(value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_numbers(item)
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError(f"architecture has the number {str(value)[:20]}; expected at most {MAX_NUMBER}")


def _checked_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    sampling = dict(values)
    window = sampling.get("window", 1)
    if (
        set(sampling) - {"sampling", "window"}
        or sampling.get("sampling", "segments") not in ("segments", "dense")
        or not (isinstance(window, int) and 1 <= window <= MAX_NUMBER)
    ):
        raise ValueError(f"sampling is {str(sampling)[:80]}; expected segments, or dense with a window")
    return sampling


def checked_temperatures(values: Any) -> dict[int, float]:
    """Temperatures of a header. Raises ValueError where one is no positive number."""
    found = {int(count): float(value) for count, value in dict(values or {}).items()}
    if not all(1 <= count <= MAX_FRAME_COUNT and 1e-3 < value < 1e3 for count, value in found.items()):
        raise ValueError(
            f"temperatures are {str(values)[:80]}; expected a positive number for each frame count"
        )
    return found


def _load_weights(path: Path, model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    wrong = sorted(
        name
        for name in own.keys() | tensors.keys()
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"checkpoint {path}: {len(wrong)} tensors don't fit the architecture in its header "
            f"({', '.join(_first(wrong))}). The file was edited or damaged; get it again"
        )
    model.load_state_dict(dict(tensors))


def _first(names: Sequence[str], limit: int = 5) -> list[str]:
    return [*names[:limit], *(["…"] if len(names) > limit else [])]
