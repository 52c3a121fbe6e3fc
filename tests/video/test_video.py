"""Frames carry their own index as black and white blocks, so that a wrong frame can be read off."""

import io
import itertools
import struct
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from frameflex.video import VideoError, open_video, opening, pyav

BLOCK = 16
HEIGHT, WIDTH = 2 * BLOCK, 4 * BLOCK
CLIPS = Path(__file__).parents[3] / "shared" / "clips"

# What each clip gives: frames, height, width after rotation; None for one clear error.
CLIP_FACTS = {
    "av1_video.mkv": (125, 360, 640),
    "bikes.mp4": (250, 272, 640),
    "carphone_distorted.mp4": (120, 144, 176),
    "corrupted.mp4": None,
    "derived_editlist_copycut.mp4": (59, 256, 256),
    "derived_empty.mp4": None,
    "derived_odd_171x97_yuv444.mp4": (60, 97, 171),
    "derived_one_frame.mp4": (1, 256, 256),
    "derived_ssv2like_vp9_12fps.webm": (36, 240, 240),
    "derived_text.mp4": None,
    "derived_truncated.avi": (93, 240, 320),
    "derived_truncated_moov_missing.mp4": None,
    "flipping_a_pancake.mkv": (310, 240, 426),
    "h264_10bits.mp4": (30, 200, 200),
    "h265_video.mp4": (10, 128, 128),
    "hiera_dog.mp4": (150, 256, 256),
    "hiera_goat.mp4": (150, 256, 256),
    "mmaction_demo_armwrestling.mp4": (280, 256, 340),
    "mmaction_part_0.mp4": (32, 256, 340),
    "mmaction_test.avi": (164, 240, 320),
    "nasa_13013_multistream.mp4": (325, 180, 320),
    "nasa_audio_only.mp3": None,
    "sense_test_video.mp4": (13, 30, 40),
    "unordered.mov": (4, 50, 50),
    "video_rot0.mov": (3, 320, 568),
    "video_rot180.mov": (3, 320, 568),
    "video_rot270.mov": (3, 568, 320),
    "video_rot90.mov": (3, 568, 320),
}


def paint(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Eight blocks, the bits of the index, most significant first; the rest of the picture is grey."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(8):
        row, column = divmod(bit, 4)
        value = 235 if index >> (7 - bit) & 1 else 16
        image[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = value
    return image


def read_index(frame: torch.Tensor) -> int:
    """The index painted into a (3, H, W) frame."""
    grey = frame.float().mean(0)
    bits = 0
    for bit in range(8):
        row, column = divmod(bit, 4)
        block = grey[row * BLOCK + 4 : (row + 1) * BLOCK - 4, column * BLOCK + 4 : (column + 1) * BLOCK - 4]
        bits = 2 * bits + int(block.mean() > 128)
    return bits


def read_indices(frames: torch.Tensor) -> list[int]:
    return [read_index(frame) for frame in frames]


def render(
    path: Path,
    num_frames: int = 20,
    *,
    codec: str = "libx264",
    rate: int = 12,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    bit_rate: int | None = None,
    max_b_frames: int | None = None,
    container_options: dict[str, str] | None = None,
    noise: bool = False,
) -> Path:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec} encoder")
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        if max_b_frames is not None:
            stream.codec_context.max_b_frames = max_b_frames
        for i in range(num_frames):
            image = paint(i, *size)
            if noise:
                image[HEIGHT:] = np.random.default_rng(i).integers(0, 256, image[HEIGHT:].shape)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    """The slow, obvious twin: every frame in order."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


class CountedDecodes:
    """Counts the frames that come out of the decoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_frames = 0
        decode = pyav._decode

        def counting(stream, packet):
            frames = decode(stream, packet)
            self.num_frames += len(frames)
            return frames

        monkeypatch.setattr(pyav, "_decode", counting)


FORMATS = {
    "h264.mp4": {"options": {"bf": "3", "g": "8"}},
    "h264.mkv": {"options": {"bf": "2"}},
    "h264.mov": {"options": {"bf": "0"}},
    "h264.ts": {"options": {"bf": "2"}},
    "h264-open-gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}},
    "h265.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8:bframes=3"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "8", "cpu-used": "8", "deadline": "realtime"}},
    "vp9-altref.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp8-altref.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "mpeg4.mp4": {"codec": "mpeg4", "bit_rate": 2_000_000},
    "mpeg4-b.avi": {"codec": "mpeg4", "bit_rate": 2_000_000, "max_b_frames": 2},
    "mpeg2.mpg": {"codec": "mpeg2video", "bit_rate": 2_000_000, "max_b_frames": 2, "rate": 25},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "ffv1.mkv": {"codec": "ffv1"},
    "raw.avi": {"codec": "rawvideo", "pix_fmt": "yuv420p"},
    "picture.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.fixture(params=sorted(FORMATS))
