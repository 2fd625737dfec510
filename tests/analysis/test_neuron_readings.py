"""Query shares, ablations, alternative scores and vocabulary readings against brute force."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.analysis.candidates import mlp_candidates
from headloc.analysis.log_increase import log_probability
from headloc.analysis.neuron_ablation import outcome, zeroed_heads, zeroed_neurons
from headloc.analysis.neurons import affine, subkeys_of
from headloc.analysis.part_scores import SCORES, neuron_scores
from headloc.analysis.queries import attention_subkeys, contributions, feed_forward_subkeys
from headloc.analysis.reading import read_heads_of
from headloc.analysis.stream_reading import read_parts
from headloc.analysis.stream_rows import answer_positions, cut_at, rows_that_fit
from headloc.analysis.top_neurons import first_order, full_top_neurons, numbered, scores_of
from headloc.analysis.unembedding import readout_of
from headloc.analysis.value_maps import value_maps
from headloc.analysis.vocabulary import prompt_free, read_directions, through_head
from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from tests.tiny import tiny_batch, tiny_lm

LENGTHS = (6, 4, 5)
EXACT = {"rtol": 1e-7, "atol": 1e-9}
DENSE = [
    "apertus", "cohere", "falcon_new", "gemma2", "gemma3", "glm4", "gpt2", "gpt_neox", "granite",
    "llama", "llama_wide", "olmo2", "opt", "phi", "phi3", "starcoder2",
]  # fmt: skip


def batch_for(family: str) -> Any:
    # transformers gives NaN for left-padded prompts of gemma2 in double precision.
    return tiny_batch((6, 6, 6)) if family == "gemma2" else tiny_batch(LENGTHS)


def first_projection(lm: FrozenLM, names: tuple[str, ...], batch: Any) -> dict[str, Tensor]:
    """What the first projection puts out at the last prompt token, by kind, from a plain hook."""
    seen: dict[str, Tensor] = {}
    handles = [
        lm.model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out.detach()})
        )
        for name in names
    ]
    lm.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT,
             **({"position_ids": batch.position_ids_BT} if lm.takes_positions else {}))  # fmt: skip
    for handle in handles:
        handle.remove()
    last = batch.prompt_columns - 1
    rows = len(batch.ids_BT)
    out = [
        (x.unflatten(0, (rows, -1)) if x.ndim == 2 else x)[:, last]
        for x in (seen[n] for n in names)
    ]
    if len(out) == 1:
        kinds = ("gate", "up") if "gate_up" in names[0] else ("up",)
        return dict(zip(kinds, out[0].chunk(len(kinds), -1), strict=True))
    return {"gate": out[0], "up": out[1]}


@pytest.mark.parametrize("family", DENSE)
@torch.no_grad()
def test_shares_of_a_neuron_sum_to_its_pre_activation(family: str) -> None:
    lm, batch = tiny_lm(family, torch.float64), batch_for(family)
    reading = read_parts(lm, batch)
    banks = mlp_candidates(lm, reading)
    neuron_K = torch.tensor([0, 3, 17])
    layer = reading.layers[1]
    true = first_projection(lm, layer.neurons.up, batch)
    keys = feed_forward_subkeys(lm, layer, 1, neuron_K)
    assert set(keys) == set(true) == set(subkeys_of(lm, layer.neurons))
    for kind, subkeys in keys.items():
        found = contributions(reading, 1, subkeys, banks)
        # Most norms compute in float32 whatever the model's precision.
        torch.testing.assert_close(found.total_K, true[kind][1, neuron_K], rtol=1e-5, atol=1e-6)
        for place, of_heads in enumerate(found.heads):
            own = reading.layers[place]
            rest_D = own.attention_BD[1] - own.heads_BHD[1].sum(0)
            summed_K = of_heads.sum(1) + subkeys.direction_KD @ rest_D
            torch.testing.assert_close(summed_K, found.attention_KL[:, place], **EXACT)
        embedding_K, attention_KL, mlp_KL = found.block_shares()
        size_K = embedding_K.abs() + attention_KL.abs().sum(1) + mlp_KL.abs().sum(1)
        torch.testing.assert_close(size_K, torch.ones_like(size_K))
        shares = [part for part in found.neuron_shares() if part is not None]
        whole_K = torch.stack([part.abs().sum(1) for part in shares]).sum(0)
        torch.testing.assert_close(whole_K, torch.ones_like(whole_K))


@torch.no_grad()
def test_single_contributions_are_inner_products_with_both_subkeys() -> None:
    lm, batch = tiny_lm("llama", torch.float64), tiny_batch(LENGTHS)
    reading = read_parts(lm, batch)
    model: Any = lm.model
    target, earlier = model.model.layers[1], model.model.layers[0]
    row, neuron, source = 2, 5, 9
    x_D = reading.layers[1].middle_BD[row]
    scale = (x_D.square().mean() + target.post_attention_layernorm.variance_epsilon).rsqrt()
    gamma_D = target.post_attention_layernorm.weight
    m = reading.layers[0].coefficients_BN
    assert m is not None
    added_D = m[row, source] * earlier.mlp.down_proj.weight[:, source]
    o_D = reading.layers[0].heads_BHD[row, 3]
    keys = feed_forward_subkeys(lm, reading.layers[1], row, torch.tensor([neuron]))
    for kind, module in (("gate", target.mlp.gate_proj), ("up", target.mlp.up_proj)):
        found = contributions(reading, row, keys[kind], mlp_candidates(lm, reading))
        key_D = module.weight[neuron]
        of_neurons = found.neurons[0]
        assert of_neurons is not None
        expected = (scale * gamma_D * added_D) @ key_D
        torch.testing.assert_close(of_neurons[0, source], expected, rtol=1e-5, atol=1e-8)
        expected = (scale * gamma_D * o_D) @ key_D
        torch.testing.assert_close(found.heads[0][0, 3], expected, rtol=1e-5, atol=1e-8)
        assert found.neurons[1] is None
        assert found.mlp_KL[0, 1] == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "falcon_new", "gemma3",
                                    "deepseek_v3"])  # fmt: skip
@torch.no_grad()
def test_shares_of_an_attention_neuron_sum_to_its_value_at_the_source(family: str) -> None:
    single = family == "deepseek_v3"
    lm = tiny_lm(family, torch.float32 if single else torch.float64)
    batch = tiny_batch(LENGTHS)
    heads = read_heads_of(lm, batch, list(lm.layout))
    maps = value_maps(lm, [0, 1])
    row, head, dimension = 1, 3, 2
    columns = [i for i, m in enumerate(batch.mask_BT[row, : batch.prompt_columns]) if m]
    cut = cut_at(lm, batch, [row] * len(columns), columns)
    reading = read_parts(lm, cut)
    for place, column in enumerate(columns):
        value_dD, bias_d = maps[1].of_head(head, lm.layout.layers[1].heads)
        keys = attention_subkeys(
            reading.layers[1], place, maps[1], value_dD[dimension, None], bias_d[dimension, None]
        )
        found = contributions(reading, place, keys)
        assert found.layers == (0,)
        true = heads[1].values_BHTd[row, head, column, dimension].double()
        tolerance = 1e-3 if single else 1e-5
        torch.testing.assert_close(found.total_K[0], true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_a_cut_prompt_has_the_stream_of_the_whole_one(family: str) -> None:
    lm, batch = tiny_lm(family, torch.float64), tiny_batch(LENGTHS, answers=3)
    rows, columns = answer_positions(batch, 2)
    assert len(rows) == sum(min(2, int((t >= 0).sum())) for t in batch.target_BJ)
    cut = cut_at(lm, batch, rows, columns)
    out = lm.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT,
                   position_ids=batch.position_ids_BT, output_hidden_states=True)  # fmt: skip
    reading = read_parts(lm, cut)
    for place, (row, column) in enumerate(zip(rows, columns, strict=True)):
        true_D = out.hidden_states[1][row, column]
        torch.testing.assert_close(reading.layers[1].input_BD[place], true_D)
        assert cut.target_BJ[place, 0] == batch.target_BJ[row, column - batch.prompt_columns + 1]
    padding = int((batch.mask_BT[:, 0] == 0).nonzero()[0])
    with pytest.raises(HeadlocError, match="holds no token"):
        cut_at(lm, batch, [padding], [0])
    assert rows_that_fit(lm, 10, 1.0) == 1
    assert rows_that_fit(lm, 10, 2**30) > rows_that_fit(lm, 100, 2**30) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "phi"])
@torch.no_grad()
def test_zeroing_neurons_and_heads_is_zeroing_their_parameters(family: str) -> None:
    lm, batch = tiny_lm(family, torch.float64), tiny_batch(LENGTHS)
    chosen = [(0, 2), (1, 5), (1, 7)]
    reading = read_parts(lm, batch)
    other = FrozenLM(copy.deepcopy(lm.model))
    for layer, neuron in chosen:
        weight_DN, _ = affine(other.model.get_submodule(reading.layers[layer].neurons.down))
        weight_DN[:, neuron] = 0
    plain, expected = outcome(lm, batch), outcome(other, batch)
    with zeroed_neurons(lm, [chosen, [], chosen]):
        found = outcome(lm, batch)
    for row, true in ((0, expected), (1, plain), (2, expected)):
        torch.testing.assert_close(found.log_probability_B[row], true.log_probability_B[row])
    assert (expected.log_probability_B - plain.log_probability_B).abs().min() > 1e-9
    with zeroed_heads(lm, [[HeadId(1, 2)], [], []]):
        without = outcome(lm, batch)
    torch.testing.assert_close(without.log_probability_B[1:], plain.log_probability_B[1:])
    assert without.log_probability_B[0] != plain.log_probability_B[0]
    with (
        pytest.raises(UnsupportedModelError, match="mixture of experts"),
        zeroed_neurons(tiny_lm("mixtral"), [chosen]),
    ):
        pass


@torch.no_grad()
def test_every_score_is_what_it_says() -> None:
    lm, batch = tiny_lm("llama", torch.float64), tiny_batch(LENGTHS)
    reading = read_parts(lm, batch)
    readout = readout_of(lm, reading, batch.target_BJ[:, 0])
    banks = mlp_candidates(lm, reading)
    found = neuron_scores(readout, banks, parts_per_pass=16)
    assert tuple(found) == SCORES
    row, layer, neuron = 1, 1, 6
    number = banks[0].coefficient_BNT.shape[1] + neuron
    index = numbered(banks, torch.tensor([[layer]]), torch.tensor([[neuron]]))
    assert int(index) == number
    m = banks[1].coefficient_BNT[row, neuron, 0]
    v_D = banks[1].values_ND[neuron]
    base_BD = banks[1].base_BD
    moved_BD = base_BD.clone()
    moved_BD[row] += m * v_D
    before, after = log_probability(readout, base_BD)[row], log_probability(readout, moved_BD)[row]
    alone_V = readout.rows(slice(row, row + 1)).parts((m * v_D)[None, None])[0, 0]
    word = int(readout.target_B[row])
    rank = 1 + int((alone_V > alone_V[word]).sum())
    expected = {
        "log_probability_increase": after - before,
        "log_probability": alone_V.log_softmax(-1)[word],
        "probability_increase": after.exp() - before.exp(),
        "norm": v_D.norm(),
        "coefficient": m.abs(),
        "rank": torch.tensor(-float(rank)),
        "coefficient_norm": m.abs() * v_D.norm(),
        "coefficient_rank": m.abs() / rank,
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name][row, number], value.double(), **EXACT)
    index_BS = torch.tensor([[number, 3]]).expand(3, -1)
    exact = scores_of(readout, banks, index_BS, parts_per_pass=2)
    torch.testing.assert_close(exact, found["log_probability_increase"].gather(1, index_BS))
    bounds = torch.cat(first_order(readout, banks), 1)
    assert bool((found["log_probability_increase"] <= bounds + 1e-12).all())
    best = full_top_neurons(readout, banks, 4)
    values = found["log_probability_increase"].topk(4, dim=1).values
    torch.testing.assert_close(best.score_Bk, values)


@torch.no_grad()
def test_readings_are_signed_and_go_through_the_right_value_head() -> None:
    lm, batch = tiny_lm("llama", torch.float64), tiny_batch(LENGTHS)
    reading = read_parts(lm, batch)
    readout = prompt_free(readout_of(lm, reading, batch.target_BJ[:, 0]))
    model: Any = lm.model
    v_D = model.model.layers[0].mlp.down_proj.weight[:, 4].double()
    logits_V = model.lm_head.weight @ (model.model.norm.weight * v_D)
    own, reversed_ = read_directions(lm, readout, torch.stack([v_D, -v_D]), 5)
    assert own.top == tuple(f"#{i}" for i in logits_V.topk(5).indices.tolist())
    assert own.bottom == tuple(f"#{i}" for i in (-logits_V).topk(5).indices.tolist())
    assert reversed_.top == own.bottom
    assert reversed_.bottom_logits == tuple(-x for x in own.top_logits)
    attention = model.model.layers[1].self_attn
    layout = lm.layout.layers[1]
    for head in range(layout.heads):
        group = head // (layout.heads // layout.kv_heads)
        d = layout.width
        value_dD = attention.v_proj.weight[group * d : (group + 1) * d]
        out_Dd = attention.o_proj.weight[:, head * d : (head + 1) * d]
        n_D = model.model.layers[1].input_layernorm.weight * v_D
        expected_D = out_Dd @ (value_dD @ n_D)
        maps = value_maps(lm, [1])
        (found_D,) = through_head(lm, reading.layers[1], maps[1], head, v_D[None])
        cosine = torch.cosine_similarity(found_D, expected_D, dim=0)
        assert cosine > 1 - 1e-9
