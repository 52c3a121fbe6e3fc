"""Networks that see the whole frame, on every road: training, evaluation, prediction, windows, streams, export."""

import numpy as np
import pytest
import torch
from helpers import tiny_recipe, write_video

import frameflex
from frameflex.checkpoint import load_checkpoint, save_checkpoint
from frameflex.cli import main
from frameflex.deploy.live.streaming import StreamingRecognizer
from frameflex.engine.recipe_files import parse_recipe

SIZE = (24, 40)


def edge_bar(num_frames: int, height: int, width: int, *, left: bool) -> np.ndarray:
    """A bright bar at the left or the right edge, which a centre crop of a flat video cuts off."""
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    frames[:, :, slice(0, width // 10) if left else slice(-(width // 10), None)] = 240
    return frames


@pytest.fixture(scope="module", params=["whole", "pad"])
def trained(request, tmp_path_factory):
    """Upright and flat videos in one folder, and a causal network of their whole frames."""
    root = tmp_path_factory.mktemp(request.param)
    for split in ("train", "val"):
        for name in ("left", "right"):
            for i, (height, width) in enumerate([(40, 72), (72, 40), (48, 64)]):
                frames = edge_bar(8, height, width, left=name == "left")
                write_video(root / "data" / split / name / f"{i}.mp4", frames)
    recipe = tiny_recipe(root / "data", root / "run", epochs=1)
    recipe.save(root / "recipe.yaml")
    options = ["--clip.crop_size", "24,40", "--clip.fit", request.param, "--model.shift", "causal"]
    assert main(["train", str(root / "recipe.yaml"), *options]) == 0
    return root / "data", root / "run/best.safetensors"


def test_the_checkpoint_carries_how_frames_come_to_their_size(trained):
    pixels = load_checkpoint(trained[1]).preprocessing
    assert pixels.size == SIZE
    assert pixels.fit in ("whole", "pad")
    saved, _ = parse_recipe([str(trained[1].parent / "recipe.yaml")])
    assert (saved.clip.crop_size, saved.clip.fit) == (SIZE, pixels.fit)


def test_evaluate_predict_and_calibrate_take_upright_and_flat_videos(trained, tmp_path, capsys):
    data, path = trained
    videos = sorted(map(str, data.rglob("*.mp4")))
    assert (
        main(
            [
                "evaluate",
                str(path),
                str(data),
                "--frames",
                "2",
                "--workers",
                "0",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert main(["predict", str(path), *videos, "--frames", "2", "--workers", "0"]) == 0
    assert main(["predict", str(path), videos[0], "--window", "0.3"]) == 0
    calibrated = [
        "calibrate",
        str(path),
        str(data),
        "--frames",
        "3",
        "--output",
        str(tmp_path / "c.safetensors"),
    ]
    assert main([*calibrated, "--workers", "0", "--allow-worse"]) == 0, capsys.readouterr().err
    assert load_checkpoint(tmp_path / "c.safetensors").preprocessing.size == SIZE


def test_three_crops_are_one_clear_error(trained, tmp_path, capsys):
    data, path = trained
    capsys.readouterr()
    assert (
        main(
            [
                "evaluate",
                str(path),
                str(data),
                "--frames",
                "2",
                "--workers",
                "0",
                "--views",
                "1x3",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    errors = capsys.readouterr().err.strip()
    assert "3 crops of a model that sees the whole frame" in errors


def test_a_stream_sees_the_whole_frame_as_a_clip_does(trained):
    checkpoint = load_checkpoint(trained[1])
    recognizer = frameflex.load(trained[1])
    assert recognizer.checkpoint.preprocessing == checkpoint.preprocessing
    stream = StreamingRecognizer(checkpoint)
    states = stream.init_state()
    assert states
    for frame in torch.from_numpy(edge_bar(3, 40, 72, left=True)):
        stream.push(frame.numpy())


def test_an_export_takes_frames_of_that_size(trained, tmp_path):
    from frameflex.export import export

    checkpoint = load_checkpoint(trained[1])
    manifest = export(checkpoint, tmp_path / "graph", format="torchscript", frame_counts=[2])
    assert manifest["input"]["shape"][-2:] == list(SIZE)
    again = save_checkpoint(tmp_path / "again.safetensors", checkpoint)
    assert load_checkpoint(tmp_path / "again.safetensors").preprocessing == checkpoint.preprocessing, again
