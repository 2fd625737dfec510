"""Search over head sets by direct evaluation: how small could a circuit be?

Greedy backward elimination closes, again and again, the head whose loss costs least, until the
share of the full accuracy is no longer kept.  It costs A (A + 1) / 2 evaluations at most and
serves as a reference for the learned circuit, on selection prompts; its result is scored on fresh
ones like any other.  Exhaustive search is exact and only for a handful of heads.

The sets of a round, or of a size, are scored together (`headloc.evaluation.subsets.SubsetScorer`).

Shapes: G gate vectors, A heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from headloc.evaluation.subsets import check_pool, sized_subsets
from headloc.objectives.prompts import Progress

Worth = Callable[[Tensor], tuple[Tensor, Tensor]]
"""gates_GA -> accuracy [G] and mean log-probability of the answer [G], which breaks ties."""


def greedy_backward(
    heads: int, worth: Worth, aim: float, progress: Progress | None = None
) -> list[int]:
    """Close heads one by one while the accuracy stays at `aim` or above.

    Args:
        heads: number of heads A of the model.
        worth: what sets of open heads are worth.
        aim: accuracy to keep.
        progress: called with (head sets scored, A (A + 1) / 2), which is the most there can be.

    Returns:
        The sorted indices of the heads left open.
    """
    open_heads = list(range(heads))
    done = 0
    while open_heads:
        trials_GA = _without_each(open_heads, heads)
        accuracy_G, log_p_G = worth(trials_GA)
        done += len(trials_GA)
        if progress is not None:
            progress(done, heads * (heads + 1) // 2)
        best = _best(accuracy_G, log_p_G)
        if float(accuracy_G[best]) < aim:
            break
        del open_heads[best]
    return open_heads


def smallest_subset(
    heads: int,
    worth: Worth,
    aim: float,
    *,
    pool: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[int]:
    """Return the best of the smallest sets that keep accuracy `aim`, by trying all of them.

    Args:
        heads: number of heads A of the model.
        worth: what sets of open heads are worth.
        aim: accuracy to keep.
        pool: heads that may be open, all others stay closed; every head when None.
        progress: called with (head sets scored, 2^S) for a pool of S heads.

    Raises:
        HeadlocError: for more than 16 heads to choose from.
    """
    pool = sorted(range(heads) if pool is None else pool)
    check_pool(pool)
    done = 0
    for size in range(len(pool) + 1):
        found: tuple[float, float, tuple[int, ...]] | None = None
        for chosen, gates_GA in sized_subsets(pool, size, heads):
            accuracy_G, log_p_G = worth(gates_GA)
            values = zip(accuracy_G.tolist(), log_p_G.tolist(), chosen, strict=True)
            best = max(values)
            found = best if found is None else max(found, best)
            done += len(chosen)
            if progress is not None:
                progress(done, 2 ** len(pool))
        if found is not None and found[0] >= aim:
            return list(found[2])
    return pool


def _without_each(open_heads: Sequence[int], heads: int) -> Tensor:
    """Return gates_GA that leave out one of the open heads each."""
    gates_A = torch.zeros(heads)
    gates_A[list(open_heads)] = 1.0
    trials_GA = gates_A.repeat(len(open_heads), 1)
    trials_GA[torch.arange(len(open_heads)), list(open_heads)] = 0.0
    return trials_GA


def _best(accuracy_G: Tensor, log_p_G: Tensor) -> int:
    """Return the position of the best; the first of equal ones."""
    pairs = list(zip(accuracy_G.tolist(), log_p_G.tolist(), strict=True))
    return max(range(len(pairs)), key=lambda g: (*pairs[g], -g))
