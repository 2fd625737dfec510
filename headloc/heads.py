"""Attention heads as value objects: one head, and the layout of all heads of a model.

A head is `HeadId(layer, head)`, zero-based and printed `L15H2`.  Everywhere in headloc the heads
of a model stand in one flat order, layer by layer; a *head vector* is a tensor of shape [A] in
that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headloc.errors import HeadlocError

_PATTERN = re.compile(r"L(\d+)H(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class HeadId:
    """One attention (query) head: zero-based layer and zero-based head within the layer."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read `L15H2` back.

        Raises:
            HeadlocError: when the text is not of that form.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise HeadlocError(
                f"{text!r} is not a head. Write it as L<layer>H<head>, for example L15H2."
            )
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class LayerHeads:
    """The heads of one attention layer.

    Attributes:
        layer: index of the layer in the model.
        heads: number of query heads H.
        width: width d of one head's output, `out_proj.in_features // heads`.
        kv_heads: number of key/value heads K; `heads % kv_heads == 0`.
    """

    layer: int
    heads: int
    width: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """All attention layers of a model that carry heads, in order; fixes the flat order of heads."""

    layers: tuple[LayerHeads, ...]

    @property
    def total(self) -> int:
        """Number of heads A of the whole model."""
        return sum(layer.heads for layer in self.layers)

    @property
    def grid(self) -> tuple[int, int]:
        """(last layer + 1, most heads in a layer): the shape of a layer-by-head picture."""
        return self.layers[-1].layer + 1, max(layer.heads for layer in self.layers)

    def slices(self) -> list[slice]:
        """The slice of the flat order that each of `layers` occupies, in order."""
        out, start = [], 0
        for layer in self.layers:
            out.append(slice(start, start + layer.heads))
            start += layer.heads
        return out

    def __iter__(self) -> Iterator[HeadId]:
        for layer in self.layers:
            for head in range(layer.heads):
                yield HeadId(layer.layer, head)

    def index(self, head: HeadId) -> int:
        """Position of a head in the flat order.

        Raises:
            HeadlocError: when the model has no such head.
        """
        for layer, part in zip(self.layers, self.slices(), strict=True):
            if layer.layer == head.layer and 0 <= head.head < layer.heads:
                return part.start + head.head
        rows, columns = self.grid
        raise HeadlocError(
            f"There is no head {head}: the model has {rows} layers of up to {columns} heads, "
            "counted from 0."
        )

    def indices(self, heads: Iterable[HeadId]) -> list[int]:
        """Sorted flat positions of a set of heads."""
        return sorted(self.index(head) for head in heads)

    def head(self, index: int) -> HeadId:
        """The head at a flat position."""
        for layer, part in zip(self.layers, self.slices(), strict=True):
            if part.start <= index < part.stop:
                return HeadId(layer.layer, index - part.start)
        raise HeadlocError(f"Head index {index} is outside 0..{self.total - 1}.")
