"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frameflex.engine.evaluation import Evaluation


@dataclass(frozen=True)
class StepReport:
    """One step of the optimizer.

    Attributes:
        epoch: from 0.
        step: from 1, over the whole run.
        num_steps: of the whole run.
        loss: of this step.
        accuracy: top-1 over this epoch's training videos so far, at the largest count, 0 to 1.
        learning_rate: of the backbone's weights.
        clips_per_second: videos a second over this epoch, all processes together.
        seconds_left: estimate for the whole run, validation not counted.
        waiting: share of this epoch's time, 0 to 1, in which the network had no videos and waited for the loader.
    """

    epoch: int
    step: int
    num_steps: int
    loss: float
    accuracy: float
    learning_rate: float
    clips_per_second: float
    seconds_left: float
    waiting: float


@dataclass(frozen=True)
class Watcher:
    """Who wants to know how a run goes. Every callback is optional.

    Attributes:
        on_step: after each step of the optimizer.
        on_validation_progress: with (videos done, videos in all).
        on_validation: after each validation, with the epoch (from 0) and whether it is the best so far.
        on_data_problems: once, before the first step, with what is odd about the videos, a line each.
    """

    on_step: Callable[[StepReport], None] | None = None
    on_validation_progress: Callable[[int, int], None] | None = None
    on_validation: Callable[[int, Evaluation, bool], None] | None = None
    on_data_problems: Callable[[list[str]], None] | None = None


class Interrupted(Exception):
    """A run was stopped from outside, after its state was saved to ``checkpoint``."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped; {checkpoint} holds the run so far, continue it with --resume")
        self.checkpoint = checkpoint
