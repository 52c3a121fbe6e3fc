"""What the verbs share: the parser, options that several of them take, and how a failure is told."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from frameflex.addresses import without_secrets
from frameflex.arguments import MAX_FRAMES
from frameflex.printable import printable
from frameflex.storage import address_of, is_stored

if TYPE_CHECKING:
    from frameflex.video import Limits

VIEWS = ("1x1", "2x1", "1x3", "2x3")  # named here so that --help needs no torch
PATHS_LOOKED_AT = 100
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")  # likewise


def parser_of(verb: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of one verb, in the one style of all."""
    return _Parser(
        prog=f"frameflex {verb}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


class _Parser(argparse.ArgumentParser):
    """One line for a usage error, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"frameflex: {printable(message)}; see {self.prog} --help\n")


def add_loading_options(parser: argparse.ArgumentParser, *, batch_size: int = 8, device: bool = True) -> None:
    """--batch-size, --workers and --device."""
    parser.add_argument(
        "--batch-size", type=positive, default=batch_size, help=f"videos at once (default: {batch_size})"
    )
    workers = decoding_workers()
    parser.add_argument(
        "--workers",
        type=int,
        default=workers,
        help=f"processes that decode; 0: a thread of this one does (default: {workers} on this machine)",
    )
    if device:
        add_device_option(parser)


def decoding_workers() -> int:
    """Processes that decode beside a network, by default."""
    return max(0, min(2, (os.cpu_count() or 1) - 2))  # the network needs cores, too


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def add_precision_option(parser: argparse.ArgumentParser, *, default: str = "auto") -> None:
    """--precision."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=default,
        help="what the network computes in; auto: what the hardware does fast, bfloat16 on CPUs with AMX or "
        f"AVX512-BF16 and on newer GPUs, else float32; int8: of an export in int8 (default: {default})",
    )


def say_precision(console: Any, asked: str, chosen: str) -> None:
    """In one line what --precision auto came to."""
    if asked == "auto":
        exact = "" if chosen == "float32" else "; --precision float32 gives the exact answers"
        console.print(f"computing in {chosen}, by what this hardware does fast{exact}")


def add_bad_video_options(parser: argparse.ArgumentParser, *, default: str = "error", skip: str) -> None:
    """--on-bad-video and --quarantine: the one policy of all verbs."""
    parser.add_argument(
        "--on-bad-video",
        choices=["error", "skip"],
        default=default,
        help=f"error: stop at the first that can't be decoded; skip: {skip} (default: {default})",
    )
    add_quarantine_option(parser)


def add_decode_limit_option(parser: argparse.ArgumentParser) -> None:
    """--max-decode-seconds."""
    parser.add_argument(
        "--max-decode-seconds",
        type=seconds,
        metavar="SECONDS",
        help="for opening or reading one video; a slower one counts as bad (default: no limit)",
    )


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits of each video that the options say."""
    from frameflex.video import Limits

    return Limits(max_seconds=args.max_decode_seconds)


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """--workers, for work in which the processes that decode do everything."""
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: one for each core)"
    )


def add_ray_option(parser: argparse._ActionsContainer) -> None:
    """--ray."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="share the work on a Ray cluster: auto, the one that this machine belongs to or RAY_ADDRESS names (as "
        "without ADDRESS); host:port of its head; or local, one of this machine's own, to try it (default: this "
        "machine's processes, without Ray)",
    )


@contextmanager
def engine_of(args: argparse.Namespace, num_workers: int) -> Iterator[Any]:
    """What shares the work: the machines of --ray, or so many processes of this one."""
    if args.ray is None:
        from frameflex.sharing import Here

        yield Here(num_workers)
        return
    from frameflex.sharing.cluster import on_cluster

    # Its C++ writes to our terminal, and Ray would tell its makers of a cluster of its own that it was used.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "auto") if args.ray == "auto" else args.ray
    with on_cluster(address) as cluster:
        yield cluster


def paths_of(videos: Iterable[Any]) -> list[str]:
    """Where the first videos of a list are, for a look on every machine of a cluster before work starts."""
    places = (video.path for video in islice(videos, PATHS_LOOKED_AT))
    return [os.path.abspath(getattr(place, "shard", place)) for place in places if not is_stored(place)]


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_quarantine_option(parser: argparse.ArgumentParser) -> None:
    """--quarantine."""
    parser.add_argument(
        "--quarantine", metavar="FILE", help="videos to leave out: the list of frameflex data check"
    )


