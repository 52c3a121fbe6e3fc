"""Reading whole shards in sequence, for storage where each request takes long."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, BinaryIO

import torch
from torch.utils.data import IterableDataset, get_worker_info

from frameflex.data.clips import ClipDataset, Sample
from frameflex.data.records import BadVideo
from frameflex.data.shards.members import ShardMember
from frameflex.data.shards.reading import ShardError, open_stream
from frameflex.data.shards.writing import TAR_BLOCK
from frameflex.storage import is_address, named_bytes, told
from frameflex.video import VideoError, open_video


class ShardStream(IterableDataset[Sample | BadVideo]):
    """Every clip of a data set of shards once an epoch, reading whole shards in sequence through webdataset.

    For storage where each request takes long. The samples are those of the `ClipDataset`, bit for bit; only their
    order is another: shards in an order of their own each epoch, dealt to processes and to loader workers, the
    videos of a shard in the order in which they lie there (which `frameflex data prepare` has mixed).

    Shards are dealt whole: with few of them, or sizes that differ, some processes get more videos than others. Where
    all processes must make the same number of steps, or a run is to be resumed exactly, use the `ClipDataset` itself.

    Args:
        dataset: clips of videos of shards.
        rank: this process.
        world: number of processes.

    Raises:
        ValueError: if a video of the data set is in no shard.
    """

    def __init__(self, dataset: ClipDataset, *, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of {world} processes; expected 0 to {world - 1}.")
        self.dataset, self.rank, self.world, self.epoch = dataset, rank, world, 0
        self.shards: dict[
            str, dict[str, tuple[int, int, int]]
        ] = {}  # shard -> member -> index, bytes, checksum
        for index, record in enumerate(dataset.videos):
            place = record.path
            if not isinstance(place, ShardMember):
                raise ValueError(
                    f"video {record.name} is a file of its own; expected videos of shards. "
                    "Make some with `frameflex data prepare`."
                )
            self.shards.setdefault(place.shard, {})[place.name] = (index, place.num_bytes, place.crc32)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, before iterating: its order of shards, frames and augmentation."""
        self.epoch = epoch

    def mine(self) -> list[str]:
        """The shards of this process and this loader worker in this epoch, in their order."""
        names = sorted(self.shards)
        seed = hashlib.blake2b(f"{self.dataset.seed} {self.epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
        order = (
            torch.randperm(len(names), generator=generator).tolist()
            if self.dataset.training
            else range(len(names))
        )
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        dealt = [names[i] for i in order][self.rank :: self.world]
        return dealt[worker::workers]

    def __iter__(self) -> Iterator[Sample | BadVideo]:
        """Yield the samples of `mine`.

        Raises:
            ShardError: if a shard can't be read, holds what its index doesn't say, or ends early.
        """
        try:
            from webdataset.tariterators import tar_file_iterator
        except ImportError as error:
            raise ShardError(
                "reading shards in sequence needs webdataset. Install it with `pip install frameflex[shards]`."
            ) from error
        for shard in self.mine():
            for index, content, num_bytes, crc32 in self._contents(shard, tar_file_iterator):
                yield self._sample(index, content, num_bytes, crc32)

    def _contents(self, shard: str, tar_file_iterator: Any) -> Iterator[tuple[int, bytes, int, int]]:
        wanted = dict(self.shards[shard])
        end = max(place.offset + place.num_bytes for place in self._places(shard)) + 2 * TAR_BLOCK
        stream = _Bounded(open_stream(shard), shard, end)

        def select(name: str) -> bool:
            check_member_name(name, shard)
            return name in wanted

        try:
            for item in tar_file_iterator(stream, select_files=select):
                index, num_bytes, crc32 = wanted.pop(item["fname"])
                yield index, item["data"], num_bytes, crc32
                if not wanted:
                    return
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            raise ShardError(f"shard {shard}: can't be read to its end ({error}). Copy it again.") from error
        finally:
            stream.close()
        raise ShardError(
            f"shard {shard}: lacks {len(wanted)} of its videos, {next(iter(wanted))} among them. Copy it again."
        )

    def _places(self, shard: str) -> list[ShardMember]:
        records = (self.dataset.videos[index].path for index, _, _ in self.shards[shard].values())
        return [place for place in records if isinstance(place, ShardMember)]

    def _sample(self, index: int, content: bytes, num_bytes: int, crc32: int) -> Sample | BadVideo:
        name = str(self.dataset.videos[index].path)

        def open_reader() -> Any:
            if len(content) != num_bytes or zlib.crc32(content) != crc32:
                raise VideoError(
                    f"video {name}: its checksum is not that of the index. Copy the shard again."
                )
            limits = self.dataset.videos.limits
            return open_video(named_bytes(content, name), decoder=self.dataset.decoder, limits=limits)

        return self.dataset.sample(open_reader, index, self.epoch)


class _Bounded:
    """No more than what the index promises is read of a shard, whatever is sent."""

    def __init__(self, file: BinaryIO, source: str, num_bytes: int) -> None:
        self.file, self.source, self.left = file, source, num_bytes
        self.started = False

    def read(self, num_bytes: int) -> bytes:
        with told(self.source) if is_address(self.source) else nullcontext():
            data = self.file.read(min(num_bytes, self.left))
        self.left -= len(data)
        if not self.started and data:
            self.started = True
            # tarfile would unpack what is compressed: a few bytes can become terabytes.
            if data[257:262] != b"ustar" or data[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
                raise ShardError(f"shard {self.source}: is no plain tar file. Copy it again.")
        return data

    def close(self) -> None:
        self.file.close()

    def __str__(self) -> str:
        return self.source


def check_member_name(name: str, shard: str) -> None:
    """Refuse a member's name that leads out of a folder.

    Raises:
        ShardError: if it is absolute or has a part ``..``.
    """
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name[:1] in ("/", "\\") or re.match(r"[A-Za-z]:", name):
        raise ShardError(
            f"shard {shard}: a member is called {name[:80]!r}; expected a name inside of the shard. Don't unpack it."
        )
