"""Which heads carry the task beyond chance, and which carry most of it.

Source: Hu et al. 2025, refinement.

Every dose above 0 is tested against dose 0 on the same prompts by McNemar's exact one-sided test,
Bonferroni over the doses of a head, Benjamini-Hochberg over heads (Hu et al. 2025).

Shapes: H heads, C doses, N prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from headloc.heads import HeadId
from headloc.refinement.dose_scan import DoseScan

FALSE_DISCOVERY_RATE = 0.05
GAIN_SHARE = 0.25
"""Share of the largest gain that makes a main head."""
LEAST_CLEAN_ACCURACY = 0.25
"""Below this accuracy of the few-shot prompts, gains are too small to speak of main heads."""


@dataclass(frozen=True, slots=True)
class HeadEffect:
    """What the scan says of one head.

    Attributes:
        head: which one.
        p: p-value of its strongest dose, Bonferroni-corrected over the doses.
        q: p adjusted over heads (Benjamini-Hochberg).
        tested_dose: the dose with the smallest p-value.
        fixed: prompts put right by that dose.
        broken: prompts put wrong by it.
        best_dose: the dose with the best accuracy.
        accuracy: accuracy at the best dose.
        baseline: accuracy at dose 0.
        significant: whether q is small enough and more prompts are put right than wrong.
    """

    head: HeadId
    p: float
    q: float
    tested_dose: int
    fixed: int
    broken: int
    best_dose: int
    accuracy: float
    baseline: float
    significant: bool

    @property
    def gain(self) -> float:
        """Accuracy at the best of all doses, 0 included, minus that at dose 0."""
        return max(self.accuracy - self.baseline, 0.0)


@dataclass(frozen=True, slots=True)
class Significance:
    """Significant and main heads among the selected ones.

    Attributes:
        effects: one per selected head, in the order of the scan.
        main: the main heads; empty where `reason` says that there are none.
        clean_accuracy: accuracy of the few-shot prompts of the same queries.
        reason: why there are no main heads, or None.
    """

    effects: tuple[HeadEffect, ...]
    main: tuple[HeadId, ...]
    clean_accuracy: float
    reason: str | None

    @property
    def significant(self) -> tuple[HeadId, ...]:
        """The significant heads."""
        return tuple(effect.head for effect in self.effects if effect.significant)

    def effect(self, head: HeadId) -> HeadEffect:
        """Return the effect of a head."""
        return next(effect for effect in self.effects if effect.head == head)


def mcnemar(fixed: int, broken: int) -> float:
    """Return P[Bin(fixed + broken, 1/2) >= fixed], exactly; 1 when nothing changed."""
    n = fixed + broken
    # Big integers: the sum and its quotient are exact up to the last rounding.
    term, tail = comb(n, fixed), 0
    for i in range(fixed, n + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return tail / 2**n


def mcnemar_two_sided(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test."""
    smaller = mcnemar(max(first_only, second_only), min(first_only, second_only))
    return min(1.0, 2.0 * smaller)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values: min over j >= rank of p_(j) m / j, at most 1.

    Rejecting those of at most q controls the false discovery rate at q (Benjamini & Hochberg 1995).
    """
    m = len(p_values)
    adjusted = [1.0] * m
    smallest = 1.0
    for rank, index in reversed(list(enumerate(np.argsort(p_values, kind="stable"), start=1))):
        smallest = min(smallest, p_values[index] * m / rank)
        adjusted[index] = smallest
    return adjusted


def assess(
    scan: DoseScan, clean_accuracy: float, *, rate: float = FALSE_DISCOVERY_RATE
) -> Significance:
    """Find significant and main heads.

    Main heads are the significant ones whose gain is at least a quarter of the largest.

    Args:
        scan: the dose scan.
        clean_accuracy: accuracy of the few-shot prompts of the same queries.
        rate: false discovery rate q.
    """
    tested = [_strongest(scan, position) for position in range(len(scan.heads))]
    adjusted = benjamini_hochberg([p for p, _ in tested])
    effects = tuple(
        _effect(scan, position, p, q, column, rate)
        for position, ((p, column), q) in enumerate(zip(tested, adjusted, strict=True))
    )
    main, reason = _main(effects, clean_accuracy)
    return Significance(effects, main, clean_accuracy, reason)


def _strongest(scan: DoseScan, position: int) -> tuple[float, int]:
    """Return the Bonferroni-corrected p-value of a head and the column of its dose."""
    p_values = [
        mcnemar(int(fixed), int(broken))
        for fixed, broken in zip(
            scan.fixed_HC[position, 1:], scan.broken_HC[position, 1:], strict=True
        )
    ]
    column = int(np.argmin(p_values))
    return min(1.0, p_values[column] * len(p_values)), column + 1


def _effect(
    scan: DoseScan, position: int, p: float, q: float, column: int, rate: float
) -> HeadEffect:
    fixed, broken = int(scan.fixed_HC[position, column]), int(scan.broken_HC[position, column])
    best = scan.best_dose(position)
    accuracy_C = scan.accuracy_HC[position]
    return HeadEffect(
        head=scan.heads[position],
        p=p,
        q=q,
        tested_dose=scan.doses[column],
        fixed=fixed,
        broken=broken,
        best_dose=best,
        accuracy=float(accuracy_C[scan.doses.index(best)]),
        baseline=float(accuracy_C[0]),
        significant=q <= rate and fixed > broken,
    )


def _main(
    effects: Sequence[HeadEffect], clean_accuracy: float
) -> tuple[tuple[HeadId, ...], str | None]:
    significant = [effect for effect in effects if effect.significant]
    if clean_accuracy < LEAST_CLEAN_ACCURACY:
        return (), (
            f"the few-shot accuracy is {clean_accuracy:.3f}, below {LEAST_CLEAN_ACCURACY}: gains "
            "are too small to single out main heads"
        )
    if not significant:
        return (), "no single head is significant"
    largest = max(effect.gain for effect in significant)
    return tuple(e.head for e in significant if e.gain >= GAIN_SHARE * largest), None
