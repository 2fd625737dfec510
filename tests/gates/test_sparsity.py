"""The pressure towards few heads."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.gates import HardConcreteGates, L1Gates, PenaltySparsity, TargetSparsity


def trained(target: int, steps: int = 400) -> tuple[HardConcreteGates, TargetSparsity]:
    """Gates of 30 heads with graded worth, under a target."""
    gates = HardConcreteGates()
    gates.allocate(30, torch.Generator().manual_seed(0))
    sparsity = TargetSparsity(heads=target)
    worth = torch.linspace(0.01, 1.0, 30)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for step in range(steps):
        progress = step / steps
        draws = gates.sample(64, torch.Generator().manual_seed(step))
        loss = ((1 - draws) * worth).sum(1).mean() + sparsity.term(gates, progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        sparsity.after_step(gates, progress)
    return gates, sparsity


@pytest.mark.parametrize("target", [4, 10, 20])
def test_a_target_is_reached_and_holds_the_best_heads(target: int) -> None:
    gates, sparsity = trained(target)
    assert gates.expected_open().item() == pytest.approx(target, abs=2.0)
    best = gates.scores().argsort(descending=True)[: target - 2].tolist()
    assert min(best) >= 30 - target - 1
    assert not sparsity.ran_away()


def test_multipliers_never_reward_open_heads() -> None:
    gates = HardConcreteGates(init=-4.0)
    gates.allocate(10, torch.Generator().manual_seed(0))
    sparsity = TargetSparsity(heads=10, warmup=0.0)
    for _ in range(20):
        sparsity.after_step(gates, 1.0)
    assert sparsity.readings()["sparsity/lambda1"] == 0.0


def test_multipliers_climb_by_the_gap_and_by_its_square() -> None:
    gates = HardConcreteGates(init=1.0, init_std=0.0)
    gates.allocate(10, torch.Generator().manual_seed(0))
    sparsity = TargetSparsity(heads=3, multiplier_lr=0.2, stiffness=4.0, warmup=0.5)
    first, second = 0.0, 4.0
    for progress, target in ((0.0, 1.0), (0.25, 0.65), (0.5, 0.3), (1.0, 0.3)):
        gap = float(gates.expected_open().detach()) / 10 - target
        expected = 10 * (first * gap + second * gap**2)
        term = sparsity.term(gates, progress).detach()
        assert float(term) == pytest.approx(expected, rel=1e-5)
        sparsity.after_step(gates, progress)
        first, second = max(0.0, first + 0.2 * gap), second + 0.2 * gap**2
        assert sparsity.readings() == pytest.approx(
            {"sparsity/lambda1": first, "sparsity/lambda2": second, "sparsity/gap": gap}, rel=1e-5
        )


def test_the_state_of_a_target_survives_a_checkpoint() -> None:
    _, sparsity = trained(6, steps=50)
    fresh = TargetSparsity(heads=6)
    fresh.load_state_dict(sparsity.state_dict())
    assert fresh.readings() == sparsity.readings()


def test_the_penalty_acts_in_the_loss_or_in_the_proximal_step_but_not_in_both() -> None:
    generator = torch.Generator().manual_seed(0)
    hard, soft = HardConcreteGates(), L1Gates()
    hard.allocate(8, generator)
    soft.allocate(8, generator)
    penalty = PenaltySparsity(weight=0.5)
    assert penalty.term(hard, 0.0).item() == pytest.approx(0.5 * hard.expected_open().item())
    assert penalty.term(soft, 0.0).item() == 0.0
    assert penalty.shrinkage(0.01) == pytest.approx(0.005)


def test_a_target_above_the_heads_of_the_model_is_refused() -> None:
    with pytest.raises(HeadlocError, match="more than the 8 heads"):
        TargetSparsity(heads=9).begin(8)


@pytest.mark.parametrize("options", [{"heads": 0}, {"multiplier_lr": 0}, {"warmup": 1.0}])
def test_bad_targets_are_refused(options: dict) -> None:
    with pytest.raises(HeadlocError):
        TargetSparsity(**options)


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(HeadlocError, match=r"sparsity\.weight"):
        PenaltySparsity(weight=-1)
