"""The card beside a checkpoint: what it is, for people and for the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from frameflex.checkpoint.format import Checkpoint

TASK = "video-classification"


def model_card(checkpoint: Checkpoint, repo_id: str | None = None) -> str:
    """Markdown that tells what a checkpoint is, with the front matter of the Hugging Face hub.

    Args:
        checkpoint: what it is about.
        repo_id: ``owner/name`` under which it will be found; by default the card speaks of the folder that it is in.
    """
    architecture, names = checkpoint.model.config["backbone"], checkpoint.class_names
    parts = [
        "---",
        yaml.safe_dump(_front_matter(checkpoint, repo_id), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {architecture} for {len(names)} actions",
        "",
        "A Temporal Shift Module network that classifies short videos.",
        "",
        "|  |  |",
        "|---|---|",
        *(f"| {key} | {_plain(str(value))} |" for key, value in _facts(checkpoint)),
        "",
        "## Use",
        "",
        *_use(checkpoint, repo_id),
        "",
        "## Measured",
        "",
        *_measured(checkpoint.metrics),
        "",
        "## Classes",
        "",
        *(f"{index}. {_plain(name)}" for index, name in enumerate(names)),
        "",
    ]
    return "\n".join(parts)


def _front_matter(checkpoint: Checkpoint, repo_id: str | None) -> dict[str, Any]:
    name = (repo_id or checkpoint.model.config["backbone"]).rsplit("/", 1)[-1]
    front: dict[str, Any] = {
        "license": checkpoint.license or "unknown",
        "library_name": "frameflex",
        "pipeline_tag": TASK,
        "tags": ["frameflex", "action-recognition", "temporal-shift-module"],
    }
    results = [
        {
            "task": {"type": TASK},
            "dataset": {"name": data, "type": "-".join(data.lower().split())},
            "metrics": [{"type": "accuracy", "name": f"top-1 %, {protocol}", "value": round(100 * value, 2)}],
        }
        for data, protocol, value in _accuracies(checkpoint)
    ]
    if results:
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _accuracies(checkpoint: Checkpoint) -> Iterator[tuple[str, str, float]]:
    """Data set, protocol and top-1 (0 to 1) of every figure."""
    for kind, values in checkpoint.metrics.items():
        if kind == "published":
            for figure in values:
                protocol = f"{figure['num_frames']} frames, {figure['protocol']}, as published"
                yield figure["data"], protocol, figure["top1"] / 100
        elif isinstance(values, Mapping):
            protocol = _protocol(values)
            data = str(values.get("data") or _trained_on(checkpoint) or "own data")
            for row in values.get("results") or ():
                yield f"{Path(data).name}, {kind}", f"{row['num_frames']} frames{protocol}", row["top1"]


def _protocol(values: Mapping[str, Any]) -> str:
    protocol = values.get("protocol") or {}
    views, videos = protocol.get("views"), protocol.get("num_videos")
    return (f", clips x crops {views}" if views else "") + (f", {videos} videos" if videos else "")


def _trained_on(checkpoint: Checkpoint) -> str:
    """The data set's name, without the path to it on somebody's machine."""
    data = (checkpoint.recipe.get("data") or {}).get("train")
    return Path(str(data)).name if data else ""


def _facts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    model, pixels = checkpoint.model, checkpoint.preprocessing
    counts = ", ".join(map(str, sorted(checkpoint.frame_counts)))
    kind = (
        "one network for all of them (frame-flexible)" if model.frame_counts else "any other works, less well"
    )
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    shift = f"temporal shift `{model.config['shift']}`, {millions:.2f} M parameters"
    several = "several labels a video (sigmoid)" if checkpoint.multi_label else "one label a video (softmax)"
    return [
        ("architecture", f"{model.config['backbone']} with {shift}"),
        ("frame counts", f"{counts}: {kind}"),
        ("frames", ", ".join(f"{key} {value}" for key, value in checkpoint.sampling.items())),
        (
            "pixels",
            f"{pixels.describe_fit()}, "
            f"{pixels.channel_order.upper()}, mean {list(pixels.mean)}, std {list(pixels.std)} on the scale 0 to 1",
        ),
        ("classes", f"{len(checkpoint.class_names)}, listed below; {several}"),
        ("weights from", checkpoint.source or "not recorded"),
        ("trained on", _trained_on(checkpoint) or "not recorded"),
        (
            "licence of the weights",
            checkpoint.license or "not recorded: ask their author before you use them",
        ),
    ]


def _use(checkpoint: Checkpoint, repo_id: str | None) -> list[str]:
    where, address = (repo_id, f"hf://{repo_id}") if repo_id else (".", ".")
    return [
        "```python",
        "import frameflex  # pip install frameflex",
        "",
        f'for answer in frameflex.load("{where}")("video.mp4", num_frames={checkpoint.num_frames}):',
        '    print(f"{answer.probability:.1%} {answer.label}")',
        "```",
        "",
        "```sh",
        f"frameflex predict {address} video.mp4 --frames {checkpoint.num_frames}",
        "```",
    ]


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, values in metrics.items():
        if name == "published":
            lines += _published(values)
            continue
        results = values.get("results") if isinstance(values, Mapping) else None
        if isinstance(values, Mapping) and not any(values.values()):
            continue  # nothing was left out, for one
        if not results:
            lines += [f"`{name}`: {_plain(json.dumps(values, ensure_ascii=False))}", ""]
            continue
        protocol = ", ".join(f"{key} {value}" for key, value in (values.get("protocol") or {}).items())
        lines += [
            f"{name}: {_plain(protocol)}",
            "",
            "| frames | top-1 % | top-5 % | GFLOPs a clip |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row['num_frames']} | {100 * row['top1']:.1f} | {100 * row['top5']:.1f} | {row['gflops']:.3g} |"
            for row in results
        ]
        lines.append("")
    return lines or ["Nothing yet."]


def _published(figures: list[Mapping[str, Any]]) -> list[str]:
    lines = ["As published by their makers:", "", "| data | frames | protocol | top-1 % | top-5 % |"]
    lines.append("|---|---|---|---|---|")
    for row in figures:
        top5 = f"{row['top5']:.2f}" if "top5" in row else ""
        data, protocol = _plain(row["data"]), _plain(row["protocol"])
        lines.append(f"| {data} | {row['num_frames']} | {protocol} | {row['top1']:.2f} | {top5} |")
    return [*lines, ""]


def _plain(text: str) -> str:
    """Text that can't break a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
