"""What every method that looks for heads is given: the same model, prompts and intervention.

Methods are compared on the same token ids.  The *search* prompts are for ranking heads,
the *selection* prompts for choosing a size; neither is ever scored.

Shapes: N prompts, A heads in flat order, G gate vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.many import ManyOutcomes, score_many
from headloc.evaluation.subsets import SubsetScorer
from headloc.objectives.prompts import Progress

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import Objective, PromptSet
    from headloc.tasks import TaskFamily


@dataclass(frozen=True, slots=True)
class SearchProblem:
    """A model, a task, an intervention, and the prompts on which heads may be looked for.

    Attributes:
        lm: the frozen model.
        task: the task family.
        objective: the prepared intervention, over heads only.
        search: prompts that heads are ranked on.
        selection: other prompts, that a size is chosen on.
        seed: seed of the search.
        branched: whether gate vectors share a row (`headloc.evaluation.many`).
    """

    lm: FrozenLM
    task: TaskFamily
    objective: Objective
    search: PromptSet
    selection: PromptSet
    seed: int
    branched: bool

    @classmethod
    def of(
        cls,
        lm: FrozenLM,
        task: TaskFamily,
        objective: Objective,
        search: PromptSet,
        selection: PromptSet,
        seed: int,
    ) -> SearchProblem:
        """Find out once how gate vectors can run.

        Raises:
            HeadlocError: when the objective gates feed-forward blocks as well.
        """
        if objective.mlps:
            raise HeadlocError(
                "Methods are compared by the heads they find, but objective.mlps=true gates "
                "feed-forward blocks as well. Set objective.mlps=false."
            )
        return cls(lm, task, objective, search, selection, seed, objective.runs_branches(lm))

    @property
    def total(self) -> int:
        """Number of heads A."""
        return self.lm.layout.total

    def scored(
        self, gates_GA: Tensor, prompts: PromptSet, progress: Progress | None = None
    ) -> ManyOutcomes:
        """Return what the model answers to some prompts under G gate vectors."""
        return score_many(
            self.objective, self.lm, prompts, gates_GA, branched=self.branched, progress=progress
        )

    def worth(self, prompts: PromptSet) -> SubsetScorer:
        """Return the scorer of head sets on some prompts: accuracy and log p(answer)."""
        return SubsetScorer(self.objective, self.lm, prompts, self.branched)

    def first(self, prompts: int | None) -> PromptSet:
        """Return the first search prompts; all of them when None."""
        count = len(self.search) if prompts is None else min(prompts, len(self.search))
        return part_of(self.search, slice(0, count))

    def open_all(self) -> Tensor:
        """Return gates [A] of one."""
        return torch.ones(self.total, device=self.search.device)


def part_of(prompts: PromptSet, rows: slice) -> PromptSet:
    """Return some of the prompts, with everything that was cached for them."""
    if rows.start == 0 and rows.stop >= len(prompts):
        return prompts
    return replace(
        prompts, **{item.name: _part(getattr(prompts, item.name), rows) for item in fields(prompts)}
    )


def _part(value: Any, rows: slice) -> Any:
    """Return the rows of one field of a prompt set."""
    from headloc.objectives import PromptSet

    if value is None:
        return None
    if isinstance(value, PromptSet):
        return part_of(value, rows)
    if isinstance(value, tuple | Tensor):
        return value[rows]
    return value.rows(rows)
