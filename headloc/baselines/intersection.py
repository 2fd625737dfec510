"""Heads on two lists at once: log-probability increase, and ablation of one head (Yu & Ananiadou
2024, arXiv 2402.02872, section 3).

A head counts when it is among the first by what it writes for the answer on its own *and* among the
first by the accuracy that is lost without it.  The ranking goes by the worse of a head's two ranks,
so that the first heads of the order are those in both lists of that length; the set that the method
decides on is the intersection of both lists at `top` heads.

Shapes: A heads in flat order, G gate vectors.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from headloc.baselines.attribution import checked_prompts
from headloc.baselines.log_increase import LogProbabilityIncrease
from headloc.baselines.method import HeadRanking, Method
from headloc.baselines.problem import SearchProblem
from headloc.errors import HeadlocError
from headloc.objectives.prompts import Progress


class Intersection(Method):
    """Rank heads by the worse of two ranks.

    Args:
        prompts: search prompts that are used; None for all.
        top: length of the lists whose intersection is emitted.
    """

    name: ClassVar[str] = "intersection"

    def __init__(self, prompts: int | None = None, top: int = 10) -> None:
        self.prompts = checked_prompts(prompts)
        if not isinstance(top, int) or top < 1:
            raise HeadlocError(f"top={top!r} must be a whole number, 1 or above.")
        self.top = top

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Rank by both, then by the worse of the two."""
        alone = LogProbabilityIncrease(self.prompts).find(problem, None)
        ablated_A = self._ablation(problem, progress)
        return intersected(alone.scores, ablated_A, self.top)

    def _ablation(self, problem: SearchProblem, progress: Progress | None) -> Tensor:
        """Return the accuracy lost without each head, ties parted by log-probability."""
        gates_GA = torch.cat([torch.ones(1, problem.total), 1.0 - torch.eye(problem.total)])
        many = problem.scored(gates_GA, problem.first(self.prompts), progress)
        accuracy_G = torch.as_tensor(many.accuracy_G, dtype=torch.float64)
        worth_G = torch.as_tensor(many.log_probability_GN, dtype=torch.float64).mean(1)
        lost_A, nats_A = accuracy_G[0] - accuracy_G[1:], worth_G[0] - worth_G[1:]
        # Squashed below the smallest step of the accuracy.
        step = 1.0 / (2 * many.log_probability_GN.shape[1])
        return lost_A + step * torch.tanh(nats_A)


def intersected(first_A: Tensor, second_A: Tensor, top: int) -> HeadRanking:
    """Return the ranking by the worse of two ranks, ties by their sum.

    Args:
        first_A: scores of one list, larger is more important.
        second_A: scores of the other.
        top: length of the lists whose intersection is emitted.
    """
    ranks = [_ranks(scores_A) for scores_A in (first_A, second_A)]
    worse_A, total_A = torch.maximum(*ranks), ranks[0] + ranks[1]
    count = len(worse_A)
    key_A = worse_A * (2 * count) + total_A
    order = key_A.argsort(stable=True).tolist()
    emitted = tuple(sorted((worse_A < top).nonzero().flatten().tolist()))
    scores_A = (count - worse_A).float()
    return HeadRanking(tuple(order), scores_A, emitted=emitted)


def _ranks(scores_A: Tensor) -> Tensor:
    """Return 0 for the largest score, and so on; ties in flat order."""
    order_A = scores_A.double().cpu().argsort(descending=True, stable=True)
    return torch.empty_like(order_A).scatter_(0, order_A, torch.arange(len(order_A)))
