"""The bundled benchmark: short videos that only the order of their frames tells apart.

One textured object changes over a textured background, below a shaking camera: it moves left, right, up or
down, comes closer or goes away, turns, fades in or out, or goes and comes back. Every class has a twin that
shows the same frames in another order (played backwards, or started half a period later), so that a model that
looks at frames one by one, or at all of them in no order, cannot do better than guess between the two.

The files have Something-Something V2's own layout, and are read by the same code.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from frameflex.motion.scenes import CLASSES, MotionClass, draw, render_frames
from frameflex.new_files import new_folder

__all__ = ["CLASSES", "MotionClass", "render", "render_frames"]

VERSION = 1  # of the frames that a seed gives: a change to them makes another benchmark
FPS = 12  # Something-Something V2's
MANIFEST = "motion.json"
VIDEO_FOLDER = "20bn-something-something-v2"


def render(
    directory: str | os.PathLike[str],
    *,
    num_videos: int = 600,
    size: int = 96,
    seed: int = 0,
    validation_fraction: float = 0.2,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render the benchmark to H.264 files, laid out as Something-Something V2 is.

    The folder appears under its name when it is complete, and not before. Where it already holds this very
    benchmark, nothing is done.

    Args:
        directory: new or empty folder.
        num_videos: training and validation together; a multiple of the number of classes, so that every class
            is equally frequent in both.
        size: height and width in pixels; even, at least 16.
        seed: 0 or more; the same arguments give the same frames. The two parts share no texture.
        validation_fraction: between 0 and 1; rounded to whole videos of each class, at least one in each part.
        num_workers: threads; as many as the machine has cores if None. It doesn't change what is rendered.
        on_progress: called with the number of videos that are done and of all, from the calling thread.

    Returns:
        The folder.

    Raises:
        ValueError: if an argument is out of its range.
        FileExistsError: if the directory is not empty and holds anything but this benchmark, complete.
    """
    entries = _plan(num_videos, size, seed, validation_fraction)
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; expected at least 1, or None for one per core.")
    manifest = {
        "benchmark": "frameflex motion",
        "version": VERSION,
        "num_videos": num_videos,
        "size": size,
        "seed": seed,
        "validation_fraction": validation_fraction,
    }
    final = Path(directory)
    if _is_rendered(final, manifest, [entry.identity for entry in entries]):
        if on_progress is not None:
            on_progress(num_videos, num_videos)
        return final

    with new_folder(final) as partial:
        (partial / VIDEO_FOLDER).mkdir()
        for entry, thing in _rendered(entries, partial / VIDEO_FOLDER, size, num_workers, on_progress):
            entry.thing = thing
        _write_json(partial / "labels.json", {c.label: str(index) for index, c in enumerate(CLASSES)})
        for split in ("train", "validation"):
            listed = [entry.listed() for entry in entries if entry.split == split]
            _write_json(partial / f"{split}.json", listed)
        _write_json(partial / MANIFEST, manifest)
    return final


@dataclass
class _Entry:
    """One video to render."""

    identity: str
    split: str
    class_index: int
    entropy: tuple[int, ...]
    thing: str = ""

    def listed(self) -> dict[str, Any]:
        template = CLASSES[self.class_index].template
        label = template.replace("[something]", self.thing).replace("[Something]", self.thing).lower()
        return {"id": self.identity, "label": label, "template": template, "placeholders": [self.thing]}


def _plan(num_videos: int, size: int, seed: int, validation_fraction: float) -> list[_Entry]:
    num_classes = len(CLASSES)
    if num_videos < 2 * num_classes or num_videos % num_classes:
        nearest = max(2, round(num_videos / num_classes)) * num_classes
        raise ValueError(
            f"num_videos is {num_videos}; expected a multiple of {num_classes}, the number of classes, and at "
            f"least {2 * num_classes}: one of each in both parts. The nearest is {nearest}."
        )
    if size < 16 or size % 2:
        raise ValueError(f"size is {size}; expected an even number of pixels, at least 16.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more.")
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"validation_fraction is {validation_fraction}; expected between 0 and 1, such as 0.2."
        )
    per_class = num_videos // num_classes
    num_validation = min(max(round(validation_fraction * per_class), 1), per_class - 1) * num_classes
    # The identities are shuffled, so that neither they nor the order of the files tell class or part.
    identities = np.random.default_rng((seed, VERSION)).permutation(num_videos) + 1
    entries = []
    for number, identity in enumerate(identities):
        split = "validation" if number < num_validation else "train"
        # What comes after the seed differs between any two videos; twins share nothing either.
        entropy = (seed, VERSION, int(split == "validation"), number)
        entries.append(_Entry(str(identity), split, number % num_classes, entropy))
    return sorted(entries, key=lambda entry: int(entry.identity))


def _is_rendered(directory: Path, manifest: dict[str, Any], identities: list[str]) -> bool:
    """Whether the directory holds the benchmark already.

    Raises:
        FileExistsError: if it holds anything else.
    """
    if not directory.exists():
        return False
    advice = "Give another directory, or delete this one."
    if not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; expected a new or empty folder. {advice}")
    if not any(directory.iterdir()):
        return False
    try:
        found = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise FileExistsError(
            f"{directory} is not empty, and not a rendered benchmark; nothing was written. {advice}"
        ) from None
    if found != manifest:
        differing = (
            [
                f"{key} {found.get(key)!r} instead of {value!r}"
                for key, value in manifest.items()
                if found.get(key) != value
            ]
            if isinstance(found, dict)
            else []
        )
        raise FileExistsError(
            f"{directory} holds another benchmark ({', '.join(differing) or 'unreadable'}); nothing was "
            f"written. {advice}"
        )
    expected = ["labels.json", "train.json", "validation.json"]
    expected += [f"{VIDEO_FOLDER}/{identity}.mp4" for identity in identities]
    missing = [name for name in expected if not (directory / name).is_file()]
    if missing:
        raise FileExistsError(
            f"{directory} holds this benchmark, but {len(missing)} of its files are gone ({missing[0]}). {advice}"
        )
    return True


def _rendered(
    entries: list[_Entry],
    folder: Path,
    size: int,
    num_workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[_Entry, str]]:
    """Render and write all videos; yield each with what moves in it."""

    def work(entry: _Entry) -> str:
        frames, thing = draw(entry.class_index, np.random.default_rng(entry.entropy), size)
        _encode(folder / f"{entry.identity}.mp4", frames)
        return thing

    # Threads and not processes: NumPy and the encoder let go of the interpreter for most of the time, and there
    # is no main module to import again, no fork of a process that has threads, and one place for Ctrl-C.
    pool = ThreadPoolExecutor(num_workers or os.cpu_count() or 1)
    try:
        pending = {pool.submit(work, entry): entry for entry in entries}
        num_done = 0
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
                num_done += 1
                if on_progress is not None:
                    on_progress(num_done, len(entries))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # so that no thread writes into a folder being removed


def _encode(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        # Key frames only, at one quantiser: each frame is encoded as if it were alone. With predicted frames, or a
        # rate control that looks back, the error of a frame would tell what came before it: the direction of
        # time. One thread: the same frames give the same file.
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"qp": "20", "preset": "veryfast", "g": "1"}
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
