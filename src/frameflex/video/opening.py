"""Open a video and read exactly the frames that were asked for.

`open_video` gives a `VideoReader` for a file, bytes, a file object or a folder of images. The number of frames is
what really decodes: containers that state a wrong count, or none, are common. One pass over the compressed packets
(no decoding, well under a millisecond for a short clip) yields count, timestamps and key frames; where anything about
it looks wrong, the frames are counted by decoding them. Decoding then starts at the nearest key frame and checks the
timestamp of each frame against that pass, so that a seek gives the frames that reading from the start would give.

Choices that a user may notice:

- Frames come in the stored resolution. Non-square pixels are not stretched, like in the published TSM pipelines;
  `VideoReader.pixel_aspect` and `frameflex data check` say them.
- The rotation and the mirroring that a phone notes in the file are applied as players do, rounded to a quarter turn.
- Of several video streams the first one is read; a cover picture doesn't count as one.
- Where the resolution changes within a stream, later frames are scaled to the first one's size.
- A file whose end is missing gives the frames that it has. One that is broken in the middle is an error.
- Files are not trusted: what they claim is held to `Limits` before memory is asked for, and only containers of
  videos are looked into, never playlists and the like that name other files.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

from frameflex.arguments import shown
from frameflex.storage import open_whole
from frameflex.video.images import FolderReader
from frameflex.video.pyav import PyAVReader
from frameflex.video.reader import (
    Decoder,
    Limits,
    Source,
    VideoReader,
)
from frameflex.video.torchcodec import TorchCodecReader, load_torchcodec


def _check_source(source: object) -> None:
    """Raises TypeError, ValueError or FileNotFoundError where it can't be a video, in a line each."""
    if isinstance(source, (str, os.PathLike)):
        if not os.fspath(source):
            raise ValueError(
                "source is an empty path; expected a video file's, or a folder of one video's frames."
            )
        try:
            os.stat(source)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise FileNotFoundError(
                    f"video {os.fspath(source)[:60]!s}…: there is no such file; the name is longer than any may be."
                ) from error
        except ValueError:
            pass  # a NUL in it: no such file
        return
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) < 4096 and b"\0" not in bytes(source) and os.path.exists(bytes(source)):
            raise TypeError(
                f"source is {bytes(source)!r}, a path as bytes, but bytes are a file's. Give os.fsdecode(source)."
            )
        return
    if not hasattr(source, "read"):
        raise TypeError(f"source is {shown(source)}; expected a path, bytes or a binary file object.")
    if getattr(source, "closed", False):
        raise ValueError("source is a file object that is closed; open it again, or give its path.")
    if isinstance(source, io.TextIOBase):
        raise TypeError('source is a file opened as text; open it with mode "rb", or give its path.')
    if isinstance(source, io.IOBase) and not source.readable():
        raise ValueError(
            'source is a file opened for writing alone; open it with mode "rb", or give its path.'
        )


def open_video(source: Source, *, decoder: Decoder = "auto", limits: Limits | None = None) -> VideoReader:
    """Open a video for reading frames by index.

    Args:
        source: A file's path or its address in object storage (`s3://bucket/clip.mp4`), a folder of images
            (`00001.jpg`, `00002.jpg`, ...; read in numerical order at 12 fps, as Something-Something V1 comes), a
            whole file's bytes, or a seekable binary file object.
        decoder: `"pyav"`; `"torchcodec"` (needs the package and FFmpeg's shared libraries); or `"auto"`, which
            takes torchcodec where it can be imported. Both give the same frames: torchcodec is used for the streams
            where it does, and PyAV reads the others.
        limits: how much a video may ask for; by default as `Limits` says.

    Returns:
        A reader, which is also a context manager.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        VideoError: If it isn't a video, has no decodable frame, or asks for more than `limits`.
        StorageError: If object storage can't be read.
        ImportError: If torchcodec was asked for and can't be imported.
        ValueError: If `decoder` is none of the three.

    Example:
        >>> with open_video("clip.webm") as reader:
        ...     frames = reader.frames([0, reader.num_frames - 1])  # uint8 (2, 3, H, W)
    """
    if decoder not in ("auto", "pyav", "torchcodec"):
        raise ValueError(f"decoder is {decoder!r}; expected 'auto', 'pyav' or 'torchcodec'.")
    if not isinstance(limits, (Limits, type(None))):
        raise TypeError(f"limits is {shown(limits)}; expected Limits, such as Limits(max_seconds=10).")
    limits = limits or Limits()
    source = open_whole(source)
    _check_source(source)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return FolderReader(path, limits)
        if not path.exists():
            address = "://" in str(source)
            advice = (
                "A Recognizer takes addresses of the web; this opens files and object storage"
                if address
                else "Check the path and the data set's folder"
            )
            raise FileNotFoundError(f"video {source if address else path}: there is no such file. {advice}.")
    if decoder == "pyav":
        return PyAVReader(source, limits)
    video_decoder, reason = load_torchcodec()
    if video_decoder is not None:
        return TorchCodecReader(source, limits, video_decoder)
    if decoder == "torchcodec":
        raise ImportError(
            f"decoder is 'torchcodec', which can't be imported ({reason}). Install it with "
            "`pip install frameflex[torchcodec]` together with FFmpeg, or use decoder='pyav'."
        )
    return PyAVReader(source, limits)
