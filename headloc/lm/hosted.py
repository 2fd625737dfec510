"""A prefix cache in the host's memory, for prompts whose keys and values do not fit on the device.

A pass moves the rows that it runs, one layer at a time as the layers are reached, so that the
device never holds more than a layer's share of them at once beside what attention itself keeps.

Shape legend: N rows, C cached columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from headloc.errors import UnsupportedModelError
from headloc.lm.batch import RowIndex, as_row_index
from headloc.lm.gathered import GatheredLayer
from headloc.lm.prefix import PrefixCache, map_layers

if TYPE_CHECKING:
    from transformers import Cache


class HostedPrefix(PrefixCache):
    """A prefix whose stored tensors lie on the host, and whose passes run elsewhere.

    Args:
        cache: keys and values on the host.
        mask_NC: the mask of the rows, on the device that token ids go to.
        homes: the device of every layer.
        index_N: which rows of `cache` these are; all of them, in order, when None.
    """

    def __init__(
        self,
        cache: Cache,
        mask_NC: Tensor,
        homes: Sequence[torch.device],
        index_N: Tensor | None = None,
    ) -> None:
        index_N = torch.arange(len(mask_NC)) if index_N is None else index_N
        super().__init__(cache, mask_NC, index_N)
        self._homes = tuple(homes)

    def rows(self, index: RowIndex) -> HostedPrefix:
        """Some of the rows, in the order of `index`; they share memory with these."""
        cache, index_N = self._parts()
        mask_NC = self.mask_NC[as_row_index(index, self.mask_NC.device)]
        picked_N = index_N[as_row_index(index, index_N.device)]
        return HostedPrefix(cache, mask_NC, self._homes, picked_N)

    def fresh(self) -> Cache:
        """A transformers cache that one forward may extend; it moves the rows as layers run."""
        cache, index_N = self._parts()
        homes = iter(self._homes)

        def moved(layer: DynamicLayer) -> DynamicLayer:
            home = next(homes)
            if type(layer) is DynamicLayer:
                return GatheredLayer(layer, index_N)
            return on_device(layer, home, index_N)

        return map_layers(cache, moved)

    def with_values(self, values: Mapping[int, Tensor]) -> PrefixCache:
        """The same prefix with other stored values, by index of the cache layer."""
        cache, index_N = self._parts()
        on_host = {index: tensor.to("cpu") for index, tensor in values.items()}
        other = PrefixCache(cache, self.mask_NC).with_values(on_host)
        return HostedPrefix(other.stored(), self.mask_NC, self._homes, index_N)

    def _parts(self) -> tuple[Cache, Tensor]:
        if self._cache is None or self._index_N is None:
            raise UnsupportedModelError("This prefix holds no columns; run the batch without it.")
        return self._cache, self._index_N


def homes_of(prefix: PrefixCache) -> list[torch.device]:
    """Return the device of every layer of a prefix."""
    return [layer.keys.device for layer in prefix.stored().layers]


def to_host(prefix: PrefixCache) -> PrefixCache:
    """Return a prefix with its tensors in the host's memory; it cannot run from there."""
    return PrefixCache(
        map_layers(prefix.stored(), lambda layer: on_device(layer, torch.device("cpu"))),
        prefix.mask_NC,
    )


def on_device(
    layer: DynamicLayer, device: torch.device, index_N: Tensor | None = None
) -> DynamicLayer:
    """Return some rows of a cache layer, or all of them, on another device."""
    other = copy(layer)
    for name in ("keys", "values"):
        tensor = getattr(layer, name)
        picked = tensor if index_N is None else tensor.index_select(0, index_N.to(tensor.device))
        setattr(other, name, picked.to(device))
    other.device = device
    return other
