"""The bundled benchmark: what its frames are, what lies in its folder, and that it is all or nothing."""

import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from frameflex.motion import rendering as motion
from frameflex.motion import scenes
from frameflex.motion.rendering import CLASSES, VIDEO_FOLDER, render, render_frames

SIZE = 32
REVERSED = [i for i, c in enumerate(CLASSES) if c.order == "forward"]
LOOPS = [i for i, c in enumerate(CLASSES) if c.order == "there_and_back"]


def frames_of(class_index: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return render_frames(class_index, np.random.default_rng(seed), size)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("rendered") / "motion", num_videos=60, size=SIZE, seed=3)


def entries(folder: Path, split: str) -> list[dict]:
    return json.loads((folder / f"{split}.json").read_text())


# Frames


@pytest.mark.parametrize("class_index", range(len(CLASSES)))
def test_frames_are_24_to_48_square_rgb_pictures(class_index: int) -> None:
    for seed in range(4):
        frames = frames_of(class_index, seed)
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (SIZE, SIZE, 3)
        assert 24 <= len(frames) <= 48
        assert len(frames) % 2 == 0


def test_the_same_seed_gives_the_same_frames_and_another_seed_gives_others() -> None:
    first, again, other = frames_of(4, 7), frames_of(4, 7), frames_of(4, 8)
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


@pytest.mark.parametrize("class_index", REVERSED)
def test_a_movement_in_one_direction_is_its_twin_played_backwards(class_index: int) -> None:
    twin = class_index + 1
    assert (CLASSES[twin].change, CLASSES[twin].order) == (CLASSES[class_index].change, "backward")
    for seed in range(3):
        assert np.array_equal(frames_of(class_index, seed), frames_of(twin, seed)[::-1])


