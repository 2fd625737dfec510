"""torchmetrics of few-shot answering: whole-answer accuracy and answer log-probability.

Shapes: B rows, J predicting columns, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from headloc.lm.batch import IGNORE


def answered_correctly(logits_BJV: Tensor, target_BJ: Tensor) -> Tensor:
    """Return correct_B: every token of the answer is the most likely one (teacher-forced)."""
    hit_BJ = (logits_BJV.argmax(-1) == target_BJ) | (target_BJ == IGNORE)
    return hit_BJ.all(1)


def answer_log_probability(logits_BJV: Tensor, target_BJ: Tensor) -> Tensor:
    """Return log p(answer)_B in nats, summed over the answer's tokens."""
    log_p_BJV = logits_BJV.float().log_softmax(-1)
    picked_BJ = log_p_BJV.gather(-1, target_BJ.clamp(min=0)[..., None])[..., 0]
    return picked_BJ.masked_fill(target_BJ == IGNORE, 0.0).sum(1)


class AnswerAccuracy(Metric):
    """Share of prompts whose whole answer is predicted."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits_BJV: Tensor, target_BJ: Tensor) -> None:
        """Add logits_BJV and target_BJ."""
        self.correct += answered_correctly(logits_BJV, target_BJ).sum()
        self.total += len(target_BJ)

    def compute(self) -> Tensor:
        """Return the share of correct answers."""
        return self.correct.float() / self.total.clamp(min=1)


class AnswerLogProbability(Metric):
    """Mean log-probability of the answer, in nats."""

    is_differentiable = True
    higher_is_better = True
    full_state_update = False
    plot_upper_bound = 0.0

    log_p: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("log_p", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits_BJV: Tensor, target_BJ: Tensor) -> None:
        """Add logits_BJV and target_BJ."""
        self.log_p += answer_log_probability(logits_BJV, target_BJ).sum()
        self.total += len(target_BJ)

    def compute(self) -> Tensor:
        """Return the mean log-probability."""
        return self.log_p / self.total.clamp(min=1)