def any_video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return render(tmp_path / request.param, 20, **FORMATS[request.param])


def test_any_order_and_repeats_give_the_painted_frames(any_video):
    with open_video(any_video, decoder="pyav") as reader:
        assert reader.num_frames == len(reader) == 20
        assert (reader.height, reader.width) == (HEIGHT, WIDTH)
        wanted = [19, 0, 7, 7, 3, 12, 0, 19, 8]
        frames = reader.frames(wanted)
        assert frames.shape == (9, 3, HEIGHT, WIDTH)
        assert frames.dtype == torch.uint8
        assert read_indices(frames) == wanted


def test_every_frame_equals_reading_from_the_start_bit_for_bit(any_video):
    truth = decode_all(any_video)
    for start in (0, 5, 8, 13, 19):
        with open_video(any_video, decoder="pyav") as reader:
            frames = reader.frames([start, 0, 19])
        for frame, index in zip(frames, (start, 0, 19), strict=True):
            assert np.array_equal(frame.permute(1, 2, 0).numpy(), truth[index])


def test_iteration_yields_every_frame_once_in_order(any_video, monkeypatch):
    with open_video(any_video, decoder="pyav") as reader:
        counter = CountedDecodes(monkeypatch)
        assert [read_index(frame) for frame in reader] == list(range(20))
    assert counter.num_frames <= 20


def test_bytes_and_file_objects_give_the_frames_of_the_path(any_video):
    with open_video(any_video, decoder="pyav") as reader:
        truth = reader.frames([0, 11, 19])
    content = any_video.read_bytes()
    with any_video.open("rb") as file:
        for source in (str(any_video), content, bytearray(content), io.BytesIO(content), file):
            with open_video(source, decoder="pyav") as reader:
                assert torch.equal(reader.frames([0, 11, 19]), truth)
        assert not file.closed


def test_a_long_video_is_read_the_same_without_its_packets_in_memory(any_video, monkeypatch):
    truth = decode_all(any_video)
    monkeypatch.setattr(pyav, "_CACHED_BYTES", 0)
    for source in (any_video, any_video.read_bytes()):
        for start in (0, 5, 8, 13, 19):
            with open_video(source, decoder="pyav") as reader:
                frames = reader.frames([start, 2, 17])
            for frame, index in zip(frames, (start, 2, 17), strict=True):
                assert np.array_equal(frame.permute(1, 2, 0).numpy(), truth[index])


def test_intra_refresh_without_real_key_frames_is_read_from_the_start(tmp_path):
    path = render(
        tmp_path / "refresh.mp4",
        40,
        options={"x264-params": "intra-refresh=1:keyint=10:bframes=0:scenecut=0"},
    )
    truth = decode_all(path)
    for index in (11, 25, 39):
        with open_video(path, decoder="pyav") as reader:
            assert np.array_equal(reader.frames([index])[0].permute(1, 2, 0).numpy(), truth[index])


def test_each_needed_frame_is_decoded_once(tmp_path, monkeypatch):
    path = render(tmp_path / "one-key-frame.mp4", 30, options={"g": "250", "bf": "0"})
    counter = CountedDecodes(monkeypatch)
    with open_video(path, decoder="pyav") as reader:
        assert read_indices(reader.frames([9, 2, 9, 2, 5])) == [9, 2, 9, 2, 5]
    assert 10 <= counter.num_frames <= 12  # frames 0 to 9, and what the decoder gave along with the last


