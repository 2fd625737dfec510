"""Rows of the verdict table, and paired differences between them.

Shapes: R head sets of a row (one, or many random ones), N prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate, bootstrap, mean_interval
from headloc.refinement.significance import mcnemar_two_sided

Context = Literal["few_shot", "zero_shot", "shuffled"]


@dataclass(frozen=True, slots=True)
class Row:
    """One condition on one set of prompts.

    Attributes:
        key: short name, the same in every split.
        label: what people read.
        context: prompts it was scored in.
        correct_RN: outcomes; R is 1 but for random sets.
        heads: number of heads of the condition, or None.
    """

    key: str
    label: str
    context: Context
    correct_RN: NDArray[np.bool_]
    heads: int | None = None

    @property
    def share_N(self) -> NDArray[np.float64]:
        """Share of the head sets that answer each prompt correctly."""
        return self.correct_RN.mean(0)

    def accuracy(self, seed: int) -> Estimate:
        """Return the accuracy with its 95 % interval over prompts."""
        return mean_interval(self.share_N, seed)

    @property
    def spread(self) -> tuple[float, float] | None:
        """Smallest and largest accuracy among the random sets; None for a single set."""
        if len(self.correct_RN) == 1:
            return None
        accuracy_R = self.correct_RN.mean(1)
        return float(accuracy_R.min()), float(accuracy_R.max())

    def to_dict(self, split: str, seed: int) -> dict[str, Any]:
        """Return the figures of the row, json-able."""
        estimate, spread = self.accuracy(seed), self.spread
        return {
            "split": split,
            "key": self.key,
            "label": self.label,
            "context": self.context,
            "heads": self.heads,
            "accuracy": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "n": estimate.n,
            "sets": len(self.correct_RN),
            "smallest": None if spread is None else spread[0],
            "largest": None if spread is None else spread[1],
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Two conditions on the same prompts.

    Attributes:
        first: key of the first condition.
        second: key of the second condition.
        estimate: accuracy of the first minus that of the second, paired bootstrap interval.
        first_only: prompts that only the first answers correctly.
        second_only: prompts that only the second answers correctly.
        p: exact two-sided p-value of McNemar's test.
    """

    first: str
    second: str
    estimate: Estimate
    first_only: int
    second_only: int
    p: float

    def to_dict(self, split: str) -> dict[str, Any]:
        """Return the figures, json-able."""
        return {
            "split": split,
            "first": self.first,
            "second": self.second,
            "difference": self.estimate.value,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "n": self.estimate.n,
            "first_only": self.first_only,
            "second_only": self.second_only,
            "p": self.p,
        }


def difference(first: Row, second: Row, seed: int) -> Difference:
    """Compare two single conditions prompt by prompt."""
    a_N, b_N = first.correct_RN[0], second.correct_RN[0]
    a_only, b_only = int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
    return Difference(
        first.key,
        second.key,
        bootstrap(lambda a, b: a - b, first.share_N, second.share_N, seed=seed),
        a_only,
        b_only,
        mcnemar_two_sided(a_only, b_only),
    )
