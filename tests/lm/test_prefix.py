"""Running from the prefix cache equals the full pass: logits, loss and the gates' gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.lm import FrozenLM, PrefixCache, TokenBatch, gate_heads, read_heads
from tests.architectures.prefixes import loss_and_gradient, relative
from tests.tiny import tiny_batch, tiny_lm, tiny_model

LONG = (5, 11, 1, 8)
DOUBLES = ["llama", "mistral", "gpt2", "gemma3", "cohere2", "falcon_new", "starcoder2", "opt"]
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
    },
}


@pytest.mark.parametrize("family", DOUBLES)
def test_they_are_the_same_function_when_rounding_is_taken_away(family: str) -> None:
    lm, batch = tiny_lm(family, torch.float64), tiny_batch(LONG)
    loss, gradient = loss_and_gradient(lm, batch, None)
    cached_loss, cached_gradient = loss_and_gradient(lm, batch, lm.prefix(batch))
    assert relative(cached_loss, loss) < 1e-12
    assert relative(cached_gradient, gradient) < 1e-12


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v3"])
def test_a_cache_can_be_used_again_and_again(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch(LONG)
    prefix = lm.prefix(batch)
    size, first = prefix.nbytes, lm.logits(batch, prefix)
    for _ in range(3):
        assert torch.equal(lm.logits(batch, prefix), first)
    assert prefix.nbytes == size > 0


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3"])
@pytest.mark.parametrize("index", [[3, 0], torch.tensor([3, 0]), slice(1, 3)])
def test_rows_of_the_cache_belong_to_rows_of_the_batch(family: str, index: Any) -> None:
    lm, batch = tiny_lm(family), tiny_batch(LONG)
    prefix = lm.prefix(batch)
    part = lm.logits(batch.rows(index), prefix.rows(index))
    torch.testing.assert_close(part, lm.logits(batch, prefix)[index], rtol=1e-4, atol=1e-5)
    assert len(prefix.rows(index)) == 2


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_chunks_are_joined_in_order_and_reported(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch(LONG)
    seen: list[tuple[int, int]] = []
    chunked = lm.prefix(batch, rows_per_chunk=3, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(3, 4), (4, 4)]
    assert len(chunked) == 4
    whole = lm.logits(batch, lm.prefix(batch))
    torch.testing.assert_close(lm.logits(batch, chunked), whole, rtol=1e-4, atol=1e-5)


def test_prompts_of_one_token_have_an_empty_prefix() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch((1, 1, 1))
    prefix = lm.prefix(batch)
    assert (prefix.columns, prefix.nbytes, len(prefix)) == (0, 0, 3)
    assert torch.equal(lm.logits(batch, prefix), lm.logits(batch))
    assert len(prefix.rows([1])) == 1


def test_taps_see_the_predicting_columns_alone() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch(LONG)
    with read_heads(lm, columns=batch.predicting) as full:
        lm.logits(batch)
    with read_heads(lm) as cached:
        lm.logits(batch, lm.prefix(batch))
    torch.testing.assert_close(cached.flat(), full.flat(), rtol=1e-4, atol=1e-5)


def test_the_prefix_holds_no_graph() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch(LONG)
    gates = torch.ones(lm.layout.total, requires_grad=True)
    with gate_heads(lm, gates):
        prefix = lm.prefix(batch)
    cache = prefix.fresh()
    assert not any(layer.keys.requires_grad for layer in cache.layers)


def test_a_prefix_of_other_rows_or_columns_is_refused() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch(LONG)
    with pytest.raises(HeadlocError, match="same rows of both"):
        lm.logits(batch.rows([0, 1]), lm.prefix(batch))
    with pytest.raises(HeadlocError, match="10 columns"):
        lm.logits(batch, lm.prefix(tiny_batch((4, 4, 4, 4))))
    with pytest.raises(HeadlocError, match="rows_per_chunk"):
        lm.prefix(batch, rows_per_chunk=0)


@pytest.mark.parametrize("name", list(HYBRIDS))
def test_models_with_recurrent_state_fall_back_to_the_full_pass(name: str) -> None:
    lm = FrozenLM(tiny_model(name, **HYBRIDS[name]))
    batch = tiny_batch(LONG)
    assert [heads.layer for heads in lm.layout.layers] == [1]
    assert not lm.supports_prefix_cache
    assert lm.logits(batch).isfinite().all()
    with pytest.raises(UnsupportedModelError, match="cache layer"):
        lm.prefix(batch)


def test_a_cache_that_changes_the_answer_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = FrozenLM(tiny_model("llama"))
    original = lm.prefix

    def forgetful(batch: TokenBatch) -> PrefixCache:
        prefix = original(batch)
        for layer in prefix._cache.layers:  # type: ignore[union-attr]
            layer.values = torch.zeros_like(layer.values)
        return prefix

    monkeypatch.setattr(lm, "prefix", forgetful)
    assert not lm.supports_prefix_cache