def test_only_what_is_near_a_wanted_frame_is_decoded(tmp_path, monkeypatch):
    path = render(tmp_path / "many-key-frames.mp4", 200, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    counter = CountedDecodes(monkeypatch)
    with open_video(path, decoder="pyav") as reader:
        assert read_indices(reader.frames([195, 3, 101])) == [195, 3, 101]
    assert counter.num_frames < 25


@pytest.mark.parametrize("name", ["silent.mkv", "silent.webm"])
def test_a_silent_header_is_counted_without_decoding(name, tmp_path, monkeypatch):
    codec = "libx264" if name.endswith("mkv") else "libvpx-vp9"
    path = render(tmp_path / name, 17, codec=codec)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    counter = CountedDecodes(monkeypatch)
    with open_video(path, decoder="pyav") as reader:
        assert reader.num_frames == 17
    assert counter.num_frames < 17


@pytest.mark.parametrize("claimed", [1, 10**9, 2**32 - 1])
def test_a_header_that_lies_about_the_count_is_not_believed(claimed, tmp_path):
    path = render(tmp_path / "liar.avi", 12, codec="mpeg4", bit_rate=2_000_000)
    content = bytearray(path.read_bytes())
    content[content.index(b"avih") + 8 + 16 :][:4] = struct.pack("<I", claimed)
    at = content.index(b"strh") + 8 + 32
    content[at : at + 4] = struct.pack("<I", claimed)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames != 12
    with open_video(path, decoder="pyav") as reader:
        assert reader.num_frames == 12
        assert read_indices(reader.frames([11, 4])) == [11, 4]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cut.mkv", {"options": {"bf": "0"}}),
        ("cut.webm", {"codec": "libvpx-vp9"}),
        ("cut.avi", {"codec": "mpeg4", "bit_rate": 2_000_000}),
        ("cut.ts", {}),
        ("cut.mp4", {"options": {"bf": "0"}, "container_options": {"movflags": "faststart"}}),
    ],
)
@pytest.mark.parametrize("kept", [0.5, 0.75, 0.9])
def test_a_truncated_file_gives_the_frames_that_it_has(name, settings, kept, tmp_path):
    path = render(tmp_path / name, 60, size=(96, 96), noise=True, **settings)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with open_video(path, decoder="pyav") as reader:
        frames = reader.sample(lambda n: range(n))
        assert 1 < reader.num_frames < 60
        assert len(frames) == reader.num_frames == len(reader.timestamps)
        sound = reader.num_frames - 5  # the last ones may need what was cut off
        assert sound > 10
        assert read_indices(frames)[:sound] == list(range(sound))


