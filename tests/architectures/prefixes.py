"""The prefix cache and the branches behind it, against full passes and separate rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headloc.lm import IGNORE, FrozenLM, PrefixCache, TokenBatch, gate_heads
from headloc.lm.branches import branch_logits, require_branches
from tests.architectures.models import LENGTHS
from tests.tiny import WINDOW, tiny_batch, tiny_lm

BRANCHES = 3


def loss_and_gradient(
    lm: FrozenLM, batch: TokenBatch, prefix: PrefixCache | None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers under random gates per row, and the gates' gradient."""
    draw = torch.Generator().manual_seed(3)
    gates = torch.rand(len(batch), lm.layout.total, generator=draw, dtype=torch.float64)
    gates = gates.to(torch.float64 if lm.dtype == torch.float64 else torch.float32)
    gates.requires_grad_()
    off = [torch.full((h.heads, h.width), 0.1, dtype=gates.dtype) for h in lm.layout.layers]
    columns = batch.predicting if prefix is None else None
    with gate_heads(lm, gates, off=off, columns=columns):
        logits = lm.logits(batch, prefix)
    loss = cross_entropy(logits.flatten(0, 1), batch.target_BJ.flatten(), ignore_index=IGNORE)
    return loss.detach(), torch.autograd.grad(loss, gates)[0]


def relative(measured: Tensor, expected: Tensor) -> float:
    """The relative difference of two tensors."""
    return float((measured - expected).norm() / expected.norm())


def prefix_cache(family: str) -> None:
    """Loss and gradient behind the cached prefix equal those of the full pass."""
    lm, batch = tiny_lm(family), tiny_batch(LENGTHS)
    assert max(LENGTHS) > WINDOW + 2
    prefix = lm.prefix(batch)
    assert lm.supports_prefix_cache
    loss, gradient = loss_and_gradient(lm, batch, None)
    cached_loss, cached_gradient = loss_and_gradient(lm, batch, prefix)
    assert relative(cached_loss, loss) < 1e-5
    assert relative(cached_gradient, gradient) < 1e-5


def branches(family: str) -> None:
    """Branches of one row give the logits and gradients of separate rows."""
    lm, batch = tiny_lm(family), tiny_batch(LENGTHS)
    require_branches(lm)
    prefix = lm.prefix(batch)
    answers = batch.target_BJ.shape[1]
    assert answers > 1
    draw = torch.Generator().manual_seed(4)
    gates_BGA = torch.rand(len(batch), BRANCHES, lm.layout.total, generator=draw).requires_grad_()
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
