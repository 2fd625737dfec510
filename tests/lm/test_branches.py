"""Branches of the last token in one row against one row per branch."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.lm.branches import branch_logits, supports_branches
from headloc.lm.taps import gate_heads
from tests.tiny import FAMILIES, tiny_batch, tiny_lm

BRANCHES = 3

# Full attention everywhere and a mask that is taken as it is: these must never fall back.
CERTAIN = (
    "llama",
    "llama_mha",
    "llama_wide",
    "qwen2",
    "qwen3",
    "gemma",
    "olmo2",
    "cohere",
    "granite",
    "glm4",
    "phi",
    "mixtral",
    "smollm3",
    "gpt2",
    "gpt_neox",
    "gptj",
    "falcon_new",
    "deepseek_v3",
)


def gates_of(rows: int, heads: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(rows, BRANCHES, heads, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_equal_separate_rows_wherever_they_are_supported(family: str) -> None:
    lm = tiny_lm(family)
    if not supports_branches(lm):
        assert family not in CERTAIN
        return
    batch = tiny_batch()
    prefix = lm.prefix(batch)
    answers = batch.target_BJ.shape[1]
    assert answers > 1
    gates_BGA = gates_of(len(batch), lm.layout.total).requires_grad_()
    with gate_heads(lm, gates_BGA.repeat_interleave(answers, dim=1)):
        branched_BGJV = branch_logits(lm, batch, prefix, BRANCHES)
    alone = []
    for branch in range(BRANCHES):
        with gate_heads(lm, gates_BGA[:, branch]):
            alone.append(lm.logits(batch, prefix))
    alone_BGJV = torch.stack(alone, dim=1)
    # Where an answer is shorter, the padded column attends to itself alone and is never scored.
    scored = (batch.target_BJ >= 0)[:, None, :, None]
    torch.testing.assert_close(branched_BGJV * scored, alone_BGJV * scored, rtol=1e-4, atol=1e-5)
    weight = torch.randn(alone_BGJV.shape, generator=torch.Generator().manual_seed(1)) * scored
    (one,) = torch.autograd.grad((branched_BGJV * weight).sum(), gates_BGA)
    (other,) = torch.autograd.grad((alone_BGJV * weight).sum(), gates_BGA)
    assert (one - other).norm() <= 1e-5 * other.norm()


def test_gates_per_column_must_fit_the_model() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(HeadlocError, match="columns"), gate_heads(lm, torch.ones(1, 1, 1, 1)):
        pass


def test_branches_without_their_prefix_are_refused() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(HeadlocError, match="prefix"):
        branch_logits(lm, tiny_batch(), None, 2)
