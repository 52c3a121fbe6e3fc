"""After training with clips played backwards: does the network tell classes from their own reverse?

Classes that look the same backwards (postures, say) and are taken for each other's reverse by their names get wrong
labels for half of their clips. Accuracy on reversed clips doesn't show a wrong pair where they look different: the
network has learnt these very labels. But where they look the same, its answers are the same forwards and backwards.
"""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor, nn

from frameflex.data.directions import NEVER_REVERSED
from frameflex.data.transforms import Preprocessing
from frameflex.engine.confidence import wilson_interval
from frameflex.engine.evaluation import Evaluation, evaluate
from frameflex.engine.loading import reversed_labels
from frameflex.engine.recipe import Recipe


def doubtful_reversals(
    network: nn.Module,
    measured: Evaluation,
    recipe: Recipe,
    *,
    preprocessing: Preprocessing,
    accelerator: Accelerator | None = None,
) -> list[str]:
    """Look at validation videos of classes that are each other's reverse backwards, too, at the largest count.

    Args:
        network: that was trained.
        measured: its validation, forwards.
        recipe: of the run.
        preprocessing: of the network.
        accelerator: of a run in several processes.

    Returns:
        a line for each two classes most of whose videos have the same answer both ways, beyond chance (95 %).
    """
    if not recipe.reverses or measured.videos is None:
        return []
    reversals = reversed_labels(recipe, measured.class_names)
    labels = measured.labels.tolist()
    rows = [i for i, label in enumerate(labels) if reversals[label] not in (NEVER_REVERSED, label)]
    if not rows:
        return []
    count = recipe.trained_counts[-1]
    backwards = evaluate(
        _Backwards(network),
        measured.videos.subset(rows),
        preprocessing=preprocessing,
        frame_counts=[count],
        sampling=recipe.clip.sampling,
        window=recipe.clip.window,
        batch_size=recipe.training.batch_size,
        num_workers=recipe.data.num_workers,
        accelerator=accelerator,
    )
    answers = list(
        zip(
            [labels[i] for i in rows],
            measured.logits[count][rows].argmax(1).tolist(),
            backwards.logits[count].argmax(1).tolist(),
            strict=True,
        )
    )
    lines = []
    for a, b in enumerate(reversals):
        if b <= a:
            continue
        both = [one == other for label, one, other in answers if {label, one} <= {a, b}]
        if both and wilson_interval(sum(both), len(both))[0] > 0.5:
            name, reverse = measured.class_names[a], measured.class_names[b]
            lines.append(
                f'"{name}" and "{reverse}": the network answers the same forwards and backwards for {sum(both)} of '
                f"{len(both)} validation videos. Either it has not learnt their order, or they look the same "
                "backwards, and half of their training clips had wrong labels: then train with data.reversed "
                f'{{"{name}": null}}, or with clip.reverse false'
            )
    return lines


class _Backwards(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clip: Tensor) -> Tensor:
        return self.network(clip.flip(2))
