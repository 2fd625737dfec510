"""Taps on feed-forward blocks; what holds of every family is in `tests/architectures`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headloc.components import Components, MlpId
from headloc.errors import HeadlocError, TapError, UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm import FrozenLM
from headloc.lm.components import (
    components_of,
    gate_components,
    read_components,
)
from headloc.lm.mlp_tap import gate_mlps, read_mlps, tap_mlps
from tests.architectures.blocks import random_off
from tests.tiny import LAYERS, hook_count, tiny_batch, tiny_lm, tiny_model

ADDS_ITSELF = ("bloom", "mpt")
"""Families whose block adds the residual, so that a search by name finds the wrong tensor."""


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "gpt_oss", "falcon_new"])
@torch.no_grad()
def test_gates_of_one_in_half_precision(family: str) -> None:
    lm, batch = tiny_lm(family, torch.bfloat16), tiny_batch((5, 9, 3))
    before = lm.logits(batch)
    with gate_mlps(lm, torch.ones(LAYERS), off=random_off(lm).mlps, columns=batch.predicting):
        assert torch.equal(lm.logits(batch), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "xglm", "bloom", "gpt_oss"])
@torch.no_grad()
def test_gates_interpolate_towards_the_off_value(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch((5, 9, 3))
    off, first = random_off(lm, rows=3).mlps or (), batch.predicting.start
    gates = torch.rand(3, LAYERS, generator=torch.Generator().manual_seed(1))

    def hook(layer: int) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            m = whole.clone().view(3, -1, lm.width)
            g = gates[:, layer, None, None]
            m[:, first:] = g * m[:, first:] + (1 - g) * off[layer]
            m = m.view(whole.shape)
            return (m, *output[1:]) if isinstance(output, tuple) else m

        return after

    handles = [
        lm.model.get_submodule(site.module).register_forward_hook(hook(position))
        for position, site in enumerate(lm.mlps)
    ]
    expected = lm.logits(batch)
    for handle in handles:
        handle.remove()
    with gate_mlps(lm, gates, off=off, columns=batch.predicting):
        torch.testing.assert_close(lm.logits(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["falcon_new", "opt", "gemma2"])
@torch.no_grad()
def test_readings_sum_to_the_stream(family: str) -> None:
    """Silencing a block takes its reading out of the stream that leaves its layer."""
    lm, batch = tiny_lm(family), tiny_batch((4, 4))
    streams: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        streams.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = lm.model.get_submodule(lm.mlps[0].block).register_forward_hook(keep)
    with read_mlps(lm) as reading:
        lm.logits(batch)
    with gate_mlps(lm, torch.tensor([0.0, 1.0])):
        lm.logits(batch)
    handle.remove()
    torch.testing.assert_close(streams[0] - streams[1], reading.m[0], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_gate_is_that_of_finite_differences() -> None:
    lm, batch = tiny_lm("opt", torch.float64), tiny_batch((5, 9, 3))
    gates = torch.full((LAYERS,), 0.6, dtype=torch.float64, requires_grad=True)
    off = random_off(lm).mlps

    def loss(values: Tensor) -> Tensor:
        with gate_mlps(lm, values, off=off):
            return lm.logits(batch).square().mean()

    (gradient,) = torch.autograd.grad(loss(gates), gates)
    for index in range(LAYERS):
        step = torch.zeros(LAYERS, dtype=torch.float64)
        step[index] = 1e-5
        with torch.no_grad():
            slope = (loss(gates + step) - loss(gates - step)) / 2e-5
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "mixtral", "granite"])
@torch.no_grad()
def test_the_structural_search_finds_what_the_layer_adds(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch((5, 9, 3))
    model = copy.deepcopy(lm.model)
    model.config.model_type = "mystery"
    found = []
    for one in (lm, FrozenLM(model)):
        with gate_mlps(one, torch.tensor([0.3, 0.0])):
            found.append(one.logits(batch))
    assert torch.equal(*found)


@pytest.mark.parametrize("family", ADDS_ITSELF)
def test_the_structural_search_refuses_a_block_that_adds_the_residual(family: str) -> None:
    model = copy.deepcopy(tiny_lm(family).model)
    model.config.model_type = "mystery"
    lm = FrozenLM(model)
    with pytest.raises(UnsupportedModelError, match=r"gates\.mlps=false"):
        _ = lm.mlps
    assert hook_count(model) == 0


def test_a_block_that_does_not_fire_is_an_error() -> None:
    lm = FrozenLM(tiny_model("llama"))
    assert len(lm.mlps) == LAYERS
    lm.model.config.num_hidden_layers = 1
    with pytest.raises(TapError, match=r"layer 1: 0; expected 1"), gate_mlps(lm, torch.ones(2)):
        lm.logits(tiny_batch((5, 9)))
    assert hook_count(lm.model) == 0


def test_what_does_not_fit_is_refused() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch((5, 9, 3))
    with pytest.raises(HeadlocError, match="2 feed-forward blocks"):
        gate_mlps(lm, torch.ones(3))
    with pytest.raises(HeadlocError, match="one per feed-forward block"):
        gate_mlps(lm, torch.ones(2), off=[torch.zeros(32)])
    with pytest.raises(HeadlocError, match="must broadcast"):
        gate_mlps(lm, torch.ones(2), off=[torch.zeros(32), torch.zeros(31)])
    with pytest.raises(HeadlocError, match="2 rows, but 3"), gate_mlps(lm, torch.ones(2, 2)):
        lm.logits(batch)
    with (
        pytest.raises(HeadlocError, match="returned shape"),
        tap_mlps(lm, lambda position, m: m[:1]),
    ):
        lm.logits(batch)
    assert hook_count(lm.model) == 0


@torch.no_grad()
def test_taps_work_in_generate_where_the_layer_flattens_its_tokens() -> None:
    lm = tiny_lm("opt")
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    before = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    with gate_mlps(lm, torch.ones(LAYERS), columns=slice(-1, None)):
        after = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert torch.equal(before, after)


def test_components_name_their_gates() -> None:
    components = Components(tiny_lm("llama").layout, (0, 1))
    names = [str(name) for name in components.names()]
    assert names[:4] == ["L0H0", "L0H1", "L0H2", "L0H3"]
    assert names[-2:] == ["L0MLP", "L1MLP"]
    indices = components.indices([HeadId(1, 2), HeadId(0, 1)], [1])
    assert [names[index] for index in indices] == ["L0H1", "L1H2", "L1MLP"]
    assert components.heads_of(indices) == (HeadId(0, 1), HeadId(1, 2))
    assert components.mlps_of(indices) == (1,)
    assert MlpId.parse(" L12MLP ") == MlpId(12)
    for wrong in ("L1H2", "MLP1", "L-1MLP"):
        with pytest.raises(HeadlocError, match="L<layer>MLP"):
            MlpId.parse(wrong)
    with pytest.raises(HeadlocError, match=r"not gated\. Gated: 0, 1"):
        components.indices([], [2])
    with pytest.raises(HeadlocError, match=r"outside 0\.\.9"):
        components.mlps_of([10])
    with pytest.raises(HeadlocError, match="expected 10 gates"):
        components.split(torch.ones(8))


@torch.no_grad()
def test_blocks_are_found_before_heads_are_tapped() -> None:
    """Finding them takes a forward, of fewer columns than the tap may ask for."""
    lm, batch = FrozenLM(tiny_model("llama")), tiny_batch((5, 9))
    with read_components(lm, mlps=True, columns=slice(8, 9)) as reading:
        lm.logits(batch)
    assert [m.shape for m in reading.m] == [(2, 1, 32)] * LAYERS
    fresh = FrozenLM(tiny_model("llama"))
    with gate_components(fresh, components_of(lm, True), torch.ones(10), columns=slice(8, 9)):
        fresh.logits(batch)
