"""Greedy search: add or remove the head that helps most or costs least, again and again.

Forward search opens heads one by one from none, backward elimination closes them one by one from
all; every step scores all candidates together and keeps the one with the highest accuracy, ties
by log p(answer).  Either gives an order over all sizes for A (A + 1) / 2 passes a prompt.

Shapes: A heads in flat order, G gate vectors.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from headloc.baselines.attribution import checked_prompts
from headloc.baselines.method import HeadRanking, Method, ranking_in
from headloc.baselines.problem import SearchProblem
from headloc.errors import HeadlocError, suggest
from headloc.evaluation.search import Worth
from headloc.objectives.prompts import Progress

_CRITERIA = ("log_probability", "accuracy")


class GreedyForward(Method):
    """Open heads one by one.

    Args:
        prompts: search prompts that are used; None for all.
        criterion: log_probability, or accuracy with ties by log-probability.
    """

    name: ClassVar[str] = "greedy_forward"
    _forward: ClassVar[bool] = True

    def __init__(self, prompts: int | None = None, criterion: str = "log_probability") -> None:
        if criterion not in _CRITERIA:
            raise HeadlocError(
                f"criterion={criterion!r} is unknown. {suggest(criterion, _CRITERIA)}"
            )
        self.prompts, self.criterion = checked_prompts(prompts), criterion

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Search greedily from one end of the sizes to the other."""
        worth = problem.worth(problem.first(self.prompts))
        order = greedy_order(
            problem.total, worth, forward=self._forward, criterion=self.criterion, progress=progress
        )
        return ranking_in(order)


class GreedyBackward(GreedyForward):
    """Close heads one by one."""

    name: ClassVar[str] = "greedy_backward"
    _forward: ClassVar[bool] = False


def greedy_order(
    heads: int,
    worth: Worth,
    *,
    forward: bool,
    criterion: str = "log_probability",
    progress: Progress | None = None,
) -> list[int]:
    """Return all heads, the first to be opened, or the last to be closed, first.

    Args:
        heads: number of heads A.
        worth: what sets of open heads are worth.
        forward: open heads from none, rather than close them from all.
        criterion: what a step maximises.
        progress: called with (head sets scored, A (A + 1) / 2).
    """
    gates_A = torch.zeros(heads) if forward else torch.ones(heads)
    left, order, done = list(range(heads)), [], 0
    while left:
        trials_GA = gates_A.repeat(len(left), 1)
        trials_GA[torch.arange(len(left)), left] = 1.0 if forward else 0.0
        accuracy_G, log_p_G = worth(trials_GA)
        done += len(left)
        head = left.pop(best_of(accuracy_G, log_p_G, criterion))
        gates_A[head] = 1.0 if forward else 0.0
        order.append(head)
        if progress is not None:
            progress(done, heads * (heads + 1) // 2)
    return order if forward else order[::-1]


def best_of(accuracy_G: Tensor, log_p_G: Tensor, criterion: str) -> int:
    """Return the position of the best; the first of equal ones."""
    if criterion == "log_probability":
        return int(log_p_G.argmax())
    pairs = list(zip(accuracy_G.tolist(), log_p_G.tolist(), strict=True))
    return max(range(len(pairs)), key=lambda g: (*pairs[g], -g))
