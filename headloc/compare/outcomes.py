"""What every head set of a comparison is worth on the test prompts, each set scored once.

Shapes: G head sets, N prompts, A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from headloc.baselines.method import HeadSet
from headloc.compare.optimum import as_masks
from headloc.evaluation.many import score_many
from headloc.objectives.prompts import Progress

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import Objective, PromptSet

SETS_AT_ONCE = 512


@dataclass(frozen=True)
class SetOutcomes:
    """Outcomes of head sets on N prompts.

    Attributes:
        row: row of every set.
        correct_GN: bool, the whole answer was right.
        log_probability_GN: float64, log p(answer) in nats.
        full_N: bool, outcomes of the untouched model.
        full_log_probability_N: float64, its log p(answer).
    """

    row: dict[HeadSet, int]
    correct_GN: NDArray[np.bool_]
    log_probability_GN: NDArray[np.float64]
    full_N: NDArray[np.bool_]
    full_log_probability_N: NDArray[np.float64]

    @property
    def full(self) -> float:
        """Accuracy of the untouched model."""
        return float(self.full_N.mean())

    def correct(self, heads: HeadSet) -> NDArray[np.float64]:
        """Return the outcomes of a set, 0 or 1, float64 [N]."""
        return self.correct_GN[self.row[heads]].astype(np.float64)

    def log_probability(self, heads: HeadSet) -> NDArray[np.float64]:
        """Return log p(answer) [N] with only these heads open."""
        return self.log_probability_GN[self.row[heads]]

    def accuracy(self, heads: HeadSet) -> float:
        """Return the accuracy with only these heads open."""
        return float(self.correct_GN[self.row[heads]].mean())


def score_sets(
    objective: Objective,
    lm: FrozenLM,
    prompts: PromptSet,
    sets: Iterable[HeadSet],
    progress: Progress | None = None,
) -> SetOutcomes:
    """Score every set once.

    Args:
        objective: the prepared intervention.
        lm: the frozen model.
        prompts: N fresh prompts.
        sets: sorted flat indices; equal sets count as one.
        progress: called with (sets scored, in all).
    """
    from headloc.evaluation.scoring import score

    full = score(objective, lm, prompts, None)
    distinct = sorted(set(sets), key=lambda own: (len(own), own))
    branched = objective.runs_branches(lm)
    correct, log_p = [], []
    for start in range(0, len(distinct), SETS_AT_ONCE):
        part = distinct[start : start + SETS_AT_ONCE]
        many = score_many(
            objective, lm, prompts, as_masks(part, lm.layout.total), branched=branched
        )
        correct.append(many.correct_GN)
        log_p.append(many.log_probability_GN)
        if progress is not None:
            progress(start + len(part), len(distinct))
    return SetOutcomes(
        {own: row for row, own in enumerate(distinct)},
        torch.cat(correct).numpy(),
        torch.cat(log_p).numpy(),
        full.correct,
        full.log_probability,
    )


def complement(heads: HeadSet, total: int) -> HeadSet:
    """Return all other heads."""
    inside = set(heads)
    return tuple(head for head in range(total) if head not in inside)
