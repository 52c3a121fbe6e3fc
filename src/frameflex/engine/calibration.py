"""Statistics of normalisation re-estimated at other frame counts, from unlabelled videos; weights untouched."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frameflex.checkpoint import Checkpoint
from frameflex.data.clips import ClipDataset
from frameflex.data.loading import read_batches
from frameflex.data.records import BadVideo, BadVideos, VideoList
from frameflex.data.transforms import EvalTransform
from frameflex.models import TSM, FrameNorm, make_frame_flexible
from frameflex.models.clips import classify_views
from frameflex.models.frame_flexible import add_norms

MAX_FEATURE_BYTES = 1 << 30  # of the clips that go through the network together


def calibrate(
    checkpoint: Checkpoint,
    videos: VideoList,
    frame_counts: Sequence[int],
    *,
    batch_size: int = 16,
    num_workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[BadVideo]:
    """Give a checkpoint's network batch statistics of its own at further frame counts, in place.

    A network that meets another T than it was trained at normalises with the wrong mean and variance (FFN,
    section 3.2). Here they are measured anew as `pool_statistics` does it: over all videos together, whatever their
    order. No weight and no statistic of a trained count changes; a plain TSM becomes frame-flexible, with norms that
    share its weights' values.

    Args:
        checkpoint: its model is changed.
        videos: some tens at least, of all kinds that the network will meet; labels not looked at.
        frame_counts: the T's, none of them trained or calibrated already.
        batch_size: videos that are decoded together; no matter for the result.
        num_workers: processes that decode.
        on_bad_video: "error" stops at the first that can't be decoded; "skip" leaves it out, and stops when more
            than 1 % are bad.
        on_progress: called with (steps done, steps in all), a step for each video and then one for each norm.

    Returns:
        The videos that were left out.

    Raises:
        ValueError: if there are no videos, a count has norms of its own already, or the network has no norm
            with batch statistics.
        NotFinite: if the network's answers are NaN or infinite afterwards.
        VideoError: if a video can't be decoded, or too many can't.
    """
    model, counts = checkpoint.model, sorted(set(frame_counts))
    _check(checkpoint, videos, counts)
    dataset = ClipDataset(
        videos,
        frame_counts=counts,
        transform=EvalTransform(checkpoint.preprocessing),
        training=False,
        on_bad_video="skip",  # which the policy, in this process, decides on
        **checkpoint.sampling,
    )
    with tempfile.TemporaryDirectory(prefix="frameflex-") as folder:
        clips = {count: StoredClips(Path(folder, f"{count}.clips")) for count in counts}
        done, policy = 0, BadVideos(len(videos), on_bad_video)
        names: list[str] = []
        norms_in_all = len(counts) * sum(isinstance(m, (_BatchNorm, FrameNorm)) for m in model.modules())
        with read_batches(dataset, batch_size=batch_size, num_workers=num_workers) as batches:
            for batch in batches:
                policy.add(batch.bad)
                for count in counts if len(batch) else ():
                    clips[count].append(batch.clips[count].flatten(0, 1))
                names += [videos[index].name for index in batch.indices.tolist()]
                done += len(batch) + len(batch.bad)
                if on_progress:
                    on_progress(done, len(videos) + norms_in_all)
        if not len(clips[counts[0]]):
            raise ValueError(
                f"none of the {len(videos)} videos could be decoded; there is nothing to measure"
            )
        if not model.frame_counts:
            make_frame_flexible(model, checkpoint.frame_counts, scales=False)
        add_norms(model, counts)
        model.eval()
        device = next(model.parameters()).device
        for count in counts:
            for _ in pool_statistics(model, norms_at(model, count), clips[count]):
                done += 1
                if on_progress:
                    on_progress(min(done, len(videos) + norms_in_all), len(videos) + norms_in_all)
            for start in range(0, len(names), batch_size):  # does it answer with numbers?
                answered = clips[count].read(start, batch_size)[:, None].to(device)
                with torch.no_grad():
                    classify_views(model, answered, names=names[start : start + batch_size])
    return policy.found


def _check(checkpoint: Checkpoint, videos: VideoList, counts: Sequence[int]) -> None:
    model = checkpoint.model
    taken = {*checkpoint.frame_counts, *model.frame_counts, *model.config.get("calibrated_counts", [])}
    if not videos or not counts or counts[0] < 1:
        raise ValueError(f"{len(videos)} videos and frame counts {counts}; expected at least one of each")
    if taken & set(counts):
        raise ValueError(
            f"{sorted(taken & set(counts))} frames have norms of their own already; calibrate other counts "
            f"than {sorted(taken)}"
        )
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ValueError("the network has no batch normalisation, so there are no statistics to re-estimate")
    if model.frame_counts and not model.config["frame_norms"]:
        raise ValueError(
            "the network shares its norms between frame counts; there is none to give to one count"
        )


def norms_at(model: TSM, num_frames: int) -> list[_BatchNorm]:
    """The batch norms that belong to one frame count alone."""
    return [
        module
        for norm in model.modules()
        if isinstance(norm, FrameNorm)
        for module in norm.norms[str(num_frames)].modules()
        if isinstance(module, _BatchNorm)
    ]


# ------------------------------------------------------------------------------------- statistics of all clips


def pool_statistics(
    model: nn.Module, norms: Sequence[_BatchNorm], clips: StoredClips, *, max_bytes: int = MAX_FEATURE_BYTES
) -> Iterator[_BatchNorm]:
    """Set the norms' mean and variance to those of all values that reach them, from all clips.

    A norm's input depends on the norms before it, so they are measured in the order in which the network comes to
    them, each behind norms that are measured already. Where all clips fit through the network together that is one
    forward pass. Where they don't, each norm is a pass of its own over all of them, up to that norm and no further,
    and what the passes of a norm find is added up exactly. So neither the order of the clips nor how they are divided
    matters, and behind it every norm has the statistics that its own network gives it: measured as a mean over
    batches instead, clips of one class a batch lost the variance between the classes, and with it all accuracy.

    Measuring all norms in each pass, and again until nothing changes, is no shorter way: an error at one norm travels
    through those behind it and grows on its way (docs/experiments/temporal-frequency-deviation.md).

    Args:
        model: in evaluation mode.
        norms: to be set; all others stay.
        clips: at one T.
        max_bytes: features that clips may take which go through together.

    Yields:
        Each norm once it is set.
    """
    device = next(model.parameters()).device
    size = max(max_bytes // _feature_bytes(model, clips.read(0, 1).to(device)), 1)
    together = size >= len(clips)
    pending, sums = set(norms), Moments()
    reached: list[_BatchNorm] = []  # and set, in this pass

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm not in pending:
            return
        assert isinstance(norm, _BatchNorm)
        sums.add(inputs[0])
        if not together:
            reached[:] = [norm]
            raise _Reached
        sums.store_in(norm)
        sums.clear()
        pending.discard(norm)
        reached.append(norm)

    handles = [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        while pending:
            reached.clear()
            for start in range(0, len(clips), size):
                try:
                    with torch.no_grad():
                        model(clips.read(start, size).to(device))
                except _Reached:
                    pass
            if not reached:  # norms that this network doesn't run keep what they have
                return
            if not together:
                sums.store_in(reached[0])
                sums.clear()
                pending.discard(reached[0])
            yield from reached
    finally:
        for handle in handles:
            handle.remove()


class _Reached(Exception):
    """Ends a forward pass where the rest of it isn't wanted."""


