"""Decode every frame of every video once, and say which files are bad or doubtful.

Each file is read in a process of its own kind (`isolated`): one that hangs the decoder is timed out, one that crashes
it takes nothing else along.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from frameflex.data.clips import stretch_of
from frameflex.data.datasets import Survey
from frameflex.data.journal import Journal
from frameflex.data.records import VideoRecord
from frameflex.data.shards import ShardError, ShardMember
from frameflex.printable import printable
from frameflex.sharing import Engine, Here, Work
from frameflex.storage import Place, StorageError, StoredFile
from frameflex.video import ADVICE, Limits, NoFrames, NoVideoStream, VideoError
from frameflex.video.containers import open_container
from frameflex.video.isolated import Lost

__all__ = ["KINDS", "Checked", "Finding", "check", "file_state", "reason_of"]

KINDS = {
    "unreadable": "can't be decoded from the first frame to the last",
    "truncated": "the end of the file is missing",
    "audio-only": "has sound and no pictures",
    "empty": "has no byte, or no frame",
    "too-short": "has fewer frames than --min-frames",
    "timed-out": "takes longer than --timeout",
    "crashed": "takes the decoder's process down",
    "missing": "is listed and not there",
    "mislabelled": "has a label that is none, or that contradicts another copy of it",
    "wrong-extension": "is another kind of container than its name says",
    "mirrored": "is shown mirrored, because its file says so: phones' front cameras write that",
    "non-square": "has pixels that are not square: it is given as stored, players show it in another shape",
    "unlisted": "is there and in no list",
    "duplicate": "has the same content as another video of its split",
    "leak": "has the same content as a video of another split",
}

_FORMAT = {"format": "frameflex check", "version": 1}
_SQUARE_ENOUGH = 0.02  # scaling to even sizes leaves pixels that are a percent off, in most of some data sets
_CONTAINERS = {  # FFmpeg's names; FFmpeg looks at the content, other programs go by the name
    "mov": (".mp4", ".mov", ".m4v", ".3gp"),
    "matroska": (".mkv", ".webm"),
    "avi": (".avi",),
    "flv": (".flv",),
    "gif": (".gif",),
    "asf": (".wmv",),
    "ogg": (".ogv",),
    "mpegts": (".ts", ".m2ts", ".mts", ".mpg", ".mpeg"),
    "mpeg": (".mpg", ".mpeg"),
    "mpegvideo": (".mpg", ".mpeg"),
}
_KEPT_FIRST = ("test", "validation", "train", "")  # of copies in several splits, the one to measure on stays


@dataclass(frozen=True)
class Finding:
    """Something about one video.

    Attributes:
        kind: a key of `KINDS`.
        path: of the file.
        name: what the data set calls it.
        split: to which it belongs; empty where there are none.
        reason: for people.
        bad: it can't be used; else it is doubtful.
    """

    kind: str
    path: str
    name: str
    split: str
    reason: str
    bad: bool


@dataclass
class Checked:
    """What was found.

    Attributes:
        num_videos: that were listed, without those of a former quarantine list.
        num_files: that were decoded.
        findings: in the order of the data set, bad ones first.
        left_out: videos of a former quarantine list, not looked at.
        quarantined_kinds: doubtful kinds that go into quarantine, too.
    """

    num_videos: int
    num_files: int
    findings: list[Finding]
    left_out: int = 0
    quarantined_kinds: tuple[str, ...] = field(default=())

    @property
    def num_bad(self) -> int:
        """Number of different videos that can't be used."""
        return len({(f.path, f.name) for f in self.findings if f.bad})

    @property
    def num_doubtful(self) -> int:
        """Number of different videos that can be used, and that something is wrong with."""
        bad = {(f.path, f.name) for f in self.findings if f.bad}
        return len({(f.path, f.name) for f in self.findings} - bad)

    def quarantine(self) -> dict[str, str]:
        """Absolute path -> kind and reason of the videos to leave out."""
        listed: dict[str, str] = {}
        for finding in self.findings:
            if finding.bad or finding.kind in self.quarantined_kinds:
                path = finding.path if "://" in finding.path else os.path.abspath(finding.path)
                listed.setdefault(path, f"{finding.kind}: {finding.reason}")
        return listed

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; `read_quarantine` reads that, too."""
        return {
            "num_videos": self.num_videos,
            "num_files": self.num_files,
            "num_left_out": self.left_out,
            "num_bad": self.num_bad,
            "num_doubtful": self.num_doubtful,
            "kinds": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [asdict(finding) for finding in self.findings],
            "quarantine": [{"path": path, "reason": reason} for path, reason in self.quarantine().items()],
        }


def check(
    data: Survey,
    *,
    num_workers: int = 1,
    engine: Engine | None = None,
    timeout_seconds: float = 60.0,
    min_frames: int = 2,
    also_quarantine: Iterable[str] = (),
    journal: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Decode every file of a data set once, in processes of their own, and look for what is wrong with it.

    Args:
        data: as `survey` finds it.
        num_workers: processes that decode, at least 1.
        engine: decodes in their place.
        timeout_seconds: for one file.
        min_frames: fewer are "too-short".
        also_quarantine: doubtful kinds that `Checked.quarantine` lists besides the bad videos.
        journal: a file that remembers what is done, so that the same call goes on after a stop. A file that changed
            since is decoded again. It is deleted at the end.
        on_progress: called with (files done, files in all).

    Raises:
        ValueError: if a kind is not known, a number is out of range, or the journal is of something else.
        RuntimeError: if another process is checking with the same journal.
    """
    also = tuple(also_quarantine)
    unknown = [kind for kind in also if kind not in KINDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no kind of finding; expected some of {', '.join(KINDS)}")
    files: dict[str, list[VideoRecord]] = {}
    for record in data.videos:
        files.setdefault(str(record.path), []).append(record)
    log = Journal(journal, _FORMAT) if journal is not None else None
    try:
        known: dict[str, dict[str, Any]] = {}
        for entry in log.entries if log else ():
            known[entry["path"]] = entry
        facts: dict[str, dict[str, Any]] = {}
        tasks: list[_Task] = []
        for path, records in files.items():
            task = _Task(path, file_state(records[0].path), tuple(records))
            former = known.get(path)
            if former is None or not _still_holds(former, task, timeout_seconds):
                tasks.append(task)
            else:
                facts[path] = former
        if on_progress is not None:
            on_progress(len(facts), len(files))
        work = Work(_inspect, timeout_seconds=timeout_seconds)
        with closing((engine or Here(num_workers)).run(work, tasks)) as results:
            for task, result in results:
                entry = _entry(task, result, timeout_seconds)
                if log is not None:
                    log.add(entry)
                facts[task.path] = entry
                if on_progress is not None:
                    on_progress(len(facts), len(files))
        findings = _judge(data, facts, min_frames)
        if log is not None:
            log.discard()
    finally:
        if log is not None:
            log.close()
    return Checked(
        num_videos=len(data.videos) + len(data.missing),
        num_files=len(files),
        findings=findings,
        left_out=len(data.videos.left_out),
        quarantined_kinds=also,
    )


@dataclass(frozen=True)
class _Task:
    path: str
    state: tuple[int, int]  # size and time, or size and checksum: what a former answer holds for
    records: tuple[VideoRecord, ...]

    def stretches(self) -> list[list[float | None]]:
        return [[record.start_seconds, record.end_seconds] for record in self.records]


def file_state(place: Place | ShardMember) -> tuple[int, int]:
    """Size and time or version of a file, or size and checksum of a member: while they stay, a finding holds."""
    if isinstance(place, ShardMember):
        return place.num_bytes, place.crc32
    if isinstance(place, StoredFile):
        return place.state()
    try:
        found = os.stat(place)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _still_holds(former: dict[str, Any], task: _Task, timeout_seconds: float) -> bool:
    return (
        former.get("state") == list(task.state)
        and former.get("stretches") == task.stretches()
        and former.get("timeout", timeout_seconds) >= timeout_seconds
    )


def _entry(task: _Task, result: dict[str, Any] | Lost, timeout_seconds: float) -> dict[str, Any]:
    """What the journal keeps of a file."""
    if isinstance(result, Lost):
        result = {"kind": result.kind, "reason": result.reason, "timeout": timeout_seconds}
    if "fatal" in result:  # no fault of the video
        raise StorageError(result["fatal"])
    return {"path": task.path, "state": list(task.state), "stretches": task.stretches(), **result}


# In a process of its own


def _inspect(task: _Task) -> dict[str, Any]:
    """What one file is, as JSON: `kind` and `reason` where it can't be used."""
    place = task.records[0].path
    try:
        if isinstance(place, Path) and place.is_file() and place.stat().st_size == 0:
            return {"kind": "empty", "reason": "the file has 0 bytes"}
        facts: dict[str, Any] = {"digest": _digest(place)}
        try:
            with task.records[0].open() as reader:
                for _ in reader:
                    pass
                facts |= {"num_frames": reader.num_frames, "mirrored": reader.orientation.is_mirrored}
                facts["shape"] = [reader.width, reader.height, reader.pixel_aspect]
                facts["stretch_frames"] = [_stretch_frames(record, reader) for record in task.records]
        except NoFrames as error:
            return {**facts, "kind": "empty", "reason": reason_of(error, place)}
        except NoVideoStream as error:
            kind = "audio-only" if _has_sound(place) else "unreadable"
            return {**facts, "kind": kind, "reason": reason_of(error, place)}
        except VideoError as error:
            missing, reason = _missing_end(place), reason_of(error, place)
            if missing:
                return {**facts, "kind": "truncated", "reason": f"{missing}; {reason}"}
            return {**facts, "kind": "unreadable", "reason": reason}
        return {**facts, "truncated": _missing_end(place), "container": _container(place)}
    except StorageError as error:
        return {"fatal": str(error)}
    except (OSError, ShardError) as error:
        return {"kind": "unreadable", "reason": str(error)}
    except (
        Exception
    ) as error:  # whatever a hostile file makes a library raise: it is named, and the others go on
        return {"kind": "unreadable", "reason": f"decoding raised {type(error).__name__}: {error}"}


def reason_of(error: Exception, place: object) -> str:
    """An error's message without the video's name and the advice, which a table has elsewhere."""
    return str(error).removeprefix(f"video {printable(place)}: ").removesuffix(ADVICE).strip()


def _stretch_frames(record: VideoRecord, reader: Any) -> int | str:
    try:
        first, end = stretch_of(record, reader, reader.num_frames)
    except VideoError as error:
        return str(error)
    return end - first


def _digest(place: Place | ShardMember) -> str:
    """Of the content: of a folder's frames, one after another."""
    whole = hashlib.blake2b(digest_size=20)
    for file in sorted(place.iterdir()) if isinstance(place, Path) and place.is_dir() else [place]:
        if not isinstance(file, Path) or file.is_file():
            with _open(file) as opened:
                while block := opened.read(2**20):
                    whole.update(block)
    return whole.hexdigest()


def _open(place: Place | ShardMember) -> BinaryIO:
    return place.open("rb") if isinstance(place, Path) else place.open()


def _open_container(place: Place | ShardMember) -> Any:
    source = os.path.abspath(place) if isinstance(place, Path) else place.open()
    return open_container(source, name=str(place), limits=Limits())


def _has_sound(place: Place | ShardMember) -> bool:
    with _open_container(place) as container:
        return bool(container.streams.audio)


def _container(place: Place | ShardMember) -> str:
    if isinstance(place, Path) and place.is_dir():
        return ""
    with _open_container(place) as container:
        return container.format.name


def _missing_end(place: Place | ShardMember) -> str | None:
    """Why a file's end must be missing: its outermost parts say how long they are."""
    if isinstance(place, Path) and place.is_dir():
        return None
    with _open(place) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(64)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return _missing_mp4(file, size)
        if head[:4] == b"RIFF":
            end = struct.unpack("<I", head[4:8])[0] + 8
            if end > size + 1:  # some writers leave the last padding byte out
                return f"the file has {size} bytes of {end}"
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _missing_matroska(file, size)
    return None


def _missing_mp4(file: BinaryIO, size: int) -> str | None:
    position, kinds = 0, set()
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        kinds.add(kind)
        if length == 0:
            break  # the rest of the file
        if length < 8:
            return None  # damage of another sort
        position += length
    if position > size:
        return f"the file has {size} bytes of {position}"
    return None if kinds & {b"moov", b"moof"} else "the index (moov) at its end is missing"


def _missing_matroska(file: BinaryIO, size: int) -> str | None:
    file.seek(4)
    file.seek(_vint(file) or 0, os.SEEK_CUR)  # over the EBML header
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    length = _vint(file)
    end = None if length is None else file.tell() + length
    return f"the file has {size} bytes of {end}" if end is not None and end > size else None


def _vint(file: BinaryIO) -> int | None:
    """A number of Matroska; None where it says that it is not known."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    num_bytes = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> (num_bytes - 1))]) + file.read(num_bytes - 1), "big")
    return None if value == (1 << (7 * num_bytes)) - 1 else value


# From facts to findings


@dataclass(frozen=True)
class _Notes:
    """Findings about one video."""

    found: list[Finding]
    path: str
    name: str
    split: str

    def __call__(self, kind: str, reason: str, bad: bool = False) -> None:
        self.found.append(Finding(kind, self.path, self.name, self.split, reason, bad))


def _judge(data: Survey, facts: dict[str, dict[str, Any]], min_frames: int) -> list[Finding]:
    found: list[Finding] = []
    for split, name, path in data.missing:
        found.append(Finding("missing", path, name, split, "the file is not there", True))
    wrong = set(data.mislabelled_at)
    right = {str(record.path) for i, record in enumerate(data.videos) if i not in wrong}
    for split, name, path, reason in data.mislabelled:
        # A quarantine list names files: one that is listed again with a right label doesn't belong on it.
        found.append(Finding("mislabelled", path, name, split, reason, path not in right))
    copies: dict[tuple[str, float | None, float | None], list[tuple[VideoRecord, str]]] = {}
    turn: Counter[str] = Counter()
    for record, split in zip(data.videos, data.splits, strict=True):
        path = str(record.path)
        fact, place = facts[path], turn[path]
        turn[path] += 1

        note = _Notes(found, path, record.name, split)
        if "kind" in fact:
            note(fact["kind"], fact["reason"], True)
            continue
        num_frames = fact["stretch_frames"][place]
        if isinstance(num_frames, str):
            note("mislabelled", num_frames, True)
            continue
        if fact["truncated"]:
            note("truncated", f"{fact['truncated']}; {fact['num_frames']} frames decode")
        if num_frames < min_frames:
            note("too-short", f"{num_frames} frame{'s' * (num_frames != 1)}; expected {min_frames} or more")
        if fact.get("mirrored"):
            note("mirrored", "its file says that it is to be shown mirrored, and so its frames are given")
        width, height, pixel_aspect = fact.get("shape", (1, 1, 1.0))
        if abs(pixel_aspect - 1) > _SQUARE_ENOUGH:
            shown = f"players show {width}x{height} pixels as {round(width * pixel_aspect)}x{height}"
            note("non-square", f"{shown}; frames are given as stored")
        suffix = os.path.splitext(path)[1].lower()
        formats = [kind for kind in fact["container"].split(",") if kind in _CONTAINERS]
        known = any(suffix in suffixes for suffixes in _CONTAINERS.values())
        if formats and known and not any(suffix in _CONTAINERS[kind] for kind in formats):
            note("wrong-extension", f"it is {fact['container'].split(',')[0]}, its name ends in {suffix}")
        copies.setdefault((fact["digest"], record.start_seconds, record.end_seconds), []).append(
            (record, split)
        )
    for group in copies.values():
        found += _compare(group, data.videos.classes)
    for file in data.unlisted:
        found.append(Finding("unlisted", str(file), file.name, "", "no list names it", False))
    order = {str(record.path): number for number, record in enumerate(data.videos)}
    return sorted(found, key=lambda f: (not f.bad, order.get(f.path, -1)))


def _compare(group: list[tuple[VideoRecord, str]], classes: tuple[str, ...]) -> list[Finding]:
    """Copies of one video against the one to keep."""
    group = sorted(group, key=lambda item: _KEPT_FIRST.index(item[1]))
    (kept, kept_split), *others = group
    found: list[Finding] = []
    for record, split in others:
        note = _Notes(found, str(record.path), record.name, split)
        if split != kept_split:
            note("leak", f"the same content as {kept.path} in {kept_split}")
        else:
            note("duplicate", f"the same content as {kept.path}")
        if record.label != kept.label and record.label is not None and kept.label is not None:
            labels = f"{classes[record.label]!r} here, {classes[kept.label]!r} there"
            note("mislabelled", f"the same content as {kept.path}, but another label: {labels}")
    return found
