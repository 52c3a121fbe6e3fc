"""What is odd about a data set, or about its division, in a line each: said before the training and in its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from frameflex.data.leaks import find_leaks
from frameflex.data.records import VideoList

UNEVEN = 10  # times as many videos of one class as of another
_NAMED = 5


def data_problems(training: VideoList, validation: VideoList, *, by_class: bool = True) -> list[str]:
    """All that is odd about a division: notes of the layouts, classes, and videos that stand on both sides.

    Args:
        training: the videos to train on.
        validation: those to validate on, with the same classes.
        by_class: False where labels are sets of classes, of which rare ones are usual.
    """
    leaks = find_leaks([training, validation])
    cut_short = leaks.cut_short()
    return [
        *notes_of(training, validation),
        *(class_problems(training, validation) if by_class else ()),
        *leaks.lines(),
        *([cut_short] if cut_short else ()),
    ]


def class_problems(training: VideoList, validation: VideoList | None = None) -> list[str]:
    """Classes without videos where they are needed, with a single one, or with far fewer than others.

    Args:
        training: the videos to train on, or all.
        validation: those to validate on, with the same classes; None where nothing is divided.
    """
    classes = training.classes
    trained = Counter(training.labels)
    measured = Counter(validation.labels) if validation is not None else Counter[int]()
    labels = range(len(classes))
    lines = []
    if lacking := [label for label in labels if not trained[label] and not measured[label]]:
        from_one = "; labels count from 0, or are names" if lacking[0] == 0 and classes[0] == "0" else ""
        lines.append(f"{_classes(classes, lacking)} no video at all{from_one}")
    if unseen := [label for label in labels if not trained[label] and measured[label]]:
        lines.append(
            f"{_classes(classes, unseen)} no training video but validation videos, which can't be recognised"
        )
    if single := [label for label in labels if trained[label] == 1]:
        lines.append(f"{_classes(classes, single)} a single training video")
    if validation is not None and (unmeasured := [n for n in labels if trained[n] and not measured[n]]):
        lines.append(f"{_classes(classes, unmeasured)} no validation video: nothing is measured there")
    present = [label for label in labels if trained[label]]
    most, least = (choose(present, key=trained.__getitem__, default=0) for choose in (max, min))
    if present and trained[most] >= UNEVEN * trained[least]:
        lines.append(
            f"classes are very uneven: {classes[most]!r} has {trained[most]} training videos, {classes[least]!r} "
            f"{trained[least]}. Rare ones are guessed less; objective.class_balance weighs them"
        )
    return lines


def notes_of(*lists: VideoList | None) -> list[str]:
    """What the layouts noted, each line once."""
    return list(dict.fromkeys(note for videos in lists if videos is not None for note in videos.notes))


def _classes(names: Sequence[str], labels: Sequence[int]) -> str:
    """Subject and verb of a sentence."""
    if len(labels) == 1:
        return f"class {names[labels[0]]!r} has"
    named = ", ".join(repr(names[label]) for label in labels[:_NAMED])
    more = ", …" if len(labels) > _NAMED else ""
    return f"{len(labels)} of {len(names)} classes ({named}{more}) have"
