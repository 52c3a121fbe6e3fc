"""From videos to clips at several frame counts, and from clips to batches: `ClipDataset`, `collate`."""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from frameflex.data.directions import NEVER_REVERSED
from frameflex.data.records import BadVideo, VideoList, VideoRecord
from frameflex.data.sampling import dense_indices, eval_indices, train_indices
from frameflex.data.transforms import EvalTransform
from frameflex.video import Decoder, VideoError, VideoReader

__all__ = ["Batch", "ClipDataset", "Crops", "Sample", "collate", "select_views", "stretch_of"]


@dataclass(frozen=True, slots=True)
class Sample:
    """The clips of one video.

    Attributes:
        clips: for each T the clip: in training float `(3, T, H, W)`; in evaluation `(V, 3, T, H, W)`, the V
            views being temporal views times crops, crops adjacent.
        label: class index, -1 when unknown.
        index: the video's index in its list.
    """

    clips: dict[int, Tensor]
    label: int
    index: int


@dataclass(frozen=True, slots=True)
class Crops:
    """What evaluation decodes of one video, each frame once and small: what one process hands to another.

    Attributes:
        pixels: uint8 `(N, num_crops, 3, h, w)`; of numpy, since torch would share a tensor's memory instead of
            sending it, and that ends with the process.
        views: T -> V lists of T rows of `pixels`.
    """

    pixels: np.ndarray
    views: dict[int, list[list[int]]]

    def clips(self, transform: EvalTransform) -> dict[int, Tensor]:
        """The clips `{T: (V, 3, T, h, w)}`, as the transform normalises them."""
        crops = transform.normalise(torch.from_numpy(self.pixels).transpose(0, 1))
        return {t: select_views(crops, views) for t, views in self.views.items()}


