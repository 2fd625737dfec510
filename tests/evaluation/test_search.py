"""Searches over head sets on problems whose best answer is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.evaluation.search import Worth, greedy_backward, smallest_subset
from headloc.evaluation.subsets import EXHAUSTIVE_LIMIT, SubsetScorer
from tests.evaluation.recording import answered_by_definition
from tests.objectives.by_hand import TOTAL

NEEDED = {1, 4, 6}


def each(worth: Callable[[Tensor], tuple[float, float]]) -> Worth:
    """The worth of many sets, one after another."""

    def of_all(gates_GA: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.tensor([worth(gates_A) for gates_A in gates_GA], dtype=torch.float64)
        return pairs[:, 0], pairs[:, 1]

    return of_all


@each
def conjunction(gates: Tensor) -> tuple[float, float]:
    """Right only with all the needed heads."""
    held = {i for i in NEEDED if gates[i]}
    return float(held == NEEDED), len(held) / 10


@each
def additive(gates: Tensor) -> tuple[float, float]:
    """Every head adds its own share of the accuracy: 1/36 to 8/36."""
    worth = float(gates @ torch.arange(1.0, 9.0)) / 36
    return worth, worth


def test_both_searches_find_heads_that_are_needed_together() -> None:
    assert greedy_backward(8, conjunction, 1.0) == sorted(NEEDED)
    assert smallest_subset(8, conjunction, 1.0) == sorted(NEEDED)


@pytest.mark.parametrize(("aim", "best"), [(8 / 36, 1), (15 / 36, 2), (21 / 36, 3), (1.0, 8)])
def test_both_searches_keep_the_fewest_additive_heads(aim: float, best: int) -> None:
    expected = list(range(8 - best, 8))
    assert smallest_subset(8, additive, aim - 1e-9) == expected
    assert greedy_backward(8, additive, aim - 1e-9) == expected


def test_only_the_exhaustive_search_sees_that_one_head_replaces_two() -> None:
    @each
    def worth(gates: Tensor) -> tuple[float, float]:
        # Head 4 alone is enough, but of the pair each head seems more worth while.
        enough = bool(gates[4]) or bool(gates[0] * gates[1])
        return float(enough), float(gates[0] + gates[1]) - float(gates[4])

    assert smallest_subset(6, worth, 1.0) == [4]
    assert greedy_backward(6, worth, 1.0) == [0, 1]


def test_ties_in_accuracy_are_broken_by_log_probability() -> None:
    @each
    def worth(gates: Tensor) -> tuple[float, float]:
        return float(gates.sum() >= 1), float(gates @ torch.tensor([0.1, 0.9, 0.5]))

    assert smallest_subset(3, worth, 1.0) == [1]
    assert greedy_backward(3, worth, 1.0) == [1]


def test_an_aim_that_nothing_reaches_keeps_every_head() -> None:
    assert smallest_subset(4, each(lambda gates: (0.0, 0.0)), 0.5) == [0, 1, 2, 3]
    assert greedy_backward(4, each(lambda gates: (0.0, 0.0)), 0.5) == [0, 1, 2, 3]


def test_an_aim_that_the_empty_set_reaches_keeps_none() -> None:
    assert smallest_subset(4, each(lambda gates: (1.0, 0.0)), 0.5) == []
    assert greedy_backward(4, each(lambda gates: (1.0, 0.0)), 0.5) == []


def test_searches_tell_their_progress_and_greedy_cost_is_bounded() -> None:
    calls, seen = [], []

    @each
    def worth(gates: Tensor) -> tuple[float, float]:
        calls.append(gates)
        return 1.0, 0.0

    greedy_backward(6, worth, 0.5, lambda done, total: seen.append((done, total)))
    assert seen == [(6, 21), (11, 21), (15, 21), (18, 21), (20, 21), (21, 21)]
    assert len(calls) == 6 * 7 // 2
    seen.clear()
    nothing = each(lambda gates: (0.0, 0.0))
    smallest_subset(6, nothing, 0.5, progress=lambda done, total: seen.append((done, total)))
    # 1, 6, 15, 20, 15, 6 and 1 sets of each size.
    assert seen == [(n, 64) for n in (1, 7, 22, 42, 57, 63, 64)]


def test_heads_outside_the_pool_stay_closed() -> None:
    assert smallest_subset(30, conjunction, 1.0, pool=[6, 20, 1, 4]) == sorted(NEEDED)
    assert smallest_subset(30, conjunction, 1.0, pool=[6, 20, 1]) == [1, 6, 20]
    with pytest.raises(HeadlocError, match="twice"):
        smallest_subset(30, conjunction, 1.0, pool=[6, 6])


def test_too_many_heads_for_an_exhaustive_search_are_refused() -> None:
    with pytest.raises(HeadlocError, match="greedy_backward"):
        smallest_subset(EXHAUSTIVE_LIMIT + 1, additive, 0.5)


@pytest.mark.parametrize("aim", [0.3, 0.6])
def test_the_exhaustive_search_on_a_model_agrees_with_scoring_every_set(aim: float) -> None:
    lm, objective, prompts = answered_by_definition("llama")

    def worth(gates: Tensor) -> tuple[float, float]:
        outcome = score(objective, lm, prompts, gates)
        return outcome.accuracy, float(outcome.log_probability.mean())

    many = SubsetScorer.of(objective, lm, prompts)
    table = {bits: worth(torch.tensor(bits)) for bits in product((0.0, 1.0), repeat=TOTAL)}
    enough = [bits for bits, (accuracy, _) in table.items() if accuracy >= aim]
    size = min(sum(bits) for bits in enough)
    best = max((bits for bits in enough if sum(bits) == size), key=table.__getitem__)
    found = smallest_subset(TOTAL, many, aim)
    assert found == [i for i, bit in enumerate(best) if bit]
    assert 0 < size < TOTAL
    greedy = greedy_backward(TOTAL, many, aim)
    assert greedy == greedy_backward(TOTAL, each(worth), aim)
    assert size <= len(greedy) < TOTAL
