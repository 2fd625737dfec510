"""What gates stand for: every attention head, and on request every feed-forward block.

A gate vector has the heads first, in the flat order of their layout, and the feed-forward blocks
behind them, layer by layer.  A feed-forward block is printed `L3MLP`.

Shapes: A heads, M feed-forward blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headloc.errors import HeadlocError
from headloc.heads import HeadId, HeadLayout

if TYPE_CHECKING:
    from torch import Tensor

_PATTERN = re.compile(r"L(\d+)MLP")


@dataclass(frozen=True, slots=True, order=True)
class MlpId:
    """The feed-forward block of one zero-based layer."""

    layer: int

    def __str__(self) -> str:
        return f"L{self.layer}MLP"

    @classmethod
    def parse(cls, text: str) -> MlpId:
        """Read `L3MLP` back.

        Raises:
            HeadlocError: when the text is not of that form.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise HeadlocError(
                f"{text!r} is not a feed-forward block. Write it as L<layer>MLP, for example L3MLP."
            )
        return cls(int(match[1]))


@dataclass(frozen=True, slots=True)
class Components:
    """The gated parts of a model, which fixes the flat order of a gate vector.

    Attributes:
        layout: the heads.
        mlps: layers whose feed-forward blocks are gated, rising; empty when only heads are.
    """

    layout: HeadLayout
    mlps: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Number of gates, A + M."""
        return self.layout.total + len(self.mlps)

    def split(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Cut gates [..., A + M] into those of the heads [..., A] and of the blocks [..., M].

        Raises:
            HeadlocError: when there is another number of gates.
        """
        if gates.shape[-1] != self.total:
            raise HeadlocError(
                f"Gates of shape {tuple(gates.shape)} do not fit {self.layout.total} heads and "
                f"{len(self.mlps)} gated feed-forward blocks; expected {self.total} gates."
            )
        heads = self.layout.total
        return gates[..., :heads], gates[..., heads:]

    def names(self) -> list[HeadId | MlpId]:
        """Every component in flat order."""
        return [*self.layout, *(MlpId(layer) for layer in self.mlps)]

    def indices(self, heads: Iterable[HeadId], mlps: Iterable[int] = ()) -> list[int]:
        """Sorted flat positions of some heads and of the feed-forward blocks of some layers.

        Raises:
            HeadlocError: when the model has no such head, or the block is not gated.
        """
        found = self.layout.indices(heads)
        for layer in sorted(mlps):
            if layer not in self.mlps:
                raise HeadlocError(
                    f"The feed-forward block of layer {layer} is not gated. Gated: "
                    f"{', '.join(map(str, self.mlps)) or 'none'}."
                )
            found.append(self.layout.total + self.mlps.index(layer))
        return found

    def heads_of(self, indices: Sequence[int]) -> tuple[HeadId, ...]:
        """The heads among some flat positions."""
        return tuple(self.layout.head(i) for i in indices if i < self.layout.total)

    def mlps_of(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The layers of the feed-forward blocks among some flat positions.

        Raises:
            HeadlocError: for a position beyond the last component.
        """
        if any(index >= self.total for index in indices):
            raise HeadlocError(f"Component index {max(indices)} is outside 0..{self.total - 1}.")
        heads = self.layout.total
        return tuple(self.mlps[i - heads] for i in indices if i >= heads)
