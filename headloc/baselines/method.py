"""The interface that every method of finding heads has, the learned localizer included.

    method.find(problem, progress) -> HeadRanking

A ranking orders all heads; a method that finds a set of its own for some sizes says so, and one
that decides on a size by itself emits that set.  A circuit is made of any of these sets
(`headloc.baselines.found`).

Shapes: A heads in flat order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from headloc.baselines.problem import SearchProblem
from headloc.errors import HeadlocError, NonFiniteError
from headloc.objectives.prompts import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from headloc.circuit import Circuit

HeadSet = tuple[int, ...]
"""Sorted flat indices of heads."""


@dataclass(frozen=True, slots=True)
class HeadRanking:
    """What a method found.

    Attributes:
        order: all heads, the most important first.
        scores: what they are ordered by [A], larger is more important.
        sets: head sets of some sizes that are not the first heads of the order.
        emitted: the set the method decides on by itself, or None.
    """

    order: tuple[int, ...]
    scores: Tensor
    sets: Mapping[int, HeadSet] = field(default_factory=dict)
    emitted: HeadSet | None = None

    def at(self, size: int) -> HeadSet:
        """Return the set of a size, sorted.

        Raises:
            HeadlocError: for more heads than there are.
        """
        if not 0 <= size <= len(self.order):
            raise HeadlocError(f"A ranking of {len(self.order)} heads has no set of size {size}.")
        return self.sets.get(size, tuple(sorted(self.order[:size])))


class Method(ABC):
    """A way of finding heads.

    Its constructor takes the settings alone, so that one method serves many problems.
    """

    name: ClassVar[str]

    #: Whether closed heads put out the problem's off-values while it searches.
    uses_off_values: ClassVar[bool] = True

    @abstractmethod
    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Rank the heads on the search prompts.

        Args:
            problem: what is searched.
            progress: called with (steps done, steps in all).
        """

    def localize(
        self, problem: SearchProblem, keep: float = 0.95, progress: Progress | None = None
    ) -> Circuit:
        """Return the circuit of the smallest set found that keeps enough, or of the emitted set.

        Args:
            problem: what is searched; its selection prompts decide on the size.
            keep: share of the accuracy of the untouched model.
            progress: called with (steps done, steps in all).
        """
        from headloc.baselines.found import choose, circuit_of

        ranking = self.find(problem, progress)
        return circuit_of(self, ranking, choose(ranking, problem, keep), problem)

    def prompts_used(self, problem: SearchProblem) -> int:
        """Return how many of the search prompts it runs on."""
        return len(problem.first(getattr(self, "prompts", None)))

    def describe(self) -> dict[str, Any]:
        """Return the method and its settings, json-able."""
        return {"method": self.name, **vars(self)}


def ranking_of(
    scores_A: Tensor, sets: Mapping[int, HeadSet] | None = None, emitted: HeadSet | None = None
) -> HeadRanking:
    """Return the ranking of signed scores [A]; ties in flat order.

    Raises:
        NonFiniteError: when a score is NaN or infinity.
    """
    bad = int((~scores_A.isfinite()).sum())
    if bad:
        raise NonFiniteError(
            f"The scores of {bad} of {len(scores_A)} heads are NaN or infinity, so they cannot be "
            "ranked. Use model.dtype=float32."
        )
    order = scores_A.double().argsort(descending=True, stable=True).tolist()
    return HeadRanking(tuple(order), scores_A.float().cpu(), dict(sets or {}), emitted)


def ranking_in(order: Sequence[int]) -> HeadRanking:
    """Return the ranking of an order without scores: A for the first head, 1 for the last."""
    import torch

    scores_A = torch.zeros(len(order))
    scores_A[list(order)] = torch.arange(len(order), 0, -1, dtype=torch.float32)
    return HeadRanking(tuple(order), scores_A)
