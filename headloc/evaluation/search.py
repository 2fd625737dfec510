"""Search over head sets by direct evaluation: how small could a circuit be?

Greedy backward elimination closes, again and again, the head whose loss costs least, until the
share of the full accuracy is no longer kept.  It costs A (A + 1) / 2 evaluations at most and
serves as a reference for the learned circuit, on selection prompts; its result is scored on fresh
ones like any other.  Exhaustive search is exact and only for a handful of heads.

Shapes: A heads.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.objectives.prompts import Progress

Worth = Callable[[Tensor], tuple[float, float]]
"""(accuracy, mean log-probability of the answer) under gates [A]; the second breaks ties."""

EXHAUSTIVE_LIMIT = 16


def greedy_backward(
    heads: int, worth: Worth, aim: float, progress: Progress | None = None
) -> list[int]:
    """Close heads one by one while the accuracy stays at `aim` or above.

    Args:
        heads: number of heads A of the model.
        worth: what a set of open heads is worth.
        aim: accuracy to keep.
        progress: called with (heads closed, A).

    Returns:
        The sorted indices of the heads left open.
    """
    gates_A = torch.ones(heads)
    while gates_A.any():
        trials = []
        for head in torch.nonzero(gates_A).flatten().tolist():
            without_A = gates_A.clone()
            without_A[head] = 0.0
            trials.append((worth(without_A), -head))
        (accuracy, _), negative = max(trials)
        if accuracy < aim:
            break
        gates_A[-negative] = 0.0
        if progress is not None:
            progress(heads - int(gates_A.sum()), heads)
    return torch.nonzero(gates_A).flatten().tolist()


def smallest_subset(heads: int, worth: Worth, aim: float) -> list[int]:
    """Return the best of the smallest sets that keep accuracy `aim`, by trying all of them.

    Raises:
        HeadlocError: for more than 16 heads.
    """
    if heads > EXHAUSTIVE_LIMIT:
        raise HeadlocError(
            f"Exhaustive search over {heads} heads is out of reach (limit {EXHAUSTIVE_LIMIT}). "
            "Use greedy_backward."
        )
    for size in range(heads + 1):
        scored = []
        for chosen in combinations(range(heads), size):
            gates_A = torch.zeros(heads)
            gates_A[list(chosen)] = 1.0
            scored.append((worth(gates_A), chosen))
        (accuracy, _), chosen = max(scored)
        if accuracy >= aim:
            return list(chosen)
    return list(range(heads))
