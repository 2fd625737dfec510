"""Properties of the relaxations, against Monte-Carlo estimates and finite differences."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.gates import HardConcreteGates, HeadGates, L1Gates, TopKGates

ALL = (HardConcreteGates, L1Gates, TopKGates)


def allocated(gates: HeadGates, heads: int = 12, seed: int = 0) -> HeadGates:
    gates.allocate(heads, torch.Generator().manual_seed(seed))
    return gates


@pytest.mark.parametrize("kind", ALL)
def test_gates_lie_in_the_unit_interval_and_are_reproducible(kind: type[HeadGates]) -> None:
    gates = allocated(kind())
    first = gates.sample(64, torch.Generator().manual_seed(3))
    again = gates.sample(64, torch.Generator().manual_seed(3))
    assert first.shape == (64, 12)
    assert torch.equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 1
    assert gates.values().shape == (12,)
    assert first.dtype == torch.float32


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.0, 2.0])
def test_expected_l0_is_the_share_of_open_draws(log_alpha: float) -> None:
    gates = allocated(HardConcreteGates(init=log_alpha, init_std=0.0))
    draws = gates.sample(200_000, torch.Generator().manual_seed(1))
    assert gates.expected_open().item() / 12 == pytest.approx(
        (draws > 0).float().mean().item(), abs=2e-3
    )


def test_hard_concrete_start_leaves_most_gates_a_gradient_and_ten_does_not() -> None:
    def inside(init: float) -> float:
        gates = allocated(HardConcreteGates(init=init, init_std=0.0))
        draws = gates.sample(20_000, torch.Generator().manual_seed(1))
        return ((draws > 0) & (draws < 1)).float().mean().item()

    assert inside(2.0) > 0.3
    assert inside(10.0) < 1e-3


def test_hard_concrete_gradient_is_that_of_finite_differences() -> None:
    gates = allocated(HardConcreteGates(init=0.3)).double()
    weights = torch.linspace(-1, 1, 12, dtype=torch.double)

    def loss(log_alpha: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            gates.log_alpha.copy_(log_alpha)
        draws = gates.sample(50, generator)
        return (draws * weights).sum()

    start = gates.log_alpha.detach().clone()
    total = loss(start)
    (gradient,) = torch.autograd.grad(total, gates.log_alpha)
    for index in range(12):
        step = torch.zeros(12, dtype=torch.double)
        step[index] = 1e-6
        numeric = (loss(start + step) - loss(start - step)) / 2e-6
        assert gradient[index].item() == pytest.approx(numeric.item(), abs=1e-5)


def test_l1_step_soft_thresholds_and_clamps() -> None:
    gates = allocated(L1Gates(init_low=0.5, init_high=0.5))
    with torch.no_grad():
        gates.coefficient[:3] = torch.tensor([0.01, 1.7, -0.4])
    gates.after_step(0.02)
    assert gates.values()[:4].tolist() == pytest.approx([0.0, 1.0, 0.0, 0.48])
    assert not gates.penalty_in_loss
    assert L1Gates(double=True).penalty_in_loss


def test_top_k_rows_sum_to_their_budgets() -> None:
    gates = allocated(TopKGates(init_std=2.0))
    budgets = torch.tensor([0.5, 1.0, 6.0, 11.5])
    assert gates._gates(gates.score, budgets).sum(1).tolist() == pytest.approx(
        budgets.tolist(), abs=1e-4
    )
    drawn = gates.sample(4000, torch.Generator().manual_seed(0)).sum(1)
    assert drawn.min() < 1.2
    assert drawn.max() > 11.5
    assert drawn.mean().item() == pytest.approx(6.5, abs=0.2)


def test_top_k_gradient_carries_the_derivative_of_the_threshold() -> None:
    gates = allocated(TopKGates(init_std=1.0), heads=6).double()
    budgets = torch.tensor([2.0, 3.5], dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda score: gates._gates(score, budgets),
        gates.score.detach().requires_grad_(),
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", ALL)
def test_gates_find_the_heads_that_carry_a_planted_loss(kind: type[HeadGates]) -> None:
    """Closing a planted head costs, the others are free: the ranking puts the planted first."""
    planted = [1, 4, 5]
    gates = allocated(kind(), seed=2)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05)
    for step in range(200):
        draws = gates.sample(64, torch.Generator().manual_seed(step))
        loss = (1 - draws[:, planted]).square().sum(1).mean()
        if gates.penalty_in_loss:
            loss = loss + 0.05 * gates.expected_open()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gates.after_step(0.05 * 0.05)
    order = gates.scores().argsort(descending=True)[:3].tolist()
    assert sorted(order) == planted


@pytest.mark.parametrize("kind", ALL)
def test_state_round_trips(kind: type[HeadGates]) -> None:
    source, target = allocated(kind(), seed=1), allocated(kind(), seed=2)
    assert not torch.equal(source.scores(), target.scores())
    target.load_state_dict(source.state_dict())
    assert torch.equal(source.scores(), target.scores())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HardConcreteGates, {"beta": 0}),
        (HardConcreteGates, {"gamma": 0.1}),
        (HardConcreteGates, {"zeta": 0.9}),
        (L1Gates, {"init_low": 0.9, "init_high": 0.1}),
        (L1Gates, {"init_high": 2.0}),
        (TopKGates, {"temperature": -1}),
        (TopKGates, {"budget_low": 0}),
    ],
)
def test_bad_hyper_parameters_are_refused(kind: type[HeadGates], options: dict) -> None:
    with pytest.raises(HeadlocError):
        kind(**options)


def test_a_budget_above_the_heads_is_refused() -> None:
    with pytest.raises(HeadlocError, match="12 heads"):
        allocated(TopKGates(budget_high=13))
