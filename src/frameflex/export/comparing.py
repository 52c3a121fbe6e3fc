"""Graphs compared with the model that they are to stand for: by logits, or by labels on videos."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frameflex.checkpoint import Checkpoint
from frameflex.data.records import VideoList
from frameflex.export.clips import VideoClips
from frameflex.export.packages import ExportError
from frameflex.export.running import ExportedModel, from_pixels
from frameflex.models.finite import NotFinite, finite
from frameflex.video import VideoError

TOLERANCE = 1e-3  # of the largest logit; runtimes sum in another order and use other convolutions
HALF_TOLERANCE = 3e-2  # float16 has 11 bits; a network of 50 layers loses some of them
_PARITY_BATCHES = (1, 3)


def check_model(checkpoint: Checkpoint, counts: Sequence[int | None]) -> None:
    """Refuse a model that gives no numbers before any work is done: a quantiser would fail in words of its own.

    Raises:
        ExportError: if a logit of a random clip is NaN or infinite.
    """
    size = checkpoint.preprocessing.size
    for count in counts:
        num_frames = count or checkpoint.num_frames
        pixels = torch.randint(0, 256, (1, num_frames, *size, 3), dtype=torch.uint8)
        clip = from_pixels(pixels, checkpoint.preprocessing)
        _numbers(_logits(checkpoint.model, clip), "the model", num_frames)


def compare_logits(
    checkpoint: Checkpoint, exported: ExportedModel, counts: Sequence[int | None], *, half: bool = False
) -> list[dict[str, Any]]:
    """Logits of the graphs against the model's on fresh random clips.

    Returns:
        for each T and batch the largest difference and what was allowed.

    Raises:
        ExportError: if a difference is larger than that, or a logit is NaN or infinite.
    """
    preprocessing, results = checkpoint.preprocessing, []
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    size = preprocessing.size
    frames = [count for count in counts if count is not None] or sorted({1, *checkpoint.frame_counts})
    for count in frames:
        for batch in _PARITY_BATCHES:
            pixels = torch.randint(0, 256, (batch, count, *size, 3), dtype=torch.uint8)
            clip = from_pixels(pixels, preprocessing)
            expected = _numbers(_logits(checkpoint.model, clip), "the model", count)
            got = _numbers(exported(clip), "the graph", count, half=half)
            allowed = tolerance * expected.abs().max().item()
            difference = (expected - got).abs().max().item() if got.shape == expected.shape else float("nan")
            results.append(
                {"num_frames": count, "batch": batch, "max_difference": difference, "allowed": allowed}
            )
            if not difference <= allowed:
                raise ExportError(
                    f"the graph's logits differ from the model's by {difference:.3g} at {count} frames and {batch} "
                    f"clips, where {allowed:.3g} is allowed; nothing was written. Export to another format, and "
                    "report this with the name of the architecture"
                )
    return results


def compare_labels(
    checkpoint: Checkpoint,
    exported: ExportedModel,
    videos: VideoList,
    num_frames: int,
    *,
    min_agreement: float,
    num_workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
) -> dict[str, Any]:
    """Labels of the graph against the model's on videos.

    Returns:
        the share of videos on which both agree; where all videos are labelled also the top-1 accuracy of each.

    Raises:
        VideoError: if a video can't be decoded, or too many can't.
        ExportError: if they agree on less than ``min_agreement``, or a logit is NaN or infinite.
    """
    agreed = before = after = num_videos = 0
    clips = VideoClips(checkpoint, videos, num_frames, num_workers=num_workers, on_bad_video=on_bad_video)
    with contextlib.closing(clips.labelled()) as labelled:
        for clip, label in labelled:
            model = _numbers(_logits(checkpoint.model, clip), "the model", num_frames).argmax().item()
            graph = _numbers(exported(clip), "the graph", num_frames).argmax().item()
            num_videos, agreed = num_videos + 1, agreed + (model == graph)
            before, after = before + (model == label), after + (graph == label)
    if not num_videos:
        raise VideoError(
            f"none of the {len(videos)} videos can be decoded; check them with frameflex data check"
        )
    result: dict[str, Any] = {
        "num_frames": num_frames,
        "num_videos": num_videos,
        "same_label": agreed / num_videos,
    }
    if -1 not in videos.labels:
        result |= {"top1_model": before / num_videos, "top1_graph": after / num_videos}
    if result["same_label"] < min_agreement:
        raise ExportError(
            f"at {num_frames} frames the graph gives the model's label on {agreed} of {num_videos} videos, fewer "
            f"than the share of {min_agreement:g} that is asked for; nothing was written. Calibrate with more videos "
            "of the kind that it will see, or ask for a smaller agreement"
        )
    return result


def _numbers(logits: Tensor, whose: str, num_frames: int, *, half: bool = False) -> Tensor:
    """Logits, if they are numbers: NaN agrees with nothing, and its largest is at index 0."""
    try:
        return finite(logits, num_frames=num_frames)
    except NotFinite as error:
        cause = (
            "float16 ends at 65504, and this network needs more: export without half precision"
            if half
            else "expected finite numbers. Its weights are damaged, or 8 bits can't hold what happens in it"
            if whose == "the graph"
            else "expected finite numbers. Its weights are damaged, as after a training that diverged: use another "
            "checkpoint"
        )
        raise ExportError(
            f"{whose} gives NaN or infinite logits at {num_frames} frames; {cause}. Nothing was written"
        ) from error


def _logits(model: nn.Module, clip: Tensor) -> Tensor:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(clip.to(device)).float().cpu()
    finally:
        model.train(was_training)
