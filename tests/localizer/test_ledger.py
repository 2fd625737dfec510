"""The ledger counts the tokens that really run: forward once, backward twice."""

from __future__ import annotations

import pytest
import torch

from headloc.lm.ledger import TokenLedger
from headloc.objectives import InPlace
from tests.objectives.by_hand import add_k, digit_lm, mixed_examples, random_gates
from tests.tiny import hook_count


@pytest.mark.parametrize("cached", [True, False])
def test_counts_equal_the_tokens_run(cached: bool) -> None:
    lm, task = digit_lm("llama"), add_k()
    assert lm.supports_prefix_cache
    hooks = hook_count(lm.model)
    objective = InPlace("zero", prefix_cache=cached)
    ledger = TokenLedger()
    with ledger.counting(lm, "prefixes"):
        prompts = objective.prompt_set(lm, task, mixed_examples(task), seed=0, use="test")
    rows, columns = prompts.batch.ids_BT.shape
    run = columns - (prompts.batch.prompt_columns - 1) if cached else columns
    with ledger.counting(lm, "score"), torch.no_grad():
        objective.logits(lm, prompts, slice(None), random_gates())
    with ledger.counting(lm, "train"):
        gates = random_gates(rows).requires_grad_()
        objective.loss(lm, prompts, slice(None), gates).backward()
    prefix = rows * (prompts.batch.prompt_columns - 1) if cached else 0
    assert ledger.stages["prefixes"].forward_tokens == prefix
    assert ledger.stages["score"].forward_tokens == rows * run
    assert ledger.stages["train"].forward_tokens == rows * run
    assert ledger.stages["train"].backward_tokens == rows * run
    assert ledger.stages["prefixes"].backward_tokens == 0
    assert ledger.stages["score"].backward_tokens == 0
    assert [cost.passes for cost in ledger.stages.values()] == [int(cached), 1, 1]
    ledger.prompt_tokens = 10.0
    assert ledger.forward_equivalents("train") == pytest.approx(3 * rows * run / 10)
    assert ledger.forward_equivalents() == pytest.approx((prefix + 4 * rows * run) / 10)
    assert hook_count(lm.model) == hooks


def test_the_reference_pass_of_kl_is_forward_only() -> None:
    lm, task = digit_lm("gpt2"), add_k()
    objective = InPlace("zero", loss="kl")
    prompts = objective.prompt_set(lm, task, mixed_examples(task), seed=0, use="test")
    run = prompts.batch.target_BJ.numel()
    ledger = TokenLedger()
    with ledger.counting(lm, "train"):
        gates = random_gates(len(prompts)).requires_grad_()
        objective.loss(lm, prompts, slice(None), gates).backward()
    cost = ledger.stages["train"]
    assert (cost.forward_tokens, cost.backward_tokens, cost.passes) == (2 * run, run, 2)


def test_a_stage_that_is_opened_again_goes_on_counting_and_an_error_frees_the_model() -> None:
    lm, task = digit_lm("gpt2"), add_k()
    objective = InPlace("zero")
    prompts = objective.prompt_set(lm, task, mixed_examples(task), seed=0, use="test")
    ledger = TokenLedger()
    for _ in range(2):
        with ledger.counting(lm, "score"), torch.no_grad():
            objective.logits(lm, prompts, slice(None), None)
    hooks = hook_count(lm.model)
    with pytest.raises(RuntimeError), ledger.counting(lm, "score"):
        raise RuntimeError
    assert hook_count(lm.model) == hooks
    assert ledger.stages["score"].passes == 2
    assert set(ledger.to_dict()) == {"cost/forward_equivalents", "cost/score"}
