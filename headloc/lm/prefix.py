"""The keys and values of everything before the last prompt token, computed once and reused.

Localization at the last token leaves every earlier token untouched, so the prompt prefix (columns
0 .. P-2) needs one forward without gradient; each training step then runs the J predicting columns
alone.  The gradient is exact.

A forward *extends* the transformers cache it is given.  `PrefixCache.fresh()` therefore hands out a
new shell over the same tensors each time: dynamic cache layers grow by concatenation, which leaves
the stored tensors alone.

Shape legend: N stored rows, C cached columns, K key/value heads, d head width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError
from headloc.lm.batch import RowIndex, as_row_index

if TYPE_CHECKING:
    from transformers import Cache


class PrefixCache:
    """Per-layer keys and values of N prompt prefixes, with the mask of their columns.

    Attributes:
        mask_NC: 1 on real tokens of the cached columns; C is 0 for prompts of one token.
    """

    def __init__(self, cache: Cache | None, mask_NC: Tensor) -> None:
        """Take over a cache that a forward has filled; the caller must not extend it afterwards."""
        self._cache = cache
        self.mask_NC = mask_NC

    @classmethod
    def empty(cls, mask_NC: Tensor) -> PrefixCache:
        """The prefix of prompts of a single column: no cached columns at all."""
        return cls(None, mask_NC)

    @property
    def columns(self) -> int:
        """C, the number of cached columns."""
        return self.mask_NC.shape[1]

    def __len__(self) -> int:
        return self.mask_NC.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held by the stored keys and values."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self._layers()
            for tensor in _state(layer).values()
        )

    def rows(self, index: RowIndex) -> PrefixCache:
        """Some of the rows, in the order of `index` (a slice shares memory)."""
        picked = as_row_index(index, self.mask_NC.device)
        mask_NC = self.mask_NC[picked]
        if self._cache is None:
            return PrefixCache(None, mask_NC)
        layers = [_pick_rows(layer, picked) for layer in self._layers()]
        return PrefixCache(_with_layers(self._cache, layers), mask_NC)

    def fresh(self) -> Cache:
        """A transformers cache over the stored tensors that one forward may extend."""
        if self._cache is None:
            raise UnsupportedModelError("This prefix holds no columns; run the batch without it.")
        return _with_layers(self._cache, [copy.copy(layer) for layer in self._layers()])

    def _layers(self) -> list[Any]:
        return [] if self._cache is None else list(self._cache.layers)


def join(chunks: Sequence[PrefixCache]) -> PrefixCache:
    """One prefix cache over the rows of several, in order."""
    if len(chunks) == 1:
        return chunks[0]
    mask_NC = torch.cat([chunk.mask_NC for chunk in chunks])
    cache = chunks[0]._cache
    if cache is None:
        return PrefixCache(None, mask_NC)
    layers = []
    for same in zip(*(chunk._layers() for chunk in chunks), strict=True):
        layer = copy.copy(same[0])
        for name in _state(layer):
            setattr(layer, name, torch.cat([getattr(other, name) for other in same]))
        layers.append(layer)
    return PrefixCache(_with_layers(cache, layers), mask_NC)


def check_cache(cache: Any) -> Cache:
    """Return a cache that a prefix can be kept in.

    Only layers that grow by concatenation qualify: keys and values of full or sliding attention.
    Recurrent and convolutional states are updated in place and do not know about padding.

    Raises:
        UnsupportedModelError: for any other kind of cache.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if not isinstance(cache, DynamicCache):
        raise UnsupportedModelError(f"The model's cache is a {type(cache).__name__}, not dynamic.")
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedModelError(f"A cache layer is a {type(layer).__name__}.")
        if not layer.is_initialized:
            raise UnsupportedModelError("A layer of the cache was never filled.")
    return cache


def _state(layer: Any) -> dict[str, Tensor]:
    """The tensors of a cache layer that have one row per prompt."""
    return {"keys": layer.keys, "values": layer.values}


def _pick_rows(layer: Any, index: Tensor | slice) -> Any:
    layer = copy.copy(layer)
    for name, tensor in _state(layer).items():
        setattr(layer, name, tensor[as_row_index(index, tensor.device)])
    return layer


def _with_layers(cache: Cache, layers: list[Any]) -> Cache:
    cache = copy.copy(cache)
    cache.layers = layers
    return cache
