"""Compare circuits: shared heads, overlap, and how alike their rankings are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from headloc.circuit.circuit import Circuit
from headloc.errors import CircuitError
from headloc.heads import HeadId


@dataclass(frozen=True, slots=True)
class Overlap:
    """How two circuits compare.

    Attributes:
        shared: heads of both.
        only_first: heads of the first alone.
        only_second: heads of the second alone.
        jaccard: shared heads over all heads of either; 1 for two empty circuits.
        rank_correlation: Spearman correlation of the heads' scores.
    """

    shared: tuple[HeadId, ...]
    only_first: tuple[HeadId, ...]
    only_second: tuple[HeadId, ...]
    jaccard: float
    rank_correlation: float


def compare(first: Circuit, second: Circuit) -> Overlap:
    """Compare two circuits of models with the same layout.

    Raises:
        CircuitError: when the models have different layers or heads.
    """
    if first.heads_per_layer != second.heads_per_layer:
        raise CircuitError(
            f"The circuits belong to models of different shape: {list(first.heads_per_layer)} and "
            f"{list(second.heads_per_layer)} heads per layer. Compare circuits of one model."
        )
    a, b = set(first.heads), set(second.heads)
    union = a | b
    return Overlap(
        tuple(sorted(a & b)),
        tuple(sorted(a - b)),
        tuple(sorted(b - a)),
        len(a & b) / len(union) if union else 1.0,
        spearman(first.scores, second.scores),
    )


def head_frequency(circuits: list[Circuit]) -> dict[HeadId, float]:
    """Return the share of circuits that hold each head, most frequent first."""
    counts = Counter(head for circuit in circuits for head in circuit.heads)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {head: count / len(circuits) for head, count in ordered}


def mean_jaccard(circuits: list[Circuit]) -> float:
    """Return the mean Jaccard index over all pairs of circuits."""
    pairs = [compare(a, b).jaccard for a, b in combinations(circuits, 2)]
    return sum(pairs) / len(pairs) if pairs else 1.0


def spearman(a_A: Tensor, b_A: Tensor) -> float:
    """Return Spearman's rank correlation of two vectors; ties share their mean rank."""
    ranks = torch.stack([_ranks(a_A), _ranks(b_A)])
    if bool((ranks.std(1) == 0).any()):
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values_A: Tensor) -> Tensor:
    values = values_A.double()
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]
