"""Vectors added to the residual stream agree with hooks written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.errors import HeadlocError, TapError
from headloc.lm import FrozenLM, add_to_stream, gate_heads, read_heads
from tests.tiny import tiny_batch, tiny_lm, tiny_model

ADDITIVE = ["llama", "gpt2", "bloom", "gpt_neox", "falcon_new", "gptj", "opt", "mpt"]


@pytest.fixture
def vector() -> Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(5))


def stream_after(lm: FrozenLM, layer: int, ids: Tensor) -> Tensor:
    """Output of a decoder layer, through a hook written by hand."""
    seen: list[Any] = []
    block = lm.model.get_submodule(lm.sites[layer].block)
    handle = block.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        lm.model(input_ids=ids)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@pytest.mark.parametrize("family", ADDITIVE)
def test_what_joins_the_attention_output_joins_the_stream(family: str, vector: Tensor) -> None:
    lm, ids = FrozenLM(tiny_model(family)), torch.arange(3, 9)[None]
    block = lm.model.get_submodule(lm.sites[1].block)
    # Silence whatever else writes to the stream in this layer: every projection but attention's.
    for name, module in block.named_modules():
        if name and not f"{lm.sites[1].block}.{name}".startswith(lm.sites[1].attention):
            for parameter in module.parameters():
                parameter.zero_()
    before = stream_after(lm, 1, ids)
    with add_to_stream(lm, 1, vector):
        after = stream_after(lm, 1, ids)
    torch.testing.assert_close(after - before, vector.expand_as(before), rtol=1e-4, atol=1e-5)


def test_each_row_can_have_a_vector_of_its_own(vector: Tensor) -> None:
    lm, batch = tiny_lm("llama"), tiny_batch((6, 4))
    rows = torch.stack([vector, -vector])
    with add_to_stream(lm, 0, rows):
        both = lm.logits(batch)
    with add_to_stream(lm, 0, -vector):
        alone = lm.logits(batch)
    torch.testing.assert_close(both[1], alone[1])
    assert not torch.allclose(both[0], alone[0])


def test_the_sum_of_the_heads_is_what_the_attention_adds() -> None:
    """Adding a head's own contribution to a model without the head restores the model."""
    lm, batch = tiny_lm("llama"), tiny_batch((6, 6))
    before = lm.logits(batch)
    with read_heads(lm, columns=batch.predicting) as reading:
        lm.logits(batch)
    weight_DHd = lm.model.get_submodule(lm.sites[1].projection).weight.unflatten(1, (4, 8))
    gates = torch.ones(lm.layout.total)
    gates[6] = 0
    for column in range(2):
        contribution_BD = reading.z[1][:, column, 2] @ weight_DHd[:, 2].T
        at = slice(batch.predicting.start + column, batch.predicting.start + column + 1)
        with gate_heads(lm, gates, columns=at), add_to_stream(lm, 1, contribution_BD, columns=at):
            torch.testing.assert_close(lm.logits(batch), before, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_the_vector(vector: Tensor) -> None:
    lm, batch = tiny_lm("gpt2"), tiny_batch((6, 4))
    vector.requires_grad_()
    with add_to_stream(lm, 1, vector):
        lm.logits(batch)[..., 1].sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().max() > 0


def test_half_precision_stays_half(vector: Tensor) -> None:
    lm, batch = tiny_lm("llama", torch.bfloat16), tiny_batch((6, 4))
    with add_to_stream(lm, 1, vector):
        assert lm.logits(batch).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused(vector: Tensor) -> None:
    lm, batch = tiny_lm("llama"), tiny_batch((6, 4))
    with pytest.raises(HeadlocError, match=r"no attention at layer 2\. Known: 0, 1"):
        add_to_stream(lm, 2, vector)
    with pytest.raises(HeadlocError, match="Did you mean 'layer_output'"):
        add_to_stream(lm, 1, vector, site="layer_outputs")  # type: ignore[arg-type]
    with pytest.raises(HeadlocError, match="stream of width 32"):
        add_to_stream(lm, 1, vector[:5])
    with (
        pytest.raises(HeadlocError, match="3 rows, but 2 rows"),
        add_to_stream(lm, 1, vector.expand(3, -1)),
    ):
        lm.logits(batch)
    with (
        pytest.raises(TapError, match="current forward"),
        add_to_stream(lm, 1, vector, columns=slice(50, 51)),
    ):
        lm.logits(batch)
