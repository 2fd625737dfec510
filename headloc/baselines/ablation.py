"""Leave-one-out ablation: close every head alone and see what the answer loses.

    a[h] = m(all open) - m(all but h open),      m = mean log p(answer)

This is exact where attribution patching is a first-order estimate, at A + 1 passes a prompt.  It
cannot see heads that stand in for one another.

Shapes: A heads in flat order, G gate vectors, N prompts.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from headloc.baselines.attribution import checked_prompts
from headloc.baselines.method import HeadRanking, Method, ranking_of
from headloc.baselines.problem import SearchProblem
from headloc.objectives.prompts import Progress


class LeaveOneOut(Method):
    """Rank heads by the log-probability lost when they alone are closed.

    Args:
        prompts: search prompts that are used; None for all.
    """

    name: ClassVar[str] = "leave_one_out"

    def __init__(self, prompts: int | None = None) -> None:
        self.prompts = checked_prompts(prompts)

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Score every set of all heads but one."""
        gates_GA = 1.0 - torch.eye(problem.total)
        gates_GA = torch.cat([torch.ones(1, problem.total), gates_GA])
        many = problem.scored(gates_GA, problem.first(self.prompts), progress)
        worth_G = many.log_probability_GN.mean(1)
        return ranking_of(worth_G[0] - worth_G[1:])
