"""Videos that stand on both sides of a division: copies, and such that look the same. A bounded look, not a proof."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from frameflex.data.clips import stretch_of
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.shards import ShardMember
from frameflex.storage import StoredFile
from frameflex.video import Limits, VideoError

SECONDS = 20.0  # of looking; what was not looked at by then is said
MOST_PICTURES = 4000  # videos
_PLACES = (1 / 6, 1 / 2, 5 / 6)  # of a video
_SIDE, _COARSE = 16, 4  # blocks of a picture; for a first look
# Levels of 255 that encoding anew may change, over the blocks and in one. Measured: copies of half the size at crf 30
# differ by up to 2.6 and 14; of 237 gestures before 81 backgrounds the two nearest by 5.5 and 73.
_MEAN, _LARGEST = 4.0, 24.0
_PLAIN = 6.0  # deviation of the blocks of a picture that tells nothing
_NAMED = 3


@dataclass(frozen=True)
class Leaks:
    """What stands on both sides.

    Attributes:
        same: pairs of paths with the same content.
        alike: pairs whose pictures are nearly the same at three places.
        recordings: files with stretches on both sides.
        num_looked_at: videos of which pictures were compared.
        num_videos: of all sides, those in shards not counted: of them the contents are compared alone.
    """

    same: list[tuple[str, str]] = field(default_factory=list)
    alike: list[tuple[str, str]] = field(default_factory=list)
    recordings: list[str] = field(default_factory=list)
    num_looked_at: int = 0
    num_videos: int = 0

    def lines(self, sides: str = "training and validation") -> list[str]:
        """A line for each kind that was found, the first ones named; none where nothing was."""
        found = []
        for pairs, what in ((self.same, "the same content"), (self.alike, "nearly the same pictures")):
            if pairs:
                named = ", ".join(f"{one} = {other}" for one, other in pairs[:_NAMED])
                found.append(
                    f"{_number(pairs, 'pair')} of videos in {sides} with {what}, which makes the accuracy too good: "
                    f"{named}{', …' if len(pairs) > _NAMED else ''}"
                )
        if self.recordings:
            named = ", ".join(self.recordings[:_NAMED])
            found.append(
                f"{_number(self.recordings, 'file')} with stretches in {sides}: {named}"
                f"{', …' if len(self.recordings) > _NAMED else ''}. A column group holds them together"
            )
        return found

    def cut_short(self) -> str | None:
        """What was not looked at; None where all was."""
        if self.num_looked_at >= self.num_videos:
            return None
        return (
            f"looked for copies among {self.num_looked_at} of {self.num_videos} videos by their pictures; "
            "frameflex data check reads all"
        )


class _Seen(NamedTuple):
    side: int
    record: VideoRecord


def find_leaks(sides: Sequence[VideoList], *, seconds: float = SECONDS) -> Leaks:
    """Look for videos of one side of a division that stand on another one, too, for a bounded time.

    First by content (files of the same size are hashed), then by three small grey pictures of each video: alike are
    two that differ by no more than encoding anew does. A fixed camera in which something moves is not alike.

    Args:
        sides: the videos of each; training and validation, or the folds.
        seconds: to take at most, about; half of it for the contents.
    """
    start = time.monotonic()
    everything = [_Seen(side, record) for side, videos in enumerate(sides) for record in videos]
    same = _same_content(everything, start + seconds / 2)
    known = {path for pair in same for path in pair}
    seen, pictures = _pictures(sides, known, start + seconds)
    files = [str(one.record.path) for one in everything if not isinstance(one.record.path, ShardMember)]
    looked_at = len(seen) + sum(path in known for path in files)
    seen_and_pictures = [
        (one, picture) for one, picture in zip(seen, pictures, strict=True) if picture is not None
    ]
    alike = _alike([one for one, _ in seen_and_pictures], [picture for _, picture in seen_and_pictures])
    return Leaks(same, alike, _recordings(everything), looked_at, len(files))


def _number(found: Sequence[object], what: str) -> str:
    return f"{len(found)} {what}{'s' * (len(found) != 1)}"


# Content


def _same_content(everything: Sequence[_Seen], deadline: float) -> list[tuple[str, str]]:
    by_size: dict[int, list[_Seen]] = {}
    for one in everything:
        if time.monotonic() > deadline:  # asking for 100,000 sizes takes minutes over a network
            break
        path = one.record.path
        if isinstance(path, ShardMember):
            by_size.setdefault(path.num_bytes, []).append(one)
        elif isinstance(path, StoredFile):
            by_size.setdefault(path.state()[0], []).append(one)
        elif path.is_file():  # a folder of pictures has no size
            by_size.setdefault(path.stat().st_size, []).append(one)
    copies: dict[object, list[_Seen]] = {}
    for of_size in by_size.values():
        if len({one.side for one in of_size}) < 2:
            continue
        for one in of_size:
            if time.monotonic() > deadline:
                break
            content = _content(one.record)
            if content is not None:
                key = (content, one.record.start_seconds, one.record.end_seconds)
                copies.setdefault(key, []).append(one)
    return list(_pairs(copies.values()))


def _content(record: VideoRecord) -> object | None:
    """What is equal for copies; None for a file that can't be read, which training names."""
    if isinstance(record.path, ShardMember):
        return record.path.num_bytes, record.path.crc32
    digest = hashlib.blake2b(digest_size=16)
    try:
        with record.path.open("rb") if isinstance(record.path, Path) else record.path.open() as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


