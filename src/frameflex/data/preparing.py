"""Re-encode the videos of a data set for training, and pack them into shards.

Each video is read once, through the same reader as everywhere, scaled down, encoded, and decoded again to see that
what was written is what was meant. `shards` reads the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import av

from frameflex.data.checking import file_state
from frameflex.data.datasets import Survey
from frameflex.data.encoding import FORMATS, Encoding, Task, encode
from frameflex.data.journal import Journal
from frameflex.data.part_folder import PartFolder, part_folder
from frameflex.data.records import BadVideo, BadVideos, VideoRecord
from frameflex.data.shards import Shard, ShardError, ShardIndex, ShardVideo
from frameflex.data.shards.index import INDEX_NAME
from frameflex.data.shards.writing import write_tar
from frameflex.data.stored_journal import StoredJournal, is_begun, open_journal
from frameflex.sharing import Engine, Here, Work
from frameflex.video import VideoError
from frameflex.video.isolated import Lost

__all__ = ["FORMATS", "Encoding", "prepare"]

_PARTS = ".parts"
_PATIENCE_SECONDS = 3600.0  # for packing one shard
_SPLITS = ("train", "validation", "test", "")


def prepare(
    data: Survey,
    output: str | os.PathLike[str],
    *,
    encoding: Encoding | None = None,
    videos_per_shard: int = 1000,
    num_workers: int = 1,
    engine: Engine | None = None,
    timeout_seconds: float = 600.0,
    on_bad_video: Literal["error", "skip"] = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> ShardIndex:
    """Encode every video of a data set and pack them into shards with an index.

    A call that is stopped, by whatever, is continued by the same call: what is encoded stays in a hidden folder of
    the output until its shard is complete. Shards and index get their names when they are whole and read back.
    Videos are mixed, in an order that depends on their names alone, so that each shard is a sample of the data set.

    Args:
        data: as `survey` finds it.
        output: folder for the shards, empty, new, or of a call that was stopped; here, or at an address in object
            storage.
        encoding: how; by default `Encoding()`.
        videos_per_shard: at most.
        num_workers: processes that encode and pack, at least 1.
        engine: does it in their place; its machines all see the folder or reach the address.
        timeout_seconds: for one video.
        on_bad_video: "error" stops at the first that can't be decoded, is not there or has a wrong label; "skip"
            leaves it out, noted in the index, and stops when more than 1 % and more than 3 are bad.
        on_progress: called with (videos done, videos in all).

    Returns:
        The index that was written.

    Raises:
        VideoError: if a video is bad, or too many are.
        FileExistsError: if the folder holds prepared data or other files.
        ShardError: if something can't be written, or does not read back as it was written.
        ValueError: if an argument is out of range, or the folder holds a stopped call with another encoding.
        RuntimeError: if another process works in the folder; not seen in object storage.
        StorageError: if object storage can't be read or written.
    """
    encoding = encoding or Encoding()
    folder = part_folder(output)
    parts = folder.inner(_PARTS)
    _check_possible(folder, parts, encoding, videos_per_shard)
    bad = BadVideos(len(data.videos) + len(data.missing), on_bad_video)
    left_out = [(split, name, f"{path} is not there") for split, name, path in data.missing]
    left_out += [(split, name, reason) for split, name, _, reason in data.mislabelled]
    bad.add(BadVideo(-1, name, reason) for _, name, reason in left_out)
    tasks = list(_tasks(data, str(parts), encoding))
    header = {"format": "frameflex prepare", "version": 1, "encoding": asdict(encoding)}
    with open_journal(str(parts), header) as journal:
        facts, packed = _what_is_done(journal, folder, retry=on_bad_video == "error")
        plan = list(_plan(tasks, videos_per_shard))
        whole, facts = _of_use(facts, packed, tasks, plan, parts.names(), data.videos.classes)
        bad.add(
            BadVideo(task.position, task.record.name, facts[task.key]["bad"])
            for task in tasks
            if "bad" in facts.get(task.key, {})
        )
        waiting = [task for task in tasks if task.key not in facts]
        if on_progress is not None:
            on_progress(len(facts), len(tasks))
        engine = engine or Here(num_workers)
        with closing(engine.run(Work(encode, timeout_seconds=timeout_seconds), waiting)) as results:
            for task, result in results:
                facts[task.key] = _fact(task, result)
                journal.add(facts[task.key])
                if "bad" in facts[task.key]:
                    bad.add([BadVideo(task.position, task.record.name, facts[task.key]["bad"])])
                if on_progress is not None:
                    on_progress(len(facts), len(tasks))
        left_out += [
            (task.split, task.record.name, facts[task.key]["bad"])
            for task in tasks
            if "bad" in facts[task.key]
        ]
        left_out += data.left_out
        shards = _pack_all(folder, plan, facts, whole, data.videos.classes, journal, engine)
        if not shards:
            raise VideoError(f"none of the {len(data.videos)} videos could be prepared.")
        strays = {name for name in folder.names() if name.endswith(".tar")} - whole.keys()
        folder.remove(strays)  # of a stopped call over another list of videos
        index = _index(str(folder), data, shards, left_out, encoding)
        folder.write(INDEX_NAME, index.to_json())
    parts.remove_all()
    return index


def _check_possible(folder: PartFolder, parts: PartFolder, encoding: Encoding, videos_per_shard: int) -> None:
    if videos_per_shard < 1:
        raise ValueError(f"videos_per_shard is {videos_per_shard}; expected at least 1.")
    if encoding.format == "h264" and "libx264" not in av.codecs_available:
        raise ValueError("this build of PyAV has no encoder libx264; use the format jpeg or lossless.")
    names = folder.names()
    if INDEX_NAME in names:
        raise FileExistsError(f"{folder} holds prepared data already. Choose another folder, or delete it.")
    if names and not is_begun(parts):
        raise FileExistsError(f"{folder} holds other files. Choose an empty or a new folder.")


def _tasks(data: Survey, parts: str, encoding: Encoding) -> Iterator[Task]:
    """A task for each entry with a right label. A file that is listed again is another entry, encoded again."""
    wrong = set(data.mislabelled_at)
    times: Counter[str] = Counter()
    for position, (record, split) in enumerate(zip(data.videos, data.splits, strict=True)):
        if position in wrong:
            continue
        key = _key(record, split)
        times[key] += 1
        if times[key] > 1:
            key = hashlib.blake2b(f"{key} {times[key]}".encode(), digest_size=12).hexdigest()
        yield Task(key, position, record, split, parts, encoding)


def _key(record: VideoRecord, split: str) -> str:
    parts = (
        record.path,
        file_state(record.path),
        record.start_seconds,
        record.end_seconds,
        record.name,
        split,
    )
    text = "\0".join(map(str, parts))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def _what_is_done(
    journal: Journal | StoredJournal, folder: PartFolder, *, retry: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Facts of encoded videos by key, and of shards that are whole by file."""
    facts, packed = {}, {}
    for entry in journal.entries:
        if "shard" in entry:
            if folder.num_bytes(entry["shard"]) == entry["num_bytes"]:
                packed[entry["shard"]] = entry
        elif "bad" not in entry or not retry:
            facts[entry["key"]] = entry
    return facts, packed


