"""Taps on feed-forward blocks: edit, read or gate what a block adds to the residual stream.

A tap is a forward hook on the module that `families.py` names; its output m is `[B, T, D]`.  Where
a family normalises the block's output before adding it (gemma2, gemma3, exaone4, glm4, olmo2,
olmo3), m is the normalised output, which is what is really added.

Shape legend: B rows, T columns of the current forward, M feed-forward blocks, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headloc.errors import HeadlocError
from headloc.lm.hooks import TapCount, attached, check_columns, column_range
from headloc.lm.interpolation import Interpolation, check_gates

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

MlpEdit = Callable[[int, Tensor], Tensor | None]
"""(position in `lm.mlps`, m_BTD) -> the new m_BTD, or None to leave it unchanged."""


class _Handles:
    """Two hooks that come off together."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class _MlpTap:
    """The hook behind one feed-forward block."""

    def __init__(self, lm: FrozenLM, position: int, edit: MlpEdit) -> None:
        site = lm.mlps[position]
        self.layer = site.layer
        self.fired = 0
        self._position = position
        self._edit = edit
        self._flat = site.flat
        self._rows = 0
        self._module = lm.model.get_submodule(site.module)
        self._block = lm.model.get_submodule(site.block)

    def attach(self) -> RemovableHandle:
        handle = self._module.register_forward_hook(self._after)
        if not self._flat:
            return handle
        rows = self._block.register_forward_pre_hook(self._count_rows, with_kwargs=True)
        return _Handles(handle, rows)  # type: ignore[return-value]

    def _count_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rows = len(args[0] if args else kwargs["hidden_states"])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.fired += 1
        # gpt_oss puts its router's scores out as well.
        whole = output[0] if isinstance(output, tuple) else output
        m_BTD = whole.unflatten(0, (self._rows, -1)) if self._flat else whole
        new_BTD = self._edit(self._position, m_BTD)
        if new_BTD is None:
            return None
        if new_BTD.shape != m_BTD.shape:
            raise HeadlocError(
                f"The edit of layer {self.layer} returned shape {tuple(new_BTD.shape)}; "
                f"expected {tuple(m_BTD.shape)} (rows, columns, width)."
            )
        new = new_BTD.to(whole.dtype).reshape(whole.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new


def tap_mlps(lm: FrozenLM, edit: MlpEdit) -> AbstractContextManager[TapCount]:
    """Pass the output of every feed-forward block through `edit` while the block is open.

    Args:
        lm: the frozen model.
        edit: called once per feed-forward block and forward.

    Raises:
        UnsupportedModelError: when the model's feed-forward blocks cannot be located.
        HeadlocError: when the edit changes the shape.
        TapError: on leaving the block, when a layer did not fire like the others.
    """
    return attached([_MlpTap(lm, position, edit) for position in range(len(lm.mlps))])


class MlpReading:
    """Feed-forward outputs of the last forward that ran in the block.

    Attributes:
        m: m_BTD per feed-forward block, only the columns asked for.
    """

    def __init__(self, blocks: int) -> None:
        """Start empty; `m` is filled by the first forward."""
        self.m: list[Tensor] = [torch.empty(0)] * blocks


@contextmanager
def read_mlps(lm: FrozenLM, *, columns: slice | None = None) -> Iterator[MlpReading]:
    """Read feed-forward outputs, detached, without changing them.

    Args:
        lm: the frozen model.
        columns: columns of the current forward to keep (all when None).

    Raises:
        TapError: as `tap_mlps`; also when `columns` reaches beyond the forward.
    """
    check_columns(columns)
    reading = MlpReading(len(lm.mlps))

    def keep(position: int, m_BTD: Tensor) -> None:
        start, stop = column_range(columns, m_BTD.shape[1])
        # A copy: falcon adds the attention to this tensor in place.
        reading.m[position] = m_BTD[:, start:stop].detach().clone()

    with tap_mlps(lm, keep):
        yield reading


def gate_mlps(
    lm: FrozenLM,
    gates: Tensor,
    *,
    off: Sequence[Tensor] | None = None,
    columns: slice | None = None,
) -> AbstractContextManager[TapCount]:
    """Interpolate feed-forward blocks between their own output (gate 1) and an off-value (gate 0).

    `m' = g m + (1 - g) off`, in float32 (float64 for a float64 model) and cast back.  Gates of one
    leave the logits bitwise unchanged.  The gates may require grad.

    Args:
        lm: the frozen model.
        gates: `[M]`, one per row `[B, M]`, or one per row and gated column `[B, T, M]`.
        off: per feed-forward block a finite tensor that broadcasts to m_BTD of the gated columns;
            zero when None.
        columns: columns of the *current* forward that are gated (all when None).

    Raises:
        HeadlocError: when a shape does not fit the model.
        TapError: as `tap_mlps`; also when `columns` reaches beyond the forward.
    """
    check_columns(columns)
    blocks = len(lm.mlps)
    check_gates(gates, blocks, "feed-forward blocks")
    _check_off(lm, off)
    return tap_mlps(lm, Interpolation(lm, gates, [1] * blocks, 0, off, columns).edit)


def _check_off(lm: FrozenLM, off: Sequence[Tensor] | None) -> None:
    if off is None:
        return
    if len(off) != len(lm.mlps):
        raise HeadlocError(
            f"off has {len(off)} tensors; expected one per feed-forward block, {len(lm.mlps)}."
        )
    for site, tensor in zip(lm.mlps, off, strict=True):
        if not 1 <= tensor.ndim <= 3 or tensor.shape[-1] not in (1, lm.width):
            raise HeadlocError(
                f"off of the feed-forward block of layer {site.layer} has shape "
                f"{tuple(tensor.shape)}; it must broadcast to [rows, columns, {lm.width}]."
            )
