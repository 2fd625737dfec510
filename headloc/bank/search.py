"""From a trained bank to its path: curve, stability, elbow, and the circuit it recommends.

A candidate is a head set all of whose heads are stable:

    emitted   a gate set's own heads, when at least `stable_share` of the seeds emit each of them at
              that penalty
    ranking   the first n heads of the ranking averaged over the bank, without those that fewer
              than `stable_share` of the seeds have among their own first n

The smallest candidate that keeps `keep` of the full accuracy on the selection prompts is
recommended; of equally small ones the most accurate, then the most stable.

Shapes: G gate sets, S seeds, W penalties, N sizes of the curve, A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headloc.bank.ranking import elbow, order_of, relative_ranks, sizes_of
from headloc.bank.result import Candidate, CurvePoint, GateSet, PathResult, Spread, reaches
from headloc.bank.settings import Member, PathSparsity
from headloc.localizer.module import OPEN

HeadSet = tuple[int, ...]

Accuracies = Callable[[list[HeadSet]], list[float]]
"""The accuracy of every head set, in order."""


@dataclass(frozen=True, slots=True)
class TrainedBank:
    """Gates and scores of a bank after training, [G, A], by penalty and then by seed."""

    members: tuple[Member, ...]
    gates_GA: Tensor
    scores_GA: Tensor

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(dict.fromkeys(member.seed for member in self.members))

    def emitted(self) -> list[HeadSet]:
        """Return the heads that every gate set leaves open."""
        return [tuple((own > OPEN).nonzero().flatten().tolist()) for own in self.gates_GA]

    def stability(self) -> Tensor:
        """Return the share of the seeds that emit each head at each penalty, [W, A]."""
        open_GA = (self.gates_GA > OPEN).double()
        return open_GA.unflatten(0, (-1, len(self.seeds))).mean(1)

    def seed_ranks(self) -> Tensor:
        """Return the relative ranks of every seed, averaged over penalties, [S, A]."""
        ranks_GA = relative_ranks(self.scores_GA)
        return ranks_GA.unflatten(0, (-1, len(self.seeds))).mean(0)


def find_path(
    accuracies: Accuracies, bank: TrainedBank, options: PathSparsity, full: float
) -> PathResult:
    """Score a bank on the selection prompts and choose a circuit.

    Args:
        accuracies: gives the accuracy of every head set on the selection prompts.
        bank: the trained gate sets.
        options: what the circuit must keep and how stable it must be.
        full: accuracy of the untouched model on the same prompts.
    """
    ranks_SA = bank.seed_ranks()
    mean_A = ranks_SA.mean(0)
    sizes = sizes_of(len(mean_A))
    by_size_NA = _shares_by_size(ranks_SA, sizes)
    emitted = bank.emitted()
    proposals = [
        *_emitted_proposals(bank, emitted, options.stable_share),
        *_ranked_proposals(by_size_NA, mean_A, sizes, options.stable_share),
    ]
    tops = [_tops(mean_A, sizes), *(_tops(own_A, sizes) for own_A in ranks_SA)]
    wanted = [*emitted, *(heads for heads, _, _ in proposals), *(h for top in tops for h in top)]
    # A set that is named several times is scored once.
    distinct = list(dict.fromkeys(wanted))
    worth = dict(zip(distinct, accuracies(distinct), strict=True))
    curve = [
        CurvePoint(size, worth[mean], Spread.of([worth[heads] for heads in own]))
        for size, mean, *own in zip(sizes, *tops, strict=True)
    ]
    candidates = [Candidate(h, origin, share, worth[h]) for h, origin, share in proposals]
    return PathResult(
        gate_sets=_gate_sets(bank, emitted, worth),
        full=full,
        keep=options.keep,
        stable_share=options.stable_share,
        gates=bank.gates_GA.mean(0),
        ranking=mean_A.float(),
        stability_WA=bank.stability(),
        stability_NA=by_size_NA,
        curve=tuple(curve),
        elbow=elbow(sizes, [point.accuracy for point in curve]),
        recommended=recommended(candidates, options.keep * full),
    )


def recommended(candidates: Sequence[Candidate], aim: float) -> Candidate:
    """Return the smallest candidate that reaches `aim`, the most accurate one if none does."""
    enough = [candidate for candidate in candidates if candidate.accuracy >= aim - 1e-9]
    if not enough:
        return max(candidates, key=lambda one: (one.accuracy, -len(one.heads)))
    return min(enough, key=lambda one: (len(one.heads), -one.accuracy, -one.stability))


_Proposal = tuple[HeadSet, dict[str, Any], float]


def _emitted_proposals(
    bank: TrainedBank, emitted: Sequence[HeadSet], least: float
) -> list[_Proposal]:
    share_WA = bank.stability()
    seeds = len(bank.seeds)
    found: list[_Proposal] = []
    for number, (member, heads) in enumerate(zip(bank.members, emitted, strict=True)):
        share_A = share_WA[number // seeds]
        if set(heads) <= set(reaches(share_A, least)):
            origin = {"from": "emitted", "weight": member.weight, "seed": member.seed}
            found.append((heads, origin, _lowest(share_A, heads)))
    return found


def _ranked_proposals(
    share_NA: Tensor, mean_A: Tensor, sizes: Sequence[int], least: float
) -> list[_Proposal]:
    order = order_of(mean_A)
    found: list[_Proposal] = []
    for size, share_A in zip(sizes, share_NA, strict=True):
        stable = set(reaches(share_A, least))
        heads = tuple(sorted(stable.intersection(order[:size])))
        found.append((heads, {"from": "ranking", "size": size}, _lowest(share_A, heads)))
    return found


def _shares_by_size(ranks_SA: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the share of the seeds that have each head among their first n, [N, A]."""
    orders = [order_of(own_A) for own_A in ranks_SA]
    count_NA = torch.zeros(len(sizes), ranks_SA.shape[1], dtype=torch.float64)
    for row, size in enumerate(sizes):
        for order in orders:
            count_NA[row, order[:size]] += 1
    return count_NA / len(orders)


def _lowest(share_A: Tensor, heads: HeadSet) -> float:
    return float(share_A[list(heads)].min()) if heads else 1.0


def _tops(score_A: Tensor, sizes: Sequence[int]) -> list[HeadSet]:
    order = order_of(score_A)
    return [tuple(sorted(order[:size])) for size in sizes]


def _gate_sets(
    bank: TrainedBank, emitted: Sequence[HeadSet], worth: dict[HeadSet, float]
) -> tuple[GateSet, ...]:
    rows = zip(bank.members, bank.gates_GA, bank.scores_GA, emitted, strict=True)
    return tuple(
        GateSet(member, gates_A, scores_A, heads, worth[heads])
        for member, gates_A, scores_A, heads in rows
    )
