"""Rows about feed-forward blocks, for circuits of runs that gated them beside the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headloc.components import MlpId
from headloc.reporting.rows import all_heads

if TYPE_CHECKING:
    from headloc.circuit import Circuit
    from headloc.heads import HeadId


@dataclass(frozen=True, slots=True)
class MlpRow:
    """One feed-forward block of the model; the fields are those of a `HeadRow`."""

    block: MlpId
    gate: float
    score: float
    selected: bool
    share: float | None
    replicates: int

    @property
    def chosen(self) -> str:
        """How often the replicates chose it, in words."""
        if self.share is None:
            return "-"
        return f"{round(self.share * self.replicates)}/{self.replicates}"

    @property
    def title(self) -> str:
        """What hovering over it says."""
        text = f"feed-forward block {self.block}: gate {self.gate:.3f}, score {self.score:.3f}, "
        text += "in the circuit" if self.selected else "not in the circuit"
        return text if self.share is None else f"{text}, chosen by {self.chosen} replicates"


def mlp_rows(circuit: Circuit, replicates: Sequence[Circuit] = ()) -> list[MlpRow]:
    """Return one row per gated feed-forward block, by layer; none where only heads were gated."""
    part = circuit.feed_forward
    if part is None:
        return []
    return [
        MlpRow(
            MlpId(layer),
            gate,
            score,
            layer in part.kept,
            _share(layer, replicates),
            len(replicates),
        )
        for layer, gate, score in zip(
            part.layers, part.gates.tolist(), part.scores.tolist(), strict=True
        )
    ]


def all_components(circuit: Circuit) -> list[HeadId | MlpId]:
    """Return the heads of a circuit's model and the gated feed-forward blocks, in flat order."""
    blocks = () if circuit.feed_forward is None else circuit.feed_forward.layers
    return [*all_heads(circuit.model), *(MlpId(layer) for layer in blocks)]


def counted(circuit: Circuit) -> str:
    """Return how many heads, and feed-forward blocks where they were gated, a circuit holds."""
    text = f"{len(circuit.heads)} of {sum(circuit.heads_per_layer)} heads"
    part = circuit.feed_forward
    if part is None:
        return text
    return f"{text} and {len(part.kept)} of {len(part.layers)} feed-forward blocks"


def _share(layer: int, replicates: Sequence[Circuit]) -> float | None:
    if not replicates:
        return None
    return sum(layer in (other.mlps or ()) for other in replicates) / len(replicates)
