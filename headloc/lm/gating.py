"""Gate heads: interpolate between a head's own output and an off-value.

Shape legend: B rows, T columns of the current forward, A heads of the model in flat order, H heads
of a layer, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torch import Tensor

from headloc.errors import HeadlocError
from headloc.lm.head_tap import tap_heads
from headloc.lm.hooks import TapCount, check_columns
from headloc.lm.interpolation import Interpolation, check_gates

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


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
    check_gates(gates, lm.layout.total, "heads")
    _check_off(lm, off)
    sizes = [heads.heads for heads in lm.layout.layers]
    return tap_heads(lm, Interpolation(lm, gates, sizes, 1, off, columns).edit)


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