class Moments:
    """Number, mean and squared deviations of each channel, added up in float64 (Chan, Golub and LeVeque, 1983)."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.number = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0  # sum of squared deviations from the mean

    def add(self, x: Tensor) -> None:
        """Values ``(N, C, …)``."""
        dims = [0, *range(2, x.ndim)]
        number = x.numel() // x.shape[1]
        mean = x.mean(dims, dtype=torch.float64)  # (C,)
        rounded = mean.to(x.dtype)
        around = (x - rounded.view(1, -1, *[1] * (x.ndim - 2))).square_().sum(dims, dtype=torch.float64)
        squares = around - number * (mean - rounded.double()).square()
        total = self.number + number
        step = mean - self.mean
        self.mean = self.mean + step * (number / total)
        self.squares = self.squares + squares + step.square() * (self.number * number / total)
        self.number = total

    def store_in(self, norm: _BatchNorm) -> None:
        """Make these a norm's statistics; the variance is that of the values, with which torch normalises a batch."""
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.squares, Tensor)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / self.number)
        norm.num_batches_tracked.fill_(1)


def _feature_bytes(model: nn.Module, clip: Tensor) -> int:
    """What one clip takes on its way, about: three times the largest output of a module."""
    largest = 0

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    handles = [module.register_forward_hook(after) for module in model.modules()]
    try:
        with torch.no_grad():
            model(clip)
    finally:
        for handle in handles:
            handle.remove()
    return max(3 * largest, 1)


class StoredClips:
    """Clips of one shape in a file, decoded once and read as often as needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return self.shape[0]

    def append(self, clips: Tensor) -> None:
        """Clips ``(B, 3, T, H, W)``."""
        with open(self.path, "ab") as file:
            _write(file, clips)
        self.shape = (self.shape[0] + len(clips), *clips.shape[1:])

    def read(self, start: int, number: int) -> Tensor:
        """At most ``number`` clips from the one at ``start`` on, ``(B, 3, T, H, W)``."""
        stored = np.memmap(self.path, np.float32, "r", shape=self.shape)
        return torch.from_numpy(stored[start : start + number].copy())


def _write(file: IO[bytes], clips: Tensor) -> None:
    clips.float().contiguous().numpy().tofile(file)
