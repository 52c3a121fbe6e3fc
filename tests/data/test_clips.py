"""From videos to clips and batches."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from frameflex.data import records
from frameflex.data.clips import Batch, ClipDataset, collate
from frameflex.data.directions import exchange_directions
from frameflex.data.records import BadVideo, VideoList, VideoRecord
from frameflex.data.sampling import eval_indices
from frameflex.data.transforms import EvalTransform, Preprocessing, TrainTransform
from frameflex.video import Limits, VideoError, open_video
from frameflex.video import reader as video

RAW = Preprocessing(short_side=32, crop_size=32, mean=(0, 0, 0), std=(1, 1, 1))


FPS = 10


def write_video(path: Path, frames: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbered(path: Path, num_frames: int = 20, height: int = 32, width: int = 48) -> Path:
    """A video whose frame k is grey of brightness 4 k + 8."""
    grey = (4 * np.arange(num_frames) + 8).astype(np.uint8)
    return write_video(path, np.tile(grey[:, None, None, None], (1, height, width, 3)))


def shown(clip: torch.Tensor) -> list[int]:
    """Read the frame numbers off a clip `(3, T, H, W)` with values from 0 to 1."""
    return ((clip.mean(dim=(0, 2, 3)) * 255 - 8) / 4).round().int().tolist()


def moving(path: Path, *, to_the_right: bool) -> Path:
    """A white square that crosses a black picture."""
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    for k in range(16):
        left = 2 * k if to_the_right else 30 - 2 * k
        frames[k, 10:20, max(0, left - 4) : left + 4] = 255
    return write_video(path, frames)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> VideoList:
    """Videos of 20, 5 and 33 frames."""
    root = tmp_path_factory.mktemp("three")
    paths = [numbered(root / f"{n}.mp4", n) for n in (20, 5, 33)]
    return VideoList(
        [VideoRecord(path, label, path.stem) for label, path in enumerate(paths)], ["a", "b", "c"]
    )


def evaluation(videos: VideoList, **options) -> ClipDataset:
    options = {"frame_counts": (8, 4), "transform": EvalTransform(RAW), "training": False, **options}
    return ClipDataset(videos, **options)


def training(videos: VideoList, **options) -> ClipDataset:
    options = {"frame_counts": (8, 4), "transform": TrainTransform(RAW), "training": True, **options}
    return ClipDataset(videos, **options)


def test_evaluation_clips_show_the_frames_of_the_protocol(three):
    dataset = evaluation(
        three, num_views=2, transform=EvalTransform(RAW, num_crops=3), frame_counts=(4, 8, 3)
    )
    for index, n in enumerate((20, 5, 33)):
        sample = dataset[index]
        assert sample.label == sample.index == index
        assert list(sample.clips) == [4, 8, 3]
        for t, clips in sample.clips.items():
            assert clips.shape == (6, 3, t, 32, 32)
            for view, clip in enumerate(clips):
                assert shown(clip) == eval_indices(n, t, view=view // 3)


def test_training_clips_draw_their_own_frames_for_each_count(three):
    dataset = training(three)
    shows = set()
    for epoch in range(10):
        sample = dataset[2, epoch]
        assert {t: clip.shape for t, clip in sample.clips.items()} == {8: (3, 8, 32, 32), 4: (3, 4, 32, 32)}
        eight, four = shown(sample.clips[8]), shown(sample.clips[4])
        # a frame belongs to the segment that its middle lies in
        assert all(abs(k + 0.5 - (i + 0.5) * 33 / 8) <= 33 / 16 + 1e-6 for i, k in enumerate(eight))
        assert all(abs(k + 0.5 - (i + 0.5) * 33 / 4) <= 33 / 8 + 1e-6 for i, k in enumerate(four))
        shows.add((*eight, *four))
    assert len(shows) == 10


def test_a_clip_does_not_depend_on_the_other_counts_frames(three):
    together, alone = training(three)[0, 3], training(three, frame_counts=(4,))[0, 3]
    assert shown(together.clips[4]) == shown(alone.clips[4])


def test_short_videos_fill_their_clips_in_order(three):
    for dataset in (evaluation(three, frame_counts=(16,)), training(three, frame_counts=(16,))):
        clip = dataset[1].clips[16]
        frames = shown(clip if dataset.training else clip[0])
        assert sorted(frames) == frames
        assert set(frames) == set(range(5))


def test_the_frames_of_all_clips_are_decoded_once(three, monkeypatch):
    asked = []
    opened = records.open_video

    def spy(*args, **options):
        reader = opened(*args, **options)
        decode = reader._read
        monkeypatch.setattr(reader, "_read", lambda indices: asked.append(list(indices)) or decode(indices))
        return reader

    monkeypatch.setattr(records, "open_video", spy)
    evaluation(three, frame_counts=(8, 4, 16), num_views=2)[2]
    expected = {i for t in (8, 4, 16) for view in (0, 1) for i in eval_indices(33, t, view=view)}
    assert asked == [sorted(expected)]


def test_a_count_that_turns_out_wrong_is_sampled_anew(three, monkeypatch):
    class Liar:
        """Promises 40 frames and has 20."""

        name, fps, num_frames = "liar", 10.0, 40

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def sample(self, choose: Callable, *, each: Callable):
            choose(40)
            grey = torch.tensor([4 * i + 8 for i in choose(20)], dtype=torch.uint8)
            return each(grey[:, None, None, None].expand(-1, 3, 32, 32))

    monkeypatch.setattr(records, "open_video", lambda *_, **__: Liar())
    assert shown(evaluation(three)[0].clips[8][0]) == eval_indices(20, 8)


def test_dense_sampling_spans_the_window_at_every_count(three):
    sample = evaluation(three, sampling="dense", window=16)[2]
    assert shown(sample.clips[8][0]) == list(range(9, 25, 2))
    assert shown(sample.clips[4][0]) == list(range(10, 26, 4))
    views = evaluation(three, sampling="dense", window=16, num_views=3)[2].clips[8]
    assert [shown(clip)[0] for clip in views] == [3, 9, 15]
    starts = {
        shown(training(three, sampling="dense", window=16)[2, epoch].clips[8])[0] for epoch in range(12)
    }
    assert len(starts) > 3


def test_stretches_keep_to_their_seconds(three):
    def frames_of(start: float | None, end: float | None, t: int) -> list[int]:
        record = VideoRecord(three[0].path, 0, "stretch", start, end)
        return shown(evaluation(VideoList([record], ["a"]), frame_counts=(t,))[0].clips[t][0])

    assert frames_of(0.5, 0.9, 4) == [5, 6, 7, 8]
    assert frames_of(None, 0.4, 4) == [0, 1, 2, 3]
    assert frames_of(1.6, None, 4) == [16, 17, 18, 19]
    assert frames_of(1.6, 99.0, 4) == [16, 17, 18, 19]
    assert frames_of(0.52, 0.55, 2) == [5, 5]
    assert frames_of(1.95, None, 1) == [19]
    with pytest.raises(VideoError, match=r"has 2.000 s, but the list's stretch starts at 2.500 s"):
        frames_of(2.5, None, 4)


def test_a_flip_exchanges_the_label_with_the_motion(tmp_path):
    names = ["Pushing something from left to right", "Pushing something from right to left"]
    paths = [moving(tmp_path / f"{i}.mp4", to_the_right=i == 0) for i in range(2)]
    videos = VideoList([VideoRecord(path, i, str(i)) for i, path in enumerate(paths)], names)
    transform = TrainTransform(RAW, multi_scale_crop=(1,), flip_label=exchange_directions(names))
    dataset = training(videos, transform=transform, frame_counts=(8,))
    outcomes = set()
    for index in range(2):
        for epoch in range(10):
            sample = dataset[index, epoch]
            columns = sample.clips[8].mean(dim=(0, 2))  # (T, W)
            centre = (columns * torch.arange(32)).sum(1) / columns.sum(1)
            assert sample.label == (0 if centre[-1] > centre[0] else 1)
            outcomes.add((index, sample.label))
    assert len(outcomes) == 4


def same(a: Batch, b: Batch) -> bool:
    return (
        a.clips.keys() == b.clips.keys()
        and all(torch.equal(a.clips[t], b.clips[t]) for t in a.clips)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        and a.bad == b.bad
    )


def test_clips_are_a_function_of_seed_epoch_and_index(three):
    transform = TrainTransform(RAW, color_jitter=0.4, rand_augment=True)
    dataset = training(three, transform=transform)
    keys = [(2, 1), (0, 0), (1, 1), (2, 0), (2, 1)]
    here = list(DataLoader(dataset, batch_size=2, sampler=keys, collate_fn=collate))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = [collate([dataset[key] for key in keys[i : i + 2]]) for i in (0, 2, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    workers = list(
        DataLoader(
            dataset, batch_size=2, sampler=keys, collate_fn=collate, num_workers=2, persistent_workers=True
        )
    )
    assert all(same(a, b) for a, b in zip(here, again, strict=True))
    assert all(same(a, b) for a, b in zip(here, workers, strict=True))
    first = collate([dataset[2, 1]])
    assert same(first, collate([dataset[-1, 1]]))
    assert not same(first, collate([dataset[2, 0]]))
    assert not same(first, collate([training(three, transform=transform, seed=1)[2, 1]]))


@pytest.mark.parametrize("num_crops", [1, 3])
def test_frames_that_do_not_fit_into_memory_together_are_made_small_one_after_another(
    three, num_crops, monkeypatch
):
    record = three[2]
    transform = EvalTransform(Preprocessing(short_side=24, crop_size=16), num_crops=num_crops)
    dataset = ClipDataset(three, frame_counts=(4, 16), transform=transform, training=False, num_views=2)
    whole = dataset[2].clips
    monkeypatch.setattr(video, "CHUNK_BYTES", 3 * 32 * 48 * 2)  # two frames
    limits = Limits(max_bytes=3 * 32 * 48 * 3)
    with open_video(record.path, limits=limits) as reader:
        assert reader.num_frames == 33
        with pytest.raises(VideoError, match="at once"):
            reader.frames(range(16))
        few = dataset.clips(reader)
    assert few.keys() == whole.keys()
    assert all(torch.equal(few[count], whole[count]) for count in whole)


def test_frames_made_smaller_come_in_the_order_that_was_asked_for(three, monkeypatch):
    monkeypatch.setattr(video, "CHUNK_BYTES", 1)  # one at a time
    with open_video(three[0].path) as reader:
        wanted = [7, 3, 3, 19, 0]
        seen = []

        def each(frames):
            seen.append(len(frames))
            return frames[..., ::2, ::2]

        assert torch.equal(reader.frames(wanted, each=each), reader.frames(wanted)[..., ::2, ::2])
        assert seen == [1, 1, 1, 1]


def test_bad_videos_are_named_and_never_replaced(three, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    records = [
        *three,
        VideoRecord(tmp_path / "broken.mp4", 1, "broken"),
        VideoRecord(tmp_path / "gone.mp4", 1, "gone"),
    ]
    videos = VideoList(records, three.classes)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        evaluation(videos)[3]
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        evaluation(videos)[4]
    dataset = evaluation(videos, on_bad_video="skip")
    bad = dataset[3]
    assert isinstance(bad, BadVideo)
    assert (bad.index, bad.name) == (3, "broken")
    assert "broken.mp4" in bad.reason
    batch = collate([dataset[i] for i in (0, 3, 2, 4)])
    assert batch.indices.tolist() == [0, 2]
    assert batch.clips[8].shape == (2, 1, 3, 8, 32, 32)
    assert [video.name for video in batch.bad] == ["broken", "gone"]
    nothing = collate([dataset[3], dataset[4]])
    assert len(nothing) == 0
    assert nothing.clips == {}
    assert nothing.labels.dtype == torch.int64
    assert [video.index for video in nothing.bad] == [3, 4]


def test_a_loader_reports_bad_videos_from_its_workers(three, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = VideoList([*three, VideoRecord(tmp_path / "broken.mp4", 1, "broken")], three.classes)
    loader = DataLoader(
        evaluation(videos, on_bad_video="skip"), batch_size=2, num_workers=2, collate_fn=collate
    )
    batches = list(loader)
    assert [len(batch) for batch in batches] == [2, 1]
    assert [video.name for batch in batches for video in batch.bad] == ["broken"]
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        list(DataLoader(evaluation(videos), batch_size=2, num_workers=1, collate_fn=collate))


def test_batches_move_between_devices(three):
    batch = collate([evaluation(three)[i] for i in range(3)])
    moved = batch.to("meta")
    assert {clip.device.type for clip in moved.clips.values()} == {moved.labels.device.type} == {"meta"}
    assert batch.labels.device.type == "cpu"
    assert same(batch.to("cpu", non_blocking=True), batch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a CUDA device")
def test_a_loader_pins_batches(three):
    loader = DataLoader(evaluation(three), batch_size=2, collate_fn=collate, pin_memory=True)
    for batch in loader:
        assert batch.clips[8].is_pinned()
        assert batch.labels.is_pinned()
        assert batch.to("cuda", non_blocking=True).clips[8].is_cuda


def test_batches_of_unlike_samples_are_refused(three):
    with pytest.raises(ValueError, match=r"samples have clips of \[8, 4\] and of \[4\] frames"):
        collate([evaluation(three)[0], evaluation(three, frame_counts=(4,))[0]])
    other = evaluation(three, transform=EvalTransform(RAW, num_crops=3))
    with pytest.raises(ValueError, match="clips of 8 frames have shapes"):
        collate([evaluation(three)[0], other[0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_counts": ()}, "frame_counts is"),
        ({"frame_counts": (4, 4)}, "expected different counts"),
        ({"frame_counts": (0,)}, "counts of 1 or more"),
        ({"sampling": "random"}, "expected 'segments' or 'dense'"),
        ({"num_views": 3}, "expected 1 to 2 in evaluation"),
        ({"training": True, "num_views": 2}, "expected 1 to 1 in training"),
        ({"on_bad_video": "replace"}, "expected 'error' or 'skip'"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_wrong_options_are_refused(three, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation(three, **options)


def test_training_needs_labels(three):
    videos = VideoList([*three, VideoRecord(three[0].path, None, "unlabelled")], three.classes)
    with pytest.raises(ValueError, match="1 of 4 videos have no label"):
        training(videos)
    assert evaluation(videos)[3].label == -1
