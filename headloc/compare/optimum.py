"""The best head set of every size: all subsets where there are few heads, else a beam.

Up to 16 heads every subset is scored, so the best set is known, up to the noise of the prompts it
was found on; beyond, a beam search gives the best set known.  Where all subsets on all prompts
would be more than `HEAT` passes, a first heat on as many prompts as those allow leaves one set in
`LEFT_AFTER_HEAT`.  In every case the best few of a size are told apart on further prompts, because
the winner of thousands owes a part of its score to luck.  Accuracies that are reported come from
neither: the sets are scored on the test prompts like any other.

Shapes: A heads in flat order, G gate vectors, N prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from math import comb

import torch
from torch import Tensor

from headloc.baselines.method import HeadSet
from headloc.baselines.problem import part_of
from headloc.evaluation.subsets import EXHAUSTIVE_LIMIT, SubsetScorer, sized_subsets
from headloc.objectives.prompts import Progress

HEAT = 1 << 20
"""Passes of one prompt that the first heat of an exhaustive search may take."""

LEFT_AFTER_HEAT = 16
LEAST_PROMPTS = 8

Scored = tuple[float, float, HeadSet]
"""Accuracy, mean log p(answer), and the set: the order in which sets are preferred."""

BestOf = dict[int, list[Scored]]
"""The best sets of every size, the best first."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best head set of every size.

    Attributes:
        sets: by size.
        exact: whether all subsets were tried.
    """

    sets: Mapping[int, HeadSet]
    exact: bool

    @property
    def search(self) -> str:
        """Name of the search."""
        return "exhaustive" if self.exact else "beam"


def find_optimum(
    worth: SubsetScorer,
    rescored: SubsetScorer,
    *,
    beam: int,
    finalists: int,
    candidates: Iterable[HeadSet] = (),
    progress: Progress | None = None,
) -> Optimum:
    """Find the best set of every size.

    Args:
        worth: scores head sets on the prompts of the search.
        rescored: scores them on further prompts, that decide between the best few.
        beam: width of the beam, where not all subsets can be tried.
        finalists: number of sets of each size that are told apart on the further prompts.
        candidates: sets that methods found; they take part, so that no heat drops them.
        progress: called with (head sets scored, in all; an upper bound for a beam).
    """
    heads = worth.lm.layout.total
    exact = heads <= EXHAUSTIVE_LIMIT
    if exact:
        best = _exhaustive(worth, heads, finalists, progress)
    else:
        best = _beams(worth, heads, beam, finalists, progress)
    _add(best, worth, heads, sorted(set(candidates)), finalists)
    pairs = [(size, own) for size, sets in best.items() for _, _, own in sets]
    accuracy, log_p = rescored(as_masks([own for _, own in pairs], heads))
    final: dict[int, Scored] = {}
    for (size, own), a, b in zip(pairs, accuracy.tolist(), log_p.tolist(), strict=True):
        final[size] = max(final.get(size, (-1.0, 0.0, ())), (a, b, own))
    return Optimum({size: own for size, (_, _, own) in sorted(final.items())}, exact)


def _exhaustive(
    worth: SubsetScorer, heads: int, finalists: int, progress: Progress | None
) -> BestOf:
    """Try all subsets, in heats where they are many."""
    available = len(worth.prompts)
    count = max(LEAST_PROMPTS, HEAT >> heads)
    if count >= available:
        return _every(worth, heads, lambda size: finalists, progress)
    heat = replace(worth, prompts=part_of(worth.prompts, slice(0, count)))
    left = _every(
        heat, heads, lambda size: max(4 * finalists, comb(heads, size) // LEFT_AFTER_HEAT), progress
    )
    best: BestOf = {}
    for scored in left.values():
        _add(best, worth, heads, [own for _, _, own in scored], finalists)
    return best


def _every(
    worth: SubsetScorer, heads: int, keep: Callable[[int], int], progress: Progress | None
) -> BestOf:
    """Score all subsets and keep the best `keep(size)` of every size."""
    best: BestOf = {}
    done = 0
    for size in range(heads + 1):
        for chosen, gates_GA in sized_subsets(list(range(heads)), size, heads):
            accuracy, log_p = worth(gates_GA)
            values = zip(accuracy.tolist(), log_p.tolist(), chosen, strict=True)
            best[size] = nlargest(keep(size), [*best.get(size, []), *values])
            done += len(chosen)
            if progress is not None:
                progress(done, 2**heads)
    return best


def _beams(
    worth: SubsetScorer, heads: int, beam: int, finalists: int, progress: Progress | None
) -> BestOf:
    """Search forward from no heads and backward from all, `beam` sets of a size."""
    best: BestOf = {}
    total, done = beam * heads * (heads + 1), 0

    def walk(start: HeadSet, neighbours: Callable[[HeadSet], list[HeadSet]]) -> None:
        nonlocal done
        layer = [start]
        while layer:
            accuracy, log_p = worth(as_masks(layer, heads))
            # By log-probability inside the beam: far from the aim the accuracy says little.
            values = list(zip(accuracy.tolist(), log_p.tolist(), layer, strict=True))
            size = len(layer[0])
            best[size] = nlargest(finalists, {*best.get(size, []), *values})
            kept = nlargest(beam, values, key=lambda one: one[1])
            layer = sorted({other for _, _, own in kept for other in neighbours(own)})
            done += len(values)
            if progress is not None:
                progress(min(done, total), total)

    everything = tuple(range(heads))
    walk((), lambda own: [tuple(sorted((*own, h))) for h in everything if h not in own])
    walk(everything, lambda own: [tuple(h for h in own if h != out) for out in own])
    return best


def _add(
    best: BestOf, worth: SubsetScorer, heads: int, sets: Sequence[HeadSet], finalists: int
) -> None:
    """Let sets of another origin take part."""
    if not sets:
        return
    accuracy, log_p = worth(as_masks(sets, heads))
    for own, a, b in zip(sets, accuracy.tolist(), log_p.tolist(), strict=True):
        # A set may be there already, scored in another pass and so a rounding apart.
        others = [one for one in best.get(len(own), []) if one[2] != own]
        best[len(own)] = nlargest(finalists, [*others, (a, b, own)])


def as_masks(sets: Sequence[HeadSet], heads: int) -> Tensor:
    """Return gates_GA of one on the heads of every set and zero elsewhere."""
    gates_GA = torch.zeros(len(sets), heads)
    for row, own in enumerate(sets):
        gates_GA[row, list(own)] = 1.0
    return gates_GA
