"""Every selection rule on gates whose right answer is known."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.localizer.selection import (
    Auto,
    Elbow,
    Kept,
    LargestGap,
    Mass,
    Ranking,
    Selection,
    Threshold,
    TopN,
)

PLANTED = [2, 5, 7]


def never(gates: torch.Tensor) -> float:
    raise AssertionError("this rule must not look at accuracies")


def planted() -> Ranking:
    gates = torch.full((40,), 0.02)
    gates[PLANTED] = torch.tensor([0.9, 1.0, 0.8])
    return Ranking(gates, gates)


@pytest.mark.parametrize("rule", [Threshold(), Elbow(), LargestGap(), Mass(0.7), TopN(3)])
def test_rules_on_gates_find_planted_heads(rule: Selection) -> None:
    assert rule.select(planted(), never, 1.0)[:3] == PLANTED[: len(PLANTED)]


def test_the_elbow_cuts_at_the_bend() -> None:
    gates = torch.tensor([1.0, 0.9, 0.8, 0.1, 0.09, 0.08, 0.07, 0.06, 0.0])
    assert Elbow().select(Ranking(gates, gates), never, 1.0) in ([0, 1, 2, 3], [0, 1, 2])


def test_the_elbow_keeps_what_is_left_when_all_other_gates_are_closed() -> None:
    for left in ([1.0, 1.0, 1.0], [0.72, 0.71, 0.55], [1.0, 0.9], [0.4]):
        gates = torch.tensor([0.0, *left, 0.0, 0.0])
        expected = list(range(1, 1 + len(left)))
        assert Elbow().select(Ranking(gates, gates), never, 1.0) == expected
    # Nothing is closed and nothing bends: there is nothing to cut.
    equal = Ranking(torch.full((5,), 0.7), torch.ones(5))
    assert Elbow().select(equal, never, 1.0) == [0, 1, 2, 3, 4]


def test_a_closed_head_behind_a_long_tail_does_not_move_the_elbow() -> None:
    tail = 0.3 * torch.linspace(1, 0.001, 200) ** 3
    gates = torch.cat([torch.linspace(1.0, 0.7, 33), tail])
    closed = torch.cat([gates, torch.zeros(800)])
    found = Elbow().select(Ranking(closed, closed), never, 1.0)
    assert found == Elbow().select(Ranking(gates, gates), never, 1.0)


def test_ties_in_the_gap_take_the_fewest_heads() -> None:
    gates = torch.tensor([1.0, 0.5, 0.0, 0.0])
    assert LargestGap().select(Ranking(gates, gates), never, 1.0) == [0]


def test_gates_that_are_all_closed_select_nothing() -> None:
    zero = Ranking(torch.zeros(6), torch.arange(6.0))
    for rule in (Threshold(), Elbow(), LargestGap(), Mass()):
        assert rule.select(zero, never, 1.0) == []


def test_saturated_gates_are_ordered_by_their_scores() -> None:
    ranking = Ranking(torch.ones(5), torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0]))
    assert TopN(2).select(ranking, never, 1.0) == [1, 3]


@pytest.mark.parametrize("needed", [0, 1, 5, 37, 100, 300])
def test_kept_is_the_smallest_sufficient_prefix_of_the_ranking(needed: int) -> None:
    heads = 300
    ranking = Ranking(torch.zeros(heads), torch.arange(heads).float().flip(0))

    def accuracy(gates: torch.Tensor) -> float:
        return 0.96 if gates[:needed].all() else 0.5

    assert Kept(0.95).select(ranking, accuracy, 1.0) == list(range(needed))


def test_auto_takes_the_target_size_where_there_is_one() -> None:
    assert isinstance(Auto().settled(None), Kept)
    settled = Auto().settled(7)
    assert isinstance(settled, TopN)
    assert settled.heads == 7


def test_more_heads_than_the_model_has_are_refused() -> None:
    with pytest.raises(HeadlocError, match="more than the 40 heads"):
        TopN(41).select(planted(), never, 1.0)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (Threshold, {"value": 1.0}),
        (Mass, {"share": 0}),
        (Kept, {"share": 1.5}),
        (TopN, {"heads": 0}),
    ],
)
def test_settings_out_of_range_are_refused(rule: type[Selection], options: dict) -> None:
    with pytest.raises(HeadlocError):
        rule(**options)


@pytest.mark.parametrize("heads", [1, 5, 48, 144])
def test_a_search_for_the_size_takes_no_more_than_it_announces(heads: int) -> None:
    counts = []
    for aim in range(heads + 2):
        calls: list[int] = []

        def accuracy(gates: torch.Tensor, aim: int = aim, calls: list[int] = calls) -> float:
            calls.append(int(gates.sum()))
            return float(gates.sum() >= aim)

        Kept(1.0).select(Ranking(torch.ones(heads), torch.rand(heads)), accuracy, 1.0)
        counts.append(len(calls))
    assert 0 < max(counts) <= Kept(1.0).most_evaluations(heads)
