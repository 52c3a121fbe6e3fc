"""The clips of videos that int8 is calibrated with and graphs are compared on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader

from frameflex.checkpoint import Checkpoint
from frameflex.data.datasets import ClipDataset, VideoList, collate, end_with_parent, shielded
from frameflex.data.transforms import EvalTransform


class VideoClips:
    """The clips of videos at one T, decoded anew each time they are gone through, ``(B, 3, T, H, W)``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        videos: VideoList,
        num_frames: int,
        batch: int | str = 1,
        num_workers: int = 0,
    ) -> None:
        self.dataset = ClipDataset(
            videos,
            frame_counts=[num_frames],
            transform=EvalTransform(checkpoint.preprocessing),
            training=False,
            **checkpoint.sampling,
        )
        self.num_frames = num_frames
        self.batch = 1 if batch == "dynamic" else int(batch)
        self.num_workers = num_workers

    def labelled(self) -> Iterator[tuple[Tensor, int]]:
        loader: DataLoader = DataLoader(
            self.dataset,
            batch_size=1,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=end_with_parent,
        )
        for read in shielded(loader):
            yield read.clips[self.num_frames].flatten(0, 1), int(read.labels[0])

    def __iter__(self) -> Iterator[Tensor]:
        for clip, _ in self.labelled():
            yield clip.expand(self.batch, -1, -1, -1, -1)

    def __len__(self) -> int:
        return len(self.dataset)
