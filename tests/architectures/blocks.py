"""Gates on feed-forward blocks, and vectors added to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headloc.lm import FrozenLM, add_to_stream
from headloc.lm.components import OffValues, components_of, gate_components
from headloc.lm.mlp_tap import gate_mlps
from headloc.lm.stream import StreamSite
from tests.tiny import hook_count, tiny_batch, tiny_lm

PARTS = {"granitemoe": ("block_sparse_moe",), "mpt": ("ffn",), "opt": ("fc1", "fc2"),
         "xglm": ("fc1", "fc2")}  # fmt: skip
"""Modules of a decoder layer that make up its feed-forward block, from transformers' code."""

SITES: tuple[StreamSite, ...] = ("attention", "layer_input", "layer_output")


def random_off(lm: FrozenLM, rows: int = 1) -> OffValues:
    """Random off-values of every head and block."""
    draw = torch.Generator().manual_seed(5)
    return OffValues(
        [torch.randn(rows, 1, x.heads, x.width, generator=draw) for x in lm.layout.layers],
        [torch.randn(rows, 1, lm.width, generator=draw) for _ in lm.mlps],
    )


@contextmanager
def _zero_weights(lm: FrozenLM, family: str, block: str) -> Iterator[None]:
    """Zero every weight and bias of one feed-forward block."""
    parameters = [
        parameter
        for part in PARTS.get(family, ("mlp",))
        for parameter in lm.model.get_submodule(f"{block}.{part}").parameters()
    ]
    kept = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.zero_()
    try:
        yield
    finally:
        for parameter, before in zip(parameters, kept, strict=True):
            parameter.copy_(before)


@torch.no_grad()
def block_identity(family: str) -> None:
    """Gates of one on heads and blocks leave the logits bit for bit."""
    lm, batch = tiny_lm(family), tiny_batch((5, 9, 3))
    components = components_of(lm, True)
    assert components.mlps == tuple(range(int(lm.model.config.num_hidden_layers)))
    before = lm.logits(batch)
    for gates in (torch.ones(components.total), torch.ones(3, components.total)):
        for off in (None, random_off(lm)):
            with gate_components(lm, components, gates, off=off):
                assert torch.equal(lm.logits(batch), before)
    assert hook_count(lm.model) == 0


@torch.no_grad()
def block_ablation(family: str) -> None:
    """A closed gate is a block with zero weights."""
    lm, batch = tiny_lm(family), tiny_batch((5, 9, 3))
    real = batch.mask_BT[:, batch.predicting].bool()
    full = lm.logits(batch)
    for position, site in enumerate(lm.mlps):
        gates = torch.ones(len(lm.mlps))
        gates[position] = 0.0
        with gate_mlps(lm, gates):
            closed = lm.logits(batch)
        with _zero_weights(lm, family, site.block):
            removed = lm.logits(batch)
        torch.testing.assert_close(closed[real], removed[real], rtol=1e-4, atol=1e-5)
        assert (closed - full)[real].abs().max() > 1e-3
    assert torch.equal(lm.logits(batch), full)


@torch.no_grad()
def added_vectors(family: str) -> None:
    """A vector reaches the logits from every site, zero does nothing, and layers are joined."""
    lm, batch = tiny_lm(family), tiny_batch((6, 4))
    vector = torch.randn(lm.width, generator=torch.Generator().manual_seed(5))
    before = lm.logits(batch)
    last = lm.layout.layers[-1].layer
    for site in SITES:
        with add_to_stream(lm, last, torch.zeros(lm.width), site=site):
            assert torch.equal(lm.logits(batch), before)
        with add_to_stream(lm, last, vector, site=site):
            assert (lm.logits(batch) - before).abs().max() > 1e-3
    first, columns = lm.layout.layers[0].layer, slice(2, 4)
    if last == first + 1:
        with add_to_stream(lm, first, vector, site="layer_output", columns=columns):
            after = lm.logits(batch)
        with add_to_stream(lm, last, vector, site="layer_input", columns=columns):
            assert torch.equal(lm.logits(batch), after)
    assert hook_count(lm.model) == 0
