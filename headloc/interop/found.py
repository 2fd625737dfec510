"""What a file of another tool says about heads, before it is bound to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headloc.heads import HeadId


@dataclass(frozen=True, slots=True)
class Blocks:
    """What it says about feed-forward blocks, by layer.

    Attributes:
        scores: score of every block it names.
        kept: layers whose blocks are chosen; None where the file only ranks.
        gates: trained gates, where it has them.
    """

    scores: Mapping[int, float]
    kept: frozenset[int] | None = None
    gates: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class ForeignHeads:
    """Heads of a file.

    Attributes:
        kept: the chosen heads; None where the file only ranks.
        scores: scores by head; empty where it has none.
        gates: trained gates by head, where it has them.
        complete: whether the file names every head of its model.
        blocks: the feed-forward blocks, where they are ranked too.
        layers: number of layers that the file says its model has, where it does.
        heads: number of heads of each of them, where it does.
    """

    kept: frozenset[HeadId] | None
    scores: Mapping[HeadId, float]
    gates: Mapping[HeadId, float] | None = None
    complete: bool = False
    blocks: Blocks | None = None
    layers: int | None = None
    heads: int | None = None

    @property
    def named(self) -> frozenset[HeadId]:
        """Every head that the file names."""
        return frozenset(self.scores) | (self.kept or frozenset())
