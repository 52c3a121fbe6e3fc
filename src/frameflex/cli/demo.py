"""``frameflex demo``: see the whole road once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frameflex.cli.options import check_place, fail, parser_of


def run(argv: list[str], console: Any) -> int:
    parser = parser_of(
        "demo",
        "See the whole road once: render a small data set of motions, train a network on it, measure it at its\n"
        "own frame count, at half and at a quarter, and recognise one video. Every number is measured in the run.",
        "frameflex demo --quick",
    )
    parser.add_argument(
        "--quick", action="store_true", help="less of everything, in at most 2 minutes; rough numbers"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("frameflex-demo"),
        help="new folder for all of it (default: frameflex-demo)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")
    args = parser.parse_args(argv)
    check_place(args.output)
    from frameflex.demo import demo
    from frameflex.engine.watching import Interrupted

    try:
        demo(args.output, quick=args.quick, seed=args.seed, console=console)
    except Interrupted as stopped:  # the demo has no --resume to advise
        return fail(f"stopped; what was made so far is in {stopped.checkpoint.parents[1]}", status=130)
    return 0
