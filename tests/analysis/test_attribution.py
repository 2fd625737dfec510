"""Parts of the stream sum to the logits on every family; scores telescope; the top k is exact."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from headloc.analysis.candidates import attention_candidates, mlp_candidates
from headloc.analysis.log_increase import (
    increase,
    layer_scores,
    log_probability,
    part_increase,
)
from headloc.analysis.reading import read_heads_of
from headloc.analysis.stream_reading import read_parts
from headloc.analysis.top_neurons import full_top_neurons, top_neurons
from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.lm.frozen import FrozenLM
from tests.architectures.attribution import batch_for, read
from tests.tiny import tiny_batch, tiny_lm, tiny_model

CORE = ["llama", "gpt2", "gpt_neox", "gemma2", "falcon_new", "phi3", "granite", "cohere"]


@pytest.mark.parametrize("family", CORE)
def test_block_scores_telescope(family: str) -> None:
    lm = tiny_lm(family, torch.float64)
    reading, readout = read(lm, batch_for(family))
    scores = layer_scores(reading, readout)
    total_B = scores.embedding_B + scores.attention_BL.sum(1) + scores.mlp_BL.sum(1)
    model_B = reading.logits_BV.log_softmax(-1).gather(1, readout.target_B[:, None])[:, 0]
    torch.testing.assert_close(total_B, model_B, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
    ],
    ids=["granite", "cohere", "gemma2"],
)
def test_logits_that_a_family_scales_or_caps_are_the_model_s_own(
    family: str, options: dict[str, float]
) -> None:
    plain = tiny_lm(family, torch.float64)
    lm = FrozenLM(tiny_model(family, dtype=torch.float64, **options))
    reading, readout = read(lm, batch_for(family))
    torch.testing.assert_close(readout.base(reading.final_BD), reading.logits_BV)
    # The option does something to this model.
    other, _ = read(plain, batch_for(family))
    assert not torch.allclose(reading.logits_BV, other.logits_BV, rtol=0.1)


def test_the_closed_form_is_the_difference_of_log_probabilities_and_below_its_bound() -> None:
    lm = tiny_lm("gpt2", torch.float64)
    reading, readout = read(lm, tiny_batch())
    layer = reading.layers[1]
    found_BH = part_increase(readout, layer.input_BD, layer.heads_BHD, parts_per_pass=4)
    start_B = log_probability(readout, layer.input_BD)
    for head in range(found_BH.shape[1]):
        moved_B = log_probability(readout, layer.input_BD + layer.heads_BHD[:, head])
        torch.testing.assert_close(found_BH[:, head], moved_B - start_B, rtol=1e-9, atol=1e-9)
    base_BV = readout.base(layer.input_BD)
    p_BV = base_BV.softmax(-1)
    logits_BSV = readout.parts(layer.heads_BHD)
    target_BS1 = readout.target_B[:, None, None].expand(*logits_BSV.shape[:2], 1)
    bound_BS = logits_BSV.gather(2, target_BS1)[..., 0] - (p_BV[:, None] * logits_BSV).sum(-1)
    assert bool((increase(readout, base_BV, logits_BSV) <= bound_BS + 1e-12).all())


@pytest.mark.parametrize("family", CORE)
@pytest.mark.parametrize("k", [1, 7])
def test_the_top_neurons_are_those_of_the_full_computation(family: str, k: int) -> None:
    lm = tiny_lm(family, torch.float64)
    reading, readout = read(lm, batch_for(family))
    banks = mlp_candidates(lm, reading)
    fast = top_neurons(readout, banks, k, parts_per_pass=8)
    full = full_top_neurons(readout, banks, k)
    assert torch.equal(fast.layer_Bk, full.layer_Bk)
    assert torch.equal(fast.neuron_Bk, full.neuron_Bk)
    torch.testing.assert_close(fast.score_Bk, full.score_Bk, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(fast.coefficient_Bk, full.coefficient_Bk)
    assert fast.rescored < fast.total == full.total
    for better, worse in pairwise(fast.score_Bk.unbind(1)):
        assert bool((better >= worse).all())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "phi"])
def test_attention_neurons_sum_to_the_heads_and_are_searched_exactly(family: str) -> None:
    lm = tiny_lm(family, torch.float64)
    batch = tiny_batch((6, 4, 5))
    reading, readout = read(lm, batch)
    heads = read_heads_of(lm, batch, list(lm.layout))
    banks = attention_candidates(lm, reading, heads)
    for layer, bank in zip(reading.layers, banks, strict=True):
        index_M = torch.arange(bank.coefficient_BNT[0].numel()).expand(len(batch), -1)
        whole_BD = bank.parts(index_M).sum(1)
        torch.testing.assert_close(whole_BD, layer.heads_BHD.sum(1), rtol=1e-7, atol=1e-9)
    fast, full = top_neurons(readout, banks, 5, 8), full_top_neurons(readout, banks, 5)
    assert torch.equal(fast.neuron_Bk, full.neuron_Bk)
    assert torch.equal(fast.column_Bk, full.column_Bk)


def test_what_does_not_add_up_is_refused() -> None:
    # This OPT normalises the stream itself behind every block.
    post_norm = FrozenLM(tiny_model("opt", do_layer_norm_before=False))
    with pytest.raises(UnsupportedModelError, match="norm on the stream itself"):
        read_parts(post_norm, tiny_batch())
    lm = tiny_lm("mixtral")
    reading, readout = read(lm, tiny_batch())
    assert reading.layers[0].neurons.reason == "it is a mixture of experts"
    with pytest.raises(HeadlocError, match="no layer whose neurons"):
        top_neurons(readout, mlp_candidates(lm, reading), 3)
    with pytest.raises(HeadlocError, match="1 or more"):
        top_neurons(readout, mlp_candidates(lm, reading), 0)
