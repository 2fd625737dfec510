"""Hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312, eq. 10-12).

    s     = sigmoid((log u - log(1 - u) + log_alpha) / beta),   u ~ U(0, 1)
    gate  = clamp(s (zeta - gamma) + gamma, 0, 1)
    P(gate > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))
    test time:  clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)

Starting at log_alpha = 10, as Edge Pruning does, leaves the clamped gate without gradient almost
surely; the default of 2 gives every gate a gradient in most draws (0.4 of the draws lie inside
(0, 1)).

Shapes: B rows, A heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from headloc.gates.base import HeadGates, require, uniform_noise


class HardConcreteGates(HeadGates):
    """Stochastic gates that are exactly zero or one with positive probability.

    Args:
        beta: temperature of the concrete distribution.
        gamma: lower end of the stretched interval, below 0.
        zeta: upper end of the stretched interval, above 1.
        init: initial log_alpha of every head.
        init_std: standard deviation of the initial log_alpha.
        mlps: gate every feed-forward block too.
    """

    def __init__(
        self,
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
        init: float = 2.0,
        init_std: float = 0.01,
        mlps: bool = False,
    ) -> None:
        super().__init__(mlps)
        require(beta > 0, f"gates.beta={beta} must be above 0 (usual: 0.667).")
        require(gamma < 0 < 1 < zeta, f"gates need gamma < 0 and zeta > 1, got {gamma} and {zeta}.")
        require(init_std >= 0, f"gates.init_std={init_std} must not be negative.")
        self.beta, self.gamma, self.zeta = beta, gamma, zeta
        self.init, self.init_std = init, init_std

    def _allocate(self, heads: int, generator: torch.Generator) -> None:
        noise_A = torch.randn(heads, generator=generator)
        self.log_alpha = nn.Parameter(self.init + self.init_std * noise_A)

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return gates_BA, each an independent hard-concrete draw."""
        u_BA = uniform_noise(rows, self.log_alpha, generator)
        logistic_BA = torch.log(u_BA) - torch.log1p(-u_BA)
        s_BA = torch.sigmoid((logistic_BA + self.log_alpha) / self.beta)
        return self._stretch(s_BA)

    def values(self) -> Tensor:
        """Return the test-time gates [A]."""
        return self._stretch(torch.sigmoid(self.log_alpha.detach()))

    def scores(self) -> Tensor:
        """Return log_alpha [A]: unlike the clamped gates it also ranks fully open heads."""
        return self.log_alpha.detach().clone()

    def expected_open(self) -> Tensor:
        """Return the expected L0 norm, a scalar."""
        return torch.sigmoid(self.log_alpha - self.beta * math.log(-self.gamma / self.zeta)).sum()

    def _stretch(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)
