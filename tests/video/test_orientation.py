"""Pictures are the way round that players show them: all eight display matrices, in every reader."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers import write_video

from frameflex.data.checking import check
from frameflex.data.datasets import load_videos, survey
from frameflex.data.preparing import Encoding, prepare
from frameflex.deploy.live.sources import LiveFrame, LiveSource
from frameflex.video import Limits, open_video
from frameflex.video.sequential import SequentialReader, TimedFrame
from frameflex.video.torchcodec import TorchCodecReader

COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}

# a, b, c, d of the matrix: a stored (x, y) is shown at (a x + c y, b x + d y). What FFmpeg shows of RG / BW, by rows.
MATRICES = {
    "upright": ((1, 0, 0, 1), "RG/BW"),
    "hflip": ((-1, 0, 0, 1), "GR/WB"),
    "vflip": ((1, 0, 0, -1), "BW/RG"),
    "rot180": ((-1, 0, 0, -1), "WB/GR"),
    "transpose": ((0, 1, 1, 0), "RB/GW"),
    "rot90": ((0, 1, -1, 0), "BR/WG"),
    "rot270": ((0, -1, 1, 0), "GW/RB"),
    "transverse": ((0, -1, -1, 0), "WG/BR"),
}


def quadrants(height: int = 64, width: int = 96) -> np.ndarray:
    image = np.empty((height, width, 3), np.uint8)
    for row, letters in enumerate(("RG", "BW")):
        for column, letter in enumerate(letters):
            rows = slice(row * height // 2, (row + 1) * height // 2)
            image[rows, column * width // 2 : (column + 1) * width // 2] = COLOURS[letter]
    return image


def read_quadrants(frame: torch.Tensor) -> str:
    """The letters of a (3, H, W) frame, by rows."""
    height, width = frame.shape[1:]
    names = {tuple(value > 127 for value in colour): name for name, colour in COLOURS.items()}
    rows = []
    for y in (height // 4, 3 * height // 4):
        pixels = [frame[:, y, x].tolist() for x in (width // 4, 3 * width // 4)]
        rows.append("".join(names.get(tuple(value > 127 for value in pixel), "?") for pixel in pixels))
    return "/".join(rows)


def with_matrix(path: Path, matrix: tuple[int, int, int, int], *, scale: float = 1.0) -> Path:
    """Note a display matrix in an MP4's track header, as a phone does."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (round(value * scale * 65536) for value in matrix)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 4 + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.fixture(params=sorted(MATRICES))
