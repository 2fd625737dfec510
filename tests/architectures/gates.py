"""Gates on heads: the identity, ablation, gradients, padding, and what is read.

Shapes: B rows, T columns, H heads of a layer, d head width, D model width, A heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from headloc.heads import HeadId
from headloc.lm import FrozenLM, gate_heads, read_heads, replace_heads
from tests.architectures.models import LENGTHS
from tests.tiny import hook_count, tiny_batch, tiny_lm

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
VISIBLE = 1e-3
"""A change of the logits that is no rounding."""


def input_rows(projection: nn.Module) -> Tensor:
    """The weight with one row per input feature, for Linear and for transformers' Conv1D."""
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight if hasattr(projection, "nx") else weight.t()


def _position(lm: FrozenLM, head: HeadId) -> int:
    return [layer.layer for layer in lm.layout.layers].index(head.layer)


@contextmanager
def cut_out(lm: FrozenLM, head: HeadId, off_d: Tensor | None = None) -> Iterator[None]:
    """Zero a head's part of the output projection; `off_d` goes through it as a constant instead.

    Written with the weights alone: none of headloc's taps is used.
    """
    position = _position(lm, head)
    width = lm.layout.layers[position].width
    projection = lm.model.get_submodule(lm.sites[position].projection)
    rows_dD = input_rows(projection)[head.head * width : (head.head + 1) * width]
    kept_dD = rows_dD.clone()
    constant_D = None if off_d is None else off_d @ kept_dD

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return None if constant_D is None else output + constant_D

    handle = projection.register_forward_hook(add)
    rows_dD.zero_()
    try:
        yield
    finally:
        rows_dD.copy_(kept_dD)
        handle.remove()


@torch.no_grad()
def identity(family: str) -> None:
    """Gates of one leave the logits bit for bit, whatever the off-value and the columns."""
    lm, batch = tiny_lm(family), tiny_batch(LENGTHS)
    before = lm.logits(batch)
    off = [torch.full((layer.heads, layer.width), 3.7) for layer in lm.layout.layers]
    for options in ({}, {"off": off}, {"columns": batch.predicting}):
        for gates in (torch.ones(lm.layout.total), torch.ones(len(batch), lm.layout.total)):
            with gate_heads(lm, gates, **options):  # type: ignore[arg-type]
                assert torch.equal(lm.logits(batch), before)
    assert hook_count(lm.model) == 0


@torch.no_grad()
def ablation(family: str) -> None:
    """Every head alone, closed to zero and to another value, equals the edited weights."""
    lm, batch = tiny_lm(family), tiny_batch((5, 9, 3))
    real = batch.target_BJ >= 0
    base = lm.logits(batch)[real]
    draw = torch.Generator().manual_seed(2)
    for head in lm.layout:
        layer = lm.layout.layers[_position(lm, head)]
        value_d = torch.randn(layer.width, generator=draw)
        for off_d in (None, value_d):
            gates_A = torch.ones(lm.layout.total)
            gates_A[lm.layout.index(head)] = 0
            # The other heads' off-values must not matter.
            off = [torch.full((x.heads, x.width), 9.0) for x in lm.layout.layers]
            off[_position(lm, head)][head.head] = 0.0 if off_d is None else off_d
            with gate_heads(lm, gates_A, off=off):
                gated = lm.logits(batch)[real]
            with cut_out(lm, head, off_d):
                expected = lm.logits(batch)[real]
            torch.testing.assert_close(gated, expected, **CLOSE)
            assert (gated - base).abs().max() > VISIBLE, head
    assert torch.equal(lm.logits(batch)[real], base)


def gradients(family: str) -> None:
    """Every gate gets a finite gradient that is not zero."""
    lm, batch = tiny_lm(family), tiny_batch(LENGTHS)
    gates = torch.full((lm.layout.total,), 0.9, requires_grad=True)
    with gate_heads(lm, gates, columns=batch.predicting):
        lm.logits(batch)[..., 3].sum().backward()
    assert gates.grad is not None
    assert gates.grad.isfinite().all()
    assert (gates.grad.abs() > 0).all()


@torch.no_grad()
def padding(family: str) -> None:
    """A left-padded row gives the logits that it gives alone."""
    lm = tiny_lm(family)
    padded = lm.logits(tiny_batch(LENGTHS))
    for row, length in enumerate(LENGTHS):
        alone = lm.logits(tiny_batch((length,)) if row != 1 else tiny_batch((3, length)))
        answers = 1 if row == 1 else 2
        torch.testing.assert_close(padded[row, :answers], alone[-1, :answers], rtol=2e-4, atol=2e-4)


@torch.no_grad()
def readings(family: str) -> None:
    """Heads that are read add up to the projection's output."""
    lm, batch = tiny_lm(family), tiny_batch((6, 6))
    outputs: list[Tensor] = []
    projection = lm.model.get_submodule(lm.sites[-1].projection)
    handle = projection.register_forward_hook(lambda *call: outputs.append(call[2]))
    with read_heads(lm) as reading:
        lm.logits(batch)
    handle.remove()
    heads = lm.layout.layers[-1]
    weight_HdD = input_rows(projection).unflatten(0, (heads.heads, heads.width))
    total = torch.einsum("bthd,hde->bte", reading.z[-1], weight_HdD)
    bias = getattr(projection, "bias", None)
    torch.testing.assert_close(total + (0 if bias is None else bias), outputs[0], **CLOSE)


@torch.no_grad()
def transplants(family: str) -> None:
    """A head put back changes nothing; another prompt's head moves the answer."""
    lm = tiny_lm(family)
    batch, other = tiny_batch((6, 4)), tiny_batch((7, 9))
    before = lm.logits(batch)
    last = len(lm.layout.layers) - 1
    head = HeadId(lm.layout.layers[last].layer, 2)
    with read_heads(lm, columns=batch.predicting) as own:
        lm.logits(batch)
    with read_heads(lm, columns=other.predicting) as foreign:
        lm.logits(other)
    with replace_heads(lm, {head: own.z[last][:, :, 2]}, columns=batch.predicting):
        assert torch.equal(lm.logits(batch), before)
    with replace_heads(lm, {head: foreign.z[last][:, :, 2]}, columns=batch.predicting):
        assert (lm.logits(batch) - before).abs().max() > VISIBLE