class ClipDataset(Dataset[Sample | BadVideo]):
    """Clips of a list of videos at several frame counts; each video is opened and decoded once.

    `dataset[index, epoch]`, or `dataset[index, epoch, frame_counts]` for other counts than the data set's own,
    is a pure function of `(seed, epoch, index)`: it does not depend on the number of
    workers, on the order of the calls or on random numbers drawn elsewhere, and it draws none of theirs. A sampler
    that yields such pairs gives every epoch its own crops and frames. With a plain `dataset[index]` each epoch is
    the first one over again.

    Args:
        videos: which videos.
        frame_counts: the T's of the clips, each at least 1.
        transform: in training `TrainTransform`, in evaluation `EvalTransform`, or a callable like it.
        training: random frames and `transform(frames, label)`; else fixed frames and `transform(frames)`.
        sampling: "segments" over the whole video, or "dense" in a window of it.
        num_views: temporal views of a video in evaluation; with segments 1 or 2.
        window: frames that a dense clip spans, at any T.
        reversed_labels: in training: for each class the one that its videos show when they are played backwards, or
            `NEVER_REVERSED`, as `reverse_directions` finds them. Half of the clips of those that have one are.
        seed: start of all randomness.
        decoder: as for `open_video`.
        on_bad_video: "error" raises where a video can't be read; "skip" gives a `BadVideo` in its place.
        open_record: opens a video of the list by other means, such as `FrameCache.open`.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        videos: VideoList,
        *,
        frame_counts: Sequence[int],
        transform: Callable[..., Any],
        training: bool,
        sampling: Literal["segments", "dense"] = "segments",
        num_views: int = 1,
        window: int = 64,
        reversed_labels: Sequence[int] | None = None,
        seed: int = 0,
        decoder: Decoder = "auto",
        on_bad_video: Literal["error", "skip"] = "error",
        open_record: Callable[..., VideoReader] = VideoRecord.open,
    ) -> None:
        if not frame_counts or min(frame_counts) < 1 or len(set(frame_counts)) < len(frame_counts):
            raise ValueError(f"frame_counts is {list(frame_counts)}; expected different counts of 1 or more.")
        if sampling not in ("segments", "dense"):
            raise ValueError(f"sampling is {sampling!r}; expected 'segments' or 'dense'.")
        if on_bad_video not in ("error", "skip"):
            raise ValueError(f"on_bad_video is {on_bad_video!r}; expected 'error' or 'skip'.")
        most_views = 1 if training else 2 if sampling == "segments" else window
        if not 1 <= num_views <= most_views:
            mode = "training" if training else f"evaluation with {sampling}"
            raise ValueError(f"num_views is {num_views}; expected 1 to {most_views} in {mode}.")
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1 frame.")
        if training and -1 in videos.labels:
            unknown = videos.labels.count(-1)
            raise ValueError(
                f"{unknown} of {len(videos)} videos have no label; training needs one for each. Pass another split."
            )
        if reversed_labels is not None:
            _check_reversed_labels(reversed_labels, len(videos.classes), training)
        self.videos = videos
        self.frame_counts = tuple(frame_counts)
        self.transform = transform
        self.training = training
        self.sampling = sampling
        self.num_views = num_views
        self.window = window
        self.reversed_labels = None if reversed_labels is None else tuple(reversed_labels)
        self.seed = seed
        self.decoder = decoder
        self.on_bad_video = on_bad_video
        self.open_record = open_record

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | tuple[int, int] | tuple[int, int, tuple[int, ...]]) -> Sample | BadVideo:
        """Decode one video and make its clips.

        Args:
            key: the video's index, `(index, epoch)` or `(index, epoch, frame_counts)`.

        Raises:
            IndexError: if there is no such video.
            VideoError: if it can't be read and `on_bad_video` is "error".
            OSError: if its file can't be opened and `on_bad_video` is "error".
        """
        index, epoch, *counts = key if isinstance(key, tuple) else (key, 0)
        record = self.videos[index]
        return self.sample(
            lambda: self.open_record(record, decoder=self.decoder, limits=self.videos.limits),
            index % len(self),
            epoch,
            *counts,
        )

    def sample(
        self,
        open_reader: Callable[[], VideoReader],
        index: int,
        epoch: int,
        frame_counts: Sequence[int] | None = None,
    ) -> Sample | BadVideo:
        """Make the clips of a video of the list from a reader that is opened by other means.

        Args:
            open_reader: opens it.
            index: of the video in the list.
            epoch: as in the key of an item.
            frame_counts: likewise.

        Raises:
            VideoError: as for an item.
            OSError: as for an item.
        """
        record = self.videos[index]
        try:
            with open_reader() as reader:
                decode = self._decode if self.training else self._crops
                frames, slots = decode(reader, record, index, epoch, frame_counts)
        except (VideoError, OSError) as error:
            if self.on_bad_video == "error":
                raise
            return BadVideo(index, record.name, str(error))
        label = -1 if record.label is None else record.label
        if not self.training:
            return Sample({t: select_views(frames, views) for t, views in slots.items()}, label, index)
        backwards = self._label_backwards(label, index, epoch)
        if backwards is not None:
            label = backwards
            slots = {t: [view[::-1] for view in views] for t, views in slots.items()}
        # CPU generator alone: torch.manual_seed would also reseed the GPU's, under a model in the same process.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed(index, epoch, "transform"))
            clip, label = self.transform(frames, label)  # (3, N, h, w)
        return Sample({t: clip[:, views[0]] for t, views in slots.items()}, label, index)

    def clips(self, reader: VideoReader) -> dict[int, Tensor]:
        """Make the evaluation clips `{T: (V, 3, T, h, w)}` of a video that is in no list.

        Raises:
            VideoError: if it can't be read.
        """
        record = VideoRecord(Path(reader.name), None, reader.name)
        crops, slots = self._crops(reader, record, 0, 0, None)
        return {t: select_views(crops, views) for t, views in slots.items()}

    def decode(self, record: VideoRecord) -> Crops | BadVideo:
        """Decode what evaluation is shown of a video, in the list or not; `Crops.clips` are then those of an item."""
        try:
            with self.open_record(record, decoder=self.decoder, limits=self.videos.limits) as reader:
                pixels, views = self._pixels(reader, record)
            return Crops(pixels.contiguous().numpy(), views)
        except (VideoError, OSError) as error:
            return BadVideo(-1, record.name, str(error))

    def choose(self, num_available: int) -> dict[int, list[list[int]]]:
        """Which of a video's frames make its evaluation clips `{T: V views of T frame numbers}`."""
        return {t: self._pick(num_available, t, 0, 0) for t in self.frame_counts}

    def _crops(
        self,
        reader: VideoReader,
        record: VideoRecord,
        index: int,
        epoch: int,
        frame_counts: Sequence[int] | None,
    ) -> tuple[Tensor, dict[int, list[list[int]]]]:
        """Evaluation's crops `(num_crops, 3, N, h, w)` of all frames that any clip needs, and where each clip's are.

        Frames are made small as they are decoded: those of a long video of 4K don't fit into memory together.
        """
        transform = self.transform
        if not isinstance(transform, EvalTransform):
            frames, slots = self._decode(reader, record, index, epoch, frame_counts)
            return transform(frames), slots
        pixels, slots = self._pixels(reader, record, frame_counts)
        return transform.normalise(pixels.transpose(0, 1)), slots

    def _pixels(
        self, reader: VideoReader, record: VideoRecord, frame_counts: Sequence[int] | None = None
    ) -> tuple[Tensor, dict[int, list[list[int]]]]:
        """Those crops before they are normalised, uint8 `(N, num_crops, 3, h, w)`, and where each clip's are."""
        transform = self.transform
        assert isinstance(transform, EvalTransform)
        return self._decode(
            reader, record, 0, 0, frame_counts, each=lambda few: transform.crops(few).transpose(0, 1)
        )

    def _decode(
        self,
        reader: VideoReader,
        record: VideoRecord,
        index: int,
        epoch: int,
        frame_counts: Sequence[int] | None,
        each: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[int, list[list[int]]]]:
        """Return all frames that any clip needs, each once, and where among them each clip's views are."""
        picked: dict[int, list[list[int]]] = {}
        place: dict[int, int] = {}

        def choose(num_frames: int) -> list[int]:
            # Called again where the count turns out wrong: nothing is kept of the first answer.
            first, end = stretch_of(record, reader, num_frames)
            picked.clear()
            for t in frame_counts or self.frame_counts:
                views = self._pick(end - first, t, index, epoch)
                picked[t] = [[first + i for i in view] for view in views]
            union = sorted({i for views in picked.values() for view in views for i in view})
            place.clear()
            place.update({i: slot for slot, i in enumerate(union)})
            return union

        frames = reader.sample(choose, each=each)  # (N, 3, H, W), or what `each` makes of them
        return frames, {t: [[place[i] for i in view] for view in views] for t, views in picked.items()}

    def _pick(self, num_available: int, num_frames: int, index: int, epoch: int) -> list[list[int]]:
        generator = None
        if self.training:
            # Of its own for each count: clips at one T don't depend on which others are asked for.
            generator = torch.Generator().manual_seed(self._seed(index, epoch, num_frames))
        if self.sampling == "dense":
            stride = max(1, self.window // num_frames)
            return [
                dense_indices(
                    num_available,
                    num_frames,
                    stride=stride,
                    generator=generator,
                    view=view,
                    num_views=self.num_views,
                )
                for view in range(self.num_views)
            ]
        if self.training:
            return [train_indices(num_available, num_frames, generator)]
        return [eval_indices(num_available, num_frames, view=view) for view in range(self.num_views)]

    def _label_backwards(self, label: int, index: int, epoch: int) -> int | None:
        """The class of a training video's clips where they are to be played backwards."""
        if self.reversed_labels is None or self.reversed_labels[label] == NEVER_REVERSED:
            return None
        # Of its own: frames and augmentation are those of the same clip played forwards.
        generator = torch.Generator().manual_seed(self._seed(index, epoch, "reverse"))
        return self.reversed_labels[label] if float(torch.rand((), generator=generator)) < 0.5 else None

    def _seed(self, index: int, epoch: int, purpose: object) -> int:
        # A hash, because generators with neighbouring seeds start alike; Python's own differs between processes.
        text = f"{self.seed} {epoch} {index} {purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _check_reversed_labels(reversed_labels: Sequence[int], num_classes: int, training: bool) -> None:
    if not training:
        raise ValueError(
            "reversed_labels is given in evaluation; expected None: clips are played as they are."
        )
    if len(reversed_labels) != num_classes or not all(
        NEVER_REVERSED <= label < num_classes for label in reversed_labels
    ):
        raise ValueError(
            f"reversed_labels is {list(reversed_labels)}; expected a class index or {NEVER_REVERSED} for each of "
            f"{num_classes} classes. Use reverse_directions(videos.classes)."
        )


def select_views(crops: Tensor, views: Sequence[Sequence[int]]) -> Tensor:
    """Clips `(V, 3, T, h, w)` of the crops `(num_crops, 3, N, h, w)` of N frames; a view is T numbers below N."""
    stacked = torch.stack([crops[:, :, list(view)] for view in views])  # (num_views, num_crops, 3, T, h, w)
    return stacked.flatten(0, 1)  # (V, 3, T, h, w)


def stretch_of(record: VideoRecord, reader: VideoReader, num_frames: int) -> tuple[int, int]:
    """Return the first frame of the record's stretch and the one after its last, of a video of `num_frames`.

    Raises:
        VideoError: if the stretch starts after the video's end, or ends before its first frame.
    """
    if record.start_seconds is None and record.end_seconds is None:
        return 0, num_frames
    timestamps = reader.timestamps[:num_frames]
    start = record.start_seconds or 0.0
    if start >= timestamps[-1] + 1 / reader.fps:
        raise VideoError(
            f"video {reader.name}: has {timestamps[-1] + 1 / reader.fps:.3f} s, but the list's stretch starts at "
            f"{start:.3f} s. Correct start_seconds in the list."
        )
    if record.end_seconds is not None and record.end_seconds <= timestamps[0] - 1 / reader.fps:
        raise VideoError(
            f"video {reader.name}: its first frame is at {timestamps[0]:.3f} s, but the list's stretch ends at "
            f"{record.end_seconds:.3f} s. Correct end_seconds in the list: it counts from the file's start."
        )
    first = bisect_left(timestamps, start)
    end = num_frames if record.end_seconds is None else bisect_left(timestamps, record.end_seconds)
    if first < end:
        return first, end
    shown = max(0, bisect_right(timestamps, start) - 1)  # shorter than a frame: the one shown at its start
    return shown, shown + 1


@dataclass(slots=True)
class Batch:
    """Clips of B videos.

    Attributes:
        clips: for each T float `(B, 3, T, H, W)` in training, `(B, V, 3, T, H, W)` in evaluation; empty when B = 0.
        labels: class indices, int64 `(B,)`, -1 when unknown.
        indices: the videos' indices in their list, int64 `(B,)`.
        bad: videos that could not be read. They are not among the B.
    """

    clips: dict[int, Tensor]
    labels: Tensor
    indices: Tensor
    bad: list[BadVideo] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Batch":
        """Copy to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; a DataLoader with `pin_memory=True` calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, apply: Callable[[Tensor], Tensor]) -> "Batch":
        clips = {t: apply(clip) for t, clip in self.clips.items()}
        return Batch(clips, apply(self.labels), apply(self.indices), self.bad)


def collate(samples: Sequence[Sample | BadVideo]) -> Batch:
    """Make a batch of samples; videos that could not be read stay listed in `Batch.bad`.

    Raises:
        ValueError: if samples have different frame counts, or clips of different shapes.
    """
    good = [sample for sample in samples if isinstance(sample, Sample)]
    counts = list(good[0].clips) if good else []
    clips = {}
    for sample in good:
        if list(sample.clips) != counts:
            raise ValueError(
                f"samples have clips of {counts} and of {list(sample.clips)} frames; expected the same counts. "
                "Make a batch from one ClipDataset."
            )
    for t in counts:
        shapes = {tuple(sample.clips[t].shape) for sample in good}
        if len(shapes) > 1:
            raise ValueError(
                f"clips of {t} frames have shapes {', '.join(map(str, sorted(shapes)))}; expected one shape. "
                "Use a transform that gives every video the same size."
            )
        clips[t] = torch.stack([sample.clips[t] for sample in good])
    return Batch(
        clips,
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        torch.tensor([sample.index for sample in good], dtype=torch.int64),
        [sample for sample in samples if isinstance(sample, BadVideo)],
    )
