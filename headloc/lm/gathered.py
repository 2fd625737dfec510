"""A cache layer over some rows of stored keys and values, gathered when the forward asks for them.

Picking rows and appending the new columns are one copy instead of two: the rows are gathered into
memory that has room for the columns of this forward.  Because nothing is gathered before the layer
runs, the keys are still in the processor's cache when attention reads them.  Stored tensors may lie
on another device than the forward (a host's memory): only the rows that are needed move.

Shape legend: N stored rows, B gathered rows, K key/value heads, C stored columns, S new columns, d
head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class GatheredLayer(DynamicLayer):
    """Rows of a cache layer of full attention; the first update gathers them.

    Args:
        stored: the layer with all N rows; it is never changed.
        index_B: which rows.
    """

    def __init__(self, stored: DynamicLayer, index_B: Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = stored.dtype, stored.device, True
        self._stored: DynamicLayer | None = stored
        self._index_B = index_B

    def get_seq_length(self) -> int:
        """Return the number of columns held."""
        return int((self._stored or self).keys.shape[-2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns, and return the keys and values [B, K, C + S, d] of all of them."""
        stored, self._stored = self._stored, None
        if stored is None:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = gather_and_append(stored.keys, self._index_B, key_states)
        self.values = gather_and_append(stored.values, self._index_B, value_states)
        return self.keys, self.values


def gather_and_append(stored_NKCd: Tensor, index_B: Tensor, new_BKSd: Tensor) -> Tensor:
    """Return stored rows with new columns behind them [B, K, C + S, d], in one copy.

    The gradient reaches the new columns only.
    """
    columns = stored_NKCd.shape[2]
    shape = (len(index_B), stored_NKCd.shape[1], columns + new_BKSd.shape[2], stored_NKCd.shape[3])
    whole_BKTd = new_BKSd.new_empty(shape)
    front_BKCd = whole_BKTd[:, :, :columns]
    index_B = index_B.to(stored_NKCd.device)
    if stored_NKCd.device == new_BKSd.device:
        torch.index_select(stored_NKCd, 0, index_B, out=front_BKCd)
    else:
        front_BKCd.copy_(stored_NKCd.index_select(0, index_B), non_blocking=True)
    appended: Tensor = _Append.apply(new_BKSd, whole_BKTd)
    return appended


class _Append(torch.autograd.Function):
    """Write the last columns of memory that nobody else holds."""

    @staticmethod
    def forward(ctx: Any, new_BKSd: Tensor, whole_BKTd: Tensor) -> Tensor:
        ctx.columns = new_BKSd.shape[2]
        whole_BKTd[:, :, -ctx.columns :] = new_BKSd
        ctx.mark_dirty(whole_BKTd)
        return whole_BKTd

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0][:, :, -ctx.columns :], None
