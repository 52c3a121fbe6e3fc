"""Our figure beside the one that the makers of weights have published, and what differs between the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frameflex.engine.evaluation import Evaluation


def published_lines(measured: Evaluation, metrics: Mapping[str, Any]) -> list[str]:
    """A line for each figure under ``published`` in a checkpoint's metrics."""
    return [_line(measured, figure) for figure in metrics.get("published") or ()]


def _line(measured: Evaluation, figure: Mapping[str, Any]) -> str:
    count = figure["num_frames"]
    ours = next((result for result in measured.results if result.num_frames == count), None)
    told = f"{100 * ours.top1:.2f} %" if ours else "not measured"
    differs = _differences(measured, figure)
    protocol = f"the protocol differs: {'; '.join(differs)}" if differs else "the same protocol"
    return (
        f"published: top-1 {figure['top1']:.2f} % on {figure['data']} at {count} frames ({figure['protocol']}); "
        f"here: {told} on {len(measured.names)} videos; {protocol}"
    )


def _differences(measured: Evaluation, figure: Mapping[str, Any]) -> list[str]:
    found = []
    views = figure.get("views")
    if views is None:
        found.append(f"clips x crops here are {measured.views}, published: {figure['protocol']}")
    elif views != measured.views:
        found.append(f"clips x crops here are {measured.views}, published {views}: --views {views}")
    if all(result.num_frames != figure["num_frames"] for result in measured.results):
        found.append(f"{figure['num_frames']} frames were not measured: --frames {figure['num_frames']}")
    if measured.bad or measured.left_out:
        found.append(f"{len(measured.bad) + len(measured.left_out)} videos are missing here")
    return found
