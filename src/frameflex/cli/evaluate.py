"""``frameflex evaluate``: measure checkpoints."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frameflex.cli.options import (
    add_bad_video_options,
    add_decode_limit_option,
    add_loading_options,
    add_precision_option,
    add_ray_option,
    add_views_option,
    check_inputs_stay,
    engine_of,
    frame_counts,
    limits_of,
    make_folder,
    parser_of,
    paths_of,
    say_precision,
)
from frameflex.printable import to_json

if TYPE_CHECKING:
    import torch

    from frameflex.checkpoint import Checkpoint
    from frameflex.data.records import VideoList
    from frameflex.engine.adaptive import AdaptiveReport
    from frameflex.engine.baseline import Baseline
    from frameflex.engine.evaluation import Evaluation
    from frameflex.engine.measuring import Shared
    from frameflex.report import Measured

_OF_EACH = (("predictions", "csv"), ("confusion", "png"))  # of --output, one of each checkpoint
UNTRAINED = ("nearest", "blend")  # named here so that --help needs no torch


def run(argv: list[str], console: Any) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if len(args.checkpoints) > 1 and not args.compare:
        parser.error(f"{len(args.checkpoints)} checkpoints are given; add --compare to measure them together")
    from frameflex.data.problems import notes_of
    from frameflex.deploy.recognizer import chosen_device
    from frameflex.engine.separate_networks import load_networks
    from frameflex.models.precision import chosen_precision

    networks = {name: load_networks(path) for name, path in short_names(args.checkpoints).items()}
    # Curves are compared over the same frame counts.
    trained = {count for checkpoint in networks.values() for count in checkpoint.frame_counts}
    counts = args.frames or tuple(sorted(trained))
    if args.adaptive and len(counts) < 2:
        raise ValueError(
            f"--adaptive at {counts[0]} frames alone; expected several counts, such as --frames 4,8,16"
        )
    device = chosen_device("cpu" if args.ray else args.device)
    precision = args.precision if args.ray else chosen_precision(args.precision, device)
    if args.ray and (args.baseline or precision == "auto"):
        other = "--baseline" if args.baseline else "--precision auto"
        raise ValueError(f"--ray doesn't go with {other}; leave one of them out")
    say_precision(console, args.precision, precision)
    _check_views(args, networks)
    if args.output:
        _prepare_output(args, networks)
    _check_untrained(args, networks, console)
    listed = _videos_of_each(args, networks)
    problems = notes_of(*listed.values())
    for line in problems:
        console.print(f"data: {line}", markup=False, soft_wrap=True)
    seen = {
        name: {listed[name][i].name for i in checkpoint.videos.trained_on(listed[name])}
        if checkpoint.videos
        else None
        for name, checkpoint in networks.items()
    }
    keep = args.include_trained or args.split is not None
    measurable = {name: _not_trained_on(videos, seen, keep) for name, videos in listed.items()}
    measured = _measure(
        args, networks, measurable, seen, counts=counts, device=device, precision=precision, console=console
    )
    found = _Found(
        networks,
        measured,
        adaptive=_adaptive(args, networks, measured) if args.adaptive else {},
        baselines=_baselines(args, networks, measured, measurable, device, console) if args.baseline else {},
        problems=problems,
    )
    results = _results(args, found)
    if args.json:
        print(to_json(results, indent=2))  # noqa: T201
    else:
        _print_tables(args, found)
    _say_of_each(found, {name: len(listed[name]) - len(measurable[name]) for name in networks}, console)
    if args.output:
        _write(args, found, results, command=shlex.join(["frameflex", "evaluate", *argv]), console=console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "evaluate",
        "Measure checkpoints on labelled videos at one or more frame counts: accuracy, cost, and the drop from\n"
        "the trained frame count (Temporal Frequency Deviation). Each video is decoded once for all counts.\n"
        'A folder made by the method "separate" counts as one checkpoint: the network of the nearest count answers.',
        "frameflex evaluate runs/motion/best.safetensors motion --frames 4,8,16 --output results",
    )
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument(
        "data", metavar="DATA", help="folder with a sub-folder a class, CSV list, Something-Something …"
    )
    parser.add_argument(
        "--frames", type=frame_counts, help="such as 4,8,16 or 1-20 (default: the trained counts)"
    )
    parser.add_argument("--compare", action="store_true", help="several checkpoints in one table and plot")
    parser.add_argument(
        "--untrained", choices=UNTRAINED, help="parts that serve untrained counts (default: as saved)"
    )
    parser.add_argument(
        "--adaptive",
        action="store_true",
        help="find which of --frames to look at first, and when to look at more",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="beside it, what simple classifiers reach on frozen features of the network that the run started from",
    )
    parser.add_argument(
        "--max-drop", type=float, default=0.5, help="points that --adaptive may lose (default: 0.5)"
    )
    parser.add_argument(
        "--split", help="of data that has splits (default: validation, or where there is none, test)"
    )
    parser.add_argument(
        "--include-trained",
        action="store_true",
        help="measure videos that a checkpoint was trained on, too (default: only the others)",
    )
    parser.add_argument("--video-dir", help="where the files of a list are (default: beside the list)")
    add_views_option(parser)
    parser.add_argument(
        "--output", type=Path, help="folder for report.html, results.json, predictions.csv and the pictures"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    add_decode_limit_option(parser)
    add_bad_video_options(
        parser,
        skip="count and list them beside the numbers, and stop when more than 1 %% and more than 3 are bad",
    )
    add_loading_options(parser)
    add_precision_option(parser, default="float32")
    add_ray_option(parser)
    return parser


def _check_views(args: argparse.Namespace, networks: Mapping[str, Checkpoint]) -> None:
    """Whether --views is one that all networks, and the baseline, can be measured with."""
    from frameflex.data.transforms import VIEWS, EvalTransform

    if args.baseline and args.views != "1x1":
        raise ValueError(f"--views {args.views}: --baseline is measured with one view; leave one of them out")
    for checkpoint in networks.values():
        EvalTransform(
            checkpoint.preprocessing, num_crops=VIEWS[args.views][1]
        )  # an error where it has no others


def _prepare_output(args: argparse.Namespace, networks: Iterable[str]) -> None:
    """Make --output's folder, where what will be written takes the place of nothing that is read."""
    suffixes = [f"-{name.replace('/', '-')}" for name in networks] if args.compare else [""]
    written = ["report.html", "results.json", "accuracy.png", "adaptive.png"]
    written += [f"{what[0]}{suffix}.{what[1]}" for what in _OF_EACH for suffix in suffixes]
    check_inputs_stay(
        (args.output / name for name in written), [*args.checkpoints, args.data, args.quarantine]
    )
    make_folder(args.output)  # to fail now rather than with everything measured


