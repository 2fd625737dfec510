"""Position-free attention: chosen heads attend by content alone (Yu & Ananiadou 2024).

At the last prompt token and the answer's tokens the heads' attention is computed anew without its
position part (rotary angles, ALiBi, the position embedding that the stream carries; see
`headloc/analysis/position_terms.py`), and the output that follows takes the place of theirs.

Shapes: B rows, T columns, J predicting columns, H heads of a layer, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from headloc.heads import HeadId
from headloc.interventions.base import Intervention, require_some
from headloc.lm.taps import tap_heads

if TYPE_CHECKING:
    from headloc.analysis.attention_seen import Seen
    from headloc.analysis.tower_reading import Towers
    from headloc.analysis.value_maps import ValueMap
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True)
class PositionFree(Intervention):
    """It has no settings."""

    name: ClassVar[str] = "position_free"

    def on(self, lm: FrozenLM, heads: Sequence[HeadId]) -> _WithoutPosition:
        """Prepare it for some heads."""
        from headloc.analysis.reading import by_layer
        from headloc.analysis.tower_reading import towers_of
        from headloc.analysis.value_maps import value_maps

        require_some(self, lm, heads)
        chosen = by_layer(lm, heads)
        towers = towers_of(lm, list(chosen))
        return _WithoutPosition(lm, chosen, towers, value_maps(lm, list(chosen)))


@dataclass(frozen=True)
class _WithoutPosition:
    lm: FrozenLM
    chosen: dict[int, tuple[int, ...]]
    towers: dict[int, Towers]
    values: dict[int, ValueMap]

    @contextmanager
    def applied(self, batch: TokenBatch) -> Iterator[None]:
        """Replace the heads' outputs at the predicting columns."""
        from headloc.analysis.attention_seen import seeing

        layers = [self.lm.layout.layers[position].layer for position in self.chosen]
        real_BT = batch.mask_BT.to(self.lm.device).bool()
        with seeing(self.lm, list(self.chosen)) as seen:

            def edit(position: int, z_BTHd: Tensor) -> Tensor:
                first = batch.prompt_columns - 1
                new_BJHd = self._outputs(position, seen[position], real_BT, first)
                out_BTHd = z_BTHd.clone()
                heads = list(self.chosen[position])
                out_BTHd[:, first:, heads] = new_BJHd.to(z_BTHd.dtype)
                return out_BTHd

            with tap_heads(self.lm, edit, layers=layers):
                yield

    def _outputs(self, position: int, seen: Seen, real_BT: Tensor, first: int) -> Tensor:
        """Return the outputs of the chosen heads at columns first .., [B, J, H, d]."""
        maps, heads = self.towers[position].maps, list(self.chosen[position])
        group = maps.group
        content_BTD = seen.content_BCD
        q_BJHd = maps.queries(content_BTD[:, first:])[:, :, heads].double()
        k_BTHd = maps.keys(content_BTD)[:, :, [head // group for head in heads]].double()
        score_BHJT = maps.scale * torch.einsum("bjhd,bthd->bhjt", q_BJHd, k_BTHd)
        allowed_BJT = _allowed(seen.mask, real_BT, first)
        score_BHJT = score_BHJT.masked_fill(~allowed_BJT[:, None], float("-inf"))
        values = self.values[position]
        shared = self.lm.layout.layers[position].heads // len(values.weight_KdD)
        v_BTHd = values.values(seen.n_BCD)[:, :, [head // shared for head in heads]].double()
        return torch.einsum("bhjt,bthd->bjhd", score_BHJT.softmax(-1), v_BTHd)


def _allowed(mask: Any, real_BT: Tensor, first: int) -> Tensor:
    """Return which columns each predicting column may attend to, [B, J, T].

    The model's own mask where it has made one (it knows of windows), else the causal one.
    """
    columns = real_BT.shape[1]
    index_T = torch.arange(columns, device=real_BT.device)
    causal_JT = index_T[None] <= index_T[first:, None]
    allowed_BJT = causal_JT & real_BT[:, None]
    # A column behind the answer's end attends to itself, so that no row is empty.
    allowed_BJT = allowed_BJT | (index_T[None] == index_T[first:, None])
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return allowed_BJT
    own = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    if not own[:, :, first, first].all():
        own = ~own  # mpt marks what is hidden
    return allowed_BJT & own[:, 0, first:, :columns]
