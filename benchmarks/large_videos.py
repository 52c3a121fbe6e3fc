"""What measuring a long video of large frames holds in memory: `evaluate --frames 1-20`, one view and 2 x 3.

    python benchmarks/large_videos.py FOLDER

Renders videos of a minute at 1080p and 4K into FOLDER, and measures a network of 0.4 M parameters on each in a
process of its own: its peak of memory, beside that of the same process on a video of 240 x 320.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

SIZES = {"240p": (240, 320), "1080p": (1080, 1920), "4K": (2160, 3840)}
VIEWS = ("1x1", "2x3")
FPS, SECONDS = 10, 60


def render(path: Path, height: int, width: int) -> None:
    import av
    import numpy as np

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 255, (height // 20, width // 20, 3), np.uint8)
    picture = picture.repeat(20, 0).repeat(20, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(FPS * SECONDS):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 8 * i, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def measure(path: Path, views: str) -> None:
    """In a process of its own: prints its peak of memory in MiB."""
    import torch

    from frameflex.data.records import VideoList, VideoRecord
    from frameflex.data.transforms import Preprocessing
    from frameflex.engine.evaluation import evaluate
    from frameflex.models import create_model

    torch.set_num_threads(1)
    evaluate(
        create_model("test_resnet", num_classes=2).eval(),
        VideoList([VideoRecord(path, 0, path.name)], ["a", "b"]),
        preprocessing=Preprocessing(short_side=64, crop_size=56),
        frame_counts=range(1, 21),
        views=views,
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(Path(args.measure[0]), args.measure[1])
        return
    for name, (height, width) in SIZES.items():
        path = args.folder / f"{name}.mp4"
        render(path, height, width)
        for views in VIEWS:
            done = subprocess.run(
                [sys.executable, __file__, str(args.folder), "--measure", str(path), views],
                capture_output=True,
                text=True,
            )
            said = f"{float(done.stdout):.0f} MiB" if done.returncode == 0 else done.stderr.splitlines()[-1]
            print(f"{name}, {FPS * SECONDS} frames, --frames 1-20 --views {views}: {said}", flush=True)


if __name__ == "__main__":
    main()
