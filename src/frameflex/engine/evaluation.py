"""Accuracy and cost at every frame count, and the drop from the trained one (Temporal Frequency Deviation)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multilabel_average_precision,
)

from frameflex.data.clips import Batch, ClipDataset
from frameflex.data.label_sets import LabelSets
from frameflex.data.loading import read_batches
from frameflex.data.records import BadVideo, BadVideos, VideoList
from frameflex.data.transforms import VIEWS, EvalTransform, Preprocessing
from frameflex.engine.confidence import calibration_error, wilson_interval
from frameflex.engine.measuring import Shared, measured_elsewhere, now
from frameflex.models.clips import classify_views
from frameflex.models.precision import chosen_precision, computing_in

_OF_ACCELERATE = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class CountResult:
    """What was measured at one frame count.

    Attributes:
        num_frames: T.
        top1: share of videos whose best guess is right, 0 to 1.
        top5: share whose label is among the five best guesses (of all, where there are fewer classes).
        mean_class_accuracy: top-1 of each class, averaged over the classes that occur.
        mean_average_precision: mAP over the classes that occur, where a video may show several classes; top-1 is
            then the share of videos whose best guess is one of theirs, and mean class accuracy the share of each
            class's videos in which it has more than half the probability. None where a video shows one class.
        calibration_error: ECE of the network's own probabilities, 0 to 1; None where videos may show several classes.
        calibrated_error: the same at the checkpoint's temperature, which probabilities of `predict` have.
        gflops: billions of multiply-adds for one clip (one view), as papers count them.
        clips_per_second: clips through the network, decoding not counted; of all processes together, and where an
            engine shared the videos, of one of its processes.
    """

    num_frames: int
    top1: float
    top5: float
    mean_class_accuracy: float
    gflops: float
    clips_per_second: float
    mean_average_precision: float | None = None
    calibration_error: float | None = None
    calibrated_error: float | None = None


@dataclass
class Evaluation:
    """Measurements of one model on one set of videos.

    Attributes:
        results: one for each frame count, ascending.
        trained_counts: the T's that the model was trained at.
        class_names: one for each logit.
        names: of the videos that were measured, in the order of `labels` and `logits`.
        labels: ``(N,)``.
        logits: T -> ``(N, K)``, averaged over views.
        views: "temporal views x crops".
        bad: videos that could not be decoded and are missing from every number.
        num_parameters: of the model.
        left_out: videos of the data set that were left out before: of a quarantine list, or when shards were made.
        trained_on: names of measured videos that the model was trained on; None where that is not known.
        temperatures: T -> what `logits` are divided by before they become probabilities; 1 where none is given.
        videos: those that were measured, in the order of `names`; None where nobody kept them.
        precision: in which the network computed.
    """

    results: list[CountResult]
    trained_counts: tuple[int, ...]
    class_names: list[str]
    names: list[str]
    labels: Tensor
    logits: dict[int, Tensor]
    views: str
    bad: list[BadVideo] = field(default_factory=list)
    num_parameters: int = 0
    left_out: list[BadVideo] = field(default_factory=list)
    trained_on: list[str] | None = None
    temperatures: dict[int, float] = field(default_factory=dict)
    videos: VideoList | None = None
    precision: str = "float32"

    def at(self, num_frames: int) -> CountResult:
        """The result at one frame count; KeyError where it was not measured."""
        for result in self.results:
            if result.num_frames == num_frames:
                return result
        raise KeyError(f"nothing was measured at {num_frames} frames")

    def calibrated(self, num_frames: int) -> Tensor:
        """Logits ``(N, K)`` divided by their temperature: what probabilities and their thresholds are made of."""
        return self.logits[num_frames] / self.temperatures.get(num_frames, 1.0)

    def drop(self, num_frames: int) -> float | None:
        """Top-1 lost against the largest trained count that was measured, 0 to 1; None if none was."""
        measured = [result for result in self.results if result.num_frames in self.trained_counts]
        return measured[-1].top1 - self.at(num_frames).top1 if measured else None

    def top1_interval(self, num_frames: int) -> tuple[float, float] | None:
        """Wilson's 95 % interval of top-1, as if videos were drawn one by one; None for several labels a video."""
        result = self.at(num_frames)
        if result.mean_average_precision is not None:
            return None
        number = len(self.names)
        return wilson_interval(round(result.top1 * number), number)

    def area(self) -> float:
        """Mean top-1 under the curve over log2 T, 0 to 1: no count weighs more because it was measured finely."""
        xs = torch.tensor([result.num_frames for result in self.results], dtype=torch.double).log2()
        ys = torch.tensor([result.top1 for result in self.results], dtype=torch.double)
        return float(torch.trapezoid(ys, xs) / (xs[-1] - xs[0])) if len(xs) > 1 else float(ys[0])

    def confusion(self, num_frames: int) -> Tensor:
        """Counts ``(K, K)``: true class by row, predicted class by column."""
        logits = self.logits[num_frames]
        num_classes = logits.shape[1]
        pairs = torch.bincount(self.labels * num_classes + logits.argmax(1), minlength=num_classes**2)
        return pairs.view(num_classes, num_classes)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and protocol, for JSON; accuracies from 0 to 1."""
        return {
            "protocol": {
                "views": self.views,
                "precision": self.precision,
                "num_videos": len(self.names),
                "num_undecodable": len(self.bad),
                "num_left_out": len(self.left_out),
                "num_trained_on": None if self.trained_on is None else len(self.trained_on),
                "trained_counts": list(self.trained_counts),
            },
            "num_parameters": self.num_parameters,
            "area_over_log2_frames": self.area(),
            "results": [
                {
                    **asdict(r),
                    "top1_interval": _listed(self.top1_interval(r.num_frames)),
                    "drop": self.drop(r.num_frames),
                }
                for r in self.results
            ],
            "undecodable": [{"name": bad.name, "reason": bad.reason} for bad in self.bad],
            "left_out": [{"name": bad.name, "reason": bad.reason} for bad in self.left_out],
            "trained_on": self.trained_on,
        }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    """As JSON gives it back."""
    return None if interval is None else list(interval)


def evaluate(
    model: nn.Module,
    videos: VideoList,
    *,
    preprocessing: Preprocessing,
    frame_counts: Sequence[int],
    trained_counts: Sequence[int] = (),
    sampling: Literal["segments", "dense"] = "segments",
    window: int = 64,
    views: str = "1x1",
    batch_size: int = 8,
    num_workers: int = 0,
    on_bad_video: Literal["error", "skip"] = "error",
    accelerator: Accelerator | None = None,
    label_sets: LabelSets | None = None,
    temperature: Callable[[int], float] | None = None,
    precision: str = "float32",
    shared: Shared | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a model on labelled videos at several frame counts; each video is decoded once for all of them.

    Args:
        model: takes clips of any T.
        videos: every one labelled.
        preprocessing: of the checkpoint.
        frame_counts: the T's to measure.
        trained_counts: the T's that the model was trained at, for the drop.
        sampling: "segments" or "dense", as in training.
        window: frames that a clip spans, for dense sampling.
        views: a key of `VIEWS`; logits are averaged over views.
        batch_size: videos at once in each process.
        num_workers: processes that decode.
        on_bad_video: "error" refuses to report numbers over a smaller set; "skip" counts and lists bad files, and
            stops when more than 1 % and more than 3 are bad.
        accelerator: of a run in several processes; each video is measured by one of them.
        label_sets: where labels stand for sets of classes.
        temperature: T -> that of the checkpoint, `Checkpoint.temperature`; by default 1.
        precision: of `PRECISIONS`, what the network computes in; the accelerator's, where there is one.
        shared: who measures in place of this process, one video after another, in a precision of their own.
        on_progress: called with (videos done, videos in all) of this process.

    Returns:
        The measurements, the same in every process.

    Raises:
        ValueError: if a video has no label or an argument is out of range, or the device can't do the precision.
        VideoError: at the first file that can't be decoded, unless skipped.
        NotFinite: if the network gives NaN or infinite logits.
    """
    _check_possible(videos, views)
    num_views, num_crops = VIEWS[views]
    counts = sorted(set(frame_counts))
    dataset = ClipDataset(
        videos,
        frame_counts=counts,
        transform=EvalTransform(preprocessing, num_crops=num_crops),
        sampling=sampling,
        window=window,
        training=False,
        num_views=num_views,
        on_bad_video="skip",  # which the policy, in this process, decides on
    )
    if shared is not None:
        precision = shared.precision
        share = _by_others(shared, model, dataset, BadVideos(len(dataset), on_bad_video), on_progress)
    else:
        device = next(model.parameters()).device
        precision, computing = _computing(precision, device, accelerator)
        share = _by_this_process(
            model,
            dataset,
            accelerator,
            partial(read_batches, dataset, batch_size=batch_size, num_workers=num_workers),
            partial(BadVideos, on_bad_video=on_bad_video),
            computing,
            on_progress,
        )
    temperatures = {count: temperature(count) if temperature else 1.0 for count in counts}
    return _evaluation(
        share,
        videos,
        label_sets,
        temperatures,
        trained_counts=tuple(sorted(trained_counts)),
        views=views,
        precision=precision,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _by_this_process(
    model: nn.Module,
    dataset: ClipDataset,
    accelerator: Accelerator | None,
    read: Callable[..., AbstractContextManager[Iterable[Batch]]],
    bad_videos: Callable[[int], BadVideos],
    computing: Callable[[], AbstractContextManager[object]],
    on_progress: Callable[[int, int], None] | None,
) -> _Share:
    """Measure this process's videos, and where a run has several, gather those of all."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = range(rank, len(dataset), world)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), read(sampler=mine) as batches:
            share = _classify(model, dataset, batches, bad_videos(len(mine)), computing, on_progress)
    finally:
        model.train(was_training)
    return _gather(share) if world > 1 else share


def _check_possible(videos: VideoList, views: str) -> None:
    if views not in VIEWS:
        raise ValueError(f"views is {views!r}; expected one of {', '.join(VIEWS)}")
    if not videos:
        raise ValueError("there are no videos to evaluate")
    unlabelled = videos.labels.count(-1)
    if unlabelled:
        raise ValueError(f"{unlabelled} of {len(videos)} videos have no label; evaluation needs one for each")


def _computing(
    precision: str, device: torch.device, accelerator: Accelerator | None
) -> tuple[str, Callable[[], AbstractContextManager[object]]]:
    """The precision that the network computes in, and what opens a block in which it does."""
    if accelerator:
        return _OF_ACCELERATE[accelerator.mixed_precision], accelerator.autocast
    chosen = chosen_precision(precision, device)
    return chosen, lambda: computing_in(chosen, device)


@dataclass
class _Share:
    """What one process, or in the end all of them, measured.

    Attributes:
        kept: of each video its index, label, and logits at each count.
        bad: videos that could not be decoded.
        num_clips: how many went through the network, at each count.
        seconds: T -> those that the network took for them.
        gflops: T -> those of one clip; 0 where there was none.
    """

    kept: list[tuple[int, int, list[Tensor]]]
    bad: list[BadVideo]
    num_clips: int
    seconds: dict[int, float]
    gflops: dict[int, float]


def _classify(
    model: nn.Module,
    dataset: ClipDataset,
    batches: Iterable[Batch],
    policy: BadVideos,
    computing: Callable[[], AbstractContextManager[object]],
    on_progress: Callable[[int, int], None] | None,
) -> _Share:
    """Run this process's batches through the network at each count, in the context that `computing` opens."""
    device = next(model.parameters()).device
    counts = dataset.frame_counts
    share = _Share([], policy.found, 0, dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0))
    done = 0
    for batch in batches:
        policy.add(batch.bad)
        done += len(batch.labels) + len(batch.bad)
        if len(batch.labels):
            logits = []
            names = [dataset.videos[index].name for index in batch.indices.tolist()]
            for count in counts:
                clips = batch.clips[count].to(device)  # (B, V, 3, T, H, W)
                if not share.gflops[count]:
                    share.gflops[count] = clip_gflops(model, clips[0, :1])
                start = now(device)
                with computing():
                    answer = classify_views(model, clips, names=names)
                share.seconds[count] += now(device) - start
                logits.append(answer.cpu())
            share.num_clips += clips.shape[0] * clips.shape[1]
            share.kept += zip(
                batch.indices.tolist(),
                batch.labels.tolist(),
                map(list, zip(*logits, strict=True)),
                strict=True,
            )
        if on_progress:
            on_progress(done, policy.num_videos)
    return share