def _of_use(
    facts: dict[str, dict[str, Any]],
    packed: dict[str, dict[str, Any]],
    tasks: Sequence[Task],
    plan: Sequence[tuple[str, list[Task]]],
    there: set[str],
    classes: Sequence[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The shards and the facts that serve: of a shard, if it would become the same one; of a video in this list."""
    whole = {
        file: packed[file]
        for file, members in plan
        if file in packed and packed[file]["digest"] == _digest(members, facts, classes)
    }
    inside = {key for entry in whole.values() for key in entry["keys"]}
    kept = {
        task.key: facts[task.key]
        for task in tasks
        if task.key in facts and ("bad" in facts[task.key] or task.key in inside or task.part in there)
    }
    return whole, kept


def _fact(task: Task, result: dict[str, Any] | Lost) -> dict[str, Any]:
    """What became of a video, as the journal keeps it."""
    if isinstance(result, Lost):
        result = {"bad": f"{result.kind}: {result.reason}"}
    if "fatal" in result:
        raise ShardError(f"{result['fatal']}. Mend that, and the same call goes on from here.")
    return {"key": task.key, **result}


def _plan(tasks: Iterable[Task], videos_per_shard: int) -> Iterator[tuple[str, list[Task]]]:
    """Yield a shard's name and its videos: mixed by their names, so that each shard is a sample of the data set."""
    by_split: dict[str, list[Task]] = {}
    for task in tasks:
        by_split.setdefault(task.split, []).append(task)
    for split, members in by_split.items():
        mixed = sorted(members, key=lambda task: hashlib.blake2b(task.key.encode()).digest())
        for number, start in enumerate(range(0, len(mixed), videos_per_shard)):
            yield f"{split or 'videos'}-{number:05d}.tar", mixed[start : start + videos_per_shard]


# Packing


def _pack_all(
    folder: PartFolder,
    plan: Sequence[tuple[str, list[Task]]],
    facts: dict[str, dict[str, Any]],
    whole: dict[str, dict[str, Any]],
    classes: Sequence[str],
    journal: Journal | StoredJournal,
    engine: Engine,
) -> list[Shard]:
    """Make the shards that aren't in `whole`, which then holds all; their parts are deleted."""
    good = {file: [task for task in members if "bad" not in facts[task.key]] for file, members in plan}
    tasks = (
        (file, few, {task.key: facts[task.key] for task in few})
        for file, few in good.items()
        if few and file not in whole
    )
    work = Work(partial(_pack, str(folder), classes), timeout_seconds=_PATIENCE_SECONDS)
    parts = folder.inner(_PARTS)
    with closing(engine.run(work, tasks)) as packed:
        for (file, few, _), entry in packed:
            if isinstance(entry, Lost):
                raise ShardError(f"{folder}/{file}: could not be written: {entry.reason}. Check the disk.")
            whole[file] = entry
            journal.add(entry)
            journal.flush()
            parts.remove([task.part for task in few])
    there = parts.names()  # of a call that was killed after it had written the shard
    parts.remove(
        [task.part for file in whole.keys() & good.keys() for task in good[file] if task.part in there]
    )
    return [_shard(file, few, whole[file]) for file, few in good.items() if few]


def _member(task: Task) -> str:
    return f"{task.position:06d}{task.encoding.suffix}"


def _digest(members: Sequence[Task], facts: dict[str, dict[str, Any]], classes: Sequence[str]) -> str:
    """Of everything that a shard is made of."""
    good = [task for task in members if "bad" not in facts.get(task.key, {})]
    content = [[task.key, task.position, task.record.label, task.record.name] for task in good]
    return hashlib.blake2b(json.dumps([content, list(classes)]).encode(), digest_size=16).hexdigest()


def _pack(
    output: str, classes: Sequence[str], task: tuple[str, Sequence[Task], dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """Write a shard, read it back, and give it its name; the task is the name, the videos, and their facts."""
    file, good, facts = task
    folder = part_folder(output)
    parts = folder.inner(_PARTS)
    try:
        with folder.making(file) as path:
            places, sha256 = write_tar(path, _members(parts, good, facts, classes))
            _read_back(path, sha256)
            num_bytes = path.stat().st_size
    except OSError as error:
        raise ShardError(
            f"{folder}/{file}: {error.strerror or error}. Mend that, and the same call goes on."
        ) from error
    return {
        "shard": file,
        "digest": _digest(good, facts, classes),
        "num_bytes": num_bytes,
        "sha256": sha256,
        "keys": [task.key for task in good],
        "places": [list(place) for place in places[::2]],
    }


def _members(
    parts: PartFolder, good: Sequence[Task], facts: dict[str, dict[str, Any]], classes: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """Name and content of what a shard holds: each video, and what is known of it."""
    for task in good:
        fact, label = facts[task.key], task.record.label
        content = parts.read(task.part)
        if content is None or (len(content), zlib.crc32(content)) != (fact["num_bytes"], fact["crc32"]):
            parts.remove([task.part])
            raise ShardError(
                f"video {task.record.name}: what was encoded has changed on the disk. The same call encodes it again."
            )
        about = {
            "name": task.record.name,
            "label": label,
            "class": None if label is None else classes[label],
            **{key: fact[key] for key in ("num_frames", "fps", "height", "width")},
        }
        yield _member(task), content
        yield f"{task.position:06d}.json", json.dumps(about).encode()


def _read_back(path: Path, sha256: str) -> None:
    again = hashlib.sha256()
    with path.open("rb") as written:
        while block := written.read(2**20):
            again.update(block)
    if again.hexdigest() != sha256:
        raise ShardError(f"{path}: does not read back as it was written. Check the disk.")


def _shard(file: str, good: Sequence[Task], entry: dict[str, Any]) -> Shard:
    return Shard(
        file,
        good[0].split,
        entry["num_bytes"],
        entry["sha256"],
        tuple(
            ShardVideo(task.position, task.record.name, task.record.label, _member(task), *place)
            for task, place in zip(good, entry["places"], strict=True)
        ),
    )


def _index(
    home: str,
    data: Survey,
    shards: Sequence[Shard],
    left_out: Sequence[tuple[str, str, str]],
    encoding: Encoding,
) -> ShardIndex:
    return ShardIndex(
        home,
        tuple(data.videos.classes),
        tuple(split for split in _SPLITS if split and split in data.splits),
        tuple(shards),
        tuple(left_out),
        asdict(encoding),
    )
