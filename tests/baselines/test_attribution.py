"""Attributions against finite differences, activation gradients and their sum, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headloc.baselines.attribution import (
    AttributionPatching,
    GateGradient,
    IntegratedGradients,
)
from headloc.baselines.gradient import gate_gradients, log_probability
from headloc.baselines.problem import SearchProblem
from headloc.errors import HeadlocError
from headloc.lm.ledger import TokenLedger
from headloc.lm.taps import tap_heads
from headloc.objectives import FunctionVector, Patch
from tests.baselines.problems import problem, problem_of

FAMILIES = ["llama", "gpt2", "gpt_neox", "falcon_new", "qwen3"]
EXACT = ("gpt2", "gpt_neox", "falcon_new")
"""Families whose float64 is float64 throughout; the root-mean-square norm computes in float32."""

STEP = 0.02


@torch.no_grad()
def metric(of: SearchProblem, gates_A: Tensor) -> Tensor:
    """Log p(answer) of every search prompt, float64 [N]."""
    rows = slice(0, len(of.search))
    gates_BA = gates_A.to(of.lm.dtype).expand(len(of.search), -1)
    return log_probability(of.objective, of.lm, of.search, rows, gates_BA).double()


def differences(of: SearchProblem, at_A: Tensor) -> Tensor:
    """Differences of every prompt's metric by every gate, of fourth order in the step, [N, A]."""
    found = []
    for head in range(of.total):
        step_A = torch.zeros(of.total, dtype=torch.float64)
        step_A[head] = STEP
        near = metric(of, at_A + step_A) - metric(of, at_A - step_A)
        far = metric(of, at_A + 2 * step_A) - metric(of, at_A - 2 * step_A)
        found.append((8 * near - far) / (12 * STEP))
    return torch.stack(found, dim=1)


def close(family: str) -> dict[str, float]:
    """How close a derivative can be to differences."""
    return {"rtol": 1e-4, "atol": 1e-6} if family in EXACT else {"rtol": 1e-2, "atol": 1e-4}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("off_value", ["mean", "zero"])
def test_attribution_patching_is_the_derivative(family: str, off_value: str) -> None:
    of = problem(family, off_value)
    expected_NA = differences(of, torch.ones(of.total, dtype=torch.float64))
    found_NA = gate_gradients(
        of.objective, of.lm, of.search, torch.ones(of.total, dtype=torch.float64)
    )
    torch.testing.assert_close(found_NA, expected_NA, **close(family))
    ranking = AttributionPatching().find(of)
    torch.testing.assert_close(ranking.scores, found_NA.mean(0).float())
    michel = GateGradient().find(of)
    torch.testing.assert_close(michel.scores, found_NA.abs().mean(0).float())
    assert float(expected_NA.abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_gradient_times_activation_difference(family: str) -> None:
    of = problem(family, "zero")
    leaves: dict[int, Tensor] = {}

    def edit(position: int, z_BTHd: Tensor) -> Tensor:
        leaves[position] = z_BTHd.detach().clone().requires_grad_()
        # The graph goes on from the leaf, and the layers below keep theirs through the difference.
        return leaves[position] + (z_BTHd - z_BTHd.detach())

    with tap_heads(of.lm, edit):
        rows = slice(0, len(of.search))
        ones_BA = torch.ones(1, of.total, dtype=torch.float64)
        total = log_probability(of.objective, of.lm, of.search, rows, ones_BA).sum()
    gradients = torch.autograd.grad(total, [leaves[i] for i in sorted(leaves)])
    parts = [
        (gradient * leaves[i].detach()).sum((0, 1, 3)) / len(of.search)
        for i, gradient in enumerate(gradients)
    ]
    found = AttributionPatching().find(of).scores
    torch.testing.assert_close(found, torch.cat(parts).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("off_value", ["mean", "zero", "resample"])
def test_integrated_gradients_are_complete(family: str, off_value: str) -> None:
    of = problem(family, off_value)
    whole = float((metric(of, torch.ones(of.total)) - metric(of, torch.zeros(of.total))).mean())
    found = float(IntegratedGradients(steps=40).find(of).scores.double().sum())
    assert found == pytest.approx(whole, rel=1e-3, abs=1e-4)
    assert abs(whole) > 1e-3


@pytest.mark.parametrize("objective", [FunctionVector(prompts_per_task=2), Patch(2)],
                         ids=lambda own: own.name)  # fmt: skip
def test_both_hold_for_objectives_of_task_means(objective: FunctionVector | Patch) -> None:
    of = problem_of(objective, "gpt2", torch.float32)
    ones = torch.ones(of.total)
    found_NA = gate_gradients(of.objective, of.lm, of.search, ones)
    expected_NA = differences(of, ones)
    torch.testing.assert_close(found_NA.double(), expected_NA, rtol=2e-2, atol=2e-4)
    assert float(expected_NA.abs().max()) > 2e-3
    whole = float((metric(of, ones) - metric(of, 0 * ones)).mean())
    total = float(IntegratedGradients(steps=40).find(of).scores.double().sum())
    assert total == pytest.approx(whole, rel=1e-2, abs=1e-3)


def test_more_steps_come_closer_and_one_step_is_the_middle() -> None:
    of = problem("gpt2", "zero")
    whole = float((metric(of, torch.ones(of.total)) - metric(of, torch.zeros(of.total))).mean())
    gaps = [
        abs(float(IntegratedGradients(steps=steps).find(of).scores.double().sum()) - whole)
        for steps in (1, 5, 40)
    ]
    assert gaps[2] < gaps[1] < gaps[0]
    middle = gate_gradients(of.objective, of.lm, of.search, 0.5 * torch.ones(of.total)).mean(0)
    torch.testing.assert_close(
        IntegratedGradients(steps=1).find(of).scores, middle.float(), rtol=1e-4, atol=1e-6
    )


def test_every_position_can_be_gated() -> None:
    of = problem("gpt2", "zero", positions="all")
    ones = torch.ones(of.total, dtype=torch.float64)
    found_NA = gate_gradients(of.objective, of.lm, of.search, ones)
    torch.testing.assert_close(found_NA, differences(of, ones), **close("gpt2"))


def test_a_gradient_costs_three_passes_of_the_predicting_tokens() -> None:
    of = problem("llama", "mean")
    ledger = TokenLedger(prompt_tokens=1.0)
    with ledger.counting(of.lm, "one"):
        AttributionPatching().find(of)
    with ledger.counting(of.lm, "five"):
        IntegratedGradients(steps=5).find(of)
    tokens = of.search.batch.target_BJ.numel()
    assert ledger.forward_equivalents("one") == 3 * tokens
    assert ledger.forward_equivalents("five") == 15 * tokens


def test_bad_settings_are_refused() -> None:
    with pytest.raises(HeadlocError, match="steps=0"):
        IntegratedGradients(steps=0)
    with pytest.raises(HeadlocError, match="prompts=0"):
        AttributionPatching(prompts=0)
