"""What was measured, as one page that needs nothing else: ``report.html``."""

from __future__ import annotations

import base64
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from frameflex import __version__
from frameflex.data.clips import ClipDataset
from frameflex.data.records import BadVideo, VideoList
from frameflex.data.transforms import VIEWS, EvalTransform, Preprocessing
from frameflex.engine.confidence import wilson_interval
from frameflex.engine.cross_validation import CrossValidation
from frameflex.engine.evaluation import Evaluation
from frameflex.printable import printable
from frameflex.report.files import write_whole

NUM_DOUBTFUL = 12
NUM_MISTAKES = 8
MOST_FRAMES = 16  # of a strip
MOST_CLASSES = 20  # of a confusion matrix
_MOST_POINTS = 200  # of a curve
_THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Measured:
    """One network's part of the page.

    Attributes:
        evaluation: what was measured.
        preprocessing: what the network saw of them.
        sampling: "segments" or "dense".
        window: frames that a clip spans, for dense sampling.
        log: ``log.jsonl`` of its training, for the curves; a file that isn't there gives none.
        training_bad: names of training videos that could not be decoded, and why.
        note: a sentence about where the numbers come from.
        problems: what is odd about the data, a line each.
        cross_validation: of whose folds the evaluation is put together.
    """

    evaluation: Evaluation
    preprocessing: Preprocessing
    sampling: Literal["segments", "dense"] = "segments"
    window: int = 64
    log: Path | None = None
    training_bad: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    problems: Sequence[str] = ()
    cross_validation: CrossValidation | None = None


