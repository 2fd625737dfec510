"""Exact tests against enumeration, false alarms at their nominal rate, the rules of the paper."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from headloc.heads import HeadId
from headloc.refinement.dose_scan import DoseScan
from headloc.refinement.significance import (
    assess,
    benjamini_hochberg,
    mcnemar,
    mcnemar_two_sided,
)


def scan_of(correct_HCN: NDArray[np.bool_]) -> DoseScan:
    heads, doses, _ = correct_HCN.shape
    return DoseScan(
        tuple(HeadId(0, head) for head in range(heads)), tuple(range(doses)), correct_HCN
    )


def made_up(gains: list[list[int]], prompts: int = 40) -> DoseScan:
    """Heads that put the first `gain` prompts right at each dose; nothing is right at dose 0."""
    correct = np.zeros((len(gains), len(gains[0]) + 1, prompts), dtype=bool)
    for head, row in enumerate(gains):
        for dose, gain in enumerate(row, start=1):
            correct[head, dose, :gain] = True
    return scan_of(correct)


def test_mcnemar_equals_the_enumeration_of_all_signs() -> None:
    for n in range(11):
        signs = [sum(one) for one in product((0, 1), repeat=n)]
        for fixed in range(n + 1):
            share = sum(total >= fixed for total in signs) / len(signs)
            assert mcnemar(fixed, n - fixed) == share
            other = sum(total <= fixed for total in signs) / len(signs)
            both = min(1.0, 2 * min(share, other))
            assert mcnemar_two_sided(fixed, n - fixed) == pytest.approx(both, rel=1e-12)


def test_mcnemar_stays_exact_for_many_prompts() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1000, 0) == 0.5**1000
    # The two tails overlap in the middle term alone: exact for any n.
    for fixed in (900, 1000, 1050):
        total = mcnemar(fixed, 2000 - fixed) + mcnemar(2000 - fixed + 1, fixed - 1)
        assert total == pytest.approx(1.0, rel=1e-12)
    assert mcnemar(1000, 1000) > mcnemar(1001, 999) > mcnemar(1100, 900) > 0


def test_benjamini_hochberg_rejects_what_the_step_up_procedure_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(rng.integers(1, 12)) ** 3).round(2).tolist()
        adjusted = benjamini_hochberg(p)
        for q in (0.01, 0.05, 0.2, 0.7):
            order = sorted(range(len(p)), key=lambda i: p[i])
            passing = [r for r, i in enumerate(order, 1) if p[i] <= q * r / len(p) + 1e-12]
            rejected = set(order[: max(passing, default=0)])
            assert {i for i, value in enumerate(adjusted) if value <= q + 1e-12} == rejected


def test_p_values_are_corrected_over_doses_and_heads() -> None:
    scan = made_up([[0, 10, 8], [0, 0, 6], [0, 0, 0]])
    result = assess(scan, clean_accuracy=0.9)
    first, second, third = result.effects
    assert (first.p, second.p, third.p) == (3 * 0.5**10, 3 * 0.5**6, 1.0)
    assert (first.q, second.q, third.q) == (3 * first.p, 1.5 * second.p, 1.0)
    assert (first.tested_dose, first.fixed, first.broken, first.best_dose) == (2, 10, 0, 2)
    assert first.gain == 0.25
    assert result.significant == (HeadId(0, 0),)


def test_prompts_put_wrong_count_against_a_dose() -> None:
    correct = np.zeros((1, 2, 60), dtype=bool)
    correct[0, 0, :20] = True
    correct[0, 1, 20:45] = True
    (effect,) = assess(scan_of(correct), 0.9).effects
    assert (effect.fixed, effect.broken) == (25, 20)
    assert effect.p == mcnemar(25, 20)
    assert not effect.significant


def test_main_heads_have_a_quarter_of_the_largest_gain() -> None:
    scan = made_up([[0, 40], [12, 0], [10, 0], [9, 0], [0, 0]])
    result = assess(scan, clean_accuracy=0.9)
    assert len(result.significant) == 4
    assert result.main == (HeadId(0, 0), HeadId(0, 1), HeadId(0, 2))
    assert result.effect(HeadId(0, 1)).best_dose == 1
    assert result.reason is None


def test_without_a_clean_accuracy_there_is_no_main_head_and_a_reason() -> None:
    scan = made_up([[0, 40]])
    result = assess(scan, clean_accuracy=0.2)
    assert result.significant == (HeadId(0, 0),)
    assert result.main == ()
    assert result.reason is not None
    assert "0.25" in result.reason


def test_chance_alone_is_significant_at_no_more_than_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    alarms, single = 0, 0
    runs, heads = 60, 8
    for _ in range(runs):
        result = assess(scan_of(rng.random((heads, 11, 120)) < 0.4), clean_accuracy=0.9)
        alarms += bool(result.significant)
        single += sum(effect.p <= 0.05 for effect in result.effects)
    # 5 % of 60 runs is 3; more than 8 would have a probability below 0.01.
    assert alarms <= 8
    assert 0 < single / (runs * heads) <= 0.05


def test_one_head_that_carries_the_effect_among_noise_is_found_alone() -> None:
    rng = np.random.default_rng(2)
    correct = rng.random((10, 21, 200)) < 0.1
    correct[6, 4] |= rng.random(200) < 0.5
    result = assess(scan_of(correct), clean_accuracy=0.9)
    assert result.significant == result.main == (HeadId(0, 6),)
    assert result.effect(HeadId(0, 6)).best_dose == 4
