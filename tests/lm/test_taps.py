"""Taps compose, count, refuse what does not fit, and never stay behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headloc.errors import HeadlocError, TapError
from headloc.heads import HeadId
from headloc.lm import (
    FrozenLM,
    HeadReading,
    TokenBatch,
    add_to_stream,
    gate_heads,
    read_heads,
    replace_heads,
    tap_heads,
)
from tests.tiny import HEADS, hook_count, tiny_batch, tiny_lm, tiny_model

H, D = HEADS, 8


@pytest.fixture(params=["llama", "gpt2", "bloom"])
def lm(request: pytest.FixtureRequest) -> Iterator[FrozenLM]:
    lm = tiny_lm(request.param)
    yield lm
    assert hook_count(lm.model) == 0


@pytest.fixture
def batch() -> TokenBatch:
    return tiny_batch((5, 9, 3))


def hand_hook(edit: Any, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook written by hand, with none of headloc's machinery."""
    x = args[0].clone()
    edit(x)
    return (x, *args[1:])


def by_hand(lm: FrozenLM, batch: TokenBatch, edits: dict[int, Any]) -> Tensor:
    """Logits with the projection inputs of some layers edited in a copy."""
    handles = [
        lm.model.get_submodule(lm.sites[layer].projection).register_forward_pre_hook(
            partial(hand_hook, edit)
        )
        for layer, edit in edits.items()
    ]
    logits = lm.logits(batch)
    for handle in handles:
        handle.remove()
    return logits


def test_gates_interpolate_towards_the_off_value(lm: FrozenLM, batch: TokenBatch) -> None:
    draw = torch.Generator().manual_seed(0)
    gates = torch.rand(3, lm.layout.total, generator=draw)
    off = [torch.randn(3, 1, H, D, generator=draw) for _ in lm.layout.layers]
    first = batch.predicting.start

    def edit(x: Tensor, layer: int) -> None:
        for row in range(3):
            for head in range(H):
                g, part = gates[row, layer * H + head], slice(head * D, (head + 1) * D)
                x[row, first:, part] = g * x[row, first:, part] + (1 - g) * off[layer][row, 0, head]

    expected = by_hand(lm, batch, {layer: partial(edit, layer=layer) for layer in (0, 1)})
    with gate_heads(lm, gates, off=off, columns=batch.predicting):
        torch.testing.assert_close(lm.logits(batch), expected, rtol=1e-4, atol=1e-5)


def test_one_head_vector_serves_all_rows(lm: FrozenLM, batch: TokenBatch) -> None:
    gates = torch.linspace(0, 1, lm.layout.total)
    with gate_heads(lm, gates):
        shared = lm.logits(batch)
    with gate_heads(lm, gates.expand(len(batch), -1)):
        torch.testing.assert_close(lm.logits(batch), shared, rtol=0, atol=0)


def test_a_context_serves_several_backward_passes(lm: FrozenLM, batch: TokenBatch) -> None:
    gates = torch.full((lm.layout.total,), 0.5, requires_grad=True)
    off = [torch.ones(H, D) for _ in lm.layout.layers]
    with gate_heads(lm, gates, off=off) as count:
        for _ in range(2):
            lm.logits(batch).sum().backward()
    assert count.fired == {0: 2, 1: 2}
    assert gates.grad is not None


def test_reading_agrees_with_a_hook_written_by_hand(lm: FrozenLM, batch: TokenBatch) -> None:
    seen: list[Tensor] = []
    by_hand(lm, batch, {1: lambda x: seen.append(x.clone())})
    with read_heads(lm) as reading, torch.no_grad():
        lm.logits(batch)
    assert torch.equal(reading.z[1].flatten(-2), seen[0])
    assert torch.equal(reading.flat()[:, :, H:], reading.z[1])
    with read_heads(lm, columns=slice(-1, None)) as last:
        lm.logits(batch)
    torch.testing.assert_close(last.flat(), reading.flat()[:, -1:])


def test_a_reading_can_keep_the_graph(lm: FrozenLM, batch: TokenBatch) -> None:
    gates = torch.ones(lm.layout.total, requires_grad=True)
    with gate_heads(lm, gates), read_heads(lm, detach=False) as attached:
        lm.logits(batch)
    assert torch.autograd.grad(attached.z[1].sum(), gates)[0].abs().sum() > 0
    with gate_heads(lm, gates), read_heads(lm) as detached:
        lm.logits(batch)
    assert not detached.z[1].requires_grad


def test_replacing_agrees_with_a_hook_written_by_hand(lm: FrozenLM, batch: TokenBatch) -> None:
    one, rows = torch.randn(D), torch.randn(3, D)
    full = torch.randn(3, 2, D)

    def first(x: Tensor) -> None:
        x[:, -2:, D : 2 * D] = one
        x[:, -2:, 3 * D :] = rows[:, None]

    def second(x: Tensor) -> None:
        x[:, -2:, :D] = full

    expected = by_hand(lm, batch, {0: first, 1: second})
    values = {HeadId(0, 1): one, HeadId(0, 3): rows, HeadId(1, 0): full}
    with replace_heads(lm, values, columns=slice(-2, None)) as count:
        assert torch.equal(lm.logits(batch), expected)
    assert count.fired == {0: 1, 1: 1}


def test_taps_nest_and_the_outer_one_acts_first(lm: FrozenLM, batch: TokenBatch) -> None:
    gates = torch.ones(lm.layout.total)
    gates[0] = 0
    with read_heads(lm) as before, gate_heads(lm, gates), read_heads(lm) as after:
        lm.logits(batch)
    assert before.z[0][:, :, 0].abs().max() > 0
    assert after.z[0][:, :, 0].abs().max() == 0
    assert torch.equal(before.z[0][:, :, 1:], after.z[0][:, :, 1:])


