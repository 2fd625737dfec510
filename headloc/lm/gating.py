"""Gate heads: interpolate between a head's own output and an off-value.

Shape legend: B rows, T columns of the current forward, A heads of the model in flat order, H heads
of a layer, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.lm.head_tap import tap_heads
from headloc.lm.hooks import TapCount, check_columns, column_range, compute_dtype, splice

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


class _Gating:
    """`z' = g z + (1 - g) off` for every layer; tensors are cut per layer once, at entry."""

    def __init__(
        self, lm: FrozenLM, gates: Tensor, off: Sequence[Tensor] | None, columns: slice | None
    ) -> None:
        self._dtype = compute_dtype(lm.dtype)
        sizes = [heads.heads for heads in lm.layout.layers]
        gates_BTA = _as_columns(gates.to(self._dtype))
        self._gates = [g_BTH[..., None] for g_BTH in gates_BTA.split(sizes, dim=-1)]
        # Not multiplied with `off` here: one context may serve several backward passes.
        rest_BTA = 1 - gates_BTA
        self._rest = [r_BTH[..., None] for r_BTH in rest_BTA.split(sizes, dim=-1)]
        self._off = off
        self._columns = columns

    def edit(self, position: int, z_BTHd: Tensor) -> Tensor:
        start, stop = column_range(self._columns, z_BTHd.shape[1])
        part_BTHd = z_BTHd[:, start:stop].to(self._dtype)
        gate = self._gates[position].to(z_BTHd.device)
        if gate.shape[0] not in (1, z_BTHd.shape[0]):
            raise HeadlocError(
                f"The gates have {gate.shape[0]} rows, but {z_BTHd.shape[0]} rows are running. "
                "Give one row per prompt, or a single head vector for all."
            )
        if self._off is None:
            new_BTHd = part_BTHd * gate
        else:
            off = self._off[position].to(z_BTHd.device, self._dtype)
            rest = self._rest[position].to(z_BTHd.device)
            # g z + (1 - g) off and not off + g (z - off): exact, bit for bit, where g is 1.
            new_BTHd = torch.addcmul(rest * off, part_BTHd, gate)
        return splice(z_BTHd, new_BTHd, start, stop)


def _as_columns(gates: Tensor) -> Tensor:
    """Return gates [A], [B, A] or [B, T, A] as gates_BTA that broadcast over rows and columns."""
    if gates.ndim == 1:
        return gates[None, None]
    return gates[:, None] if gates.ndim == 2 else gates


def gate_heads(
    lm: FrozenLM,
    gates: Tensor,
    *,
    off: Sequence[Tensor] | None = None,
    columns: slice | None = None,
) -> AbstractContextManager[TapCount]:
    """Interpolate each head between its own output (gate 1) and an off-value (gate 0).

    `z' = g z + (1 - g) off`, in float32 (float64 for a float64 model) and cast back.  Gates of one
    leave the logits bitwise unchanged.  The gates may require grad.

    Args:
        lm: the frozen model.
        gates: head vector `[A]`, one per row `[B, A]`, or one per row and gated column `[B, T, A]`.
        off: per layer of the layout, a finite tensor that broadcasts to z_BTHd of the gated
            columns; zero when None.
        columns: columns of the *current* forward that are gated (all when None).

    Raises:
        HeadlocError: when a shape does not fit the model.
        TapError: as `tap_heads`; also when `columns` reaches beyond the forward.
    """
    check_columns(columns)
    if gates.ndim not in (1, 2, 3) or gates.shape[-1] != lm.layout.total:
        raise HeadlocError(
            f"Gates of shape {tuple(gates.shape)} do not fit a model with {lm.layout.total} heads. "
            f"Give [{lm.layout.total}], [rows, {lm.layout.total}] or [rows, columns, "
            f"{lm.layout.total}]."
        )
    _check_off(lm, off)
    return tap_heads(lm, _Gating(lm, gates, off, columns).edit)


def _check_off(lm: FrozenLM, off: Sequence[Tensor] | None) -> None:
    if off is None:
        return
    if len(off) != len(lm.layout.layers):
        raise HeadlocError(
            f"off has {len(off)} tensors; expected one per layer, {len(lm.layout.layers)}."
        )
    for heads, tensor in zip(lm.layout.layers, off, strict=True):
        tail = (heads.heads, heads.width)
        fits = all(size in (1, full) for size, full in zip(tensor.shape[-2:], tail, strict=False))
        if tensor.ndim > 4 or not fits:
            raise HeadlocError(
                f"off of layer {heads.layer} has shape {tuple(tensor.shape)}; it must broadcast to "
                f"[rows, columns, {heads.heads}, {heads.width}]."
            )
