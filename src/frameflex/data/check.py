"""Decode every frame of every video once, and say which files fail."""

from collections.abc import Callable

from torch.utils.data import DataLoader, Dataset

from .datasets import BadVideo, VideoList, shielded
from .video import VideoError, open_video

__all__ = ["check_videos"]


class _Decoded(Dataset[BadVideo | None]):
    def __init__(self, videos: VideoList) -> None:
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> BadVideo | None:
        record = self.videos[index]
        try:
            with open_video(record.path) as reader:
                for _ in reader:
                    pass
        except (VideoError, OSError) as error:
            return BadVideo(index, record.name, str(error))
        return None


def check_videos(
    videos: VideoList, *, num_workers: int = 0, on_progress: Callable[[int, int], None] | None = None
) -> list[BadVideo]:
    """Find the videos that can't be decoded from the first frame to the last.

    Args:
        videos: labels are not looked at.
        num_workers: processes that decode; with none it happens here.
        on_progress: called with (videos done, videos in all).

    Returns:
        the bad ones, in the order of the list, each with the reason.
    """
    loader: DataLoader[BadVideo | None] = DataLoader(
        _Decoded(videos), batch_size=None, num_workers=num_workers
    )
    bad = []
    for done, found in enumerate(shielded(loader), start=1):
        if found is not None:
            bad.append(found)
        if on_progress is not None:
            on_progress(done, len(videos))
    return bad
