"""Videos that show several classes at once, or none: labels such as ``waving|walking`` into targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frameflex.data.records import VideoList, VideoRecord


@dataclass(frozen=True)
class LabelSets:
    """Which classes each label of a `VideoList` stands for.

    Attributes:
        classes: names, one for each logit.
        table: bool ``(S, K)``: row s holds the classes of videos whose label is s.
    """

    classes: tuple[str, ...]
    table: Tensor

    def targets(self, labels: Tensor) -> Tensor:
        """Bool ``(B, K)`` for labels ``(B,)``."""
        return self.table.to(labels.device)[labels]


def split_label_sets(
    lists: Sequence[VideoList], *, classes: Sequence[str] | None = None, separator: str = "|"
) -> tuple[list[VideoList], LabelSets]:
    """Take labels such as ``waving|walking`` apart; an empty one is a video that shows none of the classes.

    Args:
        lists: of videos, whose class names are such labels.
        classes: names in the order of a model's outputs; by default all that occur, sorted.
        separator: between names.

    Returns:
        The lists, now with common labels, and what these stand for.

    Raises:
        ValueError: if a label has a name that is not among ``classes``.
    """
    parts = {
        name: frozenset(filter(None, map(str.strip, name.split(separator))))
        for v in lists
        for name in v.classes
    }
    names = tuple(classes) if classes is not None else tuple(sorted(frozenset().union(*parts.values())))
    unknown = sorted(frozenset().union(*parts.values()) - set(names))
    if unknown:
        raise ValueError(
            f"label {unknown[0]!r} is not among the {len(names)} classes ({', '.join(names[:5])}, …); correct it, or "
            "use a model of these classes"
        )
    if not names:
        raise ValueError("no video has a label; expected names of classes, separated by " + repr(separator))
    sets = sorted(set(parts.values()), key=sorted)
    place = {members: row for row, members in enumerate(sets)}
    table = torch.tensor([[name in members for name in names] for members in sets])
    common = [separator.join(sorted(members)) for members in sets]
    renamed = []
    for videos in lists:
        rows = [place[parts[name]] for name in videos.classes]
        records = [_relabel(record, rows) for record in videos]
        renamed.append(
            VideoList(
                records,
                common,
                layout=videos.layout,
                splits=videos.splits,
                left_out=videos.left_out,
                notes=videos.notes,
                limits=videos.limits,
            )
        )
    return renamed, LabelSets(names, table)


def _relabel(record: VideoRecord, rows: Sequence[int]) -> VideoRecord:
    return record if record.label is None else replace(record, label=rows[record.label])


def with_nothing(videos: VideoList, nothing: Sequence[VideoRecord], name: str) -> VideoList:
    """Add videos that show none of the classes, as a class of their own.

    Args:
        videos: the list; a class ``name`` in it is used, or else added behind the others.
        nothing: records whose labels are ignored.
        name: of that class.
    """
    classes = videos.classes if name in videos.classes else (*videos.classes, name)
    label = classes.index(name)
    records = [*videos, *(replace(record, label=label) for record in nothing)]
    return VideoList(
        records,
        classes,
        layout=videos.layout,
        splits=videos.splits,
        left_out=videos.left_out,
        notes=videos.notes,
        limits=videos.limits,
    )
