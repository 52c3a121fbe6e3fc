import itertools
import json
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from frameflex.data.directions import NEVER_FLIPPED
from frameflex.data.transforms import EvalTransform, Preprocessing, TrainTransform

RAW = Preprocessing(short_side=32, crop_size=24, mean=(0, 0, 0), std=(1, 1, 1))


def noise(num_frames: int = 3, height: int = 40, width: int = 56) -> Tensor:
    source = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=source)


def ramp(num_frames: int = 2, height: int = 40, width: int = 40) -> Tensor:
    """Frames whose red is the column and whose green is the row, so that a crop's place can be read off."""
    frames = torch.zeros(num_frames, 3, height, width, dtype=torch.uint8)
    frames[:, 0] = torch.arange(width, dtype=torch.uint8)
    frames[:, 1] = torch.arange(height, dtype=torch.uint8)[:, None]
    return frames


def seeded(transform: TrainTransform, frames: Tensor, label: int = 0, seed: int = 0) -> tuple[Tensor, int]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(frames, label)


# Preprocessing


def test_preprocessing_survives_json():
    changed = Preprocessing(short_side=64, crop_size=56, mean=(0.5, 0.4, 0.3), interpolation="bicubic")
    assert Preprocessing.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    assert Preprocessing.from_dict({}) == Preprocessing()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"short_side": 0}, "short_side is 0; expected"),
        ({"crop_size": [96, 128, 3]}, "crop_size is .*expected whole pixels"),
        ({"crop_size": [96, 0]}, "crop_size is .*the side of a square, or height and width"),
        ({"short_side": 100, "crop_size": [96, 128]}, "larger than short_side 100"),
        ({"fit": "squash"}, "fit is 'squash'; expected one of crop, whole, pad"),
        ({"crop_size": 1.5}, "crop_size is 1.5; expected"),
        ({"crop_size": True}, "crop_size is True; expected"),
        ({"short_side": 100, "crop_size": 112}, "crop_size 112 is larger than short_side 100"),
        ({"mean": [0.5]}, "mean is .*expected three numbers"),
        ({"mean": "abc"}, "mean is 'abc'; expected three numbers"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean is .*expected finite"),
        ({"std": [0.5, 0, 0.5]}, "std is .*expected numbers above 0"),
        ({"interpolation": "lanczos"}, "'lanczos'; expected one of bilinear, bicubic, nearest"),
        ({"antialias": "yes"}, "antialias is 'yes'; expected true or false"),
        ({"colour": 1}, "unknown colour; expected only short_side"),
        ([1], "expected a mapping"),
    ],
)
def test_wrong_preprocessing_is_refused_with_what_was_expected(values, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict(values)


# Evaluation


def test_eval_normalises_as_the_formula_says():
    preprocessing = Preprocessing(short_side=40, crop_size=40)
    frames = noise(height=40, width=40)
    clip = EvalTransform(preprocessing)(frames)
    assert clip.shape == (1, 3, 3, 40, 40)
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    for n, c in itertools.product(range(3), range(3)):
        expected = (frames[n, c].double() / 255 - preprocessing.mean[c]) / preprocessing.std[c]
        torch.testing.assert_close(clip[0, c, n].double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("antialias", [True, False])
def test_eval_resizes_the_shorter_side_and_crops_the_centre(interpolation, antialias):
    preprocessing = Preprocessing(32, 24, (0, 0, 0), (1, 1, 1), interpolation, antialias)
    frames = noise(height=64, width=100) // 2 + 64  # no overshoot of bicubic to be clipped
    smooth = {} if interpolation == "nearest" else {"antialias": antialias, "align_corners": False}
    resized = interpolate(frames.float(), (32, 50), mode=interpolation, **smooth)
    expected = resized[..., 4:28, 13:37].clamp(0, 255)
    clip = EvalTransform(preprocessing)(frames)[0].transpose(0, 1) * 255
    assert (clip - expected).abs().max() <= 1.3  # uint8 is rounded after each of the two passes


WIDE = Preprocessing(crop_size=(24, 32), mean=(0, 0, 0), std=(1, 1, 1), fit="whole")
PADDED = replace(WIDE, fit="pad", mean=(0.2, 0.4, 0.6))


def painted(height: int, width: int) -> Tensor:
    """Black frames whose outermost eighths, left, right, top and bottom, are painted: they show what is cut off."""
    frames = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    frames[:, 0, :, : width // 8] = 200
    frames[:, 0, :, -(width // 8) :] = 250
    frames[:, 1, : height // 8] = 200
    frames[:, 1, -(height // 8) :] = 250
    return frames


def edges(clip: Tensor) -> list[int]:
    """Left, right, top and bottom in the middle of a clip `(3, N, h, w)` of painted frames, 0 to 255."""
    red, green = (clip[:2, 0] * 255).round().int()
    rows, columns = red.shape
    row, column = rows // 2, columns // 2
    return [int(value) for value in (red[row, 0], red[row, -1], green[0, column], green[-1, column])]


def test_a_crop_size_may_have_a_height_and_a_width_and_an_equal_pair_is_a_square():
    assert Preprocessing.from_dict({"crop_size": [96, 128]}).size == (96, 128)
    assert Preprocessing(crop_size=(224, 224)) == Preprocessing()
    assert Preprocessing.from_dict(json.loads(json.dumps(PADDED.to_dict()))) == PADDED


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (36, 64), (120, 40), (24, 32)])
def test_whole_frames_keep_all_four_edges_of_upright_and_flat_videos(height, width):
    clip = EvalTransform(WIDE)(painted(height, width))
    assert clip.shape == (1, 3, 2, 24, 32)
    assert edges(clip[0]) == [200, 250, 200, 250]


@pytest.mark.parametrize(
    ("height", "width", "inside"),
    [(48, 64, (24, 32)), (64, 48, (24, 18)), (36, 72, (16, 32)), (24, 24, (24, 24))],
)
def test_padded_frames_keep_their_aspect_in_a_border_that_is_zero_for_the_network(height, width, inside):
    clip = EvalTransform(PADDED)(painted(height, width))[0]
    assert clip.shape == (3, 2, 24, 32)
    rows, columns = inside
    top, left = (24 - rows) // 2, (32 - columns) // 2
    seen = torch.tensor(PADDED.mean).view(3, 1, 1, 1) + clip
    assert edges(seen[..., top : top + rows, left : left + columns]) == [200, 250, 200, 250]
    border = torch.ones(24, 32, dtype=torch.bool)
    border[top : top + rows, left : left + columns] = False
    assert not border.any() or clip[..., border].abs().max() < 1e-6


def test_a_crop_with_a_height_and_a_width_is_the_middle():
    pixels = replace(RAW, crop_size=(16, 28))
    for height, width in ((32, 40), (40, 32)):
        clip = EvalTransform(pixels)(ramp(1, height, width))[0, :, 0] * 255
        assert clip.shape == (3, 16, 28)
        top, left = (height - 16) // 2, (width - 28) // 2
        torch.testing.assert_close(clip[:2, 0, 0], torch.tensor([float(left), float(top)]))


@pytest.mark.parametrize("pixels", [WIDE, PADDED])
def test_three_crops_of_a_whole_frame_are_refused_with_the_views_to_take(pixels):
    with pytest.raises(ValueError, match=r"3 crops of a model that sees the whole frame .*expected 1.*1x1"):
        EvalTransform(pixels, num_crops=3)


@pytest.mark.parametrize(("height", "width"), [(100, 200), (200, 100)])
def test_training_on_whole_frames_cuts_at_most_15_percent_of_each_side(height, width):
    frames = ramp(1, height, width)
    transform = TrainTransform(replace(WIDE, interpolation="nearest"), flip=False)
    spans = []
    for seed in range(100):
        clip, _ = seeded(transform, frames, seed=seed)
        assert clip.shape == (3, 1, 24, 32)
        red, green = (clip[:2, 0] * 255).round()
        spans.append([float(red.max() - red.min()) / width, float(green.max() - green.min()) / height])
    # The first and last of the sampled columns are up to 1/32, of the rows 1/24, inside the window.
    assert 0.85 * (1 - 1 / 24) - 0.02 < min(map(min, spans)) < 0.86
    assert max(map(max, spans)) > 0.93
    assert len({tuple(span) for span in spans}) > 50


@pytest.mark.parametrize(("height", "width"), [(40, 72), (72, 40)])
@pytest.mark.parametrize("pixels", [WIDE, PADDED, replace(RAW, crop_size=(16, 28))])
def test_training_and_evaluation_give_one_shape(height, width, pixels):
    frames = noise(height=height, width=width)
    assert seeded(TrainTransform(pixels), frames)[0].shape == EvalTransform(pixels)(frames)[0].shape


def test_eval_does_not_depend_on_the_frames_being_contiguous():
    frames = noise()
    channels_last = frames.contiguous(memory_format=torch.channels_last)
    for num_crops in (1, 3):
        transform = EvalTransform(RAW, num_crops=num_crops)
        torch.testing.assert_close(transform(frames), transform(channels_last), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(("height", "width"), [(32, 72), (72, 32)])
def test_three_crops_reach_both_ends_of_the_longer_side_at_full_resolution(height, width):
    crops = EvalTransform(RAW, num_crops=3)(ramp(2, height, width))
    assert crops.shape == (3, 3, 2, 32, 32)
    along, across = (0, 1) if width > height else (1, 0)
    pixels = (crops[:, :, 0] * 255).round().int()
    assert [int(crop[along].min()) for crop in pixels] == [0, 20, 40]
    assert [int(crop[along].max()) for crop in pixels] == [31, 51, 71]
    assert all((crop[across].min(), crop[across].max()) == (0, 31) for crop in pixels)


def test_three_crops_of_a_square_video_are_the_same():
    crops = EvalTransform(RAW, num_crops=3)(ramp())
    assert torch.equal(crops[0], crops[1])
    assert torch.equal(crops[0], crops[2])


def test_extreme_shapes_and_tiny_videos_work():
    for height, width in [(1, 1), (1, 50), (50, 1), (33, 32), (31, 200)]:
        assert EvalTransform(RAW)(noise(1, height, width)).shape == (1, 3, 1, 24, 24)
        assert EvalTransform(RAW, num_crops=3)(noise(1, height, width)).shape == (3, 3, 1, 32, 32)
        assert seeded(TrainTransform(RAW), noise(1, height, width))[0].shape == (3, 1, 24, 24)


def test_wrong_frames_are_refused():
    for frames in (noise().float(), noise()[:, :2], noise()[0], noise()[:0]):
        with pytest.raises(ValueError, match=r"expected RGB uint8 \(N, 3, H, W\)"):
            EvalTransform(RAW)(frames)
        with pytest.raises(ValueError, match=r"expected RGB uint8 \(N, 3, H, W\)"):
            TrainTransform(RAW)(frames, 0)
    with pytest.raises(ValueError, match="num_crops is 2; expected 1"):
        EvalTransform(RAW, num_crops=2)


# Training


@pytest.mark.parametrize("options", [{}, {"color_jitter": 0.4}, {"rand_augment": True}, {"rand_augment": 15}])
def test_all_frames_of_a_clip_get_the_same_augmentation(options):
    frames = noise(1).expand(5, -1, -1, -1)
    for seed in range(12):
        clip, _ = seeded(TrainTransform(RAW, **options), frames, seed=seed)
        assert clip.shape == (3, 5, 24, 24)
        assert clip.dtype == torch.float32
        assert torch.equal(clip, clip[:, :1].expand_as(clip))


@pytest.mark.parametrize("options", [{}, {"color_jitter": 0.4, "rand_augment": True}])
def test_a_training_clip_is_a_function_of_the_global_seed(options):
    transform = TrainTransform(RAW, **options)
    clips = [seeded(transform, noise(), seed=seed)[0] for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(clips[0], clips[1])
    assert not all(torch.equal(clips[0], clip) for clip in clips[2:])


def test_crops_have_the_published_sizes_and_places():
    # Read off each crop from a ramp: 40 wide and high, sides 40, 35, 30, 26, next sizes paired, 13 places.
    preprocessing = Preprocessing(64, 64, (0, 0, 0), (1, 1, 1), "nearest")
    transform = TrainTransform(preprocessing, flip=False)
    seen = set()
    for seed in range(600):
        clip, _ = seeded(transform, ramp(1), seed=seed)
        red, green = (clip[:2, 0] * 255).round().int()
        top, bottom, left, right = int(green.min()), int(green.max()), int(red.min()), int(red.max())
        seen.add((bottom - top + 1, right - left + 1, top, left))
    sides = [40, 35, 30, 26]
    expected = set()
    for i, j in itertools.product(range(4), range(4)):
        if abs(i - j) <= 1:
            h, w = sides[i], sides[j]
            step_y, step_x = (40 - h) / 4, (40 - w) / 4
            for y, x in [*itertools.product((0, 2, 4), (0, 2, 4)), *itertools.product((1, 3), (1, 3))]:
                expected.add((h, w, int(step_y * y), int(step_x * x)))
    assert seen <= expected
    assert len(seen) > 0.9 * len(expected)


def test_every_second_clip_is_flipped_and_its_label_exchanged():
    transform = TrainTransform(RAW, multi_scale_crop=(1,), flip_label=[1, 0, 2, NEVER_FLIPPED])
    for label, mirrored in [(0, 1), (1, 0), (2, 2), (3, None), (-1, -1)]:
        num_flipped = 0
        for seed in range(100):
            clip, new_label = seeded(transform, ramp(), label, seed)
            flipped = bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1])
            assert new_label == (mirrored if flipped else label)
            num_flipped += flipped
        assert num_flipped == 0 if mirrored is None else 30 < num_flipped < 70


def test_flips_can_be_switched_off_and_keep_labels_without_a_list():
    for seed in range(20):
        clip, label = seeded(TrainTransform(RAW, flip=False, flip_label=[1, 0]), ramp(), 0, seed)
        assert label == 0
        assert clip[0, 0, 0, 0] < clip[0, 0, 0, -1]
    assert {seeded(TrainTransform(RAW), ramp(), 7, seed)[1] for seed in range(20)} == {7}


def test_transforms_travel_to_worker_processes():
    transform = TrainTransform(RAW, color_jitter=0.4, rand_augment=True, flip_label=[1, 0])
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(seeded(transform, noise())[0], seeded(copy, noise())[0])
    assert torch.equal(pickle.loads(pickle.dumps(EvalTransform(RAW)))(noise()), EvalTransform(RAW)(noise()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_scale_crop": ()}, "expected scales above 0"),
        ({"multi_scale_crop": (1.2,)}, "expected scales above 0"),
        ({"flip_label": [1, 2]}, "expected a class index or -1 for each class"),
        ({"flip_label": [-2, 0]}, "expected a class index or -1 for each class"),
        ({"color_jitter": -0.1}, "color_jitter is -0.1; expected 0"),
        ({"rand_augment": 31}, "magnitude from 0 to 30"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(RAW, **options)
    with pytest.raises(ValueError, match="label is 5; flip_label has 2 classes"):
        TrainTransform(RAW, flip_label=[1, 0])(noise(), 5)
