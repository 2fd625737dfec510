"""Rows of a prefix that are gathered as the layers run, against rows that were copied before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.lm import FrozenLM, PrefixCache, TokenBatch, gate_heads
from headloc.lm.gathered import gather_and_append
from headloc.lm.prefix import join
from tests.tiny import FAMILIES, tiny_batch, tiny_lm

ROWS = torch.tensor([3, 0, 3, 1])


def copied(prefix: PrefixCache) -> PrefixCache:
    """The same rows in memory of their own."""
    one = join([prefix.rows(slice(0, 1)), prefix.rows(slice(1, len(prefix)))])
    assert one._index_N is None
    return one


def logits_and_gradient(
    lm: FrozenLM, batch: TokenBatch, prefix: PrefixCache
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    gates_BA = torch.rand(len(batch), lm.layout.total, generator=draw).requires_grad_()
    with gate_heads(lm, gates_BA):
        logits = lm.logits(batch, prefix)
    (gradient,) = torch.autograd.grad(logits.float().square().mean(), gates_BA)
    return logits.detach(), gradient


@pytest.mark.parametrize("family", FAMILIES)
def test_gathered_rows_give_the_same_bits_as_copied_ones(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch()
    rows, prefix = batch.rows(ROWS), lm.prefix(batch).rows(ROWS)
    logits, gradient = logits_and_gradient(lm, rows, prefix)
    other_logits, other_gradient = logits_and_gradient(lm, rows, copied(prefix))
    assert torch.equal(logits, other_logits)
    assert torch.equal(gradient, other_gradient)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_rows_of_rows_and_joined_rows_are_those_of_the_whole(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch()
    prefix = lm.prefix(batch)
    nested = prefix.rows(ROWS).rows([2, 1]).rows(slice(0, 1))
    expected = lm.logits(batch.rows([3]), prefix.rows([3]))
    assert torch.equal(lm.logits(batch.rows([3]), nested), expected)
    joined = join([prefix.rows([2]), prefix.rows([0, 3])])
    assert len(joined) == 3
    again = lm.logits(batch.rows([2, 0, 3]), prefix.rows([2, 0, 3]))
    assert torch.equal(lm.logits(batch.rows([2, 0, 3]), joined), again)
    assert torch.equal(joined.mask_NC, batch.mask_BT[[2, 0, 3], : prefix.columns])


def test_one_selection_serves_several_passes_that_are_differentiated_later() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch()
    prefix = lm.prefix(batch).rows(ROWS)
    rows = batch.rows(ROWS)
    gates = torch.full((lm.layout.total,), 0.5, requires_grad=True)
    with gate_heads(lm, gates):
        first, second = (lm.logits(rows, prefix) for _ in range(2))
    assert torch.equal(first, second)
    (one,) = torch.autograd.grad(first.sum(), gates)
    (other,) = torch.autograd.grad(second.sum(), gates)
    assert torch.equal(one, other)


def test_picking_rows_copies_nothing_and_leaves_the_stored_tensors_alone() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch()
    prefix = lm.prefix(batch)
    stored: list[Any] = prefix.stored().layers  # type: ignore[assignment]
    before = [layer.keys.clone() for layer in stored]
    lm.logits(batch.rows(ROWS), prefix.rows(ROWS))
    assert prefix.rows(ROWS).stored() is prefix.stored()
    for layer, keys in zip(stored, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_the_gradient_is_that_of_indexing_and_concatenation() -> None:
    stored = torch.randn(5, 2, 7, 3)
    new = torch.randn(4, 2, 2, 3, requires_grad=True)
    weight = torch.randn(4, 2, 9, 3)
    whole = gather_and_append(stored, ROWS, new)
    expected = torch.cat([stored[ROWS], new], dim=2)
    assert torch.equal(whole, expected)
    (one,) = torch.autograd.grad((whole * weight).sum(), new)
    (other,) = torch.autograd.grad((expected * weight).sum(), new)
    assert torch.equal(one, other)
