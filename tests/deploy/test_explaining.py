"""`Recognizer.explain`: maps, importance and the video backwards, compared with what they mean."""

import pytest
import torch
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.explaining import activation_maps, without_frame
from frameflex.deploy.inputs import open_input
from frameflex.deploy.recognizer import Recognizer
from frameflex.engine.training import train
from frameflex.export import export
from frameflex.models import create_model, make_frame_flexible
from frameflex.models.temporal_shift import at_num_frames
from frameflex.video import open_video

CLASSES = ["going left", "going right"]


def recognizer(backbone="test_resnet", **options):
    torch.manual_seed(0)
    model = create_model(backbone, num_classes=2, pretrained=False, **options).eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)
    return Recognizer(
        Checkpoint(model, CLASSES, Preprocessing(short_side=64, crop_size=64), (4,)), device="cpu"
    )


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    return write_video(
        tmp_path_factory.mktemp("clips") / "clip.mp4", moving_bar(20, rightwards=True, size=64)
    )


def test_the_maps_of_a_resnet_are_its_classifiers_weights_times_its_features(clip_path):
    one = recognizer()
    why = one.explain(clip_path, label="going right")
    rule = one.clip_rule()
    with torch.no_grad():
        with open_input(clip_path) as reader:
            clip = rule.clips(reader)[4][0]  # (3, T, h, w)
        backbone = at_num_frames(one.model.backbone, 4)
        features = backbone.forward_features(clip.transpose(0, 1))  # (T, C, h', w')
        expected = torch.einsum("c,tchw->thw", one.model.head.weight[1], features).relu()
    small = torch.nn.functional.interpolate(
        (expected / expected.amax())[:, None], (64, 64), mode="bilinear", align_corners=False
    )[:, 0]
    assert expected.amax() > 0
    torch.testing.assert_close(why.maps, small, rtol=1e-4, atol=1e-4)


def test_an_explanation_says_what_the_recognizer_says(clip_path):
    one = recognizer()
    why = one.explain(clip_path, num_frames=5)
    for mine, theirs in zip(why.predictions, one(clip_path, num_frames=5), strict=True):
        assert (mine.label, mine.probability) == (theirs.label, pytest.approx(theirs.probability, abs=1e-6))
    assert why.label == why.predictions[0].label
    assert why.frame_numbers == [2, 6, 10, 14, 18]
    assert why.frames.shape == (5, 3, 64, 64)
    assert why.frames.dtype == torch.uint8
    assert why.maps.shape == (5, 64, 64)
    assert why.maps.amax() <= 1
    assert why.maps.amin() >= 0


def test_backwards_is_the_answer_of_the_frames_in_the_other_order(clip_path):
    one = recognizer()
    with open_video(clip_path) as reader:
        frames = reader.frames([17, 12, 7, 2])
    why = one.explain(clip_path, num_frames=4)
    expected = one(frames, num_frames=4)
    for mine, theirs in zip(why.backwards, expected, strict=True):
        assert (mine.label, mine.probability) == (theirs.label, pytest.approx(theirs.probability, abs=1e-6))
    assert why.backwards[0].probability != pytest.approx(why.predictions[0].probability, abs=1e-4)


def test_the_importance_of_a_frame_is_what_the_class_loses_without_it(clip_path):
    one = recognizer()
    why = one.explain(clip_path, num_frames=4, label="going right")
    numbers = [2, 7, 12, 17]
    probability = {p.label: p.probability for p in why.predictions}["going right"]
    with open_video(clip_path) as reader:
        for i in range(4):
            left = list(numbers)
            left[i] = numbers[i - 1] if i else numbers[1]
            answers = {p.label: p.probability for p in one(reader.frames(left), num_frames=4)}
            assert float(why.importance[i]) == pytest.approx(probability - answers["going right"], abs=1e-5)


def test_a_clip_of_one_frame_loses_it_to_the_mean_colour():
    clip = torch.randn(3, 1, 4, 4)
    assert without_frame(clip, 0).abs().sum() == 0
    clip = torch.arange(3.0).view(1, 3, 1, 1).expand(3, 3, 2, 2)
    assert [without_frame(clip, i)[0, :, 0, 0].tolist() for i in range(3)] == [
        [1, 1, 2],
        [0, 0, 2],
        [0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("test_efficientnet", {}),
        ("test_convnext", {}),
        ("test_byobnet", {}),
        ("test_resnet", {"temporal_pool": True}),
    ],
)
def test_every_family_has_maps(clip_path, backbone, options):
    one = recognizer(backbone, **options)
    assert one.explain(clip_path, num_frames=5).maps.shape == (5, 64, 64)
    assert all(parameter.grad is None for parameter in one.model.parameters())


def test_a_frame_flexible_network_has_maps_at_any_number_of_frames():
    one = recognizer()
    make_frame_flexible(one.model, frame_counts=(2, 4))
    for count in (1, 2, 3, 4):
        assert activation_maps(one, torch.randn(3, count, 64, 64), 1).shape == (count, 64, 64)


def test_a_network_that_learned_directions_says_the_other_one_backwards(tmp_path):
    [path] = train(
        tiny_recipe(
            bar_folder(tmp_path / "bars"), tmp_path / "run", counts=(4,), epochs=16, optimizer="adamw"
        )
    )
    one = Recognizer.from_checkpoint(path, device="cpu")
    video = write_video(tmp_path / "new.mp4", moving_bar(20, rightwards=True, seed=999))
    why = one.explain(video)
    assert (why.label, why.backwards[0].label) == ("going right", "going left")


def test_what_can_not_be_explained_is_said(clip_path, tmp_path):
    one = recognizer()
    with pytest.raises(ValueError, match="'waving', which is no class"):
        one.explain(clip_path, label="waving")
    save_checkpoint(tmp_path / "model.safetensors", one.checkpoint)
    export(tmp_path / "model.safetensors", tmp_path / "exported", format="torchscript")
    with pytest.raises(ValueError, match="an export can't be explained"):
        Recognizer.from_checkpoint(tmp_path / "exported").explain(clip_path)
