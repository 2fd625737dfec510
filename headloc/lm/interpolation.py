"""Interpolation between an output and an off-value, layer by layer; for heads and for blocks.

Shape legend: B rows, T columns of the current forward, N gated parts in flat order (heads, or
feed-forward blocks); `*` stands for what one layer puts out per column: H heads of d, or D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.lm.hooks import column_range, compute_dtype, splice

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


class Interpolation:
    """`y' = g y + (1 - g) off` for every layer, in float32 (float64 for a float64 model).

    Args:
        lm: the frozen model.
        gates: `[N]`, one per row `[B, N]`, or one per row and gated column `[B, T, N]`.
        sizes: how many of the N parts each layer has.
        dims: axes behind the columns on which a gate acts as a whole: those of one part.
        off: per layer a tensor that broadcasts to y_BT* of the gated columns; zero when None.
        columns: the gated columns; all when None.
    """

    def __init__(
        self,
        lm: FrozenLM,
        gates: Tensor,
        sizes: Sequence[int],
        dims: int,
        off: Sequence[Tensor] | None,
        columns: slice | None,
    ) -> None:
        self._dtype = compute_dtype(lm.dtype)
        gates_BTN = _as_columns(gates.to(self._dtype))
        self._gates = _by_layer(gates_BTN, sizes, dims)
        # Not multiplied with `off` here: one context may serve several backward passes.
        self._rest = _by_layer(1 - gates_BTN, sizes, dims)
        self._off, self._columns = off, columns

    def edit(self, position: int, y_BT: Tensor) -> Tensor:
        """Return the output y_BT* of one layer with its gated columns interpolated.

        Raises:
            HeadlocError: when the gates have another number of rows.
        """
        start, stop = column_range(self._columns, y_BT.shape[1])
        part_BT = y_BT[:, start:stop].to(self._dtype)
        gate = self._gates[position].to(y_BT.device)
        if gate.shape[0] not in (1, y_BT.shape[0]):
            raise HeadlocError(
                f"The gates have {gate.shape[0]} rows, but {y_BT.shape[0]} rows are running. "
                "Give one row per prompt, or a single vector for all."
            )
        if self._off is None:
            new_BT = part_BT * gate
        else:
            off = self._off[position].to(y_BT.device, self._dtype)
            rest = self._rest[position].to(y_BT.device)
            # g y + (1 - g) off and not off + g (y - off): exact, bit for bit, where g is 1.
            new_BT = torch.addcmul(rest * off, part_BT, gate)
        return splice(y_BT, new_BT, start, stop)


def check_gates(gates: Tensor, parts: int, noun: str) -> None:
    """Check the shape of gates.

    Raises:
        HeadlocError: when it does not fit a model with so many `noun`s.
    """
    if gates.ndim not in (1, 2, 3) or gates.shape[-1] != parts:
        raise HeadlocError(
            f"Gates of shape {tuple(gates.shape)} do not fit a model with {parts} {noun}. "
            f"Give [{parts}], [rows, {parts}] or [rows, columns, {parts}]."
        )


def _as_columns(gates: Tensor) -> Tensor:
    """Return gates [N], [B, N] or [B, T, N] as gates_BTN that broadcast over rows and columns."""
    if gates.ndim == 1:
        return gates[None, None]
    return gates[:, None] if gates.ndim == 2 else gates


def _by_layer(gates_BTN: Tensor, sizes: Sequence[int], dims: int) -> list[Tensor]:
    return [own.unflatten(-1, (-1, *[1] * dims)) for own in gates_BTN.split(list(sizes), dim=-1)]
