"""Score prompts under a fixed vector of gates, keeping every prompt's outcome.

Shapes: N prompts, A heads, J predicting columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.evaluation.metrics import answer_log_probability, answered_correctly
from headloc.lm.finite import check_log_probabilities
from headloc.lm.frozen import FrozenLM
from headloc.lm.passes import in_passes
from headloc.objectives import Objective, PromptSet
from headloc.objectives.prompts import ROWS_PER_PASS


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What the model answered to N prompts.

    Attributes:
        correct: bool [N], the whole answer was right.
        log_probability: float64 [N], log p(answer) in nats.
        predicted: int64 [N, J], the most likely token at each predicting column.
    """

    correct: NDArray[np.bool_]
    log_probability: NDArray[np.float64]
    predicted: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of prompts answered correctly."""
        return float(self.correct.mean())


@torch.no_grad()
def score(
    objective: Objective,
    lm: FrozenLM,
    prompts: PromptSet,
    gates: Tensor | None,
    *,
    rows_per_pass: int = ROWS_PER_PASS,
) -> Outcomes:
    """Score all prompts under gates [A]; None is the untouched model.

    Raises:
        NonFiniteError: when an answer has NaN or infinity for a log-probability.
    """
    on_device = None if gates is None else gates.to(prompts.device)

    def run(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        logits_BJV = objective.logits(lm, prompts, part, on_device)
        target_BJ = prompts.batch.rows(part).target_BJ
        return (
            answered_correctly(logits_BJV, target_BJ),
            answer_log_probability(logits_BJV, target_BJ),
            logits_BJV.argmax(-1),
        )

    found = in_passes(lm.passes, "evaluation", len(prompts), run, most=rows_per_pass)
    correct, log_p, predicted = zip(*found, strict=True)
    log_p_N = torch.cat(log_p).double().cpu()
    check_log_probabilities(log_p_N, lm, gates is not None)
    return Outcomes(
        torch.cat(correct).cpu().numpy(),
        log_p_N.numpy(),
        torch.cat(predicted).cpu().numpy(),
    )
