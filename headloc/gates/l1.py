"""L1 coefficients in [0, 1] with a proximal step (Hu et al. 2025, localization).

The coefficients are deterministic.  After every optimizer step they are soft-thresholded by
weight * learning rate and clamped.  Adam's normalised step moves a head that has no task gradient
by about the learning rate whatever the weight is; the proximal step keeps the weight meaningful.
The published code applies the L1 norm in the loss as well: `double=True` does the same.

Shapes: B rows, A heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headloc.gates.base import HeadGates, require


class L1Gates(HeadGates):
    """Deterministic coefficients in [0, 1], made sparse by soft-thresholding.

    Args:
        init_low: lower end of the uniform initial values.
        init_high: upper end of the uniform initial values.
        double: also put the L1 norm into the loss, as the published code does.
        mlps: gate every feed-forward block too.
    """

    default_lr = 0.02

    def __init__(
        self,
        init_low: float = 0.0,
        init_high: float = 1.0,
        double: bool = False,
        mlps: bool = False,
    ) -> None:
        super().__init__(mlps)
        require(
            0 <= init_low <= init_high <= 1,
            f"gates need 0 <= init_low <= init_high <= 1, got {init_low} and {init_high}.",
        )
        self.init_low, self.init_high = init_low, init_high
        self.penalty_in_loss = double

    def _allocate(self, heads: int, generator: torch.Generator) -> None:
        span = self.init_high - self.init_low
        self.coefficient = nn.Parameter(
            self.init_low + span * torch.rand(heads, generator=generator)
        )

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return the coefficients, the same in every row: gates_BA."""
        return self.coefficient.expand(rows, -1)

    def values(self) -> Tensor:
        """Return the coefficients [A]."""
        return self.coefficient.detach().clone()

    def expected_open(self) -> Tensor:
        """Return the L1 norm, a scalar."""
        return self.coefficient.abs().sum()

    @torch.no_grad()
    def after_step(self, shrinkage: float) -> None:
        """Soft-threshold by `shrinkage` and clamp into [0, 1]."""
        self.coefficient.sub_(shrinkage).clamp_(0, 1)
