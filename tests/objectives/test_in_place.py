"""The in-place objective against the same intervention written with bare hooks."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from headloc.errors import HeadlocError, TaskError
from headloc.lm.batch import IGNORE
from headloc.lm.frozen import FrozenLM
from headloc.objectives import InPlace, PromptSet
from headloc.randomness import stream
from tests.objectives.by_hand import (
    PROJECTIONS,
    TOTAL,
    ByHand,
    add_k,
    digit_lm,
    mixed_examples,
    number_lm,
    prepared,
    random_gates,
)

SEED = 3
OFF_VALUES = ("zero", "mean", "resample")
POSITIONS = ("last", "all")
#: Sums of two digits each: a counterfactual prompt has the length of its original.
EVEN = {"x_min": 10, "x_max": 60, "k_max": 30}


def task_for(off_value: str, positions: str) -> dict[str, int]:
    return EVEN if (off_value, positions) == ("resample", "all") else {}


def expected(
    lm: FrozenLM, family: str, objective: InPlace, prompts: PromptSet, gates: Tensor, task: object
) -> list[Tensor]:
    hand = ByHand(lm, family)
    offs = hand.off_values(objective, task, prompts.examples, SEED, 20)  # type: ignore[arg-type]
    rows = gates.expand(len(prompts), -1)
    return [
        hand.gated(item.prompt, row, off, objective.positions)
        for item, row, off in zip(prompts.encoded, rows, offs, strict=True)
    ]


def assert_same(logits_BJV: Tensor, by_row: list[Tensor]) -> None:
    for row, wanted in zip(logits_BJV, by_row, strict=True):
        torch.testing.assert_close(row[: len(wanted)], wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", sorted(PROJECTIONS))
@pytest.mark.parametrize(("off_value", "positions"), list(product(OFF_VALUES, POSITIONS)))
def test_logits_equal_the_intervention_by_hand(family: str, off_value: str, positions: str) -> None:
    lm, task = digit_lm(family), add_k(**task_for(off_value, positions))
    objective = InPlace(off_value, positions=positions)
    prompts = prepared(objective, lm, task, mixed_examples(task), SEED)
    assert len({len(item.prompt.prompt_ids) for item in prompts.encoded}) > 1
    assert prompts.batch.target_BJ.shape[1] >= 2
    assert (prompts.prefix is None) == (positions == "all")
    for gates in (random_gates(), random_gates(len(prompts))):
        by_row = expected(lm, family, objective, prompts, gates, task)
        with torch.no_grad():
            logits = objective.logits(lm, prompts, slice(None), gates)
        assert_same(logits, by_row)


@pytest.mark.parametrize("off_value", OFF_VALUES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_of_one_token_by_hand(family: str, off_value: str) -> None:
    lm, task = number_lm(family), add_k()
    objective = InPlace(off_value)
    prompts = prepared(objective, lm, task, mixed_examples(task), SEED)
    assert prompts.batch.target_BJ.shape[1] == 1
    gates = random_gates(len(prompts))
    by_row = expected(lm, family, objective, prompts, gates, task)
    assert_same(objective.logits(lm, prompts, slice(None), gates), by_row)


@pytest.mark.parametrize("off_value", OFF_VALUES)
def test_rows_are_scored_as_in_the_whole_batch(off_value: str) -> None:
    lm, task = digit_lm("llama"), add_k()
    objective = InPlace(off_value)
    prompts = prepared(objective, lm, task, mixed_examples(task))
    gates = random_gates(len(prompts))
    whole = objective.logits(lm, prompts, slice(None), gates)
    rows = torch.tensor([4, 0, 3])
    part = objective.logits(lm, prompts, rows, gates[rows])
    torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)


def loss_and_gradient(
    objective: InPlace, lm: FrozenLM, prompts: PromptSet
) -> tuple[Tensor, Tensor]:
    gates = random_gates(len(prompts)).requires_grad_()
    loss = objective.loss(lm, prompts, slice(None), gates)
    return loss.detach(), torch.autograd.grad(loss, gates)[0]


@pytest.mark.parametrize("family", sorted(PROJECTIONS))
@pytest.mark.parametrize(("off_value", "loss"), list(product(OFF_VALUES, ["cross_entropy", "kl"])))
def test_the_prefix_cache_gives_the_loss_and_gradient_of_the_full_pass(
    family: str, off_value: str, loss: str
) -> None:
    lm, task = digit_lm(family), add_k()
    examples = mixed_examples(task)
    results = []
    for cached in (True, False):
        objective = InPlace(off_value, loss=loss, prefix_cache=cached)
        prompts = prepared(objective, lm, task, examples)
        assert (prompts.prefix is not None) == cached
        results.append(loss_and_gradient(objective, lm, prompts))
    (cached_loss, cached_gradient), (full_loss, full_gradient) = results
    assert (full_gradient != 0).any(1).all()
    assert abs(cached_loss - full_loss) <= 1e-5 * abs(full_loss)
    assert (cached_gradient - full_gradient).norm() <= 1e-5 * full_gradient.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(PROJECTIONS))
def test_gates_of_one_are_the_untouched_model_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    lm = digit_lm(family, dtype)
    for off_value, positions in product(OFF_VALUES, POSITIONS):
        task = add_k(**task_for(off_value, positions))
        objective = InPlace(off_value, positions=positions)
        prompts = prepared(objective, lm, task, mixed_examples(task))
        plain = objective.logits(lm, prompts, slice(None), None)
        for ones in (torch.ones(TOTAL), torch.ones(len(prompts), TOTAL)):
            assert torch.equal(objective.logits(lm, prompts, slice(None), ones), plain)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_cross_entropy_is_the_mean_over_prompts_of_the_whole_answer(
    family: str, positions: str
) -> None:
    lm, task = digit_lm(family), add_k()
    objective = InPlace("zero", positions=positions)
    prompts = prepared(objective, lm, task, mixed_examples(task))
    gates = random_gates(len(prompts))
    wanted = 0.0
    for item, logits in zip(
        prompts.encoded, expected(lm, family, objective, prompts, gates, task), strict=True
    ):
        for row, token in zip(logits, item.prompt.answer_ids, strict=True):
            wanted -= float(row.log_softmax(-1)[token]) / len(prompts)
    assert (prompts.batch.target_BJ == IGNORE).any()
    assert float(objective.loss(lm, prompts, slice(None), gates)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_kl_is_the_divergence_from_the_full_model_at_answer_tokens(positions: str) -> None:
    lm, task = digit_lm("llama"), add_k()
    objective = InPlace("mean", loss="kl", positions=positions)
    prompts = prepared(objective, lm, task, mixed_examples(task), SEED)
    gates = random_gates(len(prompts))
    hand = ByHand(lm, "llama")
    wanted = 0.0
    for item, logits in zip(
        prompts.encoded, expected(lm, "llama", objective, prompts, gates, task), strict=True
    ):
        full = hand.gated(item.prompt, torch.ones(TOTAL), None, positions).softmax(-1).double()
        gated = logits.softmax(-1).double()
        wanted += float((full * (full / gated).log()).sum()) / len(prompts)
    assert float(objective.loss(lm, prompts, slice(None), gates)) == pytest.approx(wanted, rel=1e-3)


def test_kl_at_gates_of_one_is_exactly_zero() -> None:
    lm, task = digit_lm("qwen3"), add_k()
    objective = InPlace("mean", loss="kl")
    prompts = prepared(objective, lm, task, mixed_examples(task))
    ones = torch.ones(len(prompts), TOTAL)
    assert float(objective.loss(lm, prompts, slice(None), ones)) == 0.0


def test_resampling_every_position_needs_prompts_of_equal_length() -> None:
    lm, task = digit_lm("llama"), add_k()
    objective = InPlace("resample", positions="all")
    examples = task.draw(20, stream(0, "unequal"), split="train")
    with pytest.raises(TaskError, match="same length in tokens"):
        objective.prompt_set(lm, task, examples, seed=0, use="test")


def test_means_must_be_prepared() -> None:
    lm, task = digit_lm("llama"), add_k()
    objective = InPlace("mean")
    prompts = objective.prompt_set(lm, task, mixed_examples(task), seed=0, use="test")
    with pytest.raises(HeadlocError, match="prepare"):
        objective.logits(lm, prompts, slice(None), random_gates())


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [("off_value", "meen", "mean"), ("loss", "kld", "kl"), ("positions", "lst", "last")],
)
def test_unknown_settings_suggest_the_nearest(option: str, value: str, near: str) -> None:
    with pytest.raises(HeadlocError, match=f"Did you mean '{near}'"):
        InPlace(**{option: value})