def _check_untrained(args: argparse.Namespace, networks: Mapping[str, Checkpoint], console: Any) -> None:
    """Whether --untrained has something to choose."""
    plain = [name for name, checkpoint in networks.items() if not checkpoint.model.frame_counts]
    if args.untrained and len(plain) == len(networks):
        raise ValueError(
            f"--untrained {args.untrained}: {', '.join(plain)} has no parts for each frame count to choose "
            "from; it is for frame-flexible networks. Leave it out"
        )
    if args.untrained and plain:
        console.print(
            f"--untrained {args.untrained} changes nothing for {', '.join(plain)}: no frame-flexible network"
        )


def _videos_of_each(args: argparse.Namespace, networks: Mapping[str, Checkpoint]) -> dict[str, VideoList]:
    """DATA as each checkpoint reads it, with its classes."""
    from frameflex.data.datasets import load_split, load_to_measure

    return {
        name: (partial(load_split, split=args.split) if args.split else load_to_measure)(
            args.data,
            classes=None if checkpoint.multi_label else checkpoint.class_names,
            video_dir=args.video_dir,
            quarantine=args.quarantine,
        ).within(limits_of(args))
        for name, checkpoint in networks.items()
    }


def _not_trained_on(videos: VideoList, seen: Mapping[str, Set[str] | None], keep: bool) -> VideoList:
    """The videos that no checkpoint was trained on, or all where that leaves none or they are asked for."""
    trained = set().union(*(names for names in seen.values() if names))
    number = sum(video.name in trained for video in videos)
    if number in (0, len(videos)) or keep:
        return videos
    return videos.subset(i for i, video in enumerate(videos) if video.name not in trained)