def damage_packet(path: Path, number: int) -> None:
    """Overwrite one packet's data with zeros."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        data = bytes(packet)
    content = path.read_bytes()
    assert content.count(data) == 1
    path.write_bytes(content.replace(data, bytes(len(data))))


def test_sample_asks_again_when_fewer_frames_decode_than_were_promised(tmp_path):
    path = render(tmp_path / "last-is-broken.webm", 12, codec="libvpx-vp9", options={"lag-in-frames": "0"})
    damage_packet(path, -1)
    asked = []

    def last_two(num_frames: int) -> list[int]:
        asked.append(num_frames)
        return [num_frames - 2, num_frames - 1]

    with open_video(path, decoder="pyav") as reader:
        assert read_indices(reader.sample(last_two)) == [9, 10]
        assert asked == [12, 11]
        assert reader.num_frames == len(reader.timestamps) == 11
    with open_video(path, decoder="pyav") as reader, pytest.raises(VideoError, match="only 11 frames decode"):
        reader.frames([11])
    with open_video(path, decoder="pyav") as reader:
        assert [read_index(frame) for frame in reader] == list(range(11))


def test_sample_asks_again_when_the_count_is_corrected_though_every_frame_was_there(tmp_path, monkeypatch):
    path = render(tmp_path / "clip.mp4", 12, options={"bf": "0"})
    scan = pyav.PyAVReader._scan_packets

    def scan_with_a_ghost(reader):
        found = scan(reader)
        found.pts.insert(6, found.pts[6] - 1)  # a packet that gives no frame
        found.packets.insert(6, found.packets[6])
        return found

    monkeypatch.setattr(pyav.PyAVReader, "_scan_packets", scan_with_a_ghost)
    monkeypatch.setattr(pyav, "_decode", _without_repeats(pyav._decode))
    asked = []
    with open_video(path, decoder="pyav") as reader:
        assert reader.num_frames == 13
        frames = reader.sample(lambda n: asked.append(n) or [n // 2, n - 4])
    assert asked == [13, 12]
    assert read_indices(frames) == [6, 8]


def _without_repeats(decode):
    seen = set()

    def decode_once(stream, packet):
        if packet is None or packet.pts == 0:
            seen.clear()
        if packet is not None:
            if packet.pts in seen:
                return []
            seen.add(packet.pts)
        return decode(stream, packet)

    return decode_once


@pytest.mark.parametrize("name", ["broken.webm", "broken.mp4"])
def test_damage_in_the_middle_is_an_error_that_names_the_file(name, tmp_path, capfd):
    if name.endswith("webm"):
        path = render(tmp_path / name, 12, codec="libvpx-vp9", options={"lag-in-frames": "0"})
        damage_packet(path, 6)
    else:
        path = render(tmp_path / name, 12, options={"bf": "0"})
        with av.open(str(path)) as container:
            data = bytes([packet for packet in container.demux(video=0) if packet.size][6])
        content = path.read_bytes()
        path.write_bytes(content.replace(data, b"\x7f" + data[1:]))
    with pytest.raises(VideoError, match=name), open_video(path, decoder="pyav") as reader:
        reader.frames(range(reader.num_frames))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("text.mp4", b"hello world\n"),
        ("text.txt", b"hello world\n" * 99),
        ("noise.webm", b"\x1a\x45"),
    ],
)
def test_what_is_no_video_gives_one_error_that_names_the_file(name, content, tmp_path, capfd):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VideoError, match=name) as caught:
        open_video(path)
    assert f"the file has {len(content)} bytes" in str(caught.value)
    with pytest.raises(VideoError, match=f"<{len(content)} bytes>"):
        open_video(content)
    assert capfd.readouterr() == ("", "")


def test_a_playlist_does_not_open_other_files(tmp_path):
    render(tmp_path / "real.ts", 5)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"list\.m3u8"):
        open_video(playlist)
    with pytest.raises(FileNotFoundError):
        open_video(f"concat:{tmp_path / 'real.ts'}")


def test_sound_alone_is_an_error(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"sound\.wav: no video stream"):
        open_video(path)


def test_the_cover_picture_of_a_song_is_no_video(tmp_path):
    with av.open(io.BytesIO(), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        picture = b"".join(
            bytes(packet) for packet in stream.encode(av.VideoFrame.from_ndarray(paint(1), format="rgb24"))
        )
    # An ID3v2.3 tag with an APIC frame, then silence: MPEG-1 layer III, 128 kbit/s, 44.1 kHz, 417 bytes a frame.
    apic = b"\0image/jpeg\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(apic), 0) + apic
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path = tmp_path / "song.mp3"
    path.write_bytes(b"ID3\x03\0\0" + size + frame + (b"\xff\xfb\x90\x00" + bytes(413)) * 20)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoError, match=r"song\.mp3: no video stream"):
        open_video(path)


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"12345\.webm"):
        open_video(tmp_path / "12345.webm")


def test_arguments_are_checked_at_the_door(tmp_path):
    path = render(tmp_path / "clip.mp4", 5)
    with pytest.raises(ValueError, match="decoder is 'decord'"):
        open_video(path, decoder="decord")
    with pytest.raises(TypeError, match="source is 7"):
        open_video(7)
    with open_video(path) as reader:
        assert reader.frames([]).shape == (0, 3, HEIGHT, WIDTH)
        for index in (-1, 5, 10**12):
            with pytest.raises(IndexError, match="its 5 frames"):
                reader.frames([0, index])
        with pytest.raises(TypeError):
            reader.frames([0.5])
        assert read_indices(reader.frames(torch.tensor([3, 1]))) == [3, 1]
        assert read_indices(reader.frames(np.array([3, 1]))) == [3, 1]
    with pytest.raises(ValueError, match="closed"):
        reader.frames([0])


def test_a_file_object_that_cannot_seek_says_what_to_do(tmp_path):
    class Pipe(io.RawIOBase):
        def readable(self):
            return True

    with pytest.raises(ValueError, match=r"file\.read\(\)"):
        open_video(Pipe())


def with_rotation(path: Path, degrees: int) -> Path:
    """Note a clockwise rotation in an MP4's track header, as a phone does."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    fixed = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    content[at : at + 36] = struct.pack(">9i", *fixed)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_rotation_in_the_file_is_applied(degrees, tmp_path):
    path = with_rotation(render(tmp_path / "phone.mp4", 6), degrees)
    with open_video(path, decoder="pyav") as reader:
        upright = (HEIGHT, WIDTH) if degrees % 180 == 0 else (WIDTH, HEIGHT)
        assert (reader.height, reader.width) == upright
        frames = reader.frames([5, 2])
    assert frames.shape == (2, 3, *upright)
    assert read_indices(torch.rot90(frames, degrees // 90, (2, 3))) == [5, 2]  # turned back, anticlockwise


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx264", "yuv444p", (97, 171)),
        ("ffv1", "yuv420p", (97, 171)),
        ("libx264", "gray", (48, 80)),
        ("libx264", "yuv420p10le", (48, 80)),
        ("ffv1", "gray", (33, 65)),
        ("ffv1", "gray16le", (48, 80)),
        ("ffv1", "bgra", (48, 80)),
        ("libvpx-vp9", "yuv422p", (49, 81)),
        ("png", "rgba", (32, 64)),
    ],
)
def test_odd_sizes_and_pixel_formats_are_read(codec, pix_fmt, size, tmp_path):
    path = render(
        tmp_path / ("odd.mov" if codec == "png" else "odd.mkv"), 9, codec=codec, pix_fmt=pix_fmt, size=size
    )
    with open_video(path, decoder="pyav") as reader:
        assert (reader.height, reader.width) == size
        frames = reader.frames([8, 1])
    assert frames.shape == (2, 3, *size)
    assert read_indices(frames) == [8, 1]
    expected = torch.from_numpy(paint(8, *size)).permute(2, 0, 1)
    assert (frames[0].float() - expected.float()).abs().mean() < 12


