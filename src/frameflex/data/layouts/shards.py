"""Shards: what `frameflex data prepare` makes, in a folder or at an address."""

from __future__ import annotations

from pathlib import Path

from frameflex.data.layouts.layout import Entry, Found, pick_split
from frameflex.data.records import BadVideo
from frameflex.data.shards.index import is_shards, read_index


class Shards:
    """A folder or address of shards."""

    looks_for = "shards: a folder or address with the index.json of `frameflex data prepare`"

    def matches(self, source: str) -> bool:
        """Whether there is an index, or the source is an address."""
        return is_shards(source)

    def read(self, source: str, split: str | None, video_dir: Path | None) -> Found:
        """Read the index; errors are those of `read_index`, too."""
        index = read_index(source)
        picked = pick_split(source, dict.fromkeys(index.splits), split) if index.splits or split else ""
        listed = [(str(member), member, label, name) for member, label, name in index.videos(picked)]
        return Found(
            "shards" + (f", {picked}" if picked else ""),
            [
                Entry(path, None if label is None else index.classes[label], name, path)
                for path, _, label, name in listed
            ],
            list(index.classes),
            splits=index.splits,
            members={path: member for path, member, _, _ in listed},
            left_out=[BadVideo(-1, name, reason) for of, name, reason in index.left_out if of == picked],
        )
