"""Contrasts of value-output vectors against float64 by hand, copying, typing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headloc.analysis.copying import copying_score, embeddings, input_gains, token_map
from headloc.analysis.extraction import Extraction
from headloc.analysis.extraction_shown import head_type
from headloc.analysis.label_prompts import label_answers, label_set
from headloc.analysis.prompting import Chunk, label_columns
from headloc.analysis.value_outputs import read_outputs
from headloc.evaluation.intervals import Estimate
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.objectives.prompts import encode_examples
from tests.analysis.label_subjects import bundled_label_subject, label_lm, label_subject
from tests.analysis.subjects import quiet
from tests.tiny import HEADS

DOUBLE = torch.float64
FAMILIES = ("llama", "gpt2", "gpt_neox", "phi3", "falcon_new", "gpt_bigcode")


def _values(lm: FrozenLM, family: str, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B, T, H, d] and W_O [H, d, D] of a layer, by hand from its modules."""
    block: Any = lm.model.get_submodule(lm.sites[layer].block)
    if family == "llama":
        v = block.self_attn.v_proj(block.input_layernorm(x_BTD)).unflatten(-1, (2, 8))
        out = block.self_attn.o_proj.weight.T
    elif family == "phi3":
        v = block.self_attn.qkv_proj(block.input_layernorm(x_BTD))[..., 48:].unflatten(-1, (2, 8))
        out = block.self_attn.o_proj.weight.T
    elif family == "gpt_neox":
        qkv = block.attention.query_key_value(block.input_layernorm(x_BTD))
        v, out = qkv.unflatten(-1, (4, 3, 8))[..., 2, :], block.attention.dense.weight.T
    elif family == "falcon_new":
        qkv = block.self_attention.query_key_value(block.ln_attn(x_BTD))
        v, out = qkv.unflatten(-1, (2, 4, 8))[..., 3, :], block.self_attention.dense.weight.T
    else:
        v = block.attn.c_attn(block.ln_1(x_BTD))[..., -32 if family == "gpt2" else -8 :]
        v, proj = v.unflatten(-1, (-1, 8)), block.attn.c_proj.weight
        out = proj if family == "gpt2" else proj.T
    return v.repeat_interleave(HEADS // v.shape[2], dim=2), out.unflatten(0, (HEADS, 8))


def _final(lm: FrozenLM) -> Any:
    return next(
        m for n, m in lm.model.named_modules() if n.endswith((".norm", "ln_f", "final_layer_norm"))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_contrasts_are_those_of_the_vectors_by_hand(family: str) -> None:
    subject = label_subject(family)
    lm = subject.lm
    examples = subject.examples(3, "test")
    labels = label_set(lm, subject.task, examples[0])
    encoded, batch = encode_examples(lm, examples, subject.task.template)
    columns_BN = label_columns(Chunk(slice(0, 3), tuple(examples), encoded, batch, None))
    chunk = read_outputs(lm, batch, list(lm.layout), labels)
    out = lm.model(input_ids=batch.ids_BT, output_hidden_states=True, use_cache=False)
    final = _final(lm)
    seen: list[Tensor] = []
    handle = final.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    lm.model(input_ids=batch.ids_BT)
    handle.remove()
    x_BD = seen[0][:, -1]
    centred = type(final).__name__ == "LayerNorm"
    rest_BD = x_BD - x_BD.mean(-1, keepdim=True) if centred else x_BD
    eps = getattr(final, "variance_epsilon", None) or final.eps
    scale_B1 = (rest_BD.square().mean(-1, keepdim=True) + eps).rsqrt()
    unembedding = lm.model.get_output_embeddings().weight
    foo, bar = (unembedding[i] for i in labels.ids_L)
    for layer in range(2):
        values, weight = _values(lm, family, layer, out.hidden_states[layer])
        for head in range(HEADS):
            vo_BTD = values[:, :, head] @ weight[head]
            part = vo_BTD - vo_BTD.mean(-1, keepdim=True) if centred else vo_BTD
            normed = part * scale_B1[:, None] * final.weight
            expected_BT = normed @ (foo - bar)
            one = chunk.heads[HeadId(layer, head)]
            size = expected_BT.abs().max()
            assert torch.allclose(one.contrast_LBT[0], expected_BT, atol=1e-6 * float(size))
            assert torch.allclose(one.contrast_LBT[1], -expected_BT, atol=1e-6 * float(size))
            picked = vo_BTD.gather(1, columns_BN[..., None].expand(-1, -1, vo_BTD.shape[-1]))
            mine = chunk.vectors(lm, HeadId(layer, head), columns_BN)
            assert torch.allclose(mine, picked, atol=1e-9)
            z_BTd = torch.einsum("bt,btd->bd", one.attention_BT, values[:, :, head])
            alone = z_BTd @ weight[head]
            alone = alone - alone.mean(-1, keepdim=True) if centred else alone
            written = (alone * scale_B1 * final.weight) @ (foo - bar)
            assert torch.allclose(one.written_LB[0], written, atol=1e-6 * float(size))


def test_with_three_labels_the_contrast_is_the_mean_log_odds_and_sums_to_zero() -> None:
    subject = label_subject("llama", labels=("foo", "bar", "baz"), shots=6)
    examples = subject.examples(4, "test")
    labels = label_set(subject.lm, subject.task, examples[0])
    _, batch = encode_examples(subject.lm, examples, subject.task.template)
    logits_BJV = subject.lm.logits(batch)
    found = label_answers(labels, logits_BJV, batch, labels.asked(examples))
    log_p = logits_BJV[:, 0].double().log_softmax(-1)[:, labels.ids_L]
    for label in range(3):
        others = [k for k in range(3) if k != label]
        expected = sum(log_p[:, label] - log_p[:, k] for k in others) / 2
        assert np.allclose(found.contrast_BL[:, label], expected.numpy())
    assert np.abs(found.contrast_BL.sum(1)).max() < 1e-9
    assert (found.full_B <= found.within_B).all()


def test_a_head_that_copies_scores_one_and_one_that_suppresses_minus_one() -> None:
    rng = torch.Generator().manual_seed(0)
    embedding = torch.randn(40, 12, dtype=DOUBLE, generator=rng)
    read = torch.linalg.qr(torch.randn(12, 4, dtype=DOUBLE, generator=rng)).Q.T
    map_DD = token_map(embedding, embedding, rows=7)
    assert torch.allclose(map_DD, embedding.T @ embedding)
    assert copying_score(read, read, map_DD)[0] == pytest.approx(1)
    assert copying_score(read, -read, map_DD)[0] == pytest.approx(-1)
    write = torch.randn(4, 12, dtype=DOUBLE, generator=rng)
    score, values = copying_score(read, write, map_DD)
    whole = torch.linalg.eigvals(embedding @ read.T @ write @ embedding.T)
    largest = whole.abs().topk(4).indices
    assert torch.allclose(values.abs().sort().values, whole[largest].abs().sort().values)
    assert -1 < score < 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gains_are_the_weights_of_the_norms(family: str) -> None:
    lm = label_lm(family)
    gains = input_gains(lm, [0, 1])
    for layer, gain_D in gains.items():
        block: Any = lm.model.get_submodule(lm.sites[layer].block)
        weight = (block.input_layernorm if family == "llama" else block.ln_1).weight
        cosine = torch.nn.functional.cosine_similarity(gain_D, weight, dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-6)
    assert embeddings(lm)[0].shape == embeddings(lm)[1].shape


def test_heads_are_typed_by_what_they_surely_write() -> None:
    yes, no = Estimate(0.2, 0.1, 0.3, 9), Estimate(0.2, -0.1, 0.5, 9)
    names = ("foo", "bar")
    assert head_type([yes, no], names) == "foo"
    assert head_type([no, yes], names) == "bar"
    assert head_type([yes, yes], names) == "every label"
    assert head_type([no, no], names) == "none"


def test_the_analysis_reports_both_accuracies_and_every_head() -> None:
    subject = bundled_label_subject()
    found = Extraction(prompts=24, vocabulary_prompts=8, top=3, other_heads=2).run(subject, quiet)
    assert found.scalars["accuracy/within_labels"] >= found.scalars["accuracy/full_vocabulary"]
    heads = next(table for table in found.tables if table.name == "heads")
    assert len(heads.rows) == len(subject.heads) + 2
    assert all(-1 <= row[3] <= 1 for row in heads.rows)
    ranks = [r for t in found.tables if t.name == "labels" for r in t.rows if r[3] == "rank"]
    assert all(row[4] >= 1 for row in ranks)
    assert found.pictures[0].draw().axes
