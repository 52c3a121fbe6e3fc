"""Frames of every kind of pixels look as a browser shows them: 16 bits, transparent, turned by EXIF, for printing."""

import io
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from frameflex.video import Limits, open_video
from frameflex.video.sequential import SequentialReader
from frameflex.video.torchcodec import TorchCodecReader

HEIGHT, WIDTH = 6, 8
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
RED, GREEN, BLUE = (X * 36).astype(np.uint8), (Y * 51).astype(np.uint8), ((X + Y) * 18).astype(np.uint8)
OPACITY = np.where(X < 2, 0, np.where(X < 5, 100, 255)).astype(np.uint8)
WIDE = X * 9000 + Y * 100  # of 16 bits


def png(path: Path, values: np.ndarray, *, depth: int, kind: int, extra: bytes = b"") -> Path:
    """Write a PNG byte by byte; kind 0 grey, 2 RGB, 3 palette, 4 grey and opacity, 6 RGB and opacity."""

    rows = values.astype(">u2" if depth == 16 else np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read(folder: Path) -> np.ndarray:
    """The first frame, ``(H, W, 3)``."""
    with open_video(folder) as reader:
        frame = reader.frames([0])[0]
        assert (reader.height, reader.width) == frame.shape[1:]
    return frame.permute(1, 2, 0).numpy()


def stack(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, -1)


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """The formula, in floating point."""
    share = opacity.astype(float)[..., None] / 255
    return colours * share + 255 * (1 - share)


def test_grey_of_16_bits_keeps_its_shades(tmp_path):
    png(tmp_path / "1.png", WIDE, depth=16, kind=0)
    assert np.array_equal(read(tmp_path), np.repeat((WIDE >> 8)[..., None], 3, 2))


def test_colours_of_16_bits_keep_theirs(tmp_path):
    values = stack(WIDE, WIDE[::-1], WIDE[:, ::-1])
    png(tmp_path / "1.png", values, depth=16, kind=2)
    assert np.array_equal(read(tmp_path), values >> 8)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("grey", [True, False])
def test_what_is_transparent_lies_on_white(depth, grey, tmp_path):
    colours = stack(RED) if grey else stack(RED, GREEN, BLUE)
    values = np.concatenate([colours, OPACITY[..., None]], -1).astype(int) * (257 if depth == 16 else 1)
    png(tmp_path / "1.png", values, depth=depth, kind=4 if grey else 6)
    expected = np.broadcast_to(on_white(colours, OPACITY), (HEIGHT, WIDTH, 3))
    assert read(tmp_path) == pytest.approx(expected, abs=0.51)
    assert (read(tmp_path)[:, :2] == 255).all()


def test_palettes_with_transparent_colours_lie_on_white(tmp_path):
    palette = np.random.default_rng(0).integers(0, 256, (4, 3)).astype(np.uint8)
    opacity = np.array([0, 128, 255, 255], np.uint8)  # a PNG may leave the last ones out
    extra = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", opacity[:2].tobytes())
    values = (X + Y) % 4
    png(tmp_path / "1.png", values, depth=8, kind=3, extra=extra)
    assert read(tmp_path) == pytest.approx(on_white(palette[values], opacity[values]), abs=0.51)


@pytest.mark.parametrize(("depth", "kind"), [(8, 0), (16, 0), (8, 2)])
def test_a_colour_that_stands_for_transparent_is_white(depth, kind, tmp_path):
    values = WIDE if depth == 16 else RED
    key = int(values[2, 3])
    values = stack(values, values, values) if kind == 2 else values
    extra = chunk(b"tRNS", struct.pack(">H", key) * (3 if kind == 2 else 1))
    png(tmp_path / "1.png", values, depth=depth, kind=kind, extra=extra)
    found = read(tmp_path)
    shades = values[..., 0] if kind == 2 else values
    assert (found[shades == key] == 255).all()
    assert np.array_equal(found[shades != key][:, 0], (shades >> (depth - 8))[shades != key])


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparent_pictures_of_other_writers_lie_on_white_too(suffix, tmp_path):
    picture = Image.fromarray(stack(RED, GREEN, BLUE, OPACITY))
    picture.save(tmp_path / f"1.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert read(tmp_path) == pytest.approx(on_white(stack(RED, GREEN, BLUE), OPACITY), abs=0.51)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_shades_of_grey_are_spread_from_black_to_white(bits, tmp_path):
    values = (X + Y) % 2**bits
    packed = np.stack([values[:, i :: 8 // bits] << 8 - bits * (i + 1) for i in range(8 // bits)]).sum(0)
    png(tmp_path / "1.png", packed, depth=8, kind=0)
    content = (tmp_path / "1.png").read_bytes()
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    (tmp_path / "1.png").write_bytes(content[:8] + chunk(b"IHDR", header) + content[33:])
    assert np.array_equal(read(tmp_path)[..., 1], values * 255 // (2**bits - 1))


def test_a_jpeg_for_printing_has_the_colours_of_the_screen(tmp_path):
    smooth = np.kron(stack(RED, GREEN, BLUE), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "1.jpg", quality=98, subsampling=0)
    with Image.open(tmp_path / "1.jpg") as image:
        assert image.mode == "CMYK"
    assert np.abs(read(tmp_path).astype(int) - smooth).mean() < 2


# What a stored picture looks like for each value of EXIF's orientation, from the standard's own table.
TURNED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize("value", sorted(TURNED))
def test_the_orientation_of_a_camera_is_applied(value, suffix, tmp_path):
    image = np.kron(stack(RED, GREEN, BLUE), np.ones((8, 8, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"lossless": True} if suffix == "webp" else {"quality": 98}
    Image.fromarray(image).save(tmp_path / f"1.{suffix}", exif=exif, **options)
    Image.fromarray(image).save(tmp_path / f"2.{suffix}", exif=exif, **options)
    found = read(tmp_path)
    assert found.shape == TURNED[value](image).shape
    assert np.abs(found.astype(int) - TURNED[value](image)).mean() < (2 if suffix == "jpg" else 0.01)
    with open_video(tmp_path) as reader:
        assert torch.equal(reader.frames([1])[0], reader.frames([0])[0])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own word
def test_damaged_or_absurd_exif_leaves_the_picture_as_stored(tmp_path):
    image = stack(RED, GREEN, BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", exif=exif)
    content = buffer.getvalue()
    at = content.index(b"eXIf")
    (size,) = struct.unpack(">I", content[at - 4 : at])
    good = content[at + 4 : at + 4 + size]
    place = good.index(b"\x01\x12") if b"\x01\x12" in good else good.index(b"\x12\x01")
    for bad in (
        b"xx" + good[2:],
        good[:9],
        good[: place + 8] + b"\xff\xff\xff\xff",
        good[:place] + bytes(12),
    ):
        (tmp_path / "1.png").write_bytes(
            content[: at - 4] + chunk(b"eXIf", bad) + content[at + 4 + size + 4 :]
        )
        assert np.array_equal(read(tmp_path), image)


# Videos whose pixels can be transparent


def transparent_video(path: Path, codec: str, pixels: str) -> Path:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec} encoder")
    image = np.kron(stack(RED, GREEN, BLUE, OPACITY), np.ones((8, 8, 1))).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], pixels
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgba")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mov", "png", "rgba"),
        ("a.mkv", "ffv1", "bgra"),
        ("b.mov", "qtrle", "argb"),
        ("c.mov", "prores_ks", "yuva444p10le"),
        ("d.mkv", "ffv1", "yuva420p"),
    ],
)
def test_a_video_with_transparent_pixels_lies_on_white_in_every_reader(name, codec, pixels, tmp_path):
    path = transparent_video(tmp_path / name, codec, pixels)
    colours = np.kron(stack(RED, GREEN, BLUE), np.ones((8, 8, 1)))
    expected = on_white(colours, np.kron(OPACITY, np.ones((8, 8))))
    with open_video(path, decoder="pyav") as reader:
        found = reader.frames([2])[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).mean() < (0.51 if pixels in ("rgba", "bgra", "argb") else 6)
    assert (found[:, :14] >= 254).all()
    with SequentialReader(path) as reader:
        assert np.array_equal(next(iter(reader)).image().permute(1, 2, 0).numpy(), found)

    def decoder(*_, **__):
        raise AssertionError("torchcodec drops the opacity")

    with TorchCodecReader(str(path), Limits(), decoder) as reader:
        assert np.array_equal(reader.frames([2])[0].permute(1, 2, 0).numpy(), found)
