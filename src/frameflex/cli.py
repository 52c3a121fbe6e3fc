"""The verbs of the command line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from frameflex import __version__

VIEWS = ("1x1", "2x1", "1x3", "2x3")
UNTRAINED = ("nearest", "blend")  # named here so that --help needs no torch

Run = Callable[[Any], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 only where it did what it said.

    1 means that the work could not be done (one line on standard error says why), 2 that the command line could
    not be understood, 130 that it was stopped by Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print(_overview())  # noqa: T201
        return 0
    if verb == "--version":
        print(f"frameflex {__version__}")  # noqa: T201
        return 0
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(VERBS)}"
        return _fail(f"unknown command {verb!r}; {hint}", status=2)
    try:
        from frameflex.console import make_console, show_messages

        console = make_console()
        show_messages(console, debug=debug)
        return VERBS[verb][0](rest, console)
    except KeyboardInterrupt:
        return _fail("stopped", status=130)
    except SystemExit as stop:  # argparse after --help or a usage error
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away, as `head` does
        return 141
    except Exception as error:
        from frameflex.engine.training import Interrupted

        if isinstance(error, Interrupted):
            return _fail(str(error), status=130)
        if debug:
            raise
        return _fail(_one_line(error), status=1)


def _fail(message: str, *, status: int) -> int:
    print(f"frameflex: {message}", file=sys.stderr)  # noqa: T201
    return status


def _one_line(error: Exception) -> str:
    """The message of an error that we raise ourselves; of any other also its kind, and how to see more."""
    from frameflex.checkpoint import CheckpointError
    from frameflex.data.video import VideoError

    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, FileNotFoundError, FileExistsError, VideoError, CheckpointError)):
        return message
    return f"{type(error).__name__}: {message} (run again with --debug for details)"


class _Parser(argparse.ArgumentParser):
    """One line for a usage error, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"frameflex: {message}; see {self.prog} --help\n")