def test_a_video_of_one_frame_is_read(tmp_path):
    with open_video(render(tmp_path / "one.mp4", 1)) as reader:
        assert reader.num_frames == 1
        assert reader.timestamps == [0.0]
        assert reader.duration == pytest.approx(1 / reader.fps)
        assert read_indices(reader.frames([0, 0, 0])) == [0, 0, 0]


def test_timestamps_follow_a_varying_frame_rate(tmp_path):
    pts = [0, 1, 2, 6, 7, 20, 21, 40]
    for name in ("varying.mkv", "varying.mp4"):
        path = render(tmp_path / name, len(pts), options={"bf": "2"}, pts=[24 + p for p in pts])
        with open_video(path, decoder="pyav") as reader:
            assert reader.timestamps == pytest.approx([p / 12 for p in pts], abs=2e-3)
            assert reader.duration > 40 / 12
            assert reader.fps == pytest.approx(7 / (40 / 12), rel=0.05)
            assert read_indices(reader.frames([7, 3])) == [7, 3]


def test_timestamps_and_rate_of_a_constant_video(any_video):
    rate = FORMATS[any_video.name].get("rate", 12)
    with open_video(any_video, decoder="pyav") as reader:
        assert reader.fps == pytest.approx(rate, rel=0.05)
        assert reader.timestamps == pytest.approx([i / reader.fps for i in range(20)], abs=0.07)
        assert reader.duration == pytest.approx(20 / rate, rel=0.06)


def test_a_header_that_claims_a_giant_frame_is_an_error_before_memory_is_asked_for(tmp_path):
    path = render(tmp_path / "giant.avi", 3, codec="rawvideo")
    content = bytearray(path.read_bytes())
    at = content.index(b"strf") + 8 + 4
    for width, height in ((100_000, 100_000), (40_000, 40_000), (8193, 4320), (-5, 7)):
        content[at : at + 8] = struct.pack("<ii", width, height)
        path.write_bytes(content)
        with pytest.raises(VideoError, match=r"giant\.avi"):
            open_video(path)


