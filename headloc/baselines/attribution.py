"""Attribution patching, its integrated-gradients form, and importance by gate gradient.

    attribution patching   a[h] = dm/dg[h] at g = 1
    integrated gradients   a[h] = integral over t in [0, 1] of dm/dg[h] at g = t
    gate gradient          a[h] = |dm/dg[h]| at g = 1                   each averaged over prompts

Attribution patching (Nanda 2023; AtP in Kramar et al. 2024, arXiv 2403.00745) is the first-order
estimate of what closing head h alone costs.  With every head's path from its off-value to its own
output integrated at once (as EAP-IG does with the input, Hanna et al. 2024, arXiv 2403.17806, here
on head nodes), the attributions sum to m(all open) - m(all closed).  Michel et al. 2019 (arXiv
1905.10650) rank by the size of the gate's gradient, sign dropped.

Cost: 3 passes a prompt behind the cached prefix (1 forward, its backward 2), and m times as much
with m steps.

Shapes: A heads in flat order, N prompts.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from headloc.baselines.gradient import gate_gradients
from headloc.baselines.method import HeadRanking, Method, ranking_of
from headloc.baselines.problem import SearchProblem
from headloc.errors import HeadlocError
from headloc.objectives.prompts import Progress


class AttributionPatching(Method):
    """Rank heads by the signed first-order effect of closing them.

    Args:
        prompts: search prompts that are used; None for all.
    """

    name: ClassVar[str] = "attribution_patching"

    def __init__(self, prompts: int | None = None) -> None:
        self.prompts = checked_prompts(prompts)

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Take one gradient a prompt, with all heads open."""
        prompts = problem.first(self.prompts)
        gradient_NA = gate_gradients(
            problem.objective, problem.lm, prompts, problem.open_all(), progress
        )
        return ranking_of(gradient_NA.double().mean(0))


class GateGradient(AttributionPatching):
    """Rank heads by the mean size of the derivative to their gate (Michel et al. 2019)."""

    name: ClassVar[str] = "gate_gradient"

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Take one gradient a prompt, with all heads open, and drop its sign."""
        prompts = problem.first(self.prompts)
        gradient_NA = gate_gradients(
            problem.objective, problem.lm, prompts, problem.open_all(), progress
        )
        return ranking_of(gradient_NA.double().abs().mean(0))


class IntegratedGradients(Method):
    """Rank heads by gradients integrated along the path from all closed to all open.

    Args:
        steps: points of the Gauss-Legendre rule, which is exact for polynomials of degree
            2 steps - 1.
        prompts: search prompts that are used; None for all.
    """

    name: ClassVar[str] = "integrated_gradients"

    def __init__(self, steps: int = 5, prompts: int | None = None) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise HeadlocError(f"integrated_gradients.steps={steps!r} must be at least 1.")
        self.steps, self.prompts = steps, checked_prompts(prompts)

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Take `steps` gradients a prompt."""
        prompts = problem.first(self.prompts)
        points, weights = np.polynomial.legendre.leggauss(self.steps)
        total_A = torch.zeros(problem.total, dtype=torch.float64)
        for done, (point, weight) in enumerate(zip(points, weights, strict=True), start=1):
            gates_A = problem.open_all() * float((point + 1) / 2)
            gradient_NA = gate_gradients(problem.objective, problem.lm, prompts, gates_A)
            total_A += float(weight / 2) * gradient_NA.double().mean(0).cpu()
            if progress is not None:
                progress(done, self.steps)
        return ranking_of(total_A)


def checked_prompts(prompts: int | None) -> int | None:
    """Return a number of prompts.

    Raises:
        HeadlocError: when it is not positive.
    """
    if prompts is not None and prompts < 1:
        raise HeadlocError(f"prompts={prompts} must be at least 1, or null for all.")
    return prompts
