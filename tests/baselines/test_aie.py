"""Average indirect effects against bare hooks, one head and one unpadded prompt at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from headloc.baselines.aie import IndirectEffects, indirect_effects, shuffled_examples
from headloc.errors import HeadlocError, TaskError
from headloc.lm.ledger import TokenLedger
from headloc.objectives.task_means import estimate_task_means
from tests.objectives.by_hand import HEADS, TOTAL, ByHand, add_k, digit_lm
from tests.objectives.test_from_means import TASK

PROMPTS, SEED = 3, 5


def probability(logits_TV: Tensor, token: int) -> float:
    return float(logits_TV[-1].softmax(-1)[token])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_effects_equal_bare_hooks(family: str) -> None:
    lm = digit_lm(family)
    hand = ByHand(lm, family)
    means = estimate_task_means(lm, TASK, ["add_9", "add_30", "add_1"], prompts=4, seed=1)
    found = indirect_effects(lm, TASK, means, seed=SEED, prompts=PROMPTS, rows_per_pass=5)
    examples = shuffled_examples(TASK, seed=SEED, prompts=PROMPTS)
    expected = torch.zeros(len(TASK.train), TOTAL, dtype=torch.float64)
    for example, prompt in zip(examples, hand.encoded(examples, TASK), strict=True):
        row = int(means.index([example.task]))
        before = probability(hand.run(prompt.prompt_ids)[0], prompt.answer_ids[0])
        for unit in range(TOTAL):

            def edit(layer: int, z_THd: Tensor, unit: int = unit, row: int = row) -> Tensor:
                if layer != unit // HEADS:
                    return z_THd
                new = z_THd.clone()
                new[-1, unit % HEADS] = means.z[layer][row, unit % HEADS]
                return new

            after = probability(hand.run(prompt.prompt_ids, edit)[0], prompt.answer_ids[0])
            expected[TASK.train.index(example.task), unit] += (after - before) / PROMPTS
    assert found.tasks == TASK.train
    torch.testing.assert_close(found.effects_KA, expected, rtol=1e-3, atol=1e-7)
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(found.scores, expected.mean(0).float(), rtol=1e-3, atol=1e-7)


def test_prompts_are_shuffled_so_that_no_label_stays_and_have_a_stream_of_their_own() -> None:
    task = add_k(k=[1, 9, 30], held_out_k=[9], shots=4)
    examples = shuffled_examples(task, seed=SEED, prompts=6)
    assert [example.task for example in examples] == ["add_1"] * 6 + ["add_30"] * 6
    for example in examples:
        k = task.offset(example.task)
        assert int(example.answer) == int(example.query) + k
        shown = example.demonstrations
        assert all(int(pair.output) != int(pair.input) + k for pair in shown)
        assert sorted(int(p.output) for p in shown) == sorted(int(p.input) + k for p in shown)
    alone = add_k(k=[30], held_out_k=[], shots=4)
    assert shuffled_examples(alone, seed=SEED, prompts=6) == examples[6:]
    assert shuffled_examples(task, seed=SEED + 1, prompts=6) != examples


def test_the_ranking_is_by_the_signed_effect() -> None:
    lm = digit_lm("llama")
    means = estimate_task_means(lm, TASK, TASK.train, prompts=2, seed=1)
    found = indirect_effects(lm, TASK, means, seed=SEED, prompts=2)
    values = [float(found.scores[lm.layout.index(head)]) for head in found.ranking()]
    assert all(a >= b for a, b in pairwise(values))
    assert min(values) < 0
    assert found.top(3) == lm.layout.indices(found.ranking()[:3])
    tied = IndirectEffects(lm.layout, ("a",), torch.zeros(1, TOTAL, dtype=torch.float64))
    assert tied.ranking() == list(lm.layout)
    with pytest.raises(HeadlocError, match="8 heads"):
        found.top(9)


def test_a_head_and_a_prompt_cost_one_token() -> None:
    lm = digit_lm("llama")
    means = estimate_task_means(lm, TASK, TASK.train, prompts=1, seed=1)
    ledger = TokenLedger()
    with ledger.counting(lm, "aie"):
        indirect_effects(lm, TASK, means, seed=SEED, prompts=2)
    few = TokenLedger()
    with few.counting(lm, "aie"):
        indirect_effects(lm, TASK, means, seed=SEED, prompts=1)
    # Twice the prompts: 2 more of them, each its prefix, two base tokens and one token per head;
    # prompts of the same length, as here, differ in nothing else.
    more = ledger.stages["aie"].forward_tokens - few.stages["aie"].forward_tokens
    assert more >= 2 * (TOTAL + 2)
    assert more <= 2 * (TOTAL + 2) + 200


def test_bad_input_is_refused() -> None:
    lm = digit_lm("llama")
    means = estimate_task_means(lm, TASK, ["add_1"], prompts=1, seed=1)
    with pytest.raises(HeadlocError, match="add_30"):
        indirect_effects(lm, TASK, means, seed=SEED, prompts=2)
    with pytest.raises(HeadlocError, match="prompts=0"):
        indirect_effects(lm, TASK, means, seed=SEED, prompts=0)
    with pytest.raises(TaskError, match="shuffled"):
        shuffled_examples(add_k(shots=1), seed=0, prompts=1)
