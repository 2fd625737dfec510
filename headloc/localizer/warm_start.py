"""Start gates from the scores of another method instead of all alike.

Where a head starts tells the optimizer what is believed of it; the task loss still decides.  Scores
enter by rank, so that their scale and outliers do not matter.

Shapes: A heads in flat order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError

if TYPE_CHECKING:
    from headloc.gates import HeadGates


@torch.no_grad()
def warm_start(gates: HeadGates, score_A: Tensor, spread: float = 1.0) -> None:
    """Move the initial parameters of allocated gates by the ranks of some scores.

    Args:
        gates: hard-concrete, L1 or top-k gates after `allocate`.
        score_A: larger for heads that should start more open.
        spread: how far the first head starts above the mean, and the last below; in units of
            log_alpha, of the coefficient or of the score, whichever the gates have.

    Raises:
        HeadlocError: when the gates have several or no parameters per head.
    """
    parameters = [own for own in gates.parameters() if own.ndim == 1]
    if len(parameters) != 1 or parameters[0].numel() != score_A.numel():
        raise HeadlocError(
            f"{type(gates).__name__} cannot be started from {score_A.numel()} scores: a warm start "
            "needs one parameter per head. Set warm_start=0."
        )
    ranks_A = relative_rank(score_A).to(parameters[0])
    parameters[0].add_(spread * (2 * ranks_A - 1))
    gates.after_step(0.0)


def relative_rank(score_A: Tensor) -> Tensor:
    """Return ranks [A] from 1 (the largest score) to 0; ties share the mean of their ranks."""
    score = score_A.double()
    below_A = (score[None] < score[:, None]).sum(1)
    above_A = (score[None] > score[:, None]).sum(1)
    span = max(1, len(score) - 1)
    return (below_A + span - above_A).double() / (2 * span)
