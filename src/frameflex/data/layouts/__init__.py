"""How data sets lie on disk, one file a layout. A new one is a file here, with a `Layout`, and a row in `LAYOUTS`."""

from __future__ import annotations

from pathlib import Path

from frameflex.data.finding import listing
from frameflex.data.layouts.folders import Folders
from frameflex.data.layouts.hmdb51 import HMDB51
from frameflex.data.layouts.jester import JESTER
from frameflex.data.layouts.kinetics import Kinetics
from frameflex.data.layouts.layout import Found, Layout
from frameflex.data.layouts.lists import Lists
from frameflex.data.layouts.shards import Shards
from frameflex.data.layouts.something_something import SOMETHING_SOMETHING_V1, SomethingSomethingV2
from frameflex.data.layouts.ucf101 import UCF101

LAYOUTS: tuple[Layout, ...] = (
    Shards(),
    SomethingSomethingV2(),
    SOMETHING_SOMETHING_V1,
    JESTER,
    UCF101(),
    HMDB51(),
    Kinetics(),
    Lists(),
    Folders(),
)
"""All that are known; the first that matches reads."""


def read_layout(source: str, split: str | None, video_dir: Path | None, *, group: str | None = None) -> Found:
    """Read a data set by the layout that it matches; arguments and errors as in `Layout.read`.

    Args:
        source: the folder, file or address.
        split: as in `Layout.read`.
        video_dir: likewise.
        group: the column of a list that names each video's group; by default one of the usual names.

    Raises:
        ValueError: if none does; it lists what each looked for. Also if a group's column is named and it is no list.
    """
    for layout in LAYOUTS:
        if layout.matches(source):
            if group is None:
                return layout.read(source, split, video_dir)
            if not isinstance(layout, Lists):
                raise ValueError(
                    f"{source}: data.group is {group!r}, a column of a list, and this is none. In folders the group "
                    "is a folder inside the class's: CLASS/GROUP/video.mp4"
                )
            return Lists((group.lower(),)).read(source, split, video_dir)
    path = Path(source)
    found = f"it holds {listing(path)}" if path.is_dir() else "it is a file, but no list of videos"
    known = "\n".join(f"  {layout.looks_for}" for layout in LAYOUTS)
    raise ValueError(
        f"{source}: no known layout of videos; {found}.\nWhat was looked for:\n{known}\n"
        "Videos without classes can be classified one by one, without a data set."
    )