def _measure(
    args: argparse.Namespace,
    networks: Mapping[str, Checkpoint],
    measurable: Mapping[str, VideoList],
    seen: Mapping[str, Set[str] | None],
    *,
    counts: Sequence[int],
    device: torch.device,
    precision: str,
    console: Any,
) -> dict[str, Evaluation]:
    """Each checkpoint's measurements; `seen` are the names of the videos that it was trained on."""
    from frameflex.console import progress
    from frameflex.data.label_sets import split_label_sets
    from frameflex.engine.evaluation import evaluate
    from frameflex.models.frame_flexible import serve_untrained

    measured = {}
    paths = dict(zip(networks, args.checkpoints, strict=True))
    for name, checkpoint in networks.items():
        if args.untrained and checkpoint.model.frame_counts:
            serve_untrained(checkpoint.model, args.untrained)
        videos = measurable[name]
        label_sets = None
        if checkpoint.multi_label:
            (videos,), label_sets = split_label_sets([videos], classes=checkpoint.class_names)
        what = f"evaluating {name}" if len(networks) > 1 else "evaluating"
        with shared_with(args, paths[name], videos) as shared, progress(console, what) as on_progress:
            measured[name] = evaluate(
                checkpoint.model.to(device),
                videos,
                preprocessing=checkpoint.preprocessing,
                frame_counts=counts,
                trained_counts=checkpoint.frame_counts,
                **checkpoint.sampling,
                views=args.views,
                batch_size=args.batch_size,
                num_workers=args.workers,
                on_bad_video=args.on_bad_video,
                label_sets=label_sets,
                temperature=checkpoint.temperature,
                precision=precision,
                shared=shared,
                on_progress=on_progress,
            )
        known = seen[name]
        measured[name].trained_on = None if known is None else [n for n in measured[name].names if n in known]
    return measured


@contextmanager
def shared_with(args: argparse.Namespace, checkpoint: Path, videos: VideoList) -> Iterator[Shared | None]:
    """The machines of --ray, which see the same files as this one; without it None."""
    if args.ray is None:
        yield None
        return
    from frameflex.engine.measuring import Shared
    from frameflex.engine.separate_networks import load_model

    with engine_of(args, 1) as cluster:
        where = os.path.abspath(checkpoint) if checkpoint.exists() else str(checkpoint)
        cluster.check_paths([where, *paths_of(videos)])
        device = args.device or ("cuda" if cluster.num_gpus else "cpu")
        yield Shared(cluster, partial(load_model, where, args.untrained), args.precision, device)


def _adaptive(
    args: argparse.Namespace, networks: Mapping[str, Checkpoint], measured: Mapping[str, Evaluation]
) -> dict[str, AdaptiveReport]:
    from frameflex.engine.adaptive import adaptive_report

    if any(networks[name].multi_label for name in measured):
        raise ValueError("--adaptive is for checkpoints with one label a video; leave it out")
    return {
        name: adaptive_report(one, list(one.logits), max_drop=args.max_drop / 100)
        for name, one in measured.items()
    }


def _baselines(
    args: argparse.Namespace,
    networks: Mapping[str, Checkpoint],
    measured: Mapping[str, Evaluation],
    measurable: Mapping[str, VideoList],
    device: torch.device,
    console: Any,
) -> dict[str, Baseline]:
    from frameflex.console import progress
    from frameflex.engine.baseline import measure_baseline

    baselines = {}
    for name, one in measured.items():
        with progress(console, "baseline") as on_progress:
            baselines[name] = measure_baseline(
                networks[name],
                one.videos or measurable[name],
                num_frames=max(one.logits),
                device=device,
                batch_size=args.batch_size,
                num_workers=args.workers,
                on_bad_video=args.on_bad_video,
                on_progress=on_progress,
            )
    return baselines


@dataclass(frozen=True)
class _Found:
    """What was found out, each by the short name of its checkpoint; `problems` are of the data."""

    networks: Mapping[str, Checkpoint]
    measured: Mapping[str, Evaluation]
    adaptive: Mapping[str, AdaptiveReport]
    baselines: Mapping[str, Baseline]
    problems: Sequence[str]


def _results(args: argparse.Namespace, found: _Found) -> Any:
    """For JSON: an object, or with --compare a list of them."""
    results = [
        {
            "checkpoint": str(path),
            "data": str(args.data),
            **one.to_dict(),
            **(
                {"published": published}
                if (published := found.networks[name].metrics.get("published"))
                else {}
            ),
            **({"adaptive": asdict(found.adaptive[name])} if found.adaptive else {}),
            **({"baseline": asdict(found.baselines[name])} if found.baselines else {}),
        }
        for (name, one), path in zip(found.measured.items(), args.checkpoints, strict=True)
    ]
    return results if args.compare else results[0]


def _print_tables(args: argparse.Namespace, found: _Found) -> None:
    from frameflex import report
    from frameflex.console import results_console

    out = results_console()
    out.print(report.accuracy_table(found.measured))
    for name, one in found.measured.items():
        for line in (
            report.top1_sentence(one),
            *report.published_lines(one, found.networks[name].metrics),
        ):
            out.print(line if len(found.measured) == 1 else f"{name}: {line}", markup=False, soft_wrap=True)
    if args.compare:
        out.print(report.comparison_table(found.measured))
    for name, of_one in found.adaptive.items():
        out.print(report.adaptive_table(of_one, name if len(found.adaptive) > 1 else None))
        out.print(report.adaptive_sentence(of_one, args.max_drop))


