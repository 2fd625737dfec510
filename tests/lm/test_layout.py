"""Heads are located, proved, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm import FrozenLM, gate_heads, locate_heads, read_heads
from headloc.lm.families import FAMILIES as TABLE
from tests.tiny import hook_count, tiny_batch, tiny_lm, tiny_model

GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 61,
    "num_kv_shared_layers": 0,
}


def test_sites_are_named_by_module() -> None:
    sites = tiny_lm("gpt_neo").sites
    assert [site.layer for site in sites] == [0, 1]
    assert sites[1].block == "transformer.h.1"
    assert sites[1].attention == "transformer.h.1.attn.attention"
    assert sites[1].projection == "transformer.h.1.attn.attention.out_proj"


def test_a_family_outside_the_table_is_found_by_structure() -> None:
    lm = FrozenLM(tiny_model("persimmon"))
    assert "persimmon" not in TABLE
    assert lm.family.layers == "model.layers"
    assert (lm.family.attention, lm.family.out_proj) == ("self_attn", "dense")
    assert lm.supports_prefix_cache
    batch = tiny_batch()
    before = lm.logits(batch)
    with gate_heads(lm, torch.ones(lm.layout.total)):
        assert torch.equal(lm.logits(batch), before)


def test_layers_may_differ_in_width() -> None:
    lm, batch = FrozenLM(tiny_model("gemma4_text", **GEMMA4)), tiny_batch()
    assert [heads.width for heads in lm.layout.layers] == [8, 16]
    before = lm.logits(batch)
    off = [torch.ones(heads.heads, heads.width) for heads in lm.layout.layers]
    with gate_heads(lm, torch.ones(lm.layout.total), off=off), read_heads(lm) as reading:
        assert torch.equal(lm.logits(batch), before)
    assert [z.shape[-1] for z in reading.z] == [8, 16]
    with pytest.raises(HeadlocError, match=r"widths \[8, 16\]"):
        reading.flat()


def test_only_layers_with_attention_have_heads() -> None:
    options = {"layer_types": ["conv", "full_attention"]}
    lm = FrozenLM(tiny_model("lfm2", **options))
    assert next(iter(lm.layout)) == HeadId(1, 0)
    assert lm.source.layers == 1


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("mamba", "No attention layer"), ("diffllama", "work in pairs")],
)
def test_models_without_separable_heads_are_refused(model_type: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        FrozenLM(tiny_model(model_type))


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=20)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        FrozenLM(T5ForConditionalGeneration(config))


def test_a_model_without_its_language_model_head_is_refused() -> None:
    from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 20}
    for bare in (
        LlamaModel(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes)),
        GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20)),
    ):
        with pytest.raises(UnsupportedModelError, match="AutoModelForCausalLM"):
            FrozenLM(bare)


def test_a_projection_that_does_not_fire_is_refused() -> None:
    # With pretraining_tp > 1, bloom multiplies slices of the weight and never calls the module.
    model = tiny_model("bloom", pretraining_tp=2, slow_but_exact=True)
    with pytest.raises(UnsupportedModelError, match="it fired 0 times"):
        FrozenLM(model)
    assert hook_count(model) == 0


def test_a_head_count_that_does_not_divide_the_input_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_attention_heads = 5
    with pytest.raises(UnsupportedModelError, match="multiple of 5 heads, but it is 32"):
        FrozenLM(model)


def test_a_model_that_does_not_run_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise IndexError("no such thing")

    model = tiny_model("llama")
    model.model.layers[1].mlp = Broken()
    with pytest.raises(UnsupportedModelError, match="IndexError: no such thing"):
        FrozenLM(model)
    assert hook_count(model) == 0


def test_two_stacks_of_attention_are_refused() -> None:
    model = tiny_model("llama")
    model.config.model_type = "mystery"
    model.model.more = nn.ModuleList(tiny_model("llama", seed=1).model.layers)
    with pytest.raises(UnsupportedModelError, match="do not form one stack"):
        locate_heads(model)
