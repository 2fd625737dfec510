"""What many head sets are worth on the same prompts, exactly: the scorer of every search.

Shape legend: G gate vectors, N prompts, A heads in flat order, S heads of a pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.many import score_many
from headloc.lm.frozen import FrozenLM
from headloc.objectives import Objective, PromptSet
from headloc.objectives.prompts import Progress

EXHAUSTIVE_LIMIT = 16
"""Most heads that all subsets are tried of."""

SETS_AT_ONCE = 1024
"""Head sets whose outcomes are held at once."""


@dataclass(frozen=True, slots=True)
class SubsetScorer:
    """Scores head sets on the same prompts, many in a pass.

    Attributes:
        objective: the prepared intervention.
        lm: the frozen model.
        prompts: N prompts that `objective.prompt_set` made.
        branched: whether head sets share a row.
    """

    objective: Objective
    lm: FrozenLM
    prompts: PromptSet
    branched: bool

    @classmethod
    def of(cls, objective: Objective, lm: FrozenLM, prompts: PromptSet) -> SubsetScorer:
        """Find out once how head sets can run."""
        return cls(objective, lm, prompts, objective.runs_branches(lm))

    def __call__(self, gates_GA: Tensor, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
        """Return what each of G gate vectors is worth.

        Args:
            gates_GA: the gate vectors.
            progress: called with (gate vectors scored, G).

        Returns:
            The accuracy and the mean log-probability of the answer in nats, both float64 [G].
        """
        accuracy, log_p = [], []
        for start in range(0, len(gates_GA), SETS_AT_ONCE):
            part_GA = gates_GA[start : start + SETS_AT_ONCE]
            many = score_many(
                self.objective, self.lm, self.prompts, part_GA, branched=self.branched
            )
            accuracy.append(many.accuracy_G)
            log_p.append(many.log_probability_GN.mean(1))
            if progress is not None:
                progress(start + len(part_GA), len(gates_GA))
        return torch.cat(accuracy), torch.cat(log_p)


def every_subset(pool: Sequence[int], total: int) -> Tensor:
    """Return gates_GA of all 2^S subsets of a pool of heads, all other heads closed.

    Bit s of the number g of a subset tells whether pool[s] is open.

    Args:
        pool: flat indices of S different heads.
        total: number of heads A.

    Raises:
        HeadlocError: for more than 16 heads.
    """
    check_pool(pool)
    codes_G = torch.arange(2 ** len(pool))
    gates_GA = torch.zeros(len(codes_G), total)
    for place, head in enumerate(pool):
        gates_GA[:, head] = (codes_G >> place & 1).float()
    return gates_GA


def sized_subsets(
    pool: Sequence[int], size: int, total: int, at_once: int = SETS_AT_ONCE
) -> Iterator[tuple[list[tuple[int, ...]], Tensor]]:
    """Yield the subsets of one size in lexical order, some at a time, with their gates_GA."""
    subsets = combinations(pool, size)
    while chosen := list(islice(subsets, at_once)):
        gates_GA = torch.zeros(len(chosen), total)
        if size:
            gates_GA.scatter_(1, torch.tensor(chosen), 1.0)
        yield chosen, gates_GA


def check_pool(pool: Sequence[int]) -> None:
    """Refuse pools that not all subsets can be tried of.

    Raises:
        HeadlocError: for more than 16 heads, or one that is named twice.
    """
    if len(pool) > EXHAUSTIVE_LIMIT:
        raise HeadlocError(
            f"Exhaustive search over {len(pool)} heads is out of reach (limit {EXHAUSTIVE_LIMIT}). "
            "Use greedy_backward."
        )
    if len(set(pool)) < len(pool):
        raise HeadlocError(f"The heads {list(pool)} name one of them twice.")
