"""Clips at several frame counts, and labels, into a loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from frameflex.models import TSM


class FrameFlexibleObjective(nn.Module):
    """Cross-entropy at the largest frame count, and agreement with it at the others (FFN, section 3.3, eq. 2).

    ``loss = CE(p_L, y) + λ Σ_{T < L} KL(p_T ‖ p_L)`` where ``p_L`` is detached in the second term: the largest
    count teaches and is not taught. With clips at one count only it is plain cross-entropy.

    A module, so that one forward holds the passes at all counts, as data-parallel wrappers need it.

    Args:
        model: the network.
        label_smoothing: of the cross-entropy.
        kl_weight: λ.
        temperature: both sides of the KL term are softened by it; the term is multiplied by its square, so that
            its gradients keep their size.
        student_cross_entropy: cross-entropy at the smaller counts too (what we ablate).
        class_weights: of the cross-entropy, ``(K,)``; with ``label_sets`` of positives.
        label_sets: bool ``(S, K)``, the classes that label s stands for: each class is then a yes or no of its own,
            with binary cross-entropy, and the KL term is that of K coins.
    """

    def __init__(
        self,
        model: TSM,
        *,
        label_smoothing: float = 0.0,
        kl_weight: float = 1.0,
        temperature: float = 1.0,
        student_cross_entropy: bool = False,
        class_weights: Tensor | None = None,
        label_sets: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.kl_weight = kl_weight
        self.temperature = temperature
        self.student_cross_entropy = student_cross_entropy
        self.class_weights: Tensor | None
        self.label_sets: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("label_sets", label_sets, persistent=False)

    def forward(self, clips: Mapping[int, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Args: clips ``{T: (B, 3, T, H, W)}`` of the same B videos, labels ``(B,)``.

        Returns: the loss, and the logits ``(B, K)`` at the largest count, detached.
        """
        largest, *smaller = sorted(clips, reverse=True)
        teacher = self.model(clips[largest])  # (B, K)
        loss = self._cross_entropy(teacher, labels)
        for num_frames in smaller:
            student = self.model(clips[num_frames])  # (B, K)
            loss = loss + self.kl_weight * self._divergence(student, teacher.detach())
            if self.student_cross_entropy:
                loss = loss + self._cross_entropy(student, labels)
        return loss, teacher.detach()

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.label_sets is None:
            return functional.cross_entropy(
                logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing
            )
        targets = self.label_sets[labels].to(logits)  # (B, K)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.class_weights)

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL(student ‖ teacher), in the direction of FFN's equation 2, averaged over the batch."""
        if self.label_sets is not None:
            yes, no = (sign * student / self.temperature for sign in (1, -1))
            divergence = torch.sigmoid(yes) * (
                functional.logsigmoid(yes) - functional.logsigmoid(teacher / self.temperature)
            ) + torch.sigmoid(no) * (
                functional.logsigmoid(no) - functional.logsigmoid(-teacher / self.temperature)
            )
            return divergence.mean() * self.temperature**2
        log_student = torch.log_softmax(student / self.temperature, dim=1)
        log_teacher = torch.log_softmax(teacher / self.temperature, dim=1)
        divergence = (log_student.exp() * (log_student - log_teacher)).sum(1).mean()
        return divergence * self.temperature**2
