"""Floating search on worths that are known, and warm starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.gates import HardConcreteGates, HeadGates, L1Gates, TopKGates
from headloc.localizer.floating import FloatingSearch, FloatingSettings, descent_cost
from headloc.localizer.selection import Kept, Ranking
from headloc.localizer.swap import Swap
from headloc.localizer.warm_start import relative_rank, warm_start

HEADS = 12
PAIR = (2, 9)


class Recorded:
    """Heads add up, two of them only together; counts the passes that it is asked for."""

    def __init__(self) -> None:
        self.weight_A = torch.linspace(0.0, 0.5, HEADS, dtype=torch.float64)
        self.passes = 0
        self.rows: list[slice] = []

    def worth(self, gates_GA: Tensor) -> Tensor:
        together_G = gates_GA[:, PAIR[0]] * gates_GA[:, PAIR[1]]
        return gates_GA.double() @ self.weight_A + 3.0 * together_G.double()

    def trial(self, gates_GA: Tensor, rows: slice) -> Tensor:
        self.passes += len(gates_GA) * (rows.stop - rows.start)
        self.rows.append(rows)
        return self.worth(gates_GA)[:, None].expand(-1, rows.stop - rows.start)

    def gradient(self, gates_A: Tensor, rows: slice) -> Tensor:
        self.passes += 3 * (rows.stop - rows.start)
        leaf_A = gates_A.double().requires_grad_()
        (gradient_A,) = torch.autograd.grad(self.worth(leaf_A[None]).sum(), leaf_A)
        return gradient_A


def search(
    truth: Recorded, score_A: Tensor, limit: int | None = None, **settings: float
) -> FloatingSearch:
    chosen = FloatingSettings(prompts=8, **settings)  # type: ignore[arg-type]
    return FloatingSearch(score_A, truth.trial, truth.gradient, 64, chosen, limit=limit)


@pytest.mark.parametrize("seed", range(4))
def test_it_keeps_what_matters_together_from_a_poor_ranking(seed: int) -> None:
    truth = Recorded()
    score_A = torch.rand(HEADS, generator=torch.Generator().manual_seed(seed))
    found = search(truth, score_A)
    sets = found.run()
    assert sorted(sets) == list(range(HEADS + 1))
    assert all(len(own) == len(set(own)) == size for size, own in sets.items())
    assert set(PAIR) <= set(sets[4])
    poor = sorted(score_A.argsort(descending=True)[:5].tolist())
    masks = torch.zeros(2, HEADS)
    masks[0, list(sets[5])], masks[1, poor] = 1.0, 1.0
    refined, before = truth.worth(masks).tolist()
    assert refined > before
    assert sorted(found.order()) == list(range(HEADS))


def test_it_stays_within_its_limit_and_goes_round_the_prompts() -> None:
    truth = Recorded()
    least = 8 * descent_cost(HEADS, FloatingSettings())
    search(truth, torch.rand(HEADS), limit=least).run()
    assert truth.passes <= least
    free = Recorded()
    search(free, torch.rand(HEADS)).run()
    assert free.passes > truth.passes
    assert {rows.start for rows in free.rows} == {0, 8, 16, 24, 32, 40, 48, 56}


def test_many_heads_are_closed_several_at_once() -> None:
    assert descent_cost(1024, FloatingSettings()) < 300
    assert descent_cost(16, FloatingSettings(shortlist=16)) == 16 * 17 // 2 - 1


@pytest.mark.parametrize("gates", [HardConcreteGates(), L1Gates(), TopKGates()],
                         ids=lambda own: type(own).__name__)  # fmt: skip
def test_a_warm_start_orders_the_gates(gates: HeadGates) -> None:
    gates.allocate(6, torch.Generator().manual_seed(0))
    score_A = torch.tensor([0.1, -5.0, 100.0, 0.0, 3.0, 0.2])
    warm_start(gates, score_A, 10.0)
    assert gates.scores().argmax() == 2
    values = gates.values()
    assert (values[2] >= values).all()
    assert (values[1] <= values).all()
    assert (values >= 0).all()
    assert (values <= 1).all()


def test_ranks_share_ties_and_wrong_sizes_are_refused() -> None:
    ranks = relative_rank(torch.tensor([2.0, 1.0, 2.0, 5.0]))
    torch.testing.assert_close(ranks, torch.tensor([0.5, 0.0, 0.5, 1.0], dtype=torch.float64))
    gates = TopKGates()
    gates.allocate(4, torch.Generator())
    with pytest.raises(HeadlocError, match="6 scores"):
        warm_start(gates, torch.zeros(6))
    with pytest.raises(HeadlocError, match="shortlist=0"):
        FloatingSettings(shortlist=0)


def test_swap_finds_a_smaller_set_than_the_ranking() -> None:
    needed = {1, 4}

    def accuracy(gates_A: Tensor) -> float:
        held = {head for head in range(8) if gates_A[head]}
        # Heads 2 and 3 together stand in for head 4, and the gates rank them above it.
        return 1.0 if needed <= held or {1, 2, 3} <= held else 0.2

    scores = torch.tensor([0.5, 0.9, 0.8, 0.7, 0.3, 0.2, 0.1, 0.0])
    ranking = Ranking(scores, scores)
    assert Kept(0.95).select(ranking, accuracy, 1.0) == [1, 2, 3]
    assert Swap(0.95).select(ranking, accuracy, 1.0) == [1, 4]
    none = Swap(0.95).select(ranking, lambda gates_A: 1.0, 1.0)
    assert none == []
    with pytest.raises(HeadlocError, match="shortlist=0"):
        Swap(shortlist=0)
