"""The clips of videos that int8 is calibrated with and graphs are compared on."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

from torch import Tensor

from frameflex.checkpoint import Checkpoint
from frameflex.data.clips import ClipDataset
from frameflex.data.loading import read_batches
from frameflex.data.records import BadVideos, VideoList
from frameflex.data.transforms import EvalTransform


class VideoClips:
    """The clips of videos at one T, decoded anew each time they are gone through, ``(B, 3, T, H, W)``.

    Args:
        checkpoint: whose preprocessing and sampling they are for.
        videos: which.
        num_frames: T.
        batch: B, each clip repeated; "dynamic" is 1.
        num_workers: processes that decode; `close` ends them where not all clips were taken.
        on_bad_video: "error" stops at the first that can't be decoded; "skip" leaves it out, and stops when more
            than 1 % are bad.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        videos: VideoList,
        num_frames: int,
        batch: int | str = 1,
        *,
        num_workers: int = 0,
        on_bad_video: Literal["error", "skip"] = "error",
    ) -> None:
        self.dataset = ClipDataset(
            videos,
            frame_counts=[num_frames],
            transform=EvalTransform(checkpoint.preprocessing),
            training=False,
            on_bad_video="skip",  # which the policy, in this process, decides on
            **checkpoint.sampling,
        )
        self.num_frames = num_frames
        self.batch = 1 if batch == "dynamic" else int(batch)
        self.num_workers = num_workers
        self.on_bad_video = on_bad_video
        self._begun: list[Generator[Tensor, None, None]] = []

    def labelled(self) -> Generator[tuple[Tensor, int], None, None]:
        """Each clip ``(1, 3, T, H, W)`` with its label, -1 where there is none.

        Raises:
            VideoError: if a video can't be decoded, or too many can't.
        """
        policy = BadVideos(len(self.dataset), self.on_bad_video)
        with read_batches(self.dataset, batch_size=1, num_workers=self.num_workers) as batches:
            for read in batches:
                policy.add(read.bad)
                if len(read):
                    yield read.clips[self.num_frames].flatten(0, 1), int(read.labels[0])

    def __iter__(self) -> Generator[Tensor, None, None]:
        clips = (clip.expand(self.batch, -1, -1, -1, -1) for clip, _ in self.labelled())
        self._begun.append(clips)
        return clips

    def close(self) -> None:
        """End what was begun and not gone through: a quantiser that fails lets go of it at some later time."""
        for clips in self._begun:
            clips.close()
        self._begun.clear()

    def __len__(self) -> int:
        return len(self.dataset)