def _parser(verb: str, description: str, example: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=f"frameflex {verb}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in VERBS.items()]
    return "\n".join(
        [
            "usage: frameflex COMMAND ...",
            "",
            "Recognise actions in video with networks whose frame count is a dial at run time.",
            "",
            "commands:",
            *lines,
            "",
            "frameflex COMMAND --help explains one. --debug, anywhere, shows tracebacks.",
        ]
    )


# ------------------------------------------------------------------------------------------------- demo


def _demo(argv: list[str], console: Any) -> int:
    parser = _parser(
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
    from frameflex.demo import demo
    from frameflex.engine.training import Interrupted

    try:
        demo(args.output, quick=args.quick, seed=args.seed, console=console)
    except Interrupted as stopped:  # the demo has no --resume to advise
        return _fail(f"stopped; what was made so far is in {stopped.checkpoint.parents[1]}", status=130)
    return 0


# ------------------------------------------------------------------------------------------------ train


def _train(argv: list[str], console: Any) -> int:
    from frameflex.console import leave_cores_to_workers, training_progress
    from frameflex.engine.training import train

    recipe, resume = parse_recipe(argv)
    leave_cores_to_workers(recipe.data.num_workers)
    if (
        os.environ.get("RANK", "0") != "0"
    ):  # one of several processes of torchrun or accelerate launch: the first one talks
        logging.getLogger("frameflex").setLevel(logging.WARNING)
        train(recipe, resume=resume)
        return 0
    with training_progress(console, recipe.training.epochs) as watcher:
        paths = train(recipe, resume=resume, watcher=watcher)
    for path in paths:
        print(path)  # noqa: T201
    return 0


def parse_recipe(argv: Sequence[str]) -> tuple[Any, bool]:
    """``RECIPE.yaml [--key value …] [--resume]`` into a Recipe and whether to resume.

    Raises:
        RecipeError: on an unknown key, with the one that was probably meant, or a value of the wrong kind.
        FileNotFoundError: if there is no such recipe, in the file system or among the bundled ones.
        SystemExit: after --help.
    """
    import jsonargparse
    import yaml

    from frameflex.engine.recipe import Recipe, RecipeError, check_key, check_keys, known_keys

    class RecipeParser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise RecipeError(" ".join(message.split()).replace("Parser key", "key"))

    parser = RecipeParser(
        prog="frameflex train",
        usage="frameflex train RECIPE.yaml [--key value ...] [--resume]",
        description="Train a network as a recipe says. RECIPE.yaml is a file, or the name of a bundled recipe: "
        f"{', '.join(path.name for path in bundled_recipes())}. Any key of it can be given as an option.",
    )
    parser.add_argument("--recipe", action="config", help="the recipe, where it isn't the first argument")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output, or start it")
    parser.add_class_arguments(Recipe)
    arguments = list(argv)
    if arguments and not arguments[0].startswith("-"):
        arguments[0:1] = ["--recipe", arguments[0]]
    for i, argument in enumerate(arguments):
        if argument == "--recipe" and i + 1 < len(arguments):
            path = find_recipe(arguments[i + 1])
            arguments[i + 1] = str(path)
            try:
                check_keys(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, str(path))
            except yaml.YAMLError as error:
                raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        elif argument.startswith("--") and argument not in ("--recipe", "--resume", "--help"):
            key = argument[2:].split("=")[0].rstrip("+")
            if not key.startswith("print_config"):
                check_key(key, [*known_keys(), "resume"], "command line")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="jsonargparse")
        parsed = parser.parse_args(arguments)
        recipe = parser.instantiate(parsed)
    values = {name: recipe[name] for name in Recipe.__dataclass_fields__}
    return Recipe(**values), bool(parsed.resume)


def bundled_recipes() -> list[Path]:
    """The recipes that come with frameflex, sorted by name."""
    installed = Path(__file__).parent / "recipes"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"  # a source tree
    return sorted(folder.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """A recipe's path: a file, or one of the bundled recipes by name, with or without ``.yaml``."""
    if Path(name).is_file():
        return Path(name)
    bundled = {path.name: path for path in bundled_recipes()}
    for candidate in (name, f"{name}.yaml"):
        if candidate in bundled:
            return bundled[candidate]
    close = get_close_matches(name, bundled, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Bundled ones are {', '.join(bundled)}"
    raise FileNotFoundError(f"recipe {name}: no such file. {hint}")


# --------------------------------------------------------------------------------------------- evaluate


def _evaluate(argv: list[str], console: Any) -> int:
    parser = _parser(
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
        "--adaptive", action="store_true", help="few frames first, more only while the answer is unsure"
    )
    parser.add_argument(
        "--max-drop", type=float, default=0.5, help="points that --adaptive may lose (default: 0.5)"
    )
    parser.add_argument("--split", default="validation", help="of data that has splits (default: validation)")
    parser.add_argument("--video-dir", help="where the files of a list are (default: beside the list)")
    parser.add_argument("--views", default="1x1", choices=VIEWS, help="clips x crops a video (default: 1x1)")
    parser.add_argument(
        "--output", type=Path, help="folder for results.json, predictions.csv and the pictures"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    parser.add_argument("--on-bad-video", choices=["error", "skip"], default="error", help="default: error")
    parser.add_argument("--batch-size", type=_positive, default=8, help="videos at once (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: the best there is)")
    args = parser.parse_args(argv)
    if len(args.checkpoints) > 1 and not args.compare:
        parser.error(f"{len(args.checkpoints)} checkpoints are given; add --compare to measure them together")
    from rich.console import Console

    from frameflex import report
    from frameflex.console import progress
    from frameflex.data.datasets import load_split
    from frameflex.data.label_sets import split_label_sets
    from frameflex.deploy.recognizer import best_device
    from frameflex.engine.adaptive import adaptive_report
    from frameflex.engine.evaluation import evaluate, load_networks
    from frameflex.models.frame_flexible import serve_untrained

    networks = {name: load_networks(path) for name, path in _short_names(args.checkpoints).items()}
    # Curves are compared over the same frame counts.
    trained = {count for checkpoint in networks.values() for count in checkpoint.frame_counts}
    counts = args.frames or tuple(sorted(trained))
    if args.adaptive and len(counts) < 2:
        raise ValueError(
            f"--adaptive at {counts[0]} frames alone; expected several counts, such as --frames 4,8,16"
        )
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)  # to fail now rather than with everything measured
    measured = {}
    for name, checkpoint in networks.items():
        if args.untrained and checkpoint.model.frame_counts:
            serve_untrained(checkpoint.model, args.untrained)
        expected = None if checkpoint.multi_label else checkpoint.class_names
        videos = load_split(args.data, args.split, classes=expected, video_dir=args.video_dir)
        label_sets = None
        if checkpoint.multi_label:
            (videos,), label_sets = split_label_sets([videos], classes=checkpoint.class_names)
        with progress(console, f"evaluating {name}" if len(networks) > 1 else "evaluating") as on_progress:
            measured[name] = evaluate(
                checkpoint.model.to(args.device or best_device()),
                videos,
                preprocessing=checkpoint.preprocessing,
                frame_counts=counts,
                trained_counts=checkpoint.frame_counts,
                **checkpoint.sampling,
                views=args.views,
                batch_size=args.batch_size,
                num_workers=args.workers,
                on_error=args.on_bad_video,
                label_sets=label_sets,
                on_progress=on_progress,
            )
    one_label = {name: one for name, one in measured.items() if not networks[name].multi_label}
    adaptive = {}
    if args.adaptive:
        if len(one_label) < len(measured):
            raise ValueError("--adaptive is for checkpoints with one label a video; leave it out")
        for name, one in measured.items():
            adaptive[name] = adaptive_report(one, list(one.logits), max_drop=args.max_drop / 100)
    results = [
        {
            "checkpoint": str(path),
            "data": str(args.data),
            **one.to_dict(),
            **({"adaptive": asdict(adaptive[name])} if adaptive else {}),
        }
        for (name, one), path in zip(measured.items(), args.checkpoints, strict=True)
    ]
    if args.json:
        print(json.dumps(results if args.compare else results[0], indent=2, ensure_ascii=False))  # noqa: T201
    else:
        out = Console(highlight=False)
        out.print(report.accuracy_table(measured))
        if args.compare:
            out.print(report.comparison_table(measured))
        for name, found in adaptive.items():
            out.print(report.adaptive_table(found, name if len(adaptive) > 1 else None))
            out.print(report.adaptive_sentence(found, args.max_drop))
    for one in measured.values():
        for bad in one.bad:
            console.print(f"left out: {bad.name}: {bad.reason}")
    if args.output:
        report.write_json(args.output / "results.json", results if args.compare else results[0])
        report.plot_accuracy(measured, args.output / "accuracy.png")
        written = ["results.json", "accuracy.png"]
        for name, one in one_label.items():  # a video of several classes has no place in a confusion matrix
            suffix = f"-{name.replace('/', '-')}" if args.compare else ""
            report.write_predictions(one, args.output / f"predictions{suffix}.csv")
            report.plot_confusion(one, max(one.logits), args.output / f"confusion{suffix}.png")
            written += [f"predictions{suffix}.csv", f"confusion{suffix}.png"]
        if adaptive:
            report.plot_adaptive(adaptive, args.output / "adaptive.png")
            written.append("adaptive.png")
        console.print(f"wrote {', '.join(written)} into {args.output}")
    return 0


def _short_names(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each checkpoint that tells it from the others: the last parts of its path that differ."""
    parts = [[part for part in path.with_suffix("").parts if part != path.anchor] for path in paths]
    for usual in ("best", "last", "run"):  # what they share tells nothing
        if len(paths) > 1 and sum(names[-1:] == [usual] for names in parts) != 1:
            parts = [names[:-1] if names[-1:] == [usual] else names for names in parts]
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-number:]) for part in parts]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise ValueError(f"{paths[0]} is given twice; expected different checkpoints")


def frame_counts(text: str) -> tuple[int, ...]:
    """Parse "4,8,16", "1-20" or a mix of both into ascending, different frame counts."""
    counts: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            low, high = 0, 0
        if not 1 <= low <= high <= 1024:
            raise argparse.ArgumentTypeError(f"{text!r} are no frame counts; expected such as 4,8,16 or 1-20")
        counts.update(range(low, high + 1))
    return tuple(sorted(counts))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


# ---------------------------------------------------------------------------------------------- predict


def _predict(argv: list[str], console: Any) -> int:
    parser = _parser(
        "predict",
        "Recognise what happens in videos. A file that can't be decoded is reported and counted; the others go\n"
        "on, and the exit status is 1.",
        "frameflex predict best.safetensors clip.mp4 'more/*.webm' --frames 8 --top 3",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="files, folders (searched) or quoted patterns"
    )
    parser.add_argument(
        "--frames", type=_positive, help="frames to look at (default: the largest trained count)"
    )
    parser.add_argument(
        "--budget", choices=["auto"], help="few frames first, more only while the answer is unsure"
    )
    parser.add_argument("--confidence", type=float, default=0.8, help="for --budget, 0 to 1 (default: 0.8)")
    parser.add_argument("--top", type=_positive, default=5, help="answers for each video (default: 5)")
    parser.add_argument(
        "--views", default="1x1", choices=["1x1", "2x1", "1x3", "2x3"], help="clips x crops a video"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    parser.add_argument("--batch-size", type=_positive, default=8, help="videos at once (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: the best there is)")
    args = parser.parse_args(argv)
    from frameflex.console import progress
    from frameflex.data.datasets import find_video_files
    from frameflex.data.video import VideoError
    from frameflex.deploy.recognizer import Recognizer

    recognizer = Recognizer.from_checkpoint(args.checkpoint, device=args.device)
    files = find_video_files(args.videos)
    failed = 0
    with progress(console, "recognising") as on_progress:
        answers = recognizer.recognize_many(
            files,
            num_frames=args.frames,
            budget=args.budget,
            confidence=args.confidence,
            top=args.top,
            views=args.views,
            batch_size=args.batch_size,
            num_workers=args.workers,
        )
        for done, (file, answer) in enumerate(answers, start=1):
            on_progress(done, len(files))
            if isinstance(answer, VideoError):
                failed += 1
                if args.json:
                    print(json.dumps({"video": str(file), "error": str(answer)}, ensure_ascii=False))  # noqa: T201
                console.print(f"frameflex: {answer}", style="red")
            elif args.json:
                values = {"video": str(file), "predictions": [vars(prediction) for prediction in answer]}
                print(json.dumps(values, ensure_ascii=False))  # noqa: T201
            else:
                print(file)  # noqa: T201
                for prediction in answer:
                    print(f"  {prediction.probability:6.1%}  {prediction.label}")  # noqa: T201
    if failed:
        console.print(f"frameflex: {failed} of {len(files)} videos could not be recognised", style="red")
    return 1 if failed else 0


# ------------------------------------------------------------------------------------------------- data


def _data(argv: list[str], console: Any) -> int:
    commands = {"render": _data_render, "check": _data_check}
    if not argv or argv[0] in ("-h", "--help"):
        print(  # noqa: T201
            "usage: frameflex data COMMAND ...\n\ncommands:\n"
            "  render  make the bundled benchmark of motions as video files\n"
            "  check   decode every video of a data set once and list the files that fail"
        )
        return 0
    if argv[0] not in commands:
        return _fail(
            f"unknown command data {argv[0]!r}; expected data {' or data '.join(commands)}", status=2
        )
    return commands[argv[0]](argv[1:], console)


def _data_check(argv: list[str], console: Any) -> int:
    parser = _parser(
        "data check",
        "Decode every frame of every video once, in parallel, and list the files that fail. The exit status is 1\n"
        "if there are any. DATA is a data set in any layout, or a folder of videos.",
        "frameflex data check data/something-something-v2 --json bad.json",
    )
    parser.add_argument("data", metavar="DATA", help="data set, or folder of videos")
    parser.add_argument("--split", help="of data that has splits (default: all of them)")
    parser.add_argument("--video-dir", help="where the files of a list are (default: beside the list)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the list as JSON")
    args = parser.parse_args(argv)
    from frameflex import report
    from frameflex.console import progress
    from frameflex.data.check import check_videos
    from frameflex.data.datasets import all_videos

    videos = all_videos(args.data, split=args.split, video_dir=args.video_dir)
    with progress(console, "checking") as on_progress:
        bad = check_videos(videos, num_workers=args.workers, on_progress=on_progress)
    for video in bad:
        print(f"{videos[video.index].path}: {video.reason}")  # noqa: T201
    if args.json:
        listed = [{"path": str(videos[v.index].path), "name": v.name, "reason": v.reason} for v in bad]
        report.write_json(args.json, {"num_videos": len(videos), "bad": listed})
    console.print(f"{len(videos)} videos decoded, {len(bad)} of them bad")
    return 1 if bad else 0


def _data_render(argv: list[str], console: Any) -> int:
    parser = _parser(
        "data render",
        "Render the bundled benchmark: short videos of moving things, in Something-Something V2's layout, in\n"
        "classes that a single frame can't tell apart. The same seed gives the same frames.",
        "frameflex data render motion --videos 600 --size 96 --seed 0",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="new folder")
    parser.add_argument(
        "--videos", type=_positive, default=600, help="training and validation together (default: 600)"
    )
    parser.add_argument("--size", type=_positive, default=96, help="height and width in pixels (default: 96)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--validation-fraction", type=float, default=0.2, help="between 0 and 1 (default: 0.2)"
    )
    args = parser.parse_args(argv)
    from frameflex.console import progress
    from frameflex.data.motion import render

    with progress(console, "rendering") as on_progress:
        path = render(
            args.directory,
            num_videos=args.videos,
            size=args.size,
            seed=args.seed,
            validation_fraction=args.validation_fraction,
            on_progress=on_progress,
        )
    print(path)  # noqa: T201
    return 0


# -------------------------------------------------------------------------------------------- calibrate


def _calibrate(argv: list[str], console: Any) -> int:
    parser = _parser(
        "calibrate",
        "Re-estimate a checkpoint's normalisation statistics at frame counts that it was not trained at, from some\n"
        "tens of unlabelled videos. Weights, and what it does at its trained counts, stay as they are.",
        "frameflex calibrate best.safetensors my_videos --frames 6,12 --output calibrated.safetensors",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors file of frameflex"
    )
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="files, folders (searched) or quoted patterns"
    )
    parser.add_argument("--frames", type=frame_counts, required=True, help="such as 6,12 or 5-7")
    parser.add_argument("--output", type=Path, required=True, help="the new checkpoint")
    parser.add_argument(
        "--batch-size", type=_positive, default=16, help="videos whose statistics are taken together"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default: 2)")
    args = parser.parse_args(argv)
    from frameflex.checkpoint import load_checkpoint, save_checkpoint
    from frameflex.console import progress
    from frameflex.data.datasets import VideoList, VideoRecord, find_video_files
    from frameflex.engine.calibration import calibrate

    if args.output.exists():
        raise FileExistsError(f"{args.output} is there already; choose another --output")
    if args.output.suffix != ".safetensors":
        return _fail(f"--output {args.output}: expected a name that ends in .safetensors", status=2)
    checkpoint = load_checkpoint(args.checkpoint)
    files = find_video_files(args.videos)
    videos = VideoList([VideoRecord(path, None, str(path)) for path in files], checkpoint.class_names)
    with progress(console, "calibrating") as on_progress:
        calibrate(
            checkpoint,
            videos,
            args.frames,
            batch_size=args.batch_size,
            num_workers=args.workers,
            on_progress=on_progress,
        )
    save_checkpoint(args.output, checkpoint)
    counts = ", ".join(map(str, args.frames))
    console.print(f"statistics at {counts} frames re-estimated from {len(files)} videos")
    print(args.output)  # noqa: T201
    return 0


# ----------------------------------------------------------------------------------------------- models


def _models(argv: list[str], console: Any) -> int:
    parser = _parser(
        "models",
        "List the architectures of timm that take the temporal shift. With a PATTERN each match is built, without\n"
        "its weights, to show parameters, GFLOPs (multiply-adds) of one clip, and which ImageNet weights exist.",
        "frameflex models 'mobilenetv*_100' --frames 8",
    )
    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="such as 'resnet*' (default: names by family, at once)"
    )
    parser.add_argument(
        "--frames", type=_positive, default=8, help="of the clip that is counted (default: 8)"
    )
    parser.add_argument(
        "--size", type=_positive, default=224, help="its height and width in pixels (default: 224)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    args = parser.parse_args(argv)
    from fnmatch import fnmatch

    from frameflex.models.backbones import architectures_by_family, family_of

    families = architectures_by_family()
    if args.pattern is None:
        for family, members in families.items():
            if args.json:
                for name in members:
                    print(json.dumps({"name": name, "family": family.title}))  # noqa: T201
            else:
                print(f"{family.title}: shift {family.placed}")  # noqa: T201
                print("  " + "\n  ".join(members) + "\n")  # noqa: T201
        return 0
    names = sorted(name for members in families.values() for name in members if fnmatch(name, args.pattern))
    if not names:
        if not set("*?[") & set(args.pattern):
            family_of(args.pattern)  # tells close matches, or why this one can't take the shift
        return _fail(f"no architecture matches {args.pattern!r}; list all with frameflex models", status=1)
    from frameflex.console import progress

    rows = []
    with progress(console, "counting") as on_progress:
        for done, name in enumerate(names, start=1):
            rows.append(_describe_model(name, args.frames, args.size))
            on_progress(done, len(names))
    if args.json:
        for row in rows:
            print(json.dumps(row))  # noqa: T201
    else:
        _print_models(rows)
    return 0


def _print_models(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    table = Table(
        title=f"one clip of {first['num_frames']} frames, {first['size']} x {first['size']} pixels, 174 classes",
        title_justify="left",
    )
    table.add_column("architecture", no_wrap=True)
    table.add_column("M parameters", justify="right")
    table.add_column("GFLOPs/clip", justify="right")
    table.add_column("ImageNet weights")
    for row in rows:
        weights = row["weights"]
        shown = ", ".join(weights[:3]) + (f", {len(weights) - 3} more" if len(weights) > 3 else "")
        table.add_row(row["name"], f"{row['parameters'] / 1e6:.2f}", f"{row['gflops']:.3g}", shown or "none")
    Console().print(table)


def _describe_model(name: str, num_frames: int, size: int) -> dict[str, Any]:
    """What one architecture costs, counted on torch's meta device: no memory, no weights, no arithmetic."""
    import torch

    from frameflex.engine.evaluation import clip_gflops
    from frameflex.models import TSM
    from frameflex.models.backbones import family_of, pretrained_tags

    with torch.device("meta"):
        model = TSM(name, num_classes=174).eval()
        gflops = clip_gflops(model, torch.empty(1, 3, num_frames, size, size))
    return {
        "name": name,
        "family": family_of(name).title,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_frames": num_frames,
        "size": size,
        "gflops": gflops,
        "weights": pretrained_tags(name),
    }


# ---------------------------------------------------------------------------------------------- convert


def _convert(argv: list[str], console: Any) -> int:
    parser = _parser(
        "convert",
        "Turn a checkpoint of another code base into one of frameflex: mit-han-lab TSM, mmaction2 TSM, FFN-pytorch,\n"
        "image weights of torchvision and timm. What it is shows in its tensors' names, not in the file's. Nothing\n"
        "is saved where a tensor is left over or missing.",
        "frameflex convert TSM_somethingv2_RGB_resnet50.pth --to tsm.safetensors --classes labels.txt",
    )
    parser.add_argument("file", metavar="FILE", help=".pth, .pt, .tar or .safetensors")
    parser.add_argument("--to", type=Path, required=True, metavar="OUT", help="ends in .safetensors")
    parser.add_argument(
        "--classes", metavar="FILE", help="class names: one a line, or JSON (default: those in the file)"
    )
    unknown = parser.add_argument_group("where the file doesn't tell")
    unknown.add_argument("--frames", type=frame_counts, help="trained frame count, such as 16 (default: 8)")
    unknown.add_argument("--backbone", help="architecture of timm, where several fit")
    unknown.add_argument("--shift", choices=["bidirectional", "none"])
    unknown.add_argument(
        "--shift-div", type=_positive, help="one channel in so many moved each way (default: 8)"
    )
    unknown.add_argument("--non-local", choices=["embedded_gaussian", "dot_product", "gaussian"])
    unknown.add_argument(
        "--sampling", choices=["segments", "dense"], help="how frames were picked (default: segments)"
    )
    unknown.add_argument(
        "--window", type=_positive, default=64, help="frames that a dense clip spans (default: 64)"
    )
    unknown.add_argument("--license", default="", help="of the weights, such as cc-by-4.0")
    pixels = parser.add_argument_group("pixels, where they differ from what the code base does")
    pixels.add_argument("--short-side", type=_positive, help="pixels of the shorter side after resizing")
    pixels.add_argument("--crop-size", type=_positive, help="pixels of the centre crop")
    pixels.add_argument(
        "--mean", type=_colours, metavar="R,G,B", help="subtracted, on the scale of --pixel-scale"
    )
    pixels.add_argument(
        "--std", type=_colours, metavar="R,G,B", help="divided by, on the scale of --pixel-scale"
    )
    pixels.add_argument(
        "--pixel-scale", type=int, choices=[1, 255], default=1, help="largest value (default: 1)"
    )
    pixels.add_argument(
        "--channel-order", choices=["rgb", "bgr"], help="in which the network sees the colours"
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="DANGER: let FILE run any code it likes on this machine while it is read. Only for files whose author "
        "you trust as you trust a program that you start",
    )
    parser.add_argument("--json", action="store_true", help="what was found as JSON on standard output")
    args = parser.parse_args(argv)
    from frameflex.checkpoint import fetch, save_checkpoint
    from frameflex.convert import convert, read_class_names

    if args.to.suffix != ".safetensors":
        return _fail(f"--to {args.to}: expected a name that ends in .safetensors", status=2)
    changed: dict[str, Any] = {
        name: value
        for name in ("short_side", "crop_size", "channel_order")
        if (value := getattr(args, name)) is not None
    }
    for name in ("mean", "std"):
        if (values := getattr(args, name)) is not None:
            changed[name] = tuple(value / args.pixel_scale for value in values)
    if args.trust_pickle:
        console.print("frameflex: --trust-pickle: code inside the file may run now", style="red")
    conversion = convert(
        fetch(args.file),
        class_names=read_class_names(args.classes) if args.classes else None,
        frame_counts=args.frames,
        backbone=args.backbone,
        shift=args.shift,
        shift_div=args.shift_div,
        non_local=args.non_local,
        sampling={"sampling": "dense", "window": args.window} if args.sampling == "dense" else None,
        preprocessing=changed,
        license=args.license,
        trust_pickle=args.trust_pickle,
    )
    save_checkpoint(args.to, conversion.checkpoint)
    if args.json:
        values = {"source": conversion.source, "notes": conversion.notes, "checkpoint": str(args.to)}
        print(json.dumps(values, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        for note in conversion.notes:
            print(note)  # noqa: T201
        print(args.to)  # noqa: T201
    return 0


def _colours(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected three numbers, such as 0.5,0.5,0.5") from None
    return red, green, blue


VERBS: dict[str, tuple[Callable[[list[str], Any], int], str]] = {
    "demo": (_demo, "see the whole road on a rendered data set, in minutes, without a download"),
    "train": (_train, "train a network as a recipe says"),
    "evaluate": (_evaluate, "accuracy and cost of a checkpoint at every frame count"),
    "predict": (_predict, "recognise what happens in videos"),
    "calibrate": (_calibrate, "fit a checkpoint's statistics to frame counts that it was not trained at"),
    "data": (_data, "render the bundled benchmark; check the files of a data set"),
    "convert": (_convert, "bring weights of other code bases, timm or torchvision"),
    "models": (_models, "list the backbones that can be built, with their cost"),
}
