"""Many gate vectors at once against one at a time, with branches and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.bank.running import BankRunner
from headloc.errors import HeadlocError
from headloc.evaluation.many import pairs_that_fit, score_many
from headloc.evaluation.scoring import score
from headloc.lm.frozen import FrozenLM
from headloc.objectives import FunctionVector, InPlace, Objective, Patch, PromptSet
from tests.architectures.registry import NO_BRANCHES
from tests.objectives.by_hand import (
    TOTAL,
    add_k,
    digit_lm,
    mixed_examples,
    prepared,
    windowed_lm,
)
from tests.tiny import FAMILIES

VECTORS = 5
TASK = add_k(k=[1, 9, 30], held_out_k=[9])
OBJECTIVES: dict[str, Objective] = {
    "zero": InPlace("zero"),
    "resample": InPlace("resample"),
    "all positions": InPlace("mean", positions="all"),
    "without a prefix cache": InPlace("mean", prefix_cache=False),
    "function vector": FunctionVector(layer=1, prompts_per_task=2),
    "function vector below": FunctionVector(layer=0, off_value="mean", prompts_per_task=2),
    "patch": Patch(prompts_per_task=2),
}


def vectors(count: int = VECTORS) -> Tensor:
    """Gate vectors, some of them hard, and among them all heads closed."""
    generator = torch.Generator().manual_seed(7)
    gates_GA = torch.rand(count, TOTAL, generator=generator)
    gates_GA[::2] = gates_GA[::2].round()
    gates_GA[0] = 0.0
    return gates_GA


def prompts_of(objective: Objective, lm: FrozenLM) -> PromptSet:
    return prepared(objective, lm, TASK, mixed_examples(TASK))  # type: ignore[arg-type]


def check_equal(objective: Objective, lm: FrozenLM, prompts: PromptSet, **options: Any) -> None:
    gates_GA = vectors()
    many = score_many(objective, lm, prompts, gates_GA, predicted=True, **options)
    assert many.correct_GN.shape == (VECTORS, len(prompts))
    for index, gates_A in enumerate(gates_GA):
        alone, found = score(objective, lm, prompts, gates_A), many.outcomes(index)
        assert found.log_probability == pytest.approx(alone.log_probability, abs=2e-4)
        assert found.correct.tolist() == alone.correct.tolist()
        real = (prompts.batch.target_BJ >= 0).cpu().numpy()
        assert (found.predicted == alone.predicted)[real].all()
    spread = many.log_probability_GN.std(0)
    assert (spread > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_scores_as_one_gate_vector_at_a_time(family: str) -> None:
    lm, objective = digit_lm(family), InPlace("mean")
    prompts = prompts_of(objective, lm)
    assert prompts.batch.target_BJ.shape[1] > 1
    assert objective.runs_branches(lm) == (family not in NO_BRANCHES)
    check_equal(objective, lm, prompts)


@pytest.mark.parametrize("options", [{}, {"branched": False}], ids=["branches", "rows"])
@pytest.mark.parametrize("family", ["llama", "bloom", "gemma2"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_scores_as_one_gate_vector_at_a_time(
    kind: str, family: str, options: dict[str, bool]
) -> None:
    lm, objective = digit_lm(family), OBJECTIVES[kind]
    check_equal(objective, lm, prompts_of(objective, lm), **options)


@pytest.mark.parametrize("branched", [True, False])
@pytest.mark.parametrize(("rows", "sets"), [(1, 1), (2, 3), (4, 2), (99, 99)])
def test_the_size_of_a_pass_changes_nothing_and_progress_ends_at_all_pairs(
    rows: int, sets: int, branched: bool
) -> None:
    lm, objective = digit_lm("llama"), InPlace("mean")
    prompts = prompts_of(objective, lm)
    seen: list[tuple[int, int]] = []
    check_equal(
        objective,
        lm,
        prompts,
        rows_per_pass=rows,
        branches_per_pass=sets,
        branched=branched,
        progress=lambda done, total: seen.append((done, total)),
    )
    total = VECTORS * len(prompts)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)
    assert len(seen) == -(-VECTORS // sets) * -(-len(prompts) // rows)


def test_a_single_vector_is_scored_as_alone_bit_for_bit() -> None:
    lm, objective = digit_lm("llama"), InPlace("mean")
    prompts = prompts_of(objective, lm)
    gates_A = vectors()[1]
    many = score_many(objective, lm, prompts, gates_A[None])
    alone = score(objective, lm, prompts, gates_A)
    assert many.log_probability_GN[0].tolist() == alone.log_probability.tolist()
    assert many.accuracy_G.tolist() == [alone.accuracy]


@pytest.mark.parametrize(
    "objective",
    [FunctionVector(layer=1, prompts_per_task=2), Patch(prompts_per_task=2)],
    ids=["function vector", "patch"],
)
def test_zero_shot_gate_sets_together_give_the_losses_and_gradients_of_a_pass_each(
    objective: Objective,
) -> None:
    lm = digit_lm("llama")
    prompts = prompts_of(objective, lm)
    generator = torch.Generator().manual_seed(2)
    gates_BGA = torch.rand(len(prompts), 3, TOTAL, generator=generator).requires_grad_()
    weight_G = torch.tensor([1.0, -2.0, 0.5])
    found = []
    for branched in (True, False):
        loss_G = BankRunner(lm, objective, branched).losses(prompts, slice(None), gates_BGA)
        (gradient,) = torch.autograd.grad((loss_G * weight_G).sum(), gates_BGA)
        found.append((loss_G.detach(), gradient))
    (loss, gradient), (other_loss, other_gradient) = found
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=1e-6)
    assert (gradient - other_gradient).norm() <= 1e-5 * other_gradient.norm()


def test_a_large_vocabulary_makes_passes_small() -> None:
    lm = digit_lm("llama")
    assert pairs_that_fit(lm, 1, most=64) == 64
    small = pairs_that_fit(lm, 10**6)
    assert small * lm.vocab_size * 10**6 <= 1 << 26 or small == 1


def test_bad_input_is_refused() -> None:
    lm, objective = digit_lm("llama"), InPlace("zero")
    prompts = prompts_of(objective, lm)
    with pytest.raises(HeadlocError, match="Gates of shape"):
        score_many(objective, lm, prompts, torch.ones(2, TOTAL + 1))
    for gates in (torch.ones(TOTAL), torch.ones(0, TOTAL)):
        with pytest.raises(HeadlocError, match="Give at least one"):
            score_many(objective, lm, prompts, gates)
    for sizes in ({"rows_per_pass": 0}, {"branches_per_pass": 0}):
        with pytest.raises(HeadlocError, match="at least 1"):
            score_many(objective, lm, prompts, vectors(), **sizes)  # type: ignore[arg-type]
    with pytest.raises(HeadlocError, match="predicted=True"):
        score_many(objective, lm, prompts, vectors()).outcomes(0)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@pytest.mark.parametrize("past", [-3, 0, 1, 2, 8])
@pytest.mark.parametrize("off_value", ["mean", "resample"])
def test_prompts_beyond_a_window_of_attention_score_as_one_at_a_time(
    off_value: str, past: int, family: str
) -> None:
    """Windows around the length of the prompts: branches would see what lies outside of them."""
    examples = mixed_examples(TASK)
    objective = InPlace(off_value)
    batch = prepared(objective, digit_lm("llama"), TASK, examples).batch
    lm = windowed_lm(family, batch.ids_BT.shape[1] - past)
    assert objective.runs_branches(lm)
    prompts = prepared(objective, lm, TASK, examples)
    check_equal(objective, lm, prompts)
    gates_BGA = vectors(3)[None].expand(len(prompts), -1, -1).clone().requires_grad_()
    found = []
    for branched in (True, False):
        loss_G = BankRunner(lm, objective, branched).losses(prompts, slice(None), gates_BGA)
        (gradient,) = torch.autograd.grad(loss_G.sum(), gates_BGA)
        found.append((loss_G.detach(), gradient))
    (loss, gradient), (other_loss, other_gradient) = found
    torch.testing.assert_close(loss, other_loss, rtol=1e-4, atol=1e-5)
    assert (gradient - other_gradient).norm() <= 1e-3 * other_gradient.norm()
