"""The card beside a checkpoint: what it is, for people and for the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frameflex.checkpoint.format import Checkpoint


def model_card(checkpoint: Checkpoint) -> str:
    """Markdown that tells what a checkpoint is, with the front matter of the Hugging Face hub."""
    model, pixels = checkpoint.model, checkpoint.preprocessing
    counts = ", ".join(map(str, sorted(checkpoint.frame_counts)))
    architecture = model.config["backbone"]
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    kind = (
        "one network for all of them (frame-flexible)" if model.frame_counts else "any other works, less well"
    )
    names = checkpoint.class_names
    shown = ", ".join(names[:10]) + (f", … ({len(names)} in all)" if names[10:] else "")
    recipe_data = checkpoint.recipe.get("data") or {}
    rows = [
        (
            "architecture",
            f"{architecture} with temporal shift `{model.config['shift']}`, {millions:.2f} M parameters",
        ),
        ("frame counts", f"{counts}: {kind}"),
        ("frames", ", ".join(f"{key} {value}" for key, value in checkpoint.sampling.items())),
        (
            "pixels",
            f"short side {pixels.short_side} ({pixels.interpolation}), centre crop {pixels.crop_size}, "
            f"{pixels.channel_order.upper()}, mean {list(pixels.mean)}, std {list(pixels.std)} on the scale 0 to 1",
        ),
        ("classes", shown),
        ("weights from", checkpoint.source or "not recorded"),
        ("trained on", recipe_data.get("train") or "not recorded"),
        (
            "licence of the weights",
            checkpoint.license or "not recorded: ask their author before you use them",
        ),
    ]
    parts = [
        "---",
        f"license: {json.dumps(checkpoint.license or 'unknown')}",
        "library_name: frameflex",
        "pipeline_tag: video-classification",
        "tags: [frameflex, action-recognition, temporal-shift-module]",
        "---",
        "",
        f"# {architecture} for {len(names)} actions",
        "",
        "A Temporal Shift Module network that classifies short videos.",
        "",
        "|  |  |",
        "|---|---|",
        *(f"| {key} | {_plain(str(value))} |" for key, value in rows),
        "",
        "```",
        "pip install frameflex",
        f"frameflex predict hf://OWNER/NAME video.mp4 --frames {checkpoint.num_frames}",
        "```",
        "",
        "## Measured",
        "",
        *_measured(checkpoint.metrics),
        "",
    ]
    return "\n".join(parts)


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, values in metrics.items():
        results = values.get("results") if isinstance(values, Mapping) else None
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


def _plain(text: str) -> str:
    """Text that can't break a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
