"""Clips at several frame counts, and labels, into a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from frameflex.engine.memory import saved_for_backward
from frameflex.models import TSM


class FrameFlexibleObjective(nn.Module):
    """Cross-entropy at the largest frame count, and agreement with it at the others (FFN, section 3.3).

    ``loss = CE(p_L, y) + λ Σ_{T < L} KL(p_L ‖ p_T)`` where ``p_L`` is detached in the second term: the largest
    count teaches and is not taught. With clips at one count only it is plain cross-entropy.

    The direction of the KL term is that of the published training code. The other one, KL(p_T ‖ p_L), costs
    accuracy at every count when training starts from scratch (docs/experiments/temporal-frequency-deviation.md).

    A module, so that one forward holds the passes at all counts, as data-parallel wrappers need it.

    Args:
        model: the network.
        label_smoothing: of the cross-entropy.
        kl_weight: λ.
        temperature: both sides of the KL term are softened by it; the term is multiplied by its square, so that
            its gradients keep their size.
        student_cross_entropy: cross-entropy at the smaller counts too (what we ablate).
        reverse_kl: KL(p_T ‖ p_L) instead (what we ablate).
        class_weights: ``(K,)``: the loss is the mean of each video's cross-entropy times the weight of its class.
            With ``label_sets`` they are those of positives.
        label_sets: bool ``(S, K)``, the classes that label s stands for: each class is then a yes or no of its own,
            with binary cross-entropy, and the KL term is that of K coins.
        compile: run the network as graphs of torch.compile, one for each T; ``model`` itself stays as it is.

    Attributes:
        kept_bytes: where it is a dictionary, each forward puts into it, for each T, how many bytes a video keeps for
            the backward pass.
    """

    def __init__(
        self,
        model: TSM,
        *,
        label_smoothing: float = 0.0,
        kl_weight: float = 1.0,
        temperature: float = 1.0,
        student_cross_entropy: bool = False,
        reverse_kl: bool = False,
        class_weights: Tensor | None = None,
        label_sets: Tensor | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.compiled = _compiled(model) if compile else None
        self.kept_bytes: dict[int, int] | None = None
        self.label_smoothing = label_smoothing
        self.kl_weight = kl_weight
        self.temperature = temperature
        self.student_cross_entropy = student_cross_entropy
        self.reverse_kl = reverse_kl
        self.class_weights: Tensor | None
        self.label_sets: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("label_sets", label_sets, persistent=False)

    def forward(self, clips: Mapping[int, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Args: clips ``{T: (B, 3, T, H, W)}`` of the same B videos, labels ``(B,)``.

        Returns: the loss, and the logits ``(B, K)`` at the largest count, detached.
        """
        largest, *smaller = sorted(clips, reverse=True)
        teacher = self._logits(clips[largest])  # (B, K)
        loss = self._cross_entropy(teacher, labels)
        for num_frames in smaller:
            student = self._logits(clips[num_frames])  # (B, K)
            loss = loss + self.kl_weight * self._divergence(student, teacher.detach())
            if self.student_cross_entropy:
                loss = loss + self._cross_entropy(student, labels)
        return loss, teacher.detach()

    def _logits(self, clip: Tensor) -> Tensor:
        network = self.compiled or self.model
        if self.kept_bytes is None:
            return network(clip)
        with saved_for_backward([*self.model.parameters(), *self.model.buffers()]) as saved:
            logits = network(clip)
        self.kept_bytes[clip.shape[2]] = saved.num_bytes // len(clip)
        return logits

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.label_sets is None:
            # Divided by the number of videos, not by their weights: these average to 1 over the training videos; a
            # sum of weights would cancel them in a batch of one and weaken them in every small one.
            return functional.cross_entropy(
                logits,
                labels,
                weight=self.class_weights,
                label_smoothing=self.label_smoothing,
                reduction="mean" if self.class_weights is None else "none",
            ).mean()
        targets = self.label_sets[labels].to(logits)  # (B, K)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.class_weights)

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(teacher ‖ student) of softened predictions, averaged over the batch; the other way with `reverse_kl`."""
        p, q = teacher / self.temperature, student / self.temperature
        if self.reverse_kl:
            p, q = q, p
        if self.label_sets is None:
            log_p, log_q = p.log_softmax(1), q.log_softmax(1)
            divergence = (log_p.exp() * (log_p - log_q)).sum(1)  # (B,)
        else:
            coins = [
                torch.sigmoid(sign * p) * (functional.logsigmoid(sign * p) - functional.logsigmoid(sign * q))
                for sign in (1, -1)
            ]
            divergence = coins[0] + coins[1]  # (B, K)
        return divergence.mean() * self.temperature**2


def _compiled(model: TSM) -> Callable[[Tensor], Tensor]:
    """The network as graphs of torch.compile: one for each T and, as far as that goes, one for all batch sizes."""

    def network(clip: Tensor) -> Tensor:
        return model(clip)

    graphs = torch.compile(network)

    def run(clip: Tensor) -> Tensor:
        # A T that varies must not become a symbol: norms and shifts are chosen by its value.
        torch._dynamo.mark_static(clip, [1, 2, 3, 4])
        torch._dynamo.maybe_mark_dynamic(clip, 0)
        return graphs(clip)

    return run