def write_report(path: Path, measured: Mapping[str, Measured], *, title: str, command: str) -> None:
    """Write the page: complete or not at all, with no script and nothing that is loaded from elsewhere.

    Args:
        path: of the file.
        measured: by the name of the network.
        title: of the page.
        command: what was run.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of files and classes are anybody's
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,  # drawings are Markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.jinja").render(
        title=title,
        command=command,
        versions=_versions(),
        accuracy=accuracy_chart({name: one.evaluation for name, one in measured.items()}),
        networks=[{"name": name, **_part(one)} for name, one in measured.items()],
    )
    write_whole(path, lambda file: file.write(text))


def _versions() -> dict[str, str]:
    return {
        "frameflex": __version__,
        "torch": str(torch.__version__),  # with what it was built for, which its package's version leaves out
        **{name: version(name) for name in ("torchvision", "timm", "av")},
        "Python": platform.python_version(),
        "system": platform.platform(),
    }


def _part(one: Measured) -> dict[str, Any]:
    evaluation = one.evaluation
    several_labels = any(result.mean_average_precision is not None for result in evaluation.results)
    num_frames = max(evaluation.logits)
    doubtful = [] if several_labels else doubtful_labels(evaluation, num_frames)
    return {
        "evaluation": evaluation,
        "problems": list(one.problems),
        "folds": one.cross_validation.accuracies() if one.cross_validation else [],
        "cross_validation": one.cross_validation,
        "doubtful": [_shown_video(one, index, num_frames) for index in doubtful],
        "num_frames": num_frames,
        "note": one.note,
        "curves": training_charts(one.log) if one.log and one.log.is_file() else [],
        "training_bad": list(one.training_bad.items()),
        "bad": [(bad.name, bad.reason) for bad in evaluation.bad],
        "left_out": [(bad.name, bad.reason) for bad in evaluation.left_out],
        "trained_on": [(name, "") for name in evaluation.trained_on or ()],
        "several_labels": several_labels,
        "classes": [] if several_labels else class_rows(evaluation, num_frames),
        "confusion": None if several_labels else confusion_rows(evaluation, num_frames),
        "mistakes": []
        if several_labels
        else [
            _shown_video(one, index, num_frames)
            for index in worst_mistakes(evaluation, num_frames, besides=doubtful)
        ],
    }


def class_rows(evaluation: Evaluation, num_frames: int) -> list[dict[str, Any]]:
    """Accuracy of each class that occurs, with its interval; the worst first."""
    confusion = evaluation.confusion(num_frames)
    rows = []
    for name, right, number in zip(
        evaluation.class_names, confusion.diagonal().tolist(), confusion.sum(1).tolist(), strict=True
    ):
        if number:
            low, high = wilson_interval(right, number)
            rows.append(
                {
                    "name": name,
                    "right": right,
                    "number": number,
                    "share": right / number,
                    "low": low,
                    "high": high,
                }
            )
    return sorted(rows, key=lambda row: (row["share"], row["name"]))


def confusion_rows(evaluation: Evaluation, num_frames: int) -> dict[str, Any]:
    """Counts by true and predicted class; of many classes those that are confused most."""
    confusion = evaluation.confusion(num_frames)
    mistakes = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    keep = list(range(len(confusion)))
    if len(keep) > MOST_CLASSES:
        keep = sorted(mistakes.topk(MOST_CLASSES).indices.tolist())
    rows = [
        {
            "number": i + 1,
            "name": evaluation.class_names[i],
            "cells": [
                {
                    "count": int(confusion[i, j]),
                    "share": int(confusion[i, j]) / max(1, int(confusion[i].sum())),
                }
                for j in keep
            ],
        }
        for i in keep
    ]
    return {"rows": rows, "num_classes": len(confusion)}


def doubtful_labels(evaluation: Evaluation, num_frames: int) -> list[int]:
    """Videos whose label may be wrong, the one that the network believes least first.

    Another class has more than half of the probability, and twice the label's: a network that knows little believes
    all about as much, and doubts nothing. Videos that it was trained on are left out: it remembers their labels.
    """
    probabilities = evaluation.calibrated(num_frames).double().softmax(1)
    of_label = probabilities.gather(1, evaluation.labels[:, None])[:, 0]
    best = probabilities.max(1).values
    remembered = set(evaluation.trained_on or ())
    doubted = ((best > 0.5) & (best >= 2 * of_label)).nonzero().flatten().tolist()
    found = [i for i in doubted if evaluation.names[i] not in remembered]
    return sorted(found, key=lambda i: float(of_label[i]))[:NUM_DOUBTFUL]


def worst_mistakes(evaluation: Evaluation, num_frames: int, *, besides: Sequence[int] = ()) -> list[int]:
    """The wrong answers that were given with the most confidence, besides those that are shown already."""
    best = evaluation.calibrated(num_frames).softmax(1).max(1)
    wrong = (best.indices != evaluation.labels).nonzero().flatten().tolist()
    return sorted(set(wrong) - set(besides), key=lambda i: -float(best.values[i]))[:NUM_MISTAKES]


def _shown_video(one: Measured, index: int, num_frames: int) -> dict[str, Any]:
    """A video with the frames that the network saw, its label and what the network took it for."""
    evaluation = one.evaluation
    probabilities = evaluation.calibrated(num_frames)[index].softmax(0)
    label, guess = int(evaluation.labels[index]), int(probabilities.argmax())
    images, problem = _strip(one, evaluation.videos, index, num_frames) if evaluation.videos else ([], "")
    return {
        "name": evaluation.names[index],
        "label": evaluation.class_names[label],
        "guess": evaluation.class_names[guess],
        "probability": float(probabilities[guess]),
        "of_label": float(probabilities[label]),
        "images": images,
        "problem": problem,
    }


class _Pixels(EvalTransform):
    """The same crops, left as pixels."""

    def normalise(self, crops: Tensor) -> Tensor:
        return crops.transpose(1, 2)  # (num_crops, 3, N, h, w)


def _strip(one: Measured, videos: VideoList, index: int, num_frames: int) -> tuple[list[str], str]:
    """The frames of a video's first view, in the centre crop, as data: addresses; or why there are none."""
    num_views, num_crops = VIEWS[one.evaluation.views]
    dataset = ClipDataset(
        videos.subset([index]),
        frame_counts=[num_frames],
        transform=_Pixels(one.preprocessing, num_crops=num_crops),
        sampling=one.sampling,
        window=one.window,
        training=False,
        num_views=num_views,
        on_bad_video="skip",
    )
    sample = dataset[0]
    if isinstance(sample, BadVideo):
        return [], f"no frames: {sample.reason}"
    frames = sample.clips[num_frames][num_crops // 2].transpose(0, 1)  # (T, 3, h, w)
    places: Sequence[int] = range(num_frames)
    if num_frames > MOST_FRAMES:
        places = [round(i * (num_frames - 1) / (MOST_FRAMES - 1)) for i in range(MOST_FRAMES)]
    return [_jpeg(frames[place]) for place in places], ""


def _jpeg(frame: Tensor) -> str:
    from PIL import Image

    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# Curves


def accuracy_chart(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Top-1 over the number of frames; dots are filled at trained counts."""
    counts = sorted({result.num_frames for one in evaluations.values() for result in one.results})
    lines = []
    for name, one in evaluations.items():
        points = [(math.log2(result.num_frames), 100 * result.top1) for result in one.results]
        filled = [result.num_frames in one.trained_counts for result in one.results]
        lines.append((name, points, filled))
    ticks = (
        counts if len(counts) <= 8 else [n for n in counts if n & (n - 1) == 0] or counts[:: len(counts) - 1]
    )
    return _chart("top-1, % over frames", lines, [(math.log2(n), str(n)) for n in ticks], top=100.0)


def training_charts(log: Path) -> list[dict[str, Any]]:
    """The loss over the steps and the accuracy over the epochs; lines that are cut off are passed over."""
    loss: list[tuple[float, float]] = []
    training: dict[int, float] = {}
    validation: dict[int, list[tuple[float, float]]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if event.get("event") == "step":
            loss.append((event["step"], event["loss"]))
            training[event["epoch"] + 1] = 100 * event["accuracy"]
        elif event.get("event") == "validation":
            for result in event["results"]:
                point = (event["epoch"] + 1, 100 * result["top1"])
                validation.setdefault(result["num_frames"], []).append(point)
    charts = []
    if loss := _thinned(loss):
        charts.append(_chart("loss over steps", [("loss", loss, None)], _ends(loss)))
    lines: list[tuple[str, list[tuple[float, float]], list[bool] | None]] = []
    if training:
        lines.append(("training", list(training.items()), None))
    lines += [(f"validation, {n} frames", points, None) for n, points in sorted(validation.items())]
    if lines:
        every = [point for _, points, _ in lines for point in points]
        charts.append(_chart("top-1, % over epochs", lines, _ends(every), top=100.0))
    return charts


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, few enough to be drawn; what is not finite is left out."""
    finite = [point for point in points if math.isfinite(point[1])]
    size = max(1, math.ceil(len(finite) / _MOST_POINTS))
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _ends(points: Sequence[tuple[float, float]]) -> list[tuple[float, str]]:
    return [(x, f"{x:g}") for x in sorted({min(x for x, _ in points), max(x for x, _ in points)})]


def _chart(
    title: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]], Sequence[bool] | None]],
    ticks: Sequence[tuple[float, str]],
    *,
    top: float | None = None,
) -> dict[str, Any]:
    """Places in a picture of 360 × 200, for the template to draw."""
    xs = [x for _, points, _ in lines for x, _ in points]
    ys = [y for _, points, _ in lines for _, y in points]
    first, width = min(xs), (max(xs) - min(xs)) or 1.0
    high = top or max(ys) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return round(40 + 305 * (x - first) / width, 1), round(170 - 155 * y / high, 1)

    drawn = []
    for name, points, filled in lines:
        places = [place(x, y) for x, y in points]
        dots = zip(places, filled or [True] * len(places), strict=True)
        drawn.append(
            {
                "name": name,
                "points": " ".join(f"{x},{y}" for x, y in places),
                "dots": [(x, y, solid) for (x, y), solid in dots] if filled or len(places) <= 30 else [],
            }
        )
    return {
        "title": title,
        "lines": drawn,
        "x_ticks": [(place(x, 0)[0], text) for x, text in ticks],
        "y_ticks": [(place(first, high * i / 4)[1], f"{high * i / 4:.3g}") for i in range(5)],
    }