def shown(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A video and what its quadrants look like."""
    matrix, letters = MATRICES[request.param]
    path = write_video(tmp_path / f"{request.param}.mp4", np.stack([quadrants()] * 4))
    return with_matrix(path, matrix), letters


def test_every_matrix_is_applied_by_the_reader_of_frames_by_number(shown):
    path, letters = shown
    size = (96, 64) if letters in ("RB/GW", "BR/WG", "GW/RB", "WG/BR") else (64, 96)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with open_video(source, decoder="pyav") as reader:
            assert (reader.height, reader.width) == size
            frames = reader.frames([3, 0])
            assert frames.shape == (2, 3, *size)
            assert {read_quadrants(frame) for frame in frames} == {letters}
            assert {read_quadrants(frame) for frame in reader} == {letters}


def test_every_matrix_is_applied_by_the_reader_in_one_pass_at_any_size(shown):
    path, letters = shown
    with SequentialReader(path) as reader:
        frames = [frame for frame in reader if isinstance(frame, TimedFrame)]
    assert len(frames) == 4
    for frame in frames:
        assert frame.image().shape == (3, frame.height, frame.width)
        assert read_quadrants(frame.image()) == letters
        assert frame.image((20, 30)).shape == (3, 20, 30)
        assert read_quadrants(frame.image((20, 30))) == letters


def test_every_matrix_is_applied_by_a_live_source(shown):
    path, letters = shown
    pictures = []
    with LiveSource(str(path), every_frame=True) as source:
        while not source.ended or source.waiting:
            pictures += [item.read() for item in source.poll() if isinstance(item, LiveFrame)]
    assert [read_quadrants(picture) for picture in pictures] == [letters] * 4


def test_torchcodec_is_asked_for_upright_videos_alone(tmp_path):
    """What it does with a matrix depends on its version."""
    asked = []

    def decoder(source, **options):
        asked.append(source)
        raise RuntimeError("not here")

    for name, (matrix, letters) in MATRICES.items():
        path = with_matrix(write_video(tmp_path / f"{name}.mp4", np.stack([quadrants()] * 2)), matrix)
        with TorchCodecReader(str(path), Limits(), decoder) as reader:
            assert read_quadrants(reader.frames([1])[0]) == letters
    assert asked == [str(tmp_path / "upright.mp4")]


@pytest.mark.parametrize("encoding", ["h264", "jpeg", "lossless"])
def test_a_prepared_video_is_turned_once(encoding, tmp_path):
    for name, (matrix, _) in MATRICES.items():
        path = tmp_path / "data" / "train" / "one" / f"{name}.mp4"
        with_matrix(write_video(path, np.stack([quadrants()] * 3)), matrix)
    prepare(survey(tmp_path / "data"), tmp_path / "shards", encoding=Encoding(format=encoding, short_side=64))
    videos = load_videos(tmp_path / "shards", split="train")
    assert len(videos) == len(MATRICES)
    for record in videos:
        with record.open() as reader:
            assert read_quadrants(reader.frames([2])[0]) == MATRICES[Path(record.name).stem][1]


def test_a_matrix_that_turns_by_any_angle_or_scales_is_rounded_to_one_of_the_eight(tmp_path):
    path = write_video(tmp_path / "a.mp4", np.stack([quadrants()] * 2))
    for matrix, scale, letters in (
        ((0.9, 0.43, -0.43, 0.9), 1.0, "RG/BW"),  # 25 degrees
        ((0.43, 0.9, -0.9, 0.43), 1.0, "BR/WG"),  # 65 degrees
        ((0, 1, -1, 0), 2.5, "BR/WG"),
        ((0, 0, 0, 0), 1.0, "RG/BW"),  # says nothing
    ):
        with open_video(with_matrix(path, matrix, scale=scale), decoder="pyav") as reader:
            assert read_quadrants(reader.frames([0])[0]) == letters


@pytest.mark.skipif(av.library_versions["libavcodec"] < (62,), reason="FFmpeg 8 is the first to read it")
@pytest.mark.parametrize(
    ("value", "name"),
    list(
        enumerate(
            ["upright", "hflip", "rot180", "vflip", "transpose", "rot90", "transverse", "rot270"], start=1
        )
    ),
)
def test_the_exif_of_jpegs_in_a_video_is_applied_beside_data_that_pyav_has_no_name_for(value, name, tmp_path):
    image = pytest.importorskip("PIL.Image")
    exif = image.Exif()
    exif[0x0112] = value
    picture = io.BytesIO()
    image.fromarray(quadrants()).save(picture, "JPEG", exif=exif, quality=95)
    path = tmp_path / "camera.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        for number in range(3):
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            packet.time_base = Fraction(1, 12)
            container.mux(packet)
    with open_video(path, decoder="pyav") as reader:
        assert [read_quadrants(frame) for frame in reader] == [MATRICES[name][1]] * 3
    with SequentialReader(path) as reader:
        assert [read_quadrants(frame.image()) for frame in reader] == [MATRICES[name][1]] * 3


def test_the_check_says_which_videos_are_mirrored(tmp_path):
    for index, (name, (matrix, _)) in enumerate(MATRICES.items()):
        frames = np.stack([quadrants()] * 2)
        frames[:, :4, :4] = 30 * index  # no copies of each other
        with_matrix(write_video(tmp_path / "data" / "one" / f"{name}.mp4", frames), matrix)
    found = check(survey(tmp_path / "data"))
    mirrored = {Path(f.name).stem for f in found.findings if f.kind == "mirrored"}
    assert mirrored == {"hflip", "vflip", "transpose", "transverse"}
    assert found.num_bad == 0


def anamorphic(path: Path, aspect: str, *, size: tuple[int, int] = (48, 60)) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quadrants(*size), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_pixels_that_are_not_square_are_given_as_stored_by_every_reader_and_said_by_the_check(tmp_path):
    folder = tmp_path / "data" / "one"
    folder.mkdir(parents=True)
    for name, aspect in (("wide.mp4", "16/11"), ("wide.mkv", "16/11"), ("nearly.mp4", "225/224")):
        with open_video(anamorphic(folder / name, aspect), decoder="pyav") as reader:
            assert (reader.height, reader.width) == (48, 60)
            assert reader.pixel_aspect == pytest.approx(float(Fraction(aspect)))
        with SequentialReader(folder / name) as reader:
            assert next(iter(reader)).image().shape == (3, 48, 60)
    turned = with_matrix(anamorphic(folder / "turned.mp4", "16/11"), MATRICES["rot90"][0])
    with open_video(turned, decoder="pyav") as reader:
        assert (reader.height, reader.width) == (60, 48)
        assert reader.pixel_aspect == pytest.approx(11 / 16)
    findings = [f for f in check(survey(tmp_path / "data")).findings if f.kind == "non-square"]
    assert {Path(f.name).name: f.reason.split(";")[0] for f in findings} == {
        "wide.mp4": "players show 60x48 pixels as 87x48",
        "wide.mkv": "players show 60x48 pixels as 87x48",
        "turned.mp4": "players show 48x60 pixels as 33x60",
    }
