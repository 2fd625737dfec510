"""Value boost: speak up for the labels that a prompt shows less often (Yu & Ananiadou 2024).

    final stream += a sum over heads, minority label tokens p of alpha_p vo_p,
    a = factor * (majority count / minority count),      factor = 0.03 in the paper

at the last prompt token.  A prompt that shows its labels equally often is left as it is.

Shapes: B rows, P prompt columns, H chosen heads of a layer, d head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.interventions.base import Intervention, require_some
from headloc.interventions.label_tokens import minority_weights
from headloc.lm.projection import output_weights
from headloc.lm.stream import add_to_stream

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True)
class ValueBoost(Intervention):
    """Settings.

    Attributes:
        factor: a for equal counts.
    """

    factor: float = 0.03
    name: ClassVar[str] = "value_boost"

    def __post_init__(self) -> None:
        if not isinstance(self.factor, (int, float)) or self.factor < 0:
            raise HeadlocError(f"intervention.factor={self.factor!r} must be a number, 0 or above.")

    def on(self, lm: FrozenLM, heads: Sequence[HeadId]) -> _Boost:
        """Prepare it for some heads."""
        require_some(self, lm, heads)
        return _Boost(lm, tuple(heads), self.factor)


@dataclass(frozen=True)
class _Boost:
    lm: FrozenLM
    heads: tuple[HeadId, ...]
    factor: float

    def applied(self, batch: TokenBatch) -> AbstractContextManager[Any]:
        """Add the boost to what leaves the last layer at the last prompt token."""
        blocks = self.lm.model.get_submodule(self.lm.family.layers)
        last = max(int(name) for name, _ in blocks.named_children())
        column = batch.prompt_columns - 1
        return add_to_stream(
            self.lm, last, self.vector(batch), site="layer_output",
            columns=slice(column, column + 1),
        )  # fmt: skip

    @torch.no_grad()
    def vector(self, batch: TokenBatch) -> Tensor:
        """Return the boost of each row, vector_BD."""
        from headloc.analysis.identity import frozen_output_scale
        from headloc.analysis.reading import by_layer, read_heads_of

        weights_BP = minority_weights(batch, self.factor).to(self.lm.device)
        if not weights_BP.any():
            return torch.zeros(len(batch), self.lm.width, dtype=torch.float64)
        positions = list(by_layer(self.lm, self.heads))
        with frozen_output_scale(self.lm, positions) as scales:
            layers = read_heads_of(self.lm, batch, self.heads)
        total_BD = torch.zeros(len(batch), self.lm.width, dtype=torch.float64,
                               device=self.lm.device)  # fmt: skip
        for position, reading in layers.items():
            taken_BHP = reading.attention_BHT.double() * weights_BP[:, None]
            z_BHd = torch.einsum("bhp,bhpd->bhd", taken_BHP, reading.values_BHTd.double())
            weight_HdD = output_weights(self.lm, position)[list(reading.heads)].double()
            added_BD = torch.einsum("bhd,hdm->bm", z_BHd, weight_HdD)
            if position in scales:
                added_BD = added_BD * scales[position][:, -1].double()
            total_BD += added_BD
        return total_BD
