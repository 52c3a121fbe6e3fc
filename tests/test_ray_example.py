"""The Ray Data example gives the answers of predict."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import moving_bar, write_video

from frameflex.checkpoint import Checkpoint, save_checkpoint
from frameflex.data.transforms import Preprocessing
from frameflex.deploy.recognizer import Recognizer
from frameflex.models import create_model

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_batch_predict.py"


@pytest.mark.slow
def test_ray_gives_the_answers_of_predict_and_names_the_bad_video(tmp_path):
    pytest.importorskip("ray.data")
    parquet = pytest.importorskip("pyarrow.parquet")
    pixels = Preprocessing(short_side=32, crop_size=32)
    model = create_model("test_resnet", num_classes=3)
    save_checkpoint(tmp_path / "net.safetensors", Checkpoint(model, ["left", "right", "up"], pixels, (2, 4)))
    for i in range(6):
        write_video(tmp_path / f"{i}.mp4", moving_bar(8 + i, rightwards=bool(i % 2), seed=i, size=32))
    (tmp_path / "6.mp4").write_bytes(b"not a video")
    (tmp_path / "videos.csv").write_text("path\n" + "".join(f"{i}.mp4\n" for i in range(7)))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "net.safetensors"), str(tmp_path / "videos.csv"), str(out)]
    command = [sys.executable, str(EXAMPLE), *arguments, "--batch-size", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "7 videos, 1 bad" in done.stdout
    found = {row["video"]: row for row in parquet.read_table(out).to_pylist()}
    assert sorted(found) == [f"{i}.mp4" for i in range(7)]
    assert "not a video file" in found["6.mp4"]["error"]
    recognizer = Recognizer.from_checkpoint(tmp_path / "net.safetensors", device="cpu")
    for i in range(6):
        best = recognizer(tmp_path / f"{i}.mp4", top=1)[0]
        assert found[f"{i}.mp4"]["label"] == best.label
        assert found[f"{i}.mp4"]["probability"] == pytest.approx(best.probability, abs=1e-6)