def _pairs(copies: Iterable[list[_Seen]]) -> Iterator[tuple[str, str]]:
    """Each copy with the first one that is on another side."""
    for group in copies:
        first, *others = group
        for one in others:
            if one.side != first.side:
                yield str(first.record.path), str(one.record.path)


def _recordings(everything: Sequence[_Seen]) -> list[str]:
    """Files of which different stretches are on different sides."""
    sides: dict[str, set[int]] = {}
    for one in everything:
        if one.record.start_seconds is not None or one.record.end_seconds is not None:
            sides.setdefault(str(one.record.path), set()).add(one.side)
    return [path for path, on in sides.items() if len(on) > 1]


# Pictures


def _pictures(
    sides: Sequence[VideoList], known: set[str], deadline: float
) -> tuple[list[_Seen], list[Tensor | None]]:
    """Videos of all sides in turn, as many as the time allows, and their pictures; None where these tell nothing."""
    places = sorted(
        (
            (index / len(videos), side, index)
            for side, videos in enumerate(sides)
            for index in range(len(videos))
        )
    )
    seen: list[_Seen] = []
    pictures: list[Tensor | None] = []
    for _, side, index in itertools.islice(places, MOST_PICTURES):
        record = sides[side][index]
        if isinstance(record.path, ShardMember) or str(record.path) in known:
            continue
        if time.monotonic() > deadline:
            break
        seen.append(_Seen(side, record))
        pictures.append(_picture(record, sides[side].limits))
    return seen, pictures


def _picture(record: VideoRecord, limits: Limits) -> Tensor | None:
    """Grey blocks ``(3, 16, 16)`` of three frames; None of a video that is plain or can't be read."""
    try:
        with record.open(limits=limits) as reader:
            first, end = stretch_of(record, reader, reader.num_frames)
            frames = reader.frames([first + int(place * (end - first)) for place in _PLACES])
    except (VideoError, OSError):  # training says which can't be decoded
        return None
    grey = torch.stack([frame.float().mean(0) for frame in frames])
    blocks = adaptive_avg_pool2d(grey, _SIDE)
    return blocks if float(blocks.flatten(1).std(1).min()) >= _PLAIN else None


def _alike(seen: Sequence[_Seen], pictures: Sequence[Tensor]) -> list[tuple[str, str]]:
    if len(pictures) < 2:
        return []
    every = torch.stack(list(pictures))  # (N, 3, 16, 16)
    coarse = adaptive_avg_pool2d(every, _COARSE).flatten(1)
    side = torch.tensor([one.side for one in seen])
    pairs = []
    taken: set[int] = set()
    for i in range(len(every)):
        near = torch.cdist(coarse[i : i + 1], coarse[i + 1 :], p=torch.inf)[0] <= _LARGEST
        for j in (near & (side[i + 1 :] != side[i])).nonzero().flatten().tolist():
            other = i + 1 + j
            difference = (every[i] - every[other]).abs()
            if other not in taken and difference.mean() <= _MEAN and difference.max() <= _LARGEST:
                taken.add(other)
                first, second = sorted((i, other), key=lambda n: seen[n].side)
                pairs.append((str(seen[first].record.path), str(seen[second].record.path)))
    return pairs