@pytest.mark.parametrize("claimed", [10**6, 10**8, 2**32 - 1])
@pytest.mark.parametrize("fragmented", [False, True])
def test_an_mp4_whose_index_claims_countless_frames_is_refused_unread(claimed, fragmented, tmp_path):
    flags = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    path = render(tmp_path / "countless.mp4", 8, container_options=flags)
    content = bytearray(path.read_bytes())
    if fragmented:
        at = content.index(b"trun") + 8
        content[at : at + 4] = struct.pack(">I", claimed)
    else:
        at = content.index(b"stsz") + 8
        content[at : at + 8] = struct.pack(">II", 1, claimed)
    path.write_bytes(content)
    for source, name in ((path, r"countless\.mp4"), (bytes(content), f"<{len(content)} bytes>")):
        with pytest.raises(VideoError, match=f"{name}: its index claims .* frames"):
            open_video(source)


@pytest.mark.parametrize(("name", "codec"), [("giant.webm", "libvpx-vp9"), ("giant.avi", "mjpeg")])
def test_a_stream_that_claims_a_giant_frame_is_an_error(name, codec, tmp_path):
    path = render(tmp_path / name, 3, codec=codec, pix_fmt="yuv420p" if codec != "mjpeg" else "yuvj420p")
    content = path.read_bytes()
    if codec == "mjpeg":
        sizes = b"\x08" + struct.pack(">HH", HEIGHT, WIDTH)
        assert content.count(sizes) == 3
        content = content.replace(sizes, b"\x08" + struct.pack(">HH", 60_000, 60_000))
    else:
        start = content.index(
            b"\x49\x83\x42"
        )  # a VP9 key frame's sync code; 4 bits on, two 16-bit sizes follow
        word = int.from_bytes(content[start + 3 : start + 8], "big")
        assert word >> 4 & 0xFFFF == HEIGHT - 1
        word = word & ~(0xFFFFFFFF << 4) | (0xFFFF << 20 | 0xFFFF << 4)
        content = content[: start + 3] + word.to_bytes(5, "big") + content[start + 8 :]
    path.write_bytes(content)
    with pytest.raises(VideoError, match=name), open_video(path, decoder="pyav") as reader:
        reader.frames([0])


def test_two_readers_in_two_threads_do_not_disturb_each_other(tmp_path):
    path = render(tmp_path / "shared.mp4", 60, options={"g": "12", "bf": "2"})
    results: dict[int, bool] = {}

    def work(seed: int) -> None:
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed)).tolist()
        with open_video(path) as reader:
            results[seed] = all(read_indices(reader.frames([i])) == [i] for i in order)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


