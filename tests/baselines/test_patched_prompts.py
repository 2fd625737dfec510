"""Patched heads as branches and as rows against one full pass per head and prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headloc.baselines.patched_prompts import PatchedPrompts
from headloc.errors import HeadlocError
from headloc.lm.batch import collate
from headloc.lm.branches import supports_branches
from headloc.lm.frozen import FrozenLM
from headloc.lm.taps import replace_heads
from headloc.tasks import encode_all, render
from tests.architectures.registry import NO_BRANCHES
from tests.objectives.by_hand import (
    HEADS,
    LAYERS,
    TOTAL,
    add_k,
    digit_lm,
    mixed_examples,
    windowed_lm,
)
from tests.tiny import FAMILIES

TASK = add_k(k=[1, 9, 30], held_out_k=[9])
EXAMPLES = mixed_examples(TASK)
TASK_N = torch.tensor([0, 1, 1, 0, 1, 0])


def values(lm: FrozenLM) -> list[Tensor]:
    """Per layer, made-up means z_KHd of two tasks."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(2, layer.heads, layer.width, generator=generator) for layer in lm.layout.layers
    ]


@torch.no_grad()
def one_at_a_time(lm: FrozenLM) -> Tensor:
    """p(first answer token) [A, N] of unpadded prompts by full passes without a cache."""
    found = torch.zeros(TOTAL, len(EXAMPLES), dtype=torch.float64)
    encoded = encode_all(lm.tokenizer, [render(example, TASK.template) for example in EXAMPLES])
    for n, item in enumerate(encoded):
        batch = collate([item.prompt], lm.pad_id)
        last = batch.prompt_columns - 1
        for unit, head in enumerate(lm.layout):
            value_d = values(lm)[unit // HEADS][TASK_N[n], head.head]
            with replace_heads(lm, {head: value_d}, columns=slice(last, last + 1)):
                p_V = lm.logits(batch)[0, 0].softmax(-1)
            found[unit, n] = p_V[batch.target_BJ[0, 0]]
    return found


def patched(lm: FrozenLM, branched: bool | None, pairs: int = 2048) -> Tensor:
    prompts = PatchedPrompts(lm, EXAMPLES, TASK.template, branched)
    means = values(lm)
    return torch.cat([prompts.patched(i, means[i], TASK_N, pairs) for i in range(LAYERS)])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_what_full_passes_give(family: str) -> None:
    lm = digit_lm(family)
    expected = one_at_a_time(lm)
    assert supports_branches(lm) == (family not in NO_BRANCHES)
    torch.testing.assert_close(patched(lm, None), expected, rtol=1e-3, atol=1e-7)
    assert (expected.std(0) > 1e-2 * expected.mean(0)).all()


@pytest.mark.parametrize("branched", [True, False])
@pytest.mark.parametrize("pairs", [1, 3, 5, 8])
def test_the_size_of_a_pass_changes_nothing(pairs: int, branched: bool) -> None:
    lm = digit_lm("llama")
    found = patched(lm, branched, pairs)
    torch.testing.assert_close(found, one_at_a_time(lm), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("pairs", [2, 3, 2048])
def test_reported_pairs_rise_to_all_of_them(pairs: int) -> None:
    lm = digit_lm("llama")
    prompts, seen = PatchedPrompts(lm, EXAMPLES, TASK.template), []
    prompts.patched(0, values(lm)[0], TASK_N, pairs, seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == HEADS * len(EXAMPLES)


def test_an_empty_pass_is_refused() -> None:
    lm = digit_lm("llama")
    with pytest.raises(HeadlocError, match="at least 1"):
        PatchedPrompts(lm, EXAMPLES, TASK.template).patched(0, values(lm)[0], TASK_N, 0)


@pytest.mark.parametrize("window", [12, 16, 20, 24, 28, 40])
def test_prompts_beyond_a_window_of_attention_give_what_full_passes_give(window: int) -> None:
    lm = windowed_lm("mistral", window)
    assert supports_branches(lm)
    torch.testing.assert_close(patched(lm, None), one_at_a_time(lm), rtol=1e-3, atol=1e-7)
