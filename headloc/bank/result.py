"""What a bank found: its gate sets, the accuracy-against-heads curve, and the recommended circuit.

Accuracies are those on the selection prompts; the verdict on fresh prompts follows for the
recommended circuit alone.

Shapes: W penalties, N sizes, A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Any

from torch import Tensor

from headloc.bank.settings import Member


@dataclass(frozen=True, slots=True)
class GateSet:
    """A trained member of the bank.

    Attributes:
        member: its penalty and seed.
        gates: test-time gates [A].
        scores: what it ranks heads by [A].
        heads: heads with a gate above 0.5, the set it emits; flat indices, sorted.
        accuracy: with only these heads open.
    """

    member: Member
    gates: Tensor
    scores: Tensor
    heads: tuple[int, ...]
    accuracy: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds: its mean and range."""

    mean: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(fmean(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class PenaltyPoint:
    """The gate sets of one penalty, over seeds.

    Attributes:
        weight: the penalty.
        size: heads they emit.
        accuracy: their accuracies.
        jaccard: mean overlap of two of them; 1 for a single seed.
        stable: heads that enough of the seeds emit; flat indices, sorted.
    """

    weight: float
    size: Spread
    accuracy: Spread
    jaccard: float
    stable: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The rankings cut at one size.

    Attributes:
        size: number of heads kept.
        accuracy: of the first heads of the ranking averaged over the bank.
        seeds: accuracies of the rankings of single seeds.
    """

    size: int
    accuracy: float
    seeds: Spread


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head set that could be recommended.

    Attributes:
        heads: flat indices, sorted.
        origin: where it comes from: a gate set ("emitted", weight, seed) or the averaged ranking
            ("ranking", size before unstable heads were left out).
        stability: smallest share of the seeds that choose one of its heads there.
        accuracy: with only these heads open.
    """

    heads: tuple[int, ...]
    origin: Mapping[str, Any]
    stability: float
    accuracy: float


@dataclass(frozen=True)
class PathResult:
    """Everything a bank found.

    Attributes:
        gate_sets: every member, by penalty and then by seed.
        full: accuracy of the untouched model.
        keep: share of `full` that was asked for.
        stable_share: share of the seeds that makes a head stable.
        gates: gates [A] averaged over the bank: how much of the path each head survives.
        ranking: relative ranks [A] averaged over the bank, 1 for the best head.
        stability_WA: share of the seeds that emit each head at each penalty.
        stability_NA: share of the seeds that have each head among the first n of their ranking, for
            the sizes n of `curve`.
        curve: the rankings by size, from no heads to all.
        elbow: position in `curve` where more heads stop paying.
        recommended: the smallest stable candidate that keeps enough.
    """

    gate_sets: tuple[GateSet, ...]
    full: float
    keep: float
    stable_share: float
    gates: Tensor
    ranking: Tensor
    stability_WA: Tensor
    stability_NA: Tensor
    curve: tuple[CurvePoint, ...]
    elbow: int
    recommended: Candidate

    @property
    def weights(self) -> list[float]:
        """The penalties, in the order of the gate sets."""
        return list(dict.fromkeys(own.member.weight for own in self.gate_sets))

    @property
    def seeds(self) -> int:
        """Gate sets at every penalty."""
        return len(self.gate_sets) // len(self.weights)

    @cached_property
    def penalties(self) -> tuple[PenaltyPoint, ...]:
        """The path over penalties."""
        return tuple(
            self._penalty(weight, self.stability_WA[i]) for i, weight in enumerate(self.weights)
        )

    def _penalty(self, weight: float, share_A: Tensor) -> PenaltyPoint:
        same = [own for own in self.gate_sets if own.member.weight == weight]
        pairs = combinations([set(own.heads) for own in same], 2)
        overlaps = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs]
        return PenaltyPoint(
            weight,
            Spread.of([float(len(own.heads)) for own in same]),
            Spread.of([own.accuracy for own in same]),
            fmean(overlaps) if overlaps else 1.0,
            tuple(reaches(share_A, self.stable_share)),
        )


def reaches(share_A: Tensor, least: float) -> list[int]:
    """Return the heads whose share is at least `least`, allowing for rounding."""
    return (share_A >= least - 1e-9).nonzero().flatten().tolist()
