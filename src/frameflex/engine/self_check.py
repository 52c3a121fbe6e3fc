"""What calibration is held against: accuracy on videos that it was not made with, before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frameflex.checkpoint import Checkpoint
from frameflex.data.datasets import load_split
from frameflex.data.finding import find_video_files
from frameflex.data.label_sets import LabelSets, split_label_sets
from frameflex.data.quarantine import quarantined_files
from frameflex.data.records import BadVideo, VideoList, VideoRecord
from frameflex.data.splits import hold_out
from frameflex.engine.confidence import fit_temperature
from frameflex.engine.evaluation import Evaluation, evaluate
from frameflex.video import Limits

HELD_OUT = 0.2  # of each class, where neither the data nor the checkpoint divides them


@dataclass(frozen=True)
class CalibrationVideos:
    """Videos to calibrate with.

    Attributes:
        measured_on: what statistics are measured on.
        held_out: labelled ones for accuracy; None where there are none.
        label_sets: where the labels of `held_out` stand for sets of classes.
        why_not: in words, where `held_out` is None.
    """

    measured_on: VideoList
    held_out: VideoList | None = None
    label_sets: LabelSets | None = None
    why_not: str = ""


def videos_for_calibration(
    sources: Sequence[str],
    checkpoint: Checkpoint,
    *,
    video_dir: str | None = None,
    quarantine: str | None = None,
    limits: Limits | None = None,
) -> CalibrationVideos:
    """Find the videos, and hold some out where their labels are known.

    Held out is the validation split; of data without splits what the checkpoint was not trained on, and where it was
    trained on none or all of them, `HELD_OUT` of each class.

    Args:
        sources: one data set, or files, folders and patterns of videos without labels.
        checkpoint: whose classes the labels must be.
        video_dir: where the files of a list are.
        quarantine: a list of videos to leave out.
        limits: how much each video may ask for when it is read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no videos are found.
    """
    multi_label, limits = checkpoint.multi_label, limits or Limits()
    options: dict[str, Any] = {
        "classes": None if multi_label else checkpoint.class_names,
        "video_dir": video_dir,
        "quarantine": quarantine,
    }
    try:
        if len(sources) > 1:
            raise ValueError("labels are read of one data set, and several things are given")
        videos = load_split(sources[0], "train", **options)
        if -1 in videos.labels:
            raise ValueError("some videos have no label")
        if "validation" in videos.splits:
            measured_on, held_out = videos, load_split(sources[0], "validation", **options)
        else:
            measured_on, held_out = _divide(videos, checkpoint)
        if -1 in held_out.labels or not held_out:
            raise ValueError("some videos of the validation split have no label")
        label_sets = None
        if multi_label:
            (held_out,), label_sets = split_label_sets([held_out], classes=checkpoint.class_names)
    except (ValueError, FileNotFoundError) as error:
        if video_dir is not None:
            raise  # only a list has one
        files, left_out = quarantined_files(find_video_files(list(sources)), quarantine)
        records = [VideoRecord(path, None, str(path)) for path in files]
        bad = [BadVideo(-1, str(path), reason) for path, reason in left_out.items()]
        unlabelled = VideoList(records, checkpoint.class_names, left_out=bad, limits=limits)
        return CalibrationVideos(unlabelled, why_not=str(error).splitlines()[0])
    return CalibrationVideos(measured_on.within(limits), held_out.within(limits), label_sets)


def _divide(videos: VideoList, checkpoint: Checkpoint) -> tuple[VideoList, VideoList]:
    trained = set(checkpoint.videos.trained_on(videos)) if checkpoint.videos else set()
    if trained and len(trained) < len(videos):
        rest = [index for index in range(len(videos)) if index not in trained]
        return videos.subset(sorted(trained)), videos.subset(rest)
    return hold_out(videos, HELD_OUT, by_class=not checkpoint.multi_label)


def measure(
    checkpoint: Checkpoint, videos: CalibrationVideos, frame_counts: Iterable[int], **loading: Any
) -> Evaluation | None:
    """Evaluate on the held-out videos; None where there are none.

    Args:
        checkpoint: what is measured.
        videos: from `videos_for_calibration`.
        frame_counts: the T's.
        loading: of `evaluate`.
    """
    if videos.held_out is None:
        return None
    return evaluate(
        checkpoint.model,
        videos.held_out,
        preprocessing=checkpoint.preprocessing,
        frame_counts=sorted(set(frame_counts)),
        **checkpoint.sampling,
        label_sets=videos.label_sets,
        **loading,
    )


def accuracies(measured: Evaluation) -> dict[int, float]:
    """Top-1, or mAP where a video may show several classes, at each count; 0 to 1."""
    return {
        result.num_frames: result.top1
        if result.mean_average_precision is None
        else result.mean_average_precision
        for result in measured.results
    }


def give_temperatures(checkpoint: Checkpoint, measured: Evaluation) -> None:
    """Fit a temperature to each measured count that has none of its own; none where classes aren't exclusive."""
    if checkpoint.multi_label:
        return
    for count, logits in measured.logits.items():
        if count not in checkpoint.temperatures:
            checkpoint.temperatures[count] = fit_temperature(logits, measured.labels)


def changes(before: Mapping[int, float], after: Mapping[int, float], num_videos: int) -> str:
    """Both in words."""
    listed = ", ".join(
        f"{100 * before[count]:.1f} % before and {100 * after[count]:.1f} % after at {count} frames"
        for count in sorted(before)
    )
    return f"on {num_videos} held-out videos {listed}"
