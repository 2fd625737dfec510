"""From a ranking to a circuit: choose a size on the selection prompts, and name the heads.

Shapes: A heads in flat order, G gate vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from headloc.baselines.method import HeadRanking, HeadSet, Method
from headloc.baselines.problem import SearchProblem

if TYPE_CHECKING:
    from headloc.circuit import Circuit

SIZES_AT_ONCE = 8


def choose(ranking: HeadRanking, problem: SearchProblem, keep: float) -> HeadSet:
    """Return the set a method decided on, else the smallest that keeps a share of full accuracy.

    Sizes are tried on the selection prompts from the smallest up, some at a time, for every method
    alike; all heads are returned when no smaller set is enough.

    Args:
        ranking: what a method found.
        problem: what was searched.
        keep: share of the accuracy of the untouched model.
    """
    from headloc.evaluation.scoring import score

    if ranking.emitted is not None:
        return ranking.emitted
    full = score(problem.objective, problem.lm, problem.selection, None).accuracy
    for start in range(0, problem.total + 1, SIZES_AT_ONCE):
        sizes = range(start, min(start + SIZES_AT_ONCE, problem.total + 1))
        gates_GA = torch.zeros(len(sizes), problem.total)
        for row, size in enumerate(sizes):
            gates_GA[row, list(ranking.at(size))] = 1.0
        accuracy_G = problem.scored(gates_GA, problem.selection).accuracy_G
        enough = (accuracy_G >= keep * full - 1e-9).nonzero().flatten().tolist()
        if enough:
            return ranking.at(sizes[enough[0]])
    return ranking.at(problem.total)


def circuit_of(
    method: Method,
    ranking: HeadRanking,
    heads: HeadSet,
    problem: SearchProblem,
    metrics: Mapping[str, float] | None = None,
) -> Circuit:
    """Return the circuit of a set that a method found.

    Its gates are one on its heads and zero elsewhere: only trained gates lie between.

    Args:
        method: the method.
        ranking: what it found.
        heads: the chosen set.
        problem: what was searched.
        metrics: flat figures to keep with it.
    """
    from headloc.circuit import Circuit

    gates_A = torch.zeros(problem.total)
    gates_A[list(heads)] = 1.0
    selection: dict[str, Any] = {"rule": method.name, **_plain(method.describe())}
    return Circuit(
        heads=tuple(problem.lm.layout.head(index) for index in heads),
        gates=gates_A,
        scores=ranking.scores,
        model=problem.lm.source.to_dict(),
        objective=problem.objective.describe(),
        task=problem.task.describe(),
        selection=selection,
        seed=problem.seed,
        metrics=dict(metrics or {}),
        tensors=problem.objective.tensors(),
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that JSON can hold."""
    kept = (str, int, float, bool, list, tuple, type(None))
    return {key: value for key, value in settings.items() if isinstance(value, kept)}