def _by_others(
    shared: Shared,
    model: nn.Module,
    dataset: ClipDataset,
    policy: BadVideos,
    on_progress: Callable[[int, int], None] | None,
) -> _Share:
    """Have an engine measure every video; `model` only counts what one clip costs."""
    counts = dataset.frame_counts
    share = _Share([], policy.found, 0, dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0))
    with closing(measured_elsewhere(shared, dataset)) as answers:
        for done, (index, answer) in enumerate(answers, 1):
            record = dataset.videos[index]
            if isinstance(answer, BadVideo):
                policy.add([answer])
            else:
                logits, seconds, shape = answer
                for count in counts:
                    share.seconds[count] += seconds[count]
                    if not share.gflops[count]:
                        size = (1, *shape[1:2], count, *shape[3:])
                        share.gflops[count] = clip_gflops(model, torch.zeros(size))
                share.num_clips += shape[0]
                label = -1 if record.label is None else record.label
                share.kept.append((index, label, [torch.from_numpy(logits[count]) for count in counts]))
            if on_progress:
                on_progress(done, len(dataset))
    return share


def _gather(share: _Share) -> _Share:
    """The shares of all processes as one, the same in each of them."""
    # Rows are views of a batch's logits; unless copied, each would be sent with the whole batch.
    kept = gather_object([(i, label, [row.clone() for row in rows]) for i, label, rows in share.kept])
    bad = gather_object(share.bad)
    costs = gather_object([(share.num_clips, share.seconds, share.gflops)])
    return _Share(
        kept,
        bad,
        num_clips=sum(clips for clips, _, _ in costs),
        seconds={count: max(spent[count] for _, spent, _ in costs) for count in share.seconds},
        gflops={count: max(cost[count] for _, _, cost in costs) for count in share.gflops},
    )


