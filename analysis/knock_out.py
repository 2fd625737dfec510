"""Attention knock-out: some tokens may not look at some others, in some layers.

The attention mask that a layer is given is closed further; what is left of the attention is
renormalised by the model's own softmax.  All heads of a layer are affected.

Shapes: B rows, T columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headloc.errors import HeadlocError

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM


@contextmanager
def knocked_out(
    lm: FrozenLM, batch: TokenBatch, positions: Sequence[int], blocked_BTT: Tensor
) -> Iterator[None]:
    """Close attention in full forwards of a batch while the block is open.

    Args:
        lm: the frozen model.
        batch: the batch that runs; all of its T columns.
        positions: layers, by position in `lm.layout.layers`.
        blocked_BTT: True where token i (second axis) may not look at token j (third).

    Raises:
        HeadlocError: when the shape does not fit, or a token would look at nothing at all.
    """
    rows, columns = batch.ids_BT.shape
    if tuple(blocked_BTT.shape) != (rows, columns, columns):
        raise HeadlocError(
            f"blocked has shape {tuple(blocked_BTT.shape)}; the batch needs "
            f"{(rows, columns, columns)}."
        )
    if blocked_BTT.diagonal(dim1=1, dim2=2).any():
        raise HeadlocError("A token cannot be kept from looking at itself: it might see nothing.")
    real_BT = batch.mask_BT.bool().to(lm.device)
    close = _Close(blocked_BTT.to(lm.device), real_BT, lm.dtype)
    with ExitStack() as stack:
        for position in positions:
            module = lm.model.get_submodule(lm.sites[position].attention)
            handle = module.register_forward_pre_hook(close, with_kwargs=True)
            stack.callback(handle.remove)
        yield


@dataclass(frozen=True, eq=False)
class _Close:
    """The pre-hook on an attention module."""

    blocked_BTT: Tensor
    real_BT: Tensor
    dtype: torch.dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        given = bound.arguments
        if "attention_mask" not in inspect.signature(module.forward).parameters:
            given = given.setdefault("kwargs", {})
        given["attention_mask"] = self._closed(given.get("attention_mask"))
        return bound.args, bound.kwargs

    def _closed(self, mask: Any) -> Tensor:
        blocked = self.blocked_BTT[:, None]
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            mask = self._causal()
        if mask.dtype != torch.bool:
            return mask.masked_fill(blocked, torch.finfo(mask.dtype).min)
        # mpt marks what is hidden, everything else what is seen: the last token sees itself.
        return mask & ~blocked if bool(mask[..., -1, -1].all()) else mask | blocked

    def _causal(self) -> Tensor:
        columns = self.real_BT.shape[1]
        ones_TT = torch.ones(columns, columns, dtype=torch.bool, device=self.real_BT.device)
        seen = ones_TT.tril() & self.real_BT[:, None]
        seen = seen | torch.eye(columns, dtype=torch.bool, device=seen.device)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
        return mask.masked_fill(~seen, torch.finfo(self.dtype).min)[:, None]
