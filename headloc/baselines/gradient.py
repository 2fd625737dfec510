"""Gradients of the log-probability of the answer to the head gates.

    m(g) = log p(answer | gates g)          z'[h] = g[h] z[h] + (1 - g[h]) off[h]

At a gate vector g the derivative of m to g[h] is the gradient to the head's output times
(z[h] - off[h]), summed over its dimensions and gated positions: what attribution methods call
gradient x activation difference.

Shapes: B rows, A heads in flat order, N prompts, J predicting columns, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.evaluation.metrics import answer_log_probability
from headloc.lm.passes import in_passes
from headloc.objectives.prompts import ROWS_PER_PASS, Progress

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import Objective, PromptSet


def log_probability(
    objective: Objective, lm: FrozenLM, prompts: PromptSet, rows: slice, gates_BA: Tensor
) -> Tensor:
    """Return log p(answer)_B under the gates of every row, in the dtype of the logits."""
    logits_BJV = objective.logits(lm, prompts, rows, gates_BA)
    if logits_BJV.dtype == torch.float64:
        return _log_probability_64(logits_BJV, prompts.batch.target_BJ[rows])
    return answer_log_probability(logits_BJV, prompts.batch.target_BJ[rows])


def gate_gradients(
    objective: Objective,
    lm: FrozenLM,
    prompts: PromptSet,
    gates_A: Tensor,
    progress: Progress | None = None,
    *,
    probability: bool = False,
) -> Tensor:
    """Return the derivative of every prompt's log p(answer) to the gates, gradient_NA.

    Args:
        objective: the prepared intervention.
        lm: the frozen model.
        prompts: N prompts.
        gates_A: where the derivative is taken.
        progress: called with (prompts done, N).
        probability: take p(answer) in place of its logarithm.
    """

    def run(part: slice) -> Tensor:
        leaf_BA = gates_A.expand(part.stop - part.start, -1).clone().requires_grad_()
        with torch.enable_grad():
            log_p_B = log_probability(objective, lm, prompts, part, leaf_BA)
            total = (log_p_B.exp() if probability else log_p_B).sum()
            # Rows are independent, so the gradient of the sum is that of every row.
            (gradient_BA,) = torch.autograd.grad(total, leaf_BA)
        return gradient_BA.detach()

    parts = in_passes(
        lm.passes, "gate gradients", len(prompts), run, most=ROWS_PER_PASS, progress=progress
    )
    return torch.cat(parts)


def _log_probability_64(logits_BJV: Tensor, target_BJ: Tensor) -> Tensor:
    """The same in float64, which the metric rounds to float32."""
    picked = logits_BJV.log_softmax(-1).gather(-1, target_BJ.clamp(min=0)[..., None])[..., 0]
    return picked.masked_fill(target_BJ < 0, 0.0).sum(1)
