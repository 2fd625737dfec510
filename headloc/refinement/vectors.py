"""Vectors of head sets, one per task, as sums of precomputed head contributions.

    unit    v_k = sum_{h in set} zbar_k[h] + sum_{other heads} off[h]      (Hu et al. 2025)
    among   v_k = sum_{h in set} zbar_k[h] + sum_{other selected heads} mean[h] + ...
    scaled  v_k = c zbar_k[h] + sum_{other selected heads} mean[h] + ...   (Hu et al. 2025)

Heads outside the selected set stay at the objective's off-value: absent for off_value=zero, which
is the published form, and a mean otherwise.  All contributions are
z[l,h] W_O[l,h], already in the width of the stream.

Shapes: K tasks, A heads in flat order, S selected heads, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import FunctionVector


@dataclass(frozen=True, slots=True)
class HeadVectors:
    """Head contributions of every task, and what stands in for a head that is left out.

    Attributes:
        own_KAD: contribution of each head's task mean.
        mean_AD: contribution of its cross-task mean, over the training tasks.
        off_AD: contribution of its off-value under the objective.
    """

    own_KAD: Tensor
    mean_AD: Tensor
    off_AD: Tensor

    @classmethod
    def of(cls, objective: FunctionVector, lm: FrozenLM) -> HeadVectors:
        """Take the task means of a prepared objective.

        Raises:
            HeadlocError: when it is not prepared.
        """
        if objective.means is None:
            raise HeadlocError("The task means are missing: call prepare() first.")
        # Of a circuit that keeps no feed-forward block, these are absent from the sum.
        own_KAD = objective.means.contributions(lm).float()[:, : lm.layout.total]
        rows = objective.means.index(objective.train_tasks).to(own_KAD.device)
        mean_AD = own_KAD[rows].mean(0)
        off = objective.off_contributions
        off_AD = torch.zeros_like(mean_AD) if off is None else off[: lm.layout.total]
        return cls(own_KAD, mean_AD, off_AD)

    def fill(self, selected: Sequence[int]) -> Tensor:
        """Return fill_AD: selected heads at their cross-task mean, the others at their off-value"""
        fill_AD = self.off_AD.clone()
        fill_AD[list(selected)] = self.mean_AD[list(selected)]
        return fill_AD

    def unit(self, heads: Sequence[int]) -> Tensor:
        """Return v_KD of a head set with unit coefficients, all other heads at their off-value."""
        return self._sum(heads, 1.0, self.off_AD)

    def among(self, heads: Sequence[int], selected: Sequence[int]) -> Tensor:
        """Return v_KD of a head set, the other selected heads at their cross-task mean."""
        return self._sum(heads, 1.0, self.fill(selected))

    def scaled(self, head: int, dose: float, selected: Sequence[int]) -> Tensor:
        """Return v_KD of one head times a dose, the other selected heads at their mean."""
        return self._sum([head], dose, self.fill(selected))

    def nothing(self) -> Tensor:
        """Return v_KD of zeros: the zero-shot prompt as it is."""
        return torch.zeros_like(self.own_KAD[:, 0])

    def _sum(self, heads: Sequence[int], weight: float, fill_AD: Tensor) -> Tensor:
        chosen = list(heads)
        base_D = fill_AD.sum(0) - fill_AD[chosen].sum(0)
        return base_D + weight * self.own_KAD[:, chosen].sum(1)
