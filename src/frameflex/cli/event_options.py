"""Options about events, which ``predict --window`` and ``stream`` share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frameflex.deploy.long_videos.events import EventDetector

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Parse "2s", "500ms", "1.5", "10m" or "2h" into seconds above 0."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|min|m|h|)", text.strip().lower())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a time above 0 such as 2s, 500ms, 1.5 or 10m")
    return value


def probability(text: str) -> float:
    """Parse a number of 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a probability of 0 to 1")
    return value


def add_event_options(parser: argparse._ActionsContainer) -> None:
    """--threshold, --release, --min-length and --nothing."""
    parser.add_argument(
        "--threshold", type=probability, default=0.5, help="probability that starts an event (default: 0.5)"
    )
    parser.add_argument(
        "--release", type=probability, help="probability below which it ends (default: 0.7 x threshold)"
    )
    parser.add_argument(
        "--min-length",
        type=seconds,
        metavar="TIME",
        help="drop shorter events, such as 500ms (default: none)",
    )
    parser.add_argument(
        "--nothing",
        metavar="CLASS",
        help='the class that stands for nothing happening: it makes no event (default: "nothing", if there is one)',
    )


def detector_of(args: argparse.Namespace, class_names: Sequence[str]) -> EventDetector:
    """The detector that the options ask for; errors as in `EventDetector`."""
    from frameflex.deploy.long_videos.events import EventDetector

    nothing = args.nothing
    if nothing is None and "nothing" in class_names:
        nothing = "nothing"
    return EventDetector(
        class_names,
        threshold=args.threshold,
        release=args.release,
        min_seconds=args.min_length or 0.0,
        nothing=nothing,
    )