def test_reading_16_frames_of_a_long_video_does_not_hold_it_all(tmp_path):
    resource = pytest.importorskip("resource", reason="peak memory is read with the resource module")
    assert resource
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"g": "50"})
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        grey = np.full((720, 640), 128, np.uint8)
        for i in range(1200):
            grey[:480, 8 * (i % 80) : 8 * (i % 80) + 8] = i % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="yuv420p")))
        container.mux(stream.encode(None))
    script = f"""
import resource, torch
from frameflex.video import open_video
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_video({str(path)!r}, decoder="pyav") as reader:
    reader.frames([0])
    before = peak()
    frames = reader.frames(range(40, 1200, 75))
    assert frames.shape == (16, 3, 480, 640) and reader.num_frames == 1200
    for frame in reader: pass
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    grown_bytes = int(run.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown_bytes < 100e6  # 16 frames are 15 MB, all of them 1,100 MB


# A folder of images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "78687"
    path.mkdir()
    for i in range(12):
        image.fromarray(paint(i)).save(path / f"{i + 1}.jpg", quality=95)
    (path / "notes.txt").write_text("not a frame")
    return path


def test_a_folder_of_images_is_a_video_at_12_fps(folder):
    with open_video(folder) as reader:
        assert (reader.num_frames, reader.height, reader.width, reader.fps) == (12, HEIGHT, WIDTH, 12.0)
        assert read_indices(reader.frames([11, 0, 9, 9])) == [11, 0, 9, 9]
        assert [read_index(frame) for frame in reader] == list(range(12))
        assert reader.timestamps == pytest.approx([i / 12 for i in range(12)])
        assert reader.duration == pytest.approx(1.0)
        assert len(reader.sample(lambda n: [n - 1])) == 1
        with pytest.raises(IndexError):
            reader.frames([12])


def test_a_broken_image_or_another_size_names_the_image(folder):
    content = (folder / "5.jpg").read_bytes()
    (folder / "5.jpg").write_bytes(content[: len(content) // 2])
    with open_video(folder) as reader, pytest.raises(VideoError, match=r"78687: 5\.jpg can't be decoded"):
        reader.frames([4])
    image = pytest.importorskip("PIL.Image")
    image.fromarray(paint(4, 40, 64)).save(folder / "5.jpg")
    with open_video(folder) as reader, pytest.raises(VideoError, match=r"5\.jpg has 64x40 pixels"):
        reader.frames([4])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(VideoError, match="no image in this folder"):
        open_video(tmp_path)


# torchcodec


@pytest.fixture
def torchcodec() -> None:
    decoder, reason = opening.load_torchcodec()
    if decoder is None:
        pytest.skip(f"torchcodec can't be used here: {reason}")


def test_torchcodec_gives_the_frames_that_pyav_gives(any_video, torchcodec):
    wanted = [19, 0, 7, 7, 3, 12]
    for source in (any_video, any_video.read_bytes()):
        with open_video(source, decoder="pyav") as ours, open_video(source, decoder="torchcodec") as theirs:
            assert theirs.num_frames == ours.num_frames
            frames = theirs.frames(wanted)
            assert read_indices(frames) == wanted
            assert (frames.float() - ours.frames(wanted).float()).abs().mean() < 1


def test_torchcodec_that_cannot_be_imported_names_the_extra(tmp_path, monkeypatch):
    path = render(tmp_path / "clip.mp4", 3)
    monkeypatch.setattr(opening, "load_torchcodec", lambda: (None, "it is not installed"))
    with pytest.raises(ImportError, match=r"frameflex\[torchcodec\]"):
        open_video(path, decoder="torchcodec")
    with open_video(path, decoder="auto") as reader:
        assert reader.num_frames == 3


# Real and awkward clips, where they are at hand

needs_clips = pytest.mark.skipif(
    not CLIPS.is_dir(), reason="the folder of real clips is not beside the repository"
)


@needs_clips
@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
@pytest.mark.parametrize("name", sorted(CLIP_FACTS))
def test_real_clips_give_what_they_hold_or_one_clear_error(name, decoder, capfd, request):
    if decoder == "torchcodec":
        request.getfixturevalue("torchcodec")
    facts = CLIP_FACTS[name]
    path = CLIPS / name
    if facts is None:
        with pytest.raises(VideoError, match=name):
            open_video(path, decoder=decoder)
    else:
        num_frames, height, width = facts
        with open_video(path, decoder=decoder) as reader:
            assert (reader.num_frames, reader.height, reader.width) == facts
            wanted = sorted({0, num_frames // 3, num_frames - 1}, reverse=True)
            frames = reader.frames(wanted)
            assert frames.shape == (len(wanted), 3, height, width)
            assert len(reader.timestamps) == num_frames
            assert all(a < b for a, b in itertools.pairwise(reader.timestamps))
            rotated = name.startswith("video_rot")
            with av.open(str(path)) as container:
                truth = list(itertools.islice(container.decode(video=0), num_frames))
            if not rotated:
                for frame, index in zip(frames, wanted, strict=True):
                    expected = torch.from_numpy(truth[index].to_ndarray(format="rgb24")).permute(2, 0, 1)
                    assert torch.equal(frame, expected)
    assert capfd.readouterr().err == ""


@needs_clips
def test_phone_videos_of_one_scene_agree_after_rotation():
    """The four clips show one person from one place, the phone held in four ways: sky above, always."""
    for name in ("video_rot90.mov", "video_rot180.mov", "video_rot270.mov"):
        degrees = int(name[len("video_rot") : -len(".mov")])
        with open_video(CLIPS / name, decoder="pyav") as reader:
            frame = reader.frames([0])[0]
        with av.open(str(CLIPS / name)) as container:
            stored = torch.from_numpy(next(container.decode(video=0)).to_ndarray(format="rgb24")).permute(
                2, 0, 1
            )
        assert torch.equal(torch.rot90(frame, degrees // 90, (1, 2)), stored)


@needs_clips
def test_the_table_of_real_clips_is_complete():
    assert {path.name for path in CLIPS.iterdir() if path.suffix != ".md"} <= set(CLIP_FACTS)