def test_nothing_is_edited_in_place(lm: FrozenLM, batch: TokenBatch) -> None:
    with read_heads(lm) as reading:
        lm.logits(batch)
    kept = [z.clone() for z in reading.z]
    weights = {name: p.clone() for name, p in lm.model.named_parameters()}
    with read_heads(lm) as again, gate_heads(lm, torch.zeros(lm.layout.total)):
        lm.logits(batch)
    assert torch.equal(again.z[0], kept[0])
    assert all(torch.equal(p, weights[name]) for name, p in lm.model.named_parameters())


def test_an_edit_may_decline(lm: FrozenLM, batch: TokenBatch) -> None:
    before = lm.logits(batch)
    with tap_heads(lm, lambda position, z: None, layers=[1]) as count:
        assert torch.equal(lm.logits(batch), before)
    assert count.fired == {1: 1}


def contexts(lm: FrozenLM) -> dict[str, AbstractContextManager[Any]]:
    return {
        "tap": tap_heads(lm, lambda position, z: None),
        "read": read_heads(lm),
        "gate": gate_heads(lm, torch.ones(lm.layout.total)),
        "replace": replace_heads(lm, {HeadId(1, 1): torch.zeros(D)}),
        "add": add_to_stream(lm, 1, torch.zeros(lm.width)),
    }


@pytest.mark.parametrize("name", ["tap", "read", "gate", "replace", "add"])
def test_a_block_in_which_nothing_ran_is_an_error(lm: FrozenLM, name: str) -> None:
    with pytest.raises(TapError, match="No forward ran"), contexts(lm)[name]:
        pass
    assert hook_count(lm.model) == 0


@pytest.mark.parametrize("name", ["tap", "read", "gate", "replace", "add"])
def test_an_exception_passes_through_and_leaves_no_hook(lm: FrozenLM, name: str) -> None:
    with pytest.raises(ZeroDivisionError), contexts(lm)[name]:
        raise ZeroDivisionError
    assert hook_count(lm.model) == 0


def test_a_layer_that_was_skipped_is_named(batch: TokenBatch) -> None:
    lm = FrozenLM(tiny_model("llama"))
    lm.model.config.num_hidden_layers = 1
    with (
        pytest.raises(TapError, match=r"layer 1: 0; expected 1"),
        gate_heads(lm, torch.ones(lm.layout.total)),
    ):
        lm.logits(batch)
    assert sum(len(m._forward_pre_hooks) for m in lm.model.modules()) == 0


def test_a_failing_forward_leaves_no_hook(lm: FrozenLM, batch: TokenBatch) -> None:
    gates = torch.ones(2, lm.layout.total)
    with pytest.raises(HeadlocError, match="2 rows, but 3 rows"), gate_heads(lm, gates):
        lm.logits(batch)
    assert hook_count(lm.model) == 0


@pytest.mark.parametrize("columns", [slice(20, 21), slice(3, 3), slice(0, 40), slice(-30, None)])
def test_columns_that_do_not_run_are_refused(
    lm: FrozenLM, batch: TokenBatch, columns: slice
) -> None:
    gates = torch.ones(lm.layout.total)
    tap = gate_heads(lm, gates, columns=columns)
    with pytest.raises(TapError, match="current forward has"), tap:
        lm.logits(batch)


def test_predicting_columns_are_refused_behind_a_prefix(lm: FrozenLM, batch: TokenBatch) -> None:
    prefix = lm.prefix(batch)
    gates = torch.ones(lm.layout.total)
    with (
        pytest.raises(TapError, match="With a prefix cache"),
        gate_heads(lm, gates, columns=batch.predicting),
    ):
        lm.logits(batch, prefix)


def test_what_does_not_fit_the_model_is_refused(lm: FrozenLM, batch: TokenBatch) -> None:
    total = lm.layout.total
    with pytest.raises(HeadlocError, match="model with 8 heads"):
        gate_heads(lm, torch.ones(total + 1))
    with pytest.raises(HeadlocError, match="one per layer, 2"):
        gate_heads(lm, torch.ones(total), off=[torch.zeros(H, D)])
    with pytest.raises(HeadlocError, match="must broadcast"):
        gate_heads(lm, torch.ones(total), off=[torch.zeros(H, D + 1)] * 2)
    with pytest.raises(HeadlocError, match="has a step"):
        gate_heads(lm, torch.ones(total), columns=slice(0, 4, 2))
    with pytest.raises(HeadlocError, match=r"Layers \[7\] cannot be tapped"):
        tap_heads(lm, lambda position, z: None, layers=[0, 7])
    with pytest.raises(HeadlocError, match="no head L0H9"):
        replace_heads(lm, {HeadId(0, 9): torch.zeros(D)})
    with pytest.raises(HeadlocError, match=r"L0H1 has shape \(3,\)"):
        replace_heads(lm, {HeadId(0, 1): torch.zeros(3)})
    with pytest.raises(HeadlocError, match="no head to replace"):
        replace_heads(lm, {})
    with (
        pytest.raises(HeadlocError, match="returned shape"),
        tap_heads(lm, lambda position, z: z[:, :1]),
    ):
        lm.logits(batch)


def test_an_empty_reading_says_so() -> None:
    with pytest.raises(TapError, match="Nothing has been read"):
        HeadReading(2).flat()


def test_a_float64_model_is_gated_in_float64(batch: TokenBatch) -> None:
    lm = tiny_lm("llama", torch.float64)
    gates = torch.full((lm.layout.total,), 1 / 3, dtype=torch.float64)
    with read_heads(lm) as before, gate_heads(lm, gates), read_heads(lm) as after:
        lm.logits(batch)
    assert torch.equal(after.z[0], before.z[0] * gates[0])
