"""Random-budget top-k gates (matryoshka attribution, arXiv 2609.25518).

One score per head.  Every row of a training batch draws a budget k ~ U(1, n) and is gated by

    gate = sigmoid((score - tau_k) / T),   with tau_k such that the gates of the row sum to k,

so that one run orders the heads at every size.  tau is found by bisection; its derivative follows
from the implicit function theorem, d tau / d score_i = w_i / sum(w) with w = gate (1 - gate), and
is carried by one Newton step from the bisected value.

Shapes: B rows, A heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headloc.gates.base import HeadGates, require

_BISECTIONS = 40


class TopKGates(HeadGates):
    """Scores whose soft top-k set is trained at every size at once.

    Args:
        temperature: T of the sigmoid.
        budget_low: smallest budget that is drawn, in heads.
        budget_high: largest budget that is drawn, in heads; None for all heads.
        budget: budget at which `values` and `expected_open` are read; None for half the heads.
        init_std: standard deviation of the initial scores.
        mlps: gate every feed-forward block too.
    """

    penalty_in_loss = False

    def __init__(
        self,
        temperature: float = 0.5,
        budget_low: float = 1.0,
        budget_high: float | None = None,
        budget: float | None = None,
        init_std: float = 0.01,
        mlps: bool = False,
    ) -> None:
        super().__init__(mlps)
        require(temperature > 0, f"gates.temperature={temperature} must be above 0 (usual: 0.5).")
        require(budget_low > 0, f"gates.budget_low={budget_low} must be above 0.")
        require(init_std >= 0, f"gates.init_std={init_std} must not be negative.")
        self.temperature, self.init_std = temperature, init_std
        self.budget_low, self.budget_high, self.budget = budget_low, budget_high, budget

    def _allocate(self, heads: int, generator: torch.Generator) -> None:
        high = heads if self.budget_high is None else self.budget_high
        require(
            self.budget_low <= high <= heads,
            f"gates.budget_low={self.budget_low} and budget_high={high} must be ordered and at "
            f"most the {heads} heads of the model.",
        )
        self.score = nn.Parameter(self.init_std * torch.randn(heads, generator=generator))

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return gates_BA; row b sums to its own budget."""
        high = self.heads if self.budget_high is None else self.budget_high
        u_B = torch.rand(rows, generator=generator, device=generator.device).to(self.score.device)
        # A budget of exactly all heads has no finite threshold.
        budget_B = (self.budget_low + u_B * (high - self.budget_low)).clamp(max=self.heads - 1e-2)
        return self._gates(self.score, budget_B)

    def values(self) -> Tensor:
        """Return the gates [A] at the reading budget."""
        return self._gates(self.score.detach(), self._reading_budget())[0]

    def scores(self) -> Tensor:
        """Return the scores [A]."""
        return self.score.detach().clone()

    def expected_open(self) -> Tensor:
        """Return the sum of the gates at the reading budget, a scalar."""
        return self._gates(self.score, self._reading_budget()).sum()

    def _reading_budget(self) -> Tensor:
        budget = self.heads / 2 if self.budget is None else float(self.budget)
        return torch.full((1,), min(budget, self.heads - 1e-2), device=self.score.device)

    def _gates(self, score_A: Tensor, budget_B: Tensor) -> Tensor:
        tau_B1 = self._threshold(score_A.detach(), budget_B)
        gates_BA = torch.sigmoid((score_A.detach() - tau_B1) / self.temperature)
        weight_BA = gates_BA * (1 - gates_BA)
        # One Newton step whose value is 0 and whose derivative is that of the threshold.
        share_BA = weight_BA / weight_BA.sum(1, keepdim=True).clamp(min=1e-12)
        shift_B1 = (share_BA * (score_A - score_A.detach())).sum(1, keepdim=True)
        return torch.sigmoid((score_A - tau_B1 - shift_B1) / self.temperature)

    def _threshold(self, score_A: Tensor, budget_B: Tensor) -> Tensor:
        """Return tau_B1 with sum_A sigmoid((score - tau) / T) = budget, by bisection."""
        reach = 40 * self.temperature
        low_B1 = (score_A.min() - reach).expand(budget_B.numel(), 1)
        high_B1 = (score_A.max() + reach).expand(budget_B.numel(), 1)
        for _ in range(_BISECTIONS):
            middle_B1 = (low_B1 + high_B1) / 2
            total_B = torch.sigmoid((score_A - middle_B1) / self.temperature).sum(1)
            too_many_B1 = (total_B > budget_B)[:, None]
            low_B1 = torch.where(too_many_B1, middle_B1, low_B1)
            high_B1 = torch.where(too_many_B1, high_B1, middle_B1)
        return (low_B1 + high_B1) / 2
