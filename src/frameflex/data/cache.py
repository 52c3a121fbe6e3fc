"""Decoded frames, small and kept: a video is decoded once, not once an epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from frameflex.data.clips import stretch_of
from frameflex.data.records import VideoRecord
from frameflex.data.shards.members import ShardMember
from frameflex.new_files import new_file
from frameflex.storage import StoredFile
from frameflex.video import Decoder, Limits, VideoError, VideoReader

__all__ = ["FrameCache"]

logger = logging.getLogger(__name__)

_LEFT_FREE_BYTES = 2**30  # of the disk
_MOST_BYTES = 2**28  # of one video; longer ones are decoded where they are asked for


class FrameCache:
    """Frames of videos as uint8, in memory as far as there is room, else in files that are mapped into it.

    `open` gives a reader as `VideoRecord.open` does, of the record's stretch. Frames that are larger than is asked
    for are made smaller when they are kept; those that aren't are the decoded ones, bit for bit. A file that has
    changed since (another size or time) is decoded anew. Several processes may use one folder: a file gets its name
    when it is whole.

    Args:
        smallest: height and width that frames must still cover when they are made smaller.
        memory_bytes: how much is kept in this process's memory.
        folder: where the rest goes; None decodes it each time. What other videos left there is removed by `clean`.
    """

    _thread: threading.Thread | None

    def __init__(
        self,
        smallest: tuple[int, int],
        *,
        memory_bytes: int = 0,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.smallest, self.memory_bytes = smallest, memory_bytes
        self.folder = None if folder is None else Path(folder)
        self.kept_bytes = 0
        self.writes = True
        self._kept: dict[str, _Kept] = {}
        self._start()

    def open(
        self, record: VideoRecord, *, decoder: Decoder = "auto", limits: Limits | None = None
    ) -> VideoReader:
        """A reader of the record's frames; decodes them where they aren't kept. Errors as `VideoRecord.open`."""
        key = _key(record, self.smallest)
        with self._alone(key):
            kept = self._kept.get(key) or self._from_file(key)
            if kept is None:
                with ExitStack() as stack:
                    reader = stack.enter_context(record.open(decoder=decoder, limits=limits))
                    if self._num_bytes(record, reader) > _MOST_BYTES:
                        stack.pop_all()  # it stays open, for the caller
                        return reader
                    kept = self._keep(key, self._decode(record, reader))
        return _Frames(str(record.path), kept)

    def fill(
        self, records: Iterable[VideoRecord], *, decoder: Decoder = "auto", limits: Limits | None = None
    ) -> None:
        """Decode videos ahead, in a thread, in the order in which they will be asked for; returns at once."""

        def decode_all() -> None:
            for record in records:
                if self._closed.is_set():
                    return
                try:
                    self.open(record, decoder=decoder, limits=limits).close()
                except (VideoError, OSError):
                    continue  # whoever asks for it decodes it again, and hears why

        self._thread = threading.Thread(target=decode_all, name="decode ahead", daemon=True)
        self._thread.start()

    def clean(self, records: Iterable[VideoRecord]) -> None:
        """Remove files of the folder that are of none of these videos as they are now."""
        if self.folder is None or not self.folder.is_dir():
            return
        wanted = {_key(record, self.smallest) for record in records}
        for file in self.folder.iterdir():
            if file.suffix in (".npy", ".json") and file.stem not in wanted:
                file.unlink(missing_ok=True)

    def close(self, *, remove: bool = False) -> None:
        """Stop decoding ahead; `remove` deletes the folder, too."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        if remove and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        self._closed = threading.Event()
        self._thread = None
        self._condition, self._busy = threading.Condition(), set[str]()

    def __getstate__(self) -> dict[str, Any]:
        """For a loader's worker: it has memory of its own, and shares the files."""
        return {
            "smallest": self.smallest,
            "memory_bytes": self.memory_bytes,
            "folder": self.folder,
            "writes": self.writes,
            "kept_bytes": 0,
            "_kept": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """No video is decoded by two threads at once; the second waits for what the first one keeps."""
        with self._condition:
            self._condition.wait_for(lambda: key not in self._busy)
            self._busy.add(key)
        try:
            yield
        finally:
            with self._condition:
                self._busy.discard(key)
                self._condition.notify_all()

    def _num_bytes(self, record: VideoRecord, reader: VideoReader) -> int:
        first, end = stretch_of(record, reader, reader.num_frames)
        height, width = self._size(reader.height, reader.width)
        return 3 * height * width * (end - first)

    def _decode(self, record: VideoRecord, reader: VideoReader) -> _Kept:
        chosen: list[int] = []

        def choose(num_frames: int) -> Sequence[int]:
            chosen[:] = range(*stretch_of(record, reader, num_frames))
            return chosen

        frames = reader.sample(choose, each=self._smaller)  # (N, 3, h, w)
        times = reader.timestamps
        return _Kept(
            np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy()),  # (N, h, w, 3)
            [times[index] for index in chosen],
            reader.fps,
            reader.pixel_aspect,
        )

    def _size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, max(self.smallest[0] / height, self.smallest[1] / width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _smaller(self, frames: Tensor) -> Tensor:
        size = self._size(*frames.shape[-2:])
        return frames if size == frames.shape[-2:] else F.resize(frames, list(size), antialias=True)

    def _keep(self, key: str, kept: _Kept) -> _Kept:
        if self.kept_bytes + kept.frames.nbytes <= self.memory_bytes:
            self._kept[key] = kept
            self.kept_bytes += kept.frames.nbytes
        elif self.folder is not None and self.writes:
            self._to_file(key, kept)
        return kept

    def _to_file(self, key: str, kept: _Kept) -> None:
        assert self.folder is not None
        about = {"times": kept.times, "fps": kept.fps, "pixel_aspect": kept.pixel_aspect}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < _LEFT_FREE_BYTES + kept.frames.nbytes:
                raise OSError("the disk is nearly full")
            with new_file(self.folder / f"{key}.json") as file:
                file.write_text(json.dumps(about))
            with new_file(self.folder / f"{key}.npy") as file:  # last: it says that both are there
                np.save(file, kept.frames)
        except OSError as error:
            logger.warning(
                "%s: no more frames are kept (%s); their videos are decoded each time", self.folder, error
            )
            self.writes = False

    def _from_file(self, key: str) -> _Kept | None:
        if self.folder is None:
            return None
        path = self.folder / f"{key}.npy"
        if not path.is_file():
            return None
        about = json.loads(path.with_suffix(".json").read_text())
        frames = np.load(path, mmap_mode="r")
        return _Kept(frames, about["times"], about["fps"], about["pixel_aspect"])


class _Kept:
    """Frames ``(N, h, w, 3)`` of a stretch, and when each is shown."""

    def __init__(self, frames: np.ndarray, times: list[float], fps: float, pixel_aspect: float) -> None:
        self.frames, self.times, self.fps, self.pixel_aspect = frames, times, fps, pixel_aspect


class _Frames(VideoReader):
    def __init__(self, name: str, kept: _Kept) -> None:
        self.name, self.fps, self.pixel_aspect = name, kept.fps, kept.pixel_aspect
        self.num_frames, self.height, self.width = kept.frames.shape[:3]
        self._limits = Limits()
        self._kept = kept

    @property
    def timestamps(self) -> list[float]:
        return self._kept.times

    def close(self) -> None:
        """Nothing to close: the frames are kept."""

    def _read(self, wanted: list[int]) -> np.ndarray:
        return np.ascontiguousarray(self._kept.frames[wanted])


def _key(record: VideoRecord, smallest: tuple[int, int]) -> str:
    """What frames are recognised by: the file, as large and as old as it is, the stretch and the pixels."""
    if isinstance(record.path, ShardMember):
        what: list[Any] = [str(record.path), record.path.num_bytes, record.path.crc32]
    elif isinstance(record.path, StoredFile):
        what = [str(record.path), *record.path.state()]
    else:
        status = os.stat(record.path)
        what = [os.path.abspath(record.path), status.st_size, status.st_mtime_ns]
    what += [record.start_seconds, record.end_seconds, *smallest, 1]
    text = json.dumps(what).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()
