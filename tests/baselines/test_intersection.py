"""The intersection of two lists, on planted scores and on a tiny model."""

from __future__ import annotations

import pytest
import torch

from headloc.baselines.ablation import LeaveOneOut
from headloc.baselines.intersection import Intersection, intersected
from headloc.baselines.log_increase import LogProbabilityIncrease
from headloc.errors import HeadlocError
from tests.baselines.problems import problem


def test_a_head_counts_when_it_is_on_both_lists() -> None:
    first = torch.tensor([9.0, 8.0, 7.0, 1.0, 0.0, -1.0])
    second = torch.tensor([0.0, 8.0, 9.0, 7.0, 1.0, -1.0])
    found = intersected(first, second, top=3)
    assert found.emitted == (1, 2)
    assert set(found.order[:2]) == {1, 2}
    assert found.order[-1] == 5
    for size in range(1, 6):
        lists = [set(s.argsort(descending=True)[:size].tolist()) for s in (first, second)]
        both = lists[0] & lists[1]
        assert set(found.order[: len(both)]) == both


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_both_lists_are_those_of_their_methods(family: str) -> None:
    tiny = problem(family, "zero")
    found = Intersection(top=4).find(tiny)
    increase = LogProbabilityIncrease().find(tiny)
    ablated = Intersection()._ablation(tiny, None)
    expected = set(increase.order[:4]) & set(ablated.argsort(descending=True)[:4].tolist())
    assert found.emitted == tuple(sorted(expected))
    # Where no accuracy is lost, the order is that of the log-probability lost.
    lost = LeaveOneOut().find(tiny).scores.double()
    small = ablated.abs() < 1 / (2 * len(tiny.search)) + 1e-9
    order = ablated[small].argsort(descending=True).tolist()
    assert order == lost[small].argsort(descending=True).tolist()


def test_a_list_of_nothing_is_refused() -> None:
    with pytest.raises(HeadlocError, match="top=0"):
        Intersection(top=0)
