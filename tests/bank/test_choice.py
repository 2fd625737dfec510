"""Ranks, sizes, the elbow and the recommendation on numbers that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from headloc.bank.ranking import elbow, order_of, relative_ranks, sizes_of
from headloc.bank.result import Candidate, reaches
from headloc.bank.search import TrainedBank, recommended
from headloc.bank.settings import Member


def test_relative_ranks_run_from_one_to_zero_and_share_ties() -> None:
    ranks = relative_ranks(torch.tensor([[5.0, -1.0, 3.0], [2.0, 2.0, 7.0]]))
    assert ranks.tolist() == [[1.0, 0.0, 0.5], [0.25, 0.25, 1.0]]
    assert relative_ranks(torch.tensor([[4.0]])).tolist() == [[0.5]]
    assert order_of(torch.tensor([0.1, 0.9, 0.9])) == [1, 2, 0]


@pytest.mark.parametrize("heads", [1, 12, 65, 1024])
def test_sizes_run_from_none_to_all(heads: int) -> None:
    sizes = sizes_of(heads)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (0, heads)
    assert sizes[:65] == list(range(min(heads, 64) + 1))
    assert len(sizes) <= 180


def test_the_elbow_is_where_heads_stop_paying() -> None:
    assert elbow([0, 1, 2, 3, 4], [0.0, 0.5, 0.9, 0.95, 1.0]) == 2
    assert elbow([0, 1, 2], [0.5, 0.5, 0.5]) == 0
    assert elbow([0, 1, 2], [0.0, 0.5, 1.0]) == 0


def test_the_smallest_sufficient_candidate_is_recommended() -> None:
    def one(size: int, accuracy: float, stability: float = 1.0) -> Candidate:
        return Candidate(tuple(range(size)), {}, stability, accuracy)

    few, better, many = one(2, 0.90), one(2, 0.93), one(5, 1.0)
    assert recommended([many, few, better], 0.9) is better
    assert recommended([many, few, better], 0.95) is many
    steady = one(2, 0.93, 1.5)
    assert recommended([better, steady], 0.9) is steady
    assert recommended([few, better], 0.99) is better


def test_stability_is_the_share_of_seeds_at_each_penalty() -> None:
    gates = torch.tensor([[0.9, 0.6], [0.9, 0.1], [0.7, 0.0], [0.2, 0.0]])
    members = tuple(Member(weight, seed) for weight in (0.1, 0.2) for seed in (0, 1))
    bank = TrainedBank(members, gates, gates)
    assert bank.emitted() == [(0, 1), (0,), (0,), ()]
    assert bank.stability().tolist() == [[1.0, 0.5], [0.5, 0.0]]
    assert reaches(bank.stability()[0], 0.6) == [0]
    assert bank.seed_ranks().tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_ranks_are_averaged_over_the_penalties_of_a_seed() -> None:
    """Two seeds that disagree at every penalty: one prefers the first head, one the second."""
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0], [9.0, 3.0], [3.0, 9.0], [5.0, 4.0], [4.0, 5.0]])
    members = tuple(Member(weight, seed) for weight in (0.1, 0.2, 0.3) for seed in (0, 1))
    assert TrainedBank(members, scores, scores).seed_ranks().tolist() == [[1.0, 0.0], [0.0, 1.0]]