def _say_of_each(found: _Found, num_left_out: Mapping[str, int], console: Any) -> None:
    """What people should know beside the numbers; `num_left_out` videos were trained on."""
    for name, one in found.measured.items():
        said = _say_what_is_measured(one, num_left_out[name], name)
        if said:
            console.print(said)
        if name in found.baselines:
            console.print(
                f"{name}: {baseline_sentence(one, found.baselines[name])}", markup=False, soft_wrap=True
            )
        for bad in (*one.bad, *one.left_out):
            console.print(f"left out: {bad.name}: {bad.reason}")


def _say_what_is_measured(one: Evaluation, number: int, name: str) -> str | None:
    """A line for people where videos were trained on, or were left out because of that."""
    if one.trained_on:
        return (
            f"{name}: {len(one.trained_on)} of the {len(one.names)} measured videos were trained on: there "
            "the numbers say how well it remembers them, not how well it recognises others"
        )
    if number:
        return (
            f"{name}: measured on the {len(one.names)} videos that were held out of training; {number} that were "
            "trained on are left out (--include-trained measures them, too)"
        )
    return None


def baseline_sentence(one: Evaluation, baseline: Baseline) -> str:
    """The network beside the baseline, and whether it is the better one."""
    top1 = one.at(baseline.num_frames).top1
    best = max(baseline.mean, baseline.mean_and_deviation, baseline.mean_and_change)
    verdict = "" if top1 > best else ". THE NETWORK IS NOT BETTER than frozen features"
    return (
        f"at {baseline.num_frames} frames top-1 {top1:.1%}; logistic regression on frozen features of "
        f"{baseline.num_training} training videos: {baseline.mean:.1%} with their mean, "
        f"{baseline.mean_and_deviation:.1%} with mean and deviation over the frames; least squares on mean and "
        f"change before the last stage: {baseline.mean_and_change:.1%}{verdict}"
    )


def _write(args: argparse.Namespace, found: _Found, results: Any, *, command: str, console: Any) -> None:
    """Fill --output's folder."""
    from frameflex import report

    measured, networks, baselines = found.measured, found.networks, found.baselines
    report.write_json(args.output / "results.json", results)
    report.plot_accuracy(measured, args.output / "accuracy.png")
    written = ["results.json", "accuracy.png"]
    for name, one in measured.items():
        if networks[name].multi_label:  # a video of several classes has no place in a confusion matrix
            continue
        suffix = f"-{name.replace('/', '-')}" if args.compare else ""
        report.write_predictions(one, args.output / f"predictions{suffix}.csv")
        report.plot_confusion(one, max(one.logits), args.output / f"confusion{suffix}.png")
        written += [f"predictions{suffix}.csv", f"confusion{suffix}.png"]
    if found.adaptive:
        report.plot_adaptive(found.adaptive, args.output / "adaptive.png")
        written.append("adaptive.png")
    paths = dict(zip(networks, args.checkpoints, strict=True))
    parts = {
        name: replace(
            _part_of_report(one, networks[name], paths[name]),
            note=baseline_sentence(one, baselines[name]) if name in baselines else "",
            problems=found.problems,
        )
        for name, one in measured.items()
    }
    report.write_report(
        args.output / "report.html", parts, title=f"{', '.join(measured)} on {args.data}", command=command
    )
    written.insert(0, "report.html")
    console.print(f"wrote {', '.join(written)} into {args.output}")


def _part_of_report(one: Evaluation, checkpoint: Checkpoint, path: Path) -> Measured:
    from frameflex.report import Measured

    undecodable = checkpoint.metrics.get("training", {}).get("undecodable", {})
    return Measured(
        one,
        checkpoint.preprocessing,
        **checkpoint.sampling,
        log=path.with_name("log.jsonl") if path.is_file() else None,
        training_bad=undecodable,
    )


def short_names(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each checkpoint that tells it from the others: the last parts of its path that differ."""
    # The names of published weights have a dot, too.
    plain = [path.with_suffix("") if path.suffix == ".safetensors" else path for path in paths]
    parts = [[part for part in path.parts if part != path.anchor] for path in plain]
    for usual in ("best", "last", "run"):  # what they share tells nothing
        if len(paths) > 1 and sum(names[-1:] == [usual] for names in parts) != 1:
            parts = [names[:-1] if names[-1:] == [usual] else names for names in parts]
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-number:]) for part in parts]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise ValueError(f"{paths[0]} is given twice; expected different checkpoints")
