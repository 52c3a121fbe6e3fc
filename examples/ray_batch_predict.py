"""Recognise the videos of a manifest on a Ray cluster, or on this machine.

    pip install "ray[data]" "frameflex[parquet]"
    python examples/ray_batch_predict.py best.safetensors videos.csv predictions --processes 4

Ray Data reads the manifest (.csv or .parquet with a column path) in blocks, keeps one network in each of its
processes, feeds them batches of paths, writes Parquet as answers come, and repeats what a lost machine was doing. The
answers are those of `frameflex predict`. On a cluster the checkpoint, the manifest, the videos and the output lie
where every machine reaches them. Without Ray, `frameflex predict --manifest` under torchrun does the same and keeps
its parts over a restart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray


class Recognise:
    """A process of Ray's with the network in it: batches of paths in, batches of answers out."""

    def __init__(self, checkpoint: str, video_dir: str, num_frames: int | None, device: str) -> None:
        from frameflex.deploy.recognizer import Recognizer

        self.recognizer = Recognizer.from_checkpoint(checkpoint, device=device)
        self.video_dir = Path(video_dir)
        self.num_frames = num_frames

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from frameflex.data.manifest import path_inside
        from frameflex.video import VideoError

        videos = [str(video) for video in batch["path"]]
        paths = [path_inside(self.video_dir, video, "manifest") for video in videos]
        labels: list[str | None] = []
        probabilities, errors = [], []
        for _, answer in self.recognizer.recognize_many(paths, num_frames=self.num_frames, top=1):
            bad = isinstance(answer, VideoError)
            labels.append(None if bad else answer[0].label)
            probabilities.append(float("nan") if bad else answer[0].probability)
            errors.append(str(answer) if bad else None)
        return {
            "video": np.array(videos, object),
            "label": np.array(labels, object),
            "probability": np.array(probabilities),
            "error": np.array(errors, object),
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("manifest", type=Path, help=".csv or .parquet with a column path")
    parser.add_argument("output", type=Path, help="folder for Parquet files; must be new or empty")
    parser.add_argument("--video-dir", type=Path, help="default: beside the manifest")
    parser.add_argument("--frames", type=int, help="default: the largest trained count")
    parser.add_argument("--processes", type=int, default=1, help="networks at work at once (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="of each process; a share such as 0.5 is fine")
    parser.add_argument("--batch-size", type=int, default=32, help="paths given to a process at once")
    args = parser.parse_args(argv)
    if args.output.exists() and any(args.output.iterdir()):
        parser.error(f"{args.output} is not empty; expected a new folder")
    readers: dict[str, Any] = {".csv": ray.data.read_csv, ".parquet": ray.data.read_parquet}
    if args.manifest.suffix not in readers:
        parser.error(f"{args.manifest}: expected .csv or .parquet")
    home = (args.video_dir or args.manifest.parent).resolve()
    videos = readers[args.manifest.suffix](str(args.manifest.resolve())).select_columns(["path"])
    answers = videos.map_batches(
        Recognise,
        fn_constructor_args=(
            str(args.checkpoint.resolve()),
            str(home),
            args.frames,
            "cuda" if args.gpus else "cpu",
        ),
        batch_size=args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.processes),
        num_gpus=args.gpus,
    )
    answers.write_parquet(str(args.output.resolve()))
    written = ray.data.read_parquet(str(args.output.resolve()))
    num_bad = written.filter(lambda row: row["error"] is not None).count()
    print(f"{written.count()} videos, {num_bad} bad, in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