def add_views_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--views", default="1x1", choices=VIEWS, help="clips x crops a video (default: 1x1)")


def frame_counts(text: str) -> tuple[int, ...]:
    """Parse "4,8,16", "1-20" or a mix of both into ascending, different frame counts."""
    counts: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            low, high = 0, 0
        if not 1 <= low <= high <= MAX_FRAMES:
            raise argparse.ArgumentTypeError(
                f"{text!r} are no frame counts; expected such as 4,8,16 or 1-20, each from 1 to {MAX_FRAMES}"
            )
        counts.update(range(low, high + 1))
    return tuple(sorted(counts))


def frame_count(text: str) -> int:
    """Parse one frame count."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_FRAMES:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of frames from 1 to {MAX_FRAMES}")
    return int(text)


def budget(text: str) -> str | tuple[int, ...]:
    """Parse "auto", or frame counts."""
    return text if text == "auto" else frame_counts(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected seconds, more than 0")
    return value


def check_place(path: Path, *, name: str = "--output") -> None:
    """Say before the work that a file or folder can't be made there; nothing is made.

    Raises:
        ValueError: if its folder can't be made or written to.
    """
    _check_local(path, name)
    folder = path if path.is_dir() else path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{name} {path}: {folder} is a file, not a folder; choose another")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{name} {path}: the folder {folder} can't be written to; choose another")


def _check_local(path: Path, name: str) -> None:
    if is_stored(path):
        raise ValueError(
            f"{name} {address_of(path)}: is in object storage; expected a folder of this machine, where results can "
            "be written bit by bit. Copy it afterwards, such as with `aws s3 cp --recursive`"
        )


def check_inputs_stay(
    outputs: Iterable[Path | None], inputs: Iterable[str | os.PathLike[str] | None]
) -> None:
    """Refuse to write over what is read, by whatever name: another spelling, a link to it, a hard link.

    Every verb with outputs calls it before its work.

    Args:
        outputs: all files that will be written.
        inputs: all that are read; addresses and cameras, which are no files, are passed over.

    Raises:
        ValueError: at the first output that is an input.
    """
    read = [source for source in inputs if source is not None]
    for target in (output for output in outputs if output is not None):
        for source in read:
            try:
                same = os.path.samefile(target, source)
            except (OSError, ValueError):  # one of them isn't there, or is no name of a file
                continue
            if same:
                also = "" if str(target) == str(source) else f" (as {source})"
                raise ValueError(f"{target} would be written over, and it is read{also}; choose another name")


def make_folder(path: Path, *, name: str = "--output") -> Path:
    """Make the folder that --output needs, before the work and not after it.

    Raises:
        ValueError: if it can't be made or written to.
    """
    _check_local(path, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{name}: the folder {path} can't be made ({error.strerror}); choose another"
        ) from error
    if not os.access(path, os.W_OK):
        raise ValueError(f"{name}: the folder {path} can't be written to; choose another")
    return path


def fail(message: str, *, status: int) -> int:
    print(f"frameflex: {printable(without_secrets(message))}", file=sys.stderr)  # noqa: T201
    return status


def one_line(error: Exception) -> str:
    """The message of an error that we raise ourselves; of any other also its kind, and how to see more."""
    text = str(error)
    if "Original Traceback" in text:  # torch's, of an error in a process that decodes
        text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])  # "frameflex.video.VideoError: ..."
    message = re.sub(r"\s*[\r\n]\s*", " ", text).strip()
    if isinstance(error, (ValueError, FileNotFoundError, FileExistsError)) or is_ours(
        error, *_TOLD_AS_THEY_ARE
    ):
        return message
    return f"{type(error).__name__}: {message} (run again with --debug for details)"


_TOLD_AS_THEY_ARE = ("CheckpointError", "ShardError", "StorageError", "VideoError")
_ERRORS = {
    "CheckpointError": "frameflex.checkpoint.errors",
    "Interrupted": "frameflex.engine.watching",
    "ShardError": "frameflex.data.shards.reading",
    "StorageError": "frameflex.storage",
    "VideoError": "frameflex.video.reader",
}


def is_ours(error: Exception, *names: str) -> bool:
    """Whether an error is of one of our own kinds, without importing what did not run.

    An error in the arguments would wait for torch otherwise, and one of a broken package would become two.
    """
    kinds = (getattr(sys.modules.get(_ERRORS[name]), name, None) for name in names)
    return isinstance(error, tuple(kind for kind in kinds if kind is not None))
