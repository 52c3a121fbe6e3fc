"""Numbers that are none are no answer: the one check between a network and whatever is made of its logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_ADVICE = (
    "expected finite numbers. Its weights are damaged, as after a training that diverged, or its arithmetic "
    "overflows: use another checkpoint, or float32 where half precision is on"
)


class NotFinite(ValueError):
    """A network's logits are NaN or infinite; the message says for which videos, and what to do."""


def finite(logits: Tensor, *, num_frames: int, names: Sequence[str] = ()) -> Tensor:
    """Logits as they are, if all of them are numbers.

    A softmax of NaN is NaN, its largest value is at index 0, and every comparison with it is false: further on
    nothing fails, and a wrong answer looks like any other.

    Args:
        logits: ``(B, K)``.
        num_frames: T of the clips behind them, for the message.
        names: of the B videos, for the message.

    Raises:
        NotFinite: if one is NaN or infinite.
    """
    sound = logits.isfinite()
    if bool(sound.all()):
        return logits
    bad = [row for row, right in enumerate(sound.flatten(1).all(1).tolist()) if not right]
    what = f"the network gives NaN or infinite logits at {num_frames} frame{'s'[: num_frames != 1]}"
    if names:
        others = f" (and for {len(bad) - 1} more of {len(sound)} videos)" if bad[1:] else ""
        raise NotFinite(f"video {names[bad[0]]}: {what}{others}; {_ADVICE}")
    raise NotFinite(f"{what} for {len(bad)} of {len(sound)} clips; {_ADVICE}")
