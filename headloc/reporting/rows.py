"""Rows about heads: the one place that the console, the tables, the report and the tracker read.

Flat order of heads: layer by layer, as in `HeadLayout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headloc.heads import HeadId

if TYPE_CHECKING:
    from headloc.circuit import Circuit
    from headloc.localizer.run import Localization


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One head of the model.

    Attributes:
        head: which one.
        gate: its trained gate.
        score: what it was ranked by.
        selected: whether it is in the circuit.
        share: share of the replicates that chose it; None without replicates.
        replicates: number of replicates.
    """

    head: HeadId
    gate: float
    score: float
    selected: bool
    share: float | None
    replicates: int

    @property
    def chosen(self) -> str:
        """How often the replicates chose it, in words."""
        return (
            "-"
            if self.share is None
            else f"{round(self.share * self.replicates)}/{self.replicates}"
        )


@dataclass(frozen=True, slots=True)
class ReplicateRow:
    """A further seed beside the circuit."""

    seed: int
    heads: int
    shared: int
    jaccard: float
    rank_correlation: float
    only_circuit: tuple[HeadId, ...]
    only_replicate: tuple[HeadId, ...]


def layers_of(model: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return (layer, number of heads) of every layer with heads, from a circuit's `model`."""
    counts = list(model["heads"])
    return list(zip(model.get("layer_indices") or range(len(counts)), counts, strict=True))


def all_heads(model: Mapping[str, Any]) -> list[HeadId]:
    """Return the heads of a circuit's `model` in flat order."""
    return [HeadId(layer, head) for layer, count in layers_of(model) for head in range(count)]


def head_rows(circuit: Circuit, replicates: Sequence[Circuit] = ()) -> list[HeadRow]:
    """Return one row per head of the model, in flat order."""
    from headloc.circuit.diff import head_frequency

    frequency = head_frequency(list(replicates)) if replicates else {}
    chosen = set(circuit.heads)
    return [
        HeadRow(
            head,
            gate,
            score,
            head in chosen,
            frequency.get(head, 0.0) if replicates else None,
            len(replicates),
        )
        for head, gate, score in zip(
            all_heads(circuit.model), circuit.gates.tolist(), circuit.scores.tolist(), strict=True
        )
    ]


def ranked(rows: Sequence[HeadRow]) -> list[HeadRow]:
    """Return the selected heads, most important first."""
    return sorted(
        (row for row in rows if row.selected), key=lambda row: (-row.score, -row.gate, row.head)
    )


def often_replicated(rows: Sequence[HeadRow], share: float = 0.5) -> list[HeadRow]:
    """Return heads outside the circuit that at least `share` of the replicates chose."""
    return [row for row in rows if not row.selected and (row.share or 0.0) >= share]


def replicate_rows(result: Localization) -> list[ReplicateRow]:
    """Return how each replicate compares with the circuit."""
    from headloc.circuit.diff import compare

    rows = []
    for other in result.replicates:
        overlap = compare(result.circuit, other)
        rows.append(
            ReplicateRow(
                other.seed,
                len(other.heads),
                len(overlap.shared),
                overlap.jaccard,
                overlap.rank_correlation,
                overlap.only_first,
                overlap.only_second,
            )
        )
    return rows
