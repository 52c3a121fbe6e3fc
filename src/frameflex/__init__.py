"""Action recognition in video: one checkpoint, any frame budget.

The names below are the public face; each is imported when it is first used, so that ``import frameflex`` costs
nothing. docs/public-api.md says what else is public and what may change.
"""

from typing import TYPE_CHECKING

from frameflex.late import late_names

if TYPE_CHECKING:
    from frameflex.checkpoint.published import list_models
    from frameflex.deploy.recognizer import Recognizer, load
    from frameflex.models import TSMResNet50, create_model, make_frame_flexible
    from frameflex.models.temporal_shift import TemporalShift, temporal_shift
    from frameflex.tuning import tune_process
    from frameflex.video import open_video

__version__ = "0.1.0"

__all__ = [
    "Recognizer",
    "TSMResNet50",
    "TemporalShift",
    "create_model",
    "list_models",
    "load",
    "make_frame_flexible",
    "open_video",
    "temporal_shift",
    "tune_process",
]

_HOMES = {
    "Recognizer": "frameflex.deploy.recognizer",
    "load": "frameflex.deploy.recognizer",
    "list_models": "frameflex.checkpoint.published",
    "open_video": "frameflex.video",
    "tune_process": "frameflex.tuning",
    **dict.fromkeys(
        ("TSMResNet50", "TemporalShift", "create_model", "make_frame_flexible", "temporal_shift"),
        "frameflex.models",
    ),
}


__getattr__ = late_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