def _evaluation(
    share: _Share,
    videos: VideoList,
    label_sets: LabelSets | None,
    temperatures: dict[int, float],
    **protocol: Any,
) -> Evaluation:
    """What was measured, the videos in their order; `protocol` are `Evaluation`'s attributes that say how."""
    if not share.kept:
        raise ValueError(
            f"none of the {len(share.bad)} videos could be decoded; check them with frameflex data check"
        )
    share.kept.sort(key=lambda item: item[0])
    labels = torch.tensor([label for _, label, _ in share.kept], dtype=torch.long)
    logits = {
        count: torch.stack([answers[i] for _, _, answers in share.kept])
        for i, count in enumerate(share.seconds)
    }
    return Evaluation(
        results=_results(share, labels, logits, temperatures, label_sets),
        class_names=list(videos.classes if label_sets is None else label_sets.classes),
        names=[videos[index].name for index, _, _ in share.kept],
        labels=labels,
        logits=logits,
        bad=sorted(share.bad, key=lambda item: item.index),
        left_out=list(videos.left_out),
        temperatures=temperatures,
        videos=videos.subset(index for index, _, _ in share.kept),
        **protocol,
    )


def _results(
    share: _Share,
    labels: Tensor,
    logits: Mapping[int, Tensor],
    temperatures: Mapping[int, float],
    label_sets: LabelSets | None,
) -> list[CountResult]:
    """Accuracy and cost at each count."""
    results = []
    for count, answers in logits.items():
        if label_sets is None:
            measured = {
                **accuracies(answers, labels),
                "calibration_error": calibration_error(answers, labels),
                "calibrated_error": calibration_error(answers / temperatures[count], labels),
            }
        else:
            measured = _set_accuracies(answers, label_sets.targets(labels))
        seconds = share.seconds[count]
        results.append(
            CountResult(
                count,
                **measured,
                gflops=share.gflops[count],
                clips_per_second=share.num_clips / seconds if seconds else float("nan"),
            )
        )
    return results


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1, top-5 and class mean of logits ``(N, K)`` for labels ``(N,)``, by their names in `CountResult`."""
    num_classes = logits.shape[1]
    if num_classes == 1:
        return {"top1": 1.0, "top5": 1.0, "mean_class_accuracy": 1.0}
    top5 = min(5, num_classes)
    hit5 = (logits.topk(top5, dim=1).indices == labels[:, None]).any(1).double().mean()
    each = multiclass_accuracy(logits, labels, num_classes=num_classes, average="none")
    occurs = torch.bincount(labels, minlength=num_classes) > 0
    return {
        "top1": float((logits.argmax(1) == labels).double().mean()),
        "top5": float(hit5),
        "mean_class_accuracy": float(each[occurs].double().mean()),
    }


def _set_accuracies(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """The same for targets ``(N, K)`` of several classes; videos of none don't count for top-1 and top-5."""
    shown = targets.any(1)
    top5 = min(5, logits.shape[1])
    hits = targets.gather(1, logits.topk(top5, dim=1).indices)[shown].double()  # (N, 5)
    occurs = targets.any(0)
    recall = ((logits > 0) & targets).sum(0) / targets.sum(0).clamp(min=1)
    each = multilabel_average_precision(
        logits.sigmoid(), targets.long(), num_labels=logits.shape[1], average="none"
    )
    return {
        "top1": float(hits[:, 0].mean()) if len(hits) else 0.0,
        "top5": float(hits.amax(1).mean()) if len(hits) else 0.0,
        "mean_class_accuracy": float(recall[occurs].double().mean()),
        "mean_average_precision": float(each.reshape(-1)[occurs].double().mean()),
    }


def clip_gflops(model: nn.Module, clip: Tensor) -> float:
    """Billions of multiply-adds of one forward, counted while it runs. A paper's "GFLOPs" are these."""
    with FlopCounterMode(display=False) as counter:
        model(clip)
    return counter.get_total_flops() / 2 / 1e9  # torch counts the multiplication and the addition apart
