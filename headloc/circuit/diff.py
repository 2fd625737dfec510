"""Compare circuits: shared heads, overlap, and how alike their rankings are."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from headloc.circuit.circuit import Circuit
from headloc.components import MlpId
from headloc.errors import CircuitError
from headloc.heads import HeadId


@dataclass(frozen=True, slots=True)
class MlpOverlap:
    """How the feed-forward blocks of two circuits compare; `jaccard` as for heads."""

    shared: tuple[MlpId, ...]
    only_first: tuple[MlpId, ...]
    only_second: tuple[MlpId, ...]
    jaccard: float


@dataclass(frozen=True, slots=True)
class Overlap:
    """How two circuits compare.

    Attributes:
        shared: heads of both.
        only_first: heads of the first alone.
        only_second: heads of the second alone.
        jaccard: shared heads over all heads of either; 1 for two empty circuits.
        rank_correlation: Spearman correlation of the heads' scores, which are the coefficients
            before anything saturates them; 0 where one circuit scores all heads alike.
        kendall: Kendall's tau-b of the same scores.
        mlps: the feed-forward blocks; None unless they were gated for both circuits.
    """

    shared: tuple[HeadId, ...]
    only_first: tuple[HeadId, ...]
    only_second: tuple[HeadId, ...]
    jaccard: float
    rank_correlation: float
    kendall: float
    mlps: MlpOverlap | None = None


def compare(first: Circuit, second: Circuit) -> Overlap:
    """Compare two circuits of models with the same layout.

    Raises:
        CircuitError: when the models have different layers or heads.
    """
    shapes = [_shape(first), _shape(second)]
    if shapes[0] != shapes[1]:
        raise CircuitError(
            f"The circuits belong to models of different shape: heads by layer {shapes[0]} and "
            f"{shapes[1]}. Compare circuits of one model."
        )
    a, b = set(first.heads), set(second.heads)
    union = a | b
    return Overlap(
        tuple(sorted(a & b)),
        tuple(sorted(a - b)),
        tuple(sorted(b - a)),
        len(a & b) / len(union) if union else 1.0,
        spearman(first.scores, second.scores),
        kendall(first.scores, second.scores),
        _compare_mlps(first, second),
    )


def _shape(circuit: Circuit) -> dict[int, int]:
    """Return the number of heads of every layer."""
    counts = circuit.heads_per_layer
    layers = circuit.model.get("layer_indices", range(len(counts)))
    return dict(zip(layers, counts, strict=True))


def _compare_mlps(first: Circuit, second: Circuit) -> MlpOverlap | None:
    if first.mlps is None or second.mlps is None:
        return None
    a, b = ({MlpId(layer) for layer in kept} for kept in (first.mlps, second.mlps))
    return MlpOverlap(
        tuple(sorted(a & b)),
        tuple(sorted(a - b)),
        tuple(sorted(b - a)),
        len(a & b) / len(a | b) if a | b else 1.0,
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
    """Return Spearman's rank correlation of two vectors; ties share their mean rank.

    It is 0 when one of them is constant.
    """
    ranks = torch.stack([_ranks(a_A), _ranks(b_A)])
    if bool((ranks == ranks[:, :1]).all(1).any()):
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def kendall(a_A: Tensor, b_A: Tensor) -> float:
    """Return Kendall's tau-b of two vectors, which accounts for ties; 0 when one is constant.

    tau-b = (concordant - discordant pairs) / sqrt(pairs untied in a * pairs untied in b)
    """
    difference, untied = 0, [0, 0]
    for i in range(1, len(a_A)):
        # The order of head i and each head before it, -1, 0 or 1.
        order_a = (a_A[i] - a_A[:i]).sign().long()
        order_b = (b_A[i] - b_A[:i]).sign().long()
        difference += int((order_a * order_b).sum())
        untied[0] += int(order_a.abs().sum())
        untied[1] += int(order_b.abs().sum())
    return difference / math.sqrt(untied[0] * untied[1]) if all(untied) else 0.0


def _ranks(values_A: Tensor) -> Tensor:
    values = values_A.double()
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]
