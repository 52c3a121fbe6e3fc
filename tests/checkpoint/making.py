"""A small checkpoint, and when two are the same."""

import torch

from frameflex.checkpoint import (
    Checkpoint,
)
from frameflex.data.transforms import Preprocessing
from frameflex.models import create_model


def checkpoint(**changes):
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3, frame_counts=(2, 4)).eval()
    metrics = {
        "validation": {
            "protocol": {"views": "1x1", "num_videos": 40},
            "results": [{"num_frames": 4, "top1": 0.812, "top5": 1.0, "gflops": 0.31}],
        }
    }
    values = {
        "model": model,
        "class_names": ["opening | a door", "closing", "nothing"],
        "preprocessing": Preprocessing(short_side=72, crop_size=64, channel_order="bgr", geometry="tsm"),
        "frame_counts": (2, 4),
        "metrics": metrics,
        "license": "cc-by-4.0",
        "source": "rendered in a test",
    }
    return Checkpoint(**values | changes)


def same(first, second):
    assert first.class_names == second.class_names
    assert first.preprocessing == second.preprocessing
    assert first.frame_counts == second.frame_counts
    assert (first.metrics, first.license, first.source) == (second.metrics, second.license, second.source)
    clip = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first.model(clip), second.model(clip))
