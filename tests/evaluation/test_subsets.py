"""Every subset of a pool of heads, scored together."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.evaluation.subsets import SubsetScorer, every_subset, sized_subsets
from tests.evaluation.recording import answered_by_definition
from tests.objectives.by_hand import TOTAL

POOL = (6, 1, 3)


def test_the_number_of_a_subset_tells_its_heads() -> None:
    gates_GA = every_subset(POOL, TOTAL)
    assert gates_GA.shape == (8, TOTAL)
    for number, gates_A in enumerate(gates_GA):
        chosen = {head for place, head in enumerate(POOL) if number >> place & 1}
        assert set(torch.nonzero(gates_A).flatten().tolist()) == chosen


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_subsets_of_a_size_come_in_lexical_order(at_once: int) -> None:
    chosen, gates = [], []
    for part, gates_GA in sized_subsets(range(1, 6), 2, TOTAL, at_once):
        assert 0 < len(part) == len(gates_GA) <= at_once
        chosen += part
        gates += list(gates_GA)
    assert chosen == list(combinations(range(1, 6), 2))
    assert [tuple(torch.nonzero(g).flatten().tolist()) for g in gates] == chosen
    ((nothing,), gates_1A), *rest = sized_subsets(range(3), 0, TOTAL)
    assert nothing == ()
    assert not gates_1A.any()
    assert not rest


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_subsets_are_worth_what_each_is_worth_alone(family: str) -> None:
    lm, objective, prompts = answered_by_definition(family)
    gates_GA = every_subset(POOL, TOTAL)
    seen: list[tuple[int, int]] = []
    scorer = SubsetScorer.of(objective, lm, prompts)
    assert scorer.branched == (family == "llama")
    accuracy_G, log_p_G = scorer(gates_GA, lambda done, total: seen.append((done, total)))
    for gates_A, accuracy, log_p in zip(gates_GA, accuracy_G, log_p_G, strict=True):
        alone = score(objective, lm, prompts, gates_A)
        assert float(accuracy) == pytest.approx(alone.accuracy)
        assert float(log_p) == pytest.approx(alone.log_probability.mean(), abs=1e-4)
    assert len(set(log_p_G.tolist())) == 8
    assert seen == [(8, 8)]


def test_too_large_a_pool_is_refused() -> None:
    with pytest.raises(HeadlocError, match="limit 16"):
        every_subset(range(17), 20)
    with pytest.raises(HeadlocError, match="twice"):
        every_subset([1, 1], 20)
