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


def test_arms_that_differ_are_not_compared(made: Material) -> None:
    check_same(made, {"a": 1.0, "b": 1.0 + 1e-5}, ("a", "b"))
    with pytest.raises(HeadlocError, match="cannot be compared"):
        check_same(made, {"a": 1.0, "b": 1.1}, ("a", "b"))
    with pytest.raises(HeadlocError, match="cannot be compared"):
        check_same(made, {"a": 1.0, "b": float("nan")}, ("a", "b"))
