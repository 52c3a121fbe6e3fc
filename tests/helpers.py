"""Small videos and recipes for tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from frameflex.engine.recipe import Clip, Data, Model, Objective, Recipe, Training


def write_video(path: Path, frames: np.ndarray, *, fps: int = 12) -> Path:
    """Write RGB uint8 frames ``(N, H, W, 3)`` as H.264 of high quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.time_base = Fraction(1, fps)
        for frame in frames:
            for packet in stream.encode(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            ):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def moving_bar(num_frames: int, *, rightwards: bool, size: int = 48, seed: int = 0) -> np.ndarray:
    """A bright bar that crosses a noisy picture: its direction is in the order of the frames alone."""
    rng = np.random.default_rng(seed)
    frames = np.broadcast_to(rng.integers(0, 90, (1, size, size, 3)), (num_frames, size, size, 3)).copy()
    for t in range(num_frames):
        x = int((size - 8) * (t if rightwards else num_frames - 1 - t) / max(num_frames - 1, 1))
        frames[t, :, x : x + 8] = 230
    return frames.astype(np.uint8)


def bar_folder(root: Path, *, per_class: int = 6) -> Path:
    """A data set of two classes, ``going left`` and ``going right``, with a train and a val split."""
    for split, number in (("train", per_class), ("val", 3)):
        for name in ("going left", "going right"):
            for i in range(number):
                frames = moving_bar(10 + i, rightwards=name == "going right", seed=i + 100 * (split == "val"))
                write_video(root / split / name / f"{i}.mp4", frames)
    return root


def tiny_recipe(
    data: Path, output: Path, *, method: str = "tsm", counts=(2, 4), drawn="all", seed: int = 0, **training
) -> Recipe:
    """A run of seconds."""
    return Recipe(
        data=Data(train=str(data), num_workers=0),
        output=str(output),
        method=method,
        clip=Clip(frame_counts=tuple(counts), short_side=32, crop_size=32),
        model=Model(backbone="test_resnet", pretrained=False),
        objective=Objective(counts=drawn),
        training=Training(**{"epochs": 2, "batch_size": 4, "reference_batch_size": None, **training}),
        seed=seed,
    )