@pytest.mark.parametrize("class_index", LOOPS)
def test_going_and_coming_back_is_its_twin_entered_half_a_period_later(class_index: int) -> None:
    twin = class_index + 1
    assert CLASSES[twin].order == "back_and_there"
    for seed in range(3):
        frames, other = frames_of(class_index, seed), frames_of(twin, seed)
        assert np.array_equal(frames, np.roll(other, len(other) // 2, axis=0))
        assert not np.array_equal(frames, other)


def test_every_class_has_a_twin() -> None:
    twin_order = {"forward": "backward", "backward": "forward"}
    twin_order |= {"there_and_back": "back_and_there", "back_and_there": "there_and_back"}
    kinds = [(c.change, c.order) for c in CLASSES]
    assert len(set(kinds)) == len(kinds)
    assert all((change, twin_order[order]) in kinds for change, order in kinds)
    assert 8 <= len(CLASSES) <= 14


def _path_of_the_object(class_index: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> scenes._Path:
    """What render_frames paints last: the object, over background and distractors."""
    painted: list[scenes._Path] = []
    real = scenes._paint

    def spy(canvas: np.ndarray, thing: scenes._Thing, path: scenes._Path) -> None:
        painted.append(path)
        real(canvas, thing, path)

    monkeypatch.setattr(scenes, "_paint", spy)
    frames_of(class_index, seed)
    monkeypatch.undo()
    return painted[-1]


@pytest.mark.parametrize(
    ("change", "attribute"),
    [("x", "x"), ("y", "y"), ("size", "radius"), ("angle", "angle"), ("opacity", "opacity")],
)
def test_a_movement_goes_one_way_over_all_of_the_video(
    change: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_index = next(i for i, c in enumerate(CLASSES) if (c.change, c.order) == (change, "forward"))
    monkeypatch.setattr(scenes, "_sway", lambda time, rng, amplitude: np.zeros_like(time))
    for seed in range(5):
        with monkeypatch.context() as still:
            still.setattr(scenes, "_camera", lambda time, rng: np.zeros((2, len(time))))
            values = getattr(_path_of_the_object(class_index, seed, still), attribute)
        assert (np.diff(values) > 0).all()


def test_going_and_coming_back_visits_the_positions_of_going_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    time = (np.arange(24) + 0.5) / 24
    sweep = scenes._uneven(time, np.random.default_rng(0))
    loop = scenes._played(sweep, "there_and_back")
    assert np.array_equal(np.sort(loop), sweep)
    assert (np.diff(loop[:12]) > 0).all()
    assert (np.diff(loop[12:]) < 0).all()


def _redness_centre(frames: np.ndarray) -> np.ndarray:
    """(N, 2) centre x, y of the pixels that differ from the first colour of the picture's corner."""
    weight = np.abs(frames.astype(float) - frames[:, :1, :1]).sum(axis=-1)
    grid = np.arange(frames.shape[1])
    total = weight.sum(axis=(1, 2))
    return np.stack([(weight * grid).sum((1, 2)) / total, (weight * grid[:, None]).sum((1, 2)) / total], 1)


@pytest.mark.parametrize(
    ("template", "axis", "sign"),
    [
        ("Moving [something] from left to right", 0, 1),
        ("Moving [something] from right to left", 0, -1),
        ("Moving [something] down", 1, 1),
        ("Moving [something] up", 1, -1),
    ],
)
def test_pixels_go_where_the_class_says(
    template: str, axis: int, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scenes,
        "_background",
        lambda rng, size, camera: np.zeros((camera.shape[1], size, size, 3), np.float32),
    )
    monkeypatch.setattr(scenes, "_NUM_DISTRACTORS", (0, 1))
    class_index = [c.template for c in CLASSES].index(template)
    for seed in range(4):
        centre = _redness_centre(frames_of(class_index, seed, 64))
        assert sign * (centre[-4:] - centre[:4]).mean(axis=0)[axis] > 5  # pixels


def test_turning_clockwise_turns_clockwise_on_the_screen() -> None:
    thing = scenes._Thing("bar", "striped", np.full((64, 64, 3), 255, np.float32))
    canvas = np.zeros((2, 64, 64, 3), np.float32)
    flat, ones = np.zeros(2), np.ones(2)
    path = scenes._Path(flat + 0.5, flat + 0.5, 0.4 * ones, np.array([0.0, np.pi / 4]), ones)
    scenes._paint(canvas, thing, path)
    right_and_below, right_and_above = canvas[:, 48, 48, 0], canvas[:, 16, 48, 0]
    assert right_and_below.tolist() == [0, 255]
    assert right_and_above.tolist() == [0, 0]


def test_a_class_or_size_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="class_index is 12; expected 0 to 11"):
        frames_of(12)
    with pytest.raises(ValueError, match="size is 8; expected at least 16"):
        frames_of(0, size=8)


# Files


def test_the_folder_is_laid_out_as_something_something_v2(benchmark: Path) -> None:
    labels = json.loads((benchmark / "labels.json").read_text())
    assert list(labels.values()) == [str(i) for i in range(len(CLASSES))]
    seen = set()
    for split in ("train", "validation"):
        for entry in entries(benchmark, split):
            assert list(entry) == ["id", "label", "template", "placeholders"]
            assert entry["id"].isdigit()
            assert entry["template"].replace("[", "").replace("]", "") in labels
            (thing,) = entry["placeholders"]
            assert entry["label"] == entry["template"].lower().replace("[something]", thing)
            seen.add(entry["id"])
    files = {path.name for path in (benchmark / VIDEO_FOLDER).iterdir()}
    assert files == {f"{identity}.mp4" for identity in seen}
    assert len(seen) == 60


def test_the_reader_of_data_sets_reads_it(benchmark: Path) -> None:
    from frameflex.data.datasets import load_videos

    train, validation = (load_videos(benchmark, split=split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (48, 12)
    assert list(train.classes) == [c.label for c in CLASSES]
    assert all(record.path.is_file() for record in [*train, *validation])


@pytest.mark.parametrize(("split", "each"), [("train", 4), ("validation", 1)])
def test_every_class_is_equally_frequent(benchmark: Path, split: str, each: int) -> None:
    counts = Counter(entry["template"] for entry in entries(benchmark, split))
    assert counts == {c.template: each for c in CLASSES}


def test_files_decode_to_24_to_48_frames_close_to_the_rendered_ones(benchmark: Path) -> None:
    plan = {entry.identity: entry for entry in motion._plan(60, SIZE, 3, 0.2)}
    for identity in ("1", "30", "60"):
        entry = plan[identity]
        truth = render_frames(entry.class_index, np.random.default_rng(entry.entropy), SIZE)
        frames = decoded(benchmark / VIDEO_FOLDER / f"{identity}.mp4")
        assert frames.shape == truth.shape
        assert (
            np.abs(frames.astype(int) - truth).mean() < 12
        )  # levels of 255; half of the colour is not stored


def test_every_frame_is_a_key_frame(benchmark: Path) -> None:
    for path in sorted((benchmark / VIDEO_FOLDER).iterdir())[:5]:
        with av.open(str(path)) as container:
            assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)


def test_compression_does_not_tell_the_direction_of_time(tmp_path: Path) -> None:
    for seed in range(3):
        frames = frames_of(0, seed, 64)
        motion._encode(tmp_path / "forward.mp4", frames)
        motion._encode(tmp_path / "backward.mp4", frames[::-1])
        forward, backward = decoded(tmp_path / "forward.mp4"), decoded(tmp_path / "backward.mp4")
        assert np.array_equal(forward, backward[::-1])


def test_the_same_call_gives_the_same_frames_with_any_number_of_workers(
    benchmark: Path, tmp_path: Path
) -> None:
    again = render(tmp_path / "again", num_videos=60, size=SIZE, seed=3, num_workers=1)
    other = render(tmp_path / "other", num_videos=60, size=SIZE, seed=4)
    assert entries(again, "train") == entries(benchmark, "train")
    for path in (benchmark / VIDEO_FOLDER).iterdir():
        assert (again / VIDEO_FOLDER / path.name).read_bytes() == path.read_bytes()
    name = f"{VIDEO_FOLDER}/1.mp4"
    assert (other / name).read_bytes() != (benchmark / name).read_bytes()


def test_train_and_validation_are_drawn_from_different_seeds() -> None:
    plan = motion._plan(120, SIZE, 0, 0.25)
    assert len({entry.entropy for entry in plan}) == 120
    assert Counter(entry.split for entry in plan) == {"train": 96, "validation": 24}


def test_progress_counts_every_video_up_to_all(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    render(tmp_path / "m", num_videos=24, size=16, on_progress=lambda done, all_: calls.append((done, all_)))
    assert calls == [(i, 24) for i in range(1, 25)]


def test_the_identical_benchmark_is_left_as_it_is(benchmark: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")}
    calls: list[tuple[int, int]] = []
    found = render(
        benchmark, num_videos=60, size=SIZE, seed=3, on_progress=lambda done, all_: calls.append((done, all_))
    )
    assert found == benchmark
    assert calls == [(60, 60)]
    assert {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")} == before


def test_another_benchmark_is_not_overwritten(benchmark: Path) -> None:
    with pytest.raises(
        FileExistsError, match=r"another benchmark \(seed 3 instead of 5\); nothing was written"
    ):
        render(benchmark, num_videos=60, size=SIZE, seed=5)


def test_a_folder_of_other_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty, and not a rendered benchmark"):
        render(tmp_path, num_videos=24, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_benchmark_with_a_file_gone_is_not_taken_for_complete(tmp_path: Path) -> None:
    folder = render(tmp_path / "m", num_videos=24, size=16)
    (folder / VIDEO_FOLDER / "7.mp4").unlink()
    with pytest.raises(FileExistsError, match=rf"1 of its files are gone \({VIDEO_FOLDER}/7.mp4\)"):
        render(folder, num_videos=24, size=16)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert (render(tmp_path / "m", num_videos=24, size=16) / "train.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, error: BaseException | type[BaseException]
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        render(tmp_path / "m", num_videos=48, size=16, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_worker_comes_out_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = motion._encode

    def fail(path: Path, frames: np.ndarray) -> None:
        if path.stem == "9":
            raise OSError("no space left on device")
        real(path, frames)

    monkeypatch.setattr(motion, "_encode", fail)
    with pytest.raises(OSError, match="no space left"):
        render(tmp_path / "m", num_videos=24, size=16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_videos": 100}, "num_videos is 100; expected a multiple of 12.*nearest is 96"),
        ({"num_videos": 12}, "at least 24.*nearest is 24"),
        ({"size": 97}, "size is 97; expected an even number"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; expected between 0 and 1"),
        ({"num_workers": 0}, "num_workers is 0; expected at least 1"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render(tmp_path / "m", **arguments)
    assert list(tmp_path.iterdir()) == []
