"""The steps that are timed are those of a run, and arms that are compared do the same work."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from headloc.bench.comparisons import check_same
from headloc.bench.shapes import named_shape, random_lm
from headloc.bench.steps import WEIGHT, Material, material
from headloc.errors import HeadlocError
from headloc.gates import HardConcreteGates, PenaltySparsity
from headloc.localizer.module import HeadLocalizer
from headloc.objectives import InPlace
from headloc.tasks import AddK
from tests.bench.training import trained


@pytest.fixture(scope="module")
def made() -> Material:
    lm = random_lm(named_shape("llama_tiny"), name="llama_tiny")
    return material(lm, AddK(shots=2), prompts=24, batch_size=8, seed=5)


def test_a_step_is_the_step_of_a_run_bit_for_bit(made: Material) -> None:
    step = made.step()
    step()
    prompts = (made.prompts, made.prompts)
    module = HeadLocalizer(
        made.lm, made.objective, HardConcreteGates(), PenaltySparsity(WEIGHT), *prompts, None, 5
    )
    assert torch.equal(step.module.values(), trained(module, batch_size=8, seed=5, steps=1))


def test_with_and_without_prefix_cache_the_losses_are_equal(made: Material) -> None:
    cached, full = made.step(), made.step(cached=False)
    for _ in range(4):
        torch.testing.assert_close(cached(), full(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cached.module.values(), full.module.values(), rtol=1e-3, atol=1e-4)


def test_every_step_takes_other_rows_and_other_noise(made: Material) -> None:
    step = made.step()
    losses = [float(step()) for _ in range(4)]
    assert len(set(losses)) == 4


def test_a_bank_of_one_takes_the_same_step_bit_for_bit(made: Material) -> None:
    one, bank = made.step(), made.bank_step(1)
    assert torch.equal(one(), bank())
    assert torch.equal(one.module.values(), bank.module.values()[0])


@pytest.mark.parametrize("cached", [True, False])
def test_the_bare_step_runs_the_untouched_model(made: Material, cached: bool) -> None:
    bare = made.bare_step(cached=cached)
    rows = next(made.bare_step(cached=cached)._rows)
    batch = made.prompts.batch.rows(rows)
    with torch.no_grad():
        logits_BJV = made.lm.logits(batch)
    expected = cross_entropy(logits_BJV.flatten(0, 1), batch.target_BJ.flatten())
    torch.testing.assert_close(bare(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_gradient_is_that_of_a_run_and_takes_no_step(made: Material) -> None:
    step = made.step()
    before = step.module.values().clone()
    loss, gradient = step.first_gradient()
    assert torch.equal(step.module.values(), before)
    assert gradient.shape == (made.lm.layout.total,)
    # The first step of Adam moves every parameter against the sign of its gradient.
    assert torch.equal(loss, step())
    moved = step.module.values() - before
    inner = (before > 0) & (before < 1) & (moved != 0)
    assert inner.any()
    assert torch.equal(moved[inner].sign(), -gradient[inner].sign())


def test_full_passes_give_the_gradient_of_the_prefix_cache_and_all_positions_another(
    made: Material,
) -> None:
    cached, full = made.step(), made.step(cached=False)
    first, second = cached.first_gradient(), full.first_gradient()
    assert check_same(made, ("cached", "full"), first, second) < 1e-5
    everywhere = InPlace("mean", positions="all")
    everywhere.prepare(made.lm, made.task, seed=5, prompts=8)
    other = made.step(cached=False, objective=everywhere).first_gradient()
    with pytest.raises(HeadlocError, match="cannot be compared"):
        check_same(made, ("cached", "all"), first, other)


def test_a_gate_set_of_a_bank_has_the_gradient_that_it_has_alone(made: Material) -> None:
    (_, alone), (_, among) = made.step().first_gradient(), made.bank_step(5).first_gradient()
    torch.testing.assert_close(among, alone, rtol=1e-4, atol=1e-7)


def test_arms_that_differ_are_not_compared(made: Material) -> None:
    loss, gradient = torch.tensor(1.0), torch.tensor([3.0, 4.0])
    arms = ("a", "b")
    assert check_same(made, arms, (loss, gradient), (loss, gradient)) == 0
    for wrong in (
        (loss * 1.1, gradient),
        (loss * float("nan"), gradient),
        (loss, gradient + 0.1),
        (loss, gradient * float("nan")),
    ):
        with pytest.raises(HeadlocError, match="cannot be compared"):
            check_same(made, arms, wrong, (loss, gradient))
