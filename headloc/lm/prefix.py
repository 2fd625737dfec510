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
from collections.abc import Callable, Mapping, Sequence
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

    def __init__(self, cache: Cache | None, mask_NC: Tensor, index_N: Tensor | None = None) -> None:
        """Take over a cache that a forward has filled; the caller must not extend it afterwards.

        Args:
            cache: keys and values.
            mask_NC: the mask of the rows of this prefix.
            index_N: which rows of `cache` these are; all of them, in order, when None.
        """
        self._cache = cache
        self._index_N = index_N
        self.mask_NC = mask_NC

    @classmethod
    def empty(cls, mask_NC: Tensor) -> PrefixCache:
        """The prefix of prompts of a single column: no cached columns at all."""
        return cls(None, mask_NC)

    @property
    def columns(self) -> int:
        """C, the number of cached columns."""
        return self.mask_NC.shape[1]

    @property
    def window(self) -> int | None:
        """The narrowest window of attention, in columns; None where all layers see everything."""
        windows = [getattr(layer, "sliding_window", None) for layer in self._layers()]
        return min((window for window in windows if window is not None), default=None)

    def __len__(self) -> int:
        return self.mask_NC.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held by the stored keys and values, of which picked rows are a part."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self._layers()
            for tensor in _state(layer).values()
        )

    def rows(self, index: RowIndex) -> PrefixCache:
        """Some of the rows, in the order of `index`; they share memory with these."""
        picked = as_row_index(index, self.mask_NC.device)
        mask_NC = self.mask_NC[picked]
        if self._cache is None:
            return PrefixCache(None, mask_NC)
        if self._index_N is not None:
            return PrefixCache(self._cache, mask_NC, self._index_N[picked])
        if isinstance(picked, Tensor):
            return PrefixCache(self._cache, mask_NC, picked)
        layers = [_pick_rows(layer, picked) for layer in self._layers()]
        return PrefixCache(_with_layers(self._cache, layers), mask_NC)

    def fresh(self) -> Cache:
        """A transformers cache over the stored tensors that one forward may extend."""
        if self._cache is None:
            raise UnsupportedModelError("This prefix holds no columns; run the batch without it.")
        index_N = self._index_N
        if index_N is None:
            return _with_layers(self._cache, [copy.copy(layer) for layer in self._layers()])
        return _with_layers(self._cache, [_gathered(layer, index_N) for layer in self._layers()])

    def with_values(self, values: Mapping[int, Tensor]) -> PrefixCache:
        """The same prefix with other stored values, by index of the cache layer.

        Each tensor has the shape of the values that it stands for, `[N, K, C, d]`.
        """
        if self._cache is None:
            raise UnsupportedModelError("This prefix holds no columns, so it stores no values.")
        layers = [copy.copy(layer) for layer in self._picked()]
        for index, tensor in values.items():
            layers[index].values = tensor
        return PrefixCache(_with_layers(self._cache, layers), self.mask_NC)

    def stored(self) -> Cache:
        """The transformers cache with everything that is stored; it must not be extended.

        Raises:
            UnsupportedModelError: when no columns are stored.
        """
        if self._cache is None:
            raise UnsupportedModelError("This prefix holds no columns; run the batch without it.")
        return self._cache

    def _layers(self) -> list[Any]:
        return [] if self._cache is None else list(self._cache.layers)

    def _picked(self) -> list[Any]:
        """Layers that hold these rows alone."""
        if self._index_N is None:
            return self._layers()
        return [_pick_rows(layer, self._index_N) for layer in self._layers()]


def join(chunks: Sequence[PrefixCache]) -> PrefixCache:
    """One prefix cache over the rows of several, in order."""
    if len(chunks) == 1:
        return chunks[0]
    mask_NC = torch.cat([chunk.mask_NC for chunk in chunks])
    cache = chunks[0]._cache
    if cache is None:
        return PrefixCache(None, mask_NC)
    layers = []
    for same in zip(*(chunk._picked() for chunk in chunks), strict=True):
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
        if isinstance(index, Tensor):
            # Several times faster on a CPU than indexing with a tensor.
            picked = tensor.index_select(0, index.to(tensor.device))
        else:
            picked = tensor[index]
        setattr(layer, name, picked)
    return layer


def _gathered(layer: Any, index_N: Tensor) -> Any:
    """A layer over some rows: copied when it runs, or at once where attention is sliding."""
    from transformers.cache_utils import DynamicLayer

    from headloc.lm.gathered import GatheredLayer

    if type(layer) is DynamicLayer:
        return GatheredLayer(layer, index_N)
    return _pick_rows(layer, index_N)


def map_layers(cache: Cache, change: Callable[[Any], Any]) -> Cache:
    """A transformers cache with every layer changed."""
    return _with_layers(cache, [change(layer) for layer in cache.layers])


def _with_layers(cache: Cache, layers: list[Any]) -> Cache:
    cache = copy.copy(cache)
    cache.layers = layers
    return cache
