"""Scores against the model's own attention, their split against float64, and retrieval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headloc.analysis.attention_seen import Seen, seeing
from headloc.analysis.base import NotApplicable
from headloc.analysis.bilinear import bilinear_spectrum
from headloc.analysis.position_terms import Scheme, split_scores
from headloc.analysis.query_key_maps import QueryKeyMap
from headloc.analysis.rank_correlation import head_correlation, prompt_correlation, spearman
from headloc.analysis.reading import prompt_only, read_heads_of
from headloc.analysis.retrieval import auroc, retrieval
from headloc.analysis.tower_reading import read_towers, towers_of
from headloc.analysis.towers import TowersAnalysis
from headloc.errors import UnsupportedModelError
from tests.analysis.label_subjects import bundled_label_subject, label_subject
from tests.analysis.subjects import bundled_lm, quiet, tiny_subject
from tests.architectures.scores import eager_attention
from tests.tiny import LAYERS, tiny_batch, tiny_lm, tiny_model

DOUBLE = torch.float64
ROTARY = ("llama", "gpt_neox", "phi3", "falcon_new")


@pytest.mark.parametrize("family", ROTARY)
def test_content_is_what_attention_would_be_without_rotation(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(family, DOUBLE)
    batch = prompt_only(tiny_batch((8, 8)))
    towers = towers_of(lm, [0])
    with seeing(lm, [0]) as seen:
        lm.logits(batch)
    rotary = next(m for n, m in lm.model.named_modules() if n.endswith("rotary_emb"))
    plain = type(rotary).forward

    def unturned(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        cos, sin = plain(self, *args, **kwargs)
        return torch.ones_like(cos), torch.zeros_like(sin)

    monkeypatch.setattr(type(rotary), "forward", unturned)
    # The first layer reads the same stream either way.
    expected_BHT = eager_attention(family, batch)[0]
    content_BHT = towers[0].scores(seen[0]).content_BHC
    content_BHT = content_BHT.masked_fill(expected_BHT == 0, -math.inf)
    assert torch.allclose(content_BHT.softmax(-1), expected_BHT.double(), atol=3e-7)


@pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode"])
def test_content_leaves_out_the_learned_position_that_the_stream_carries(family: str) -> None:
    lm = tiny_lm(family, DOUBLE)
    batch = prompt_only(tiny_batch((9, 9)))
    towers = towers_of(lm, range(LAYERS))
    with seeing(lm, range(LAYERS)) as seen:
        # A model of its own: transformers leaves hooks behind that collect hidden states.
        model = tiny_model(family, dtype=DOUBLE)
        streams = model(input_ids=batch.ids_BT, output_hidden_states=True).hidden_states
        lm.logits(batch)
    wpe_TD = lm.model.transformer.wpe.weight[:9]
    for position, block in enumerate(lm.model.transformer.h):
        x_BTD = streams[position]
        mean, spread = x_BTD.mean(-1, keepdim=True), x_BTD.var(-1, unbiased=False, keepdim=True)
        rest_BTD = x_BTD - mean - (wpe_TD - wpe_TD.mean(-1, keepdim=True))
        norm = block.ln_1
        n_BTD = rest_BTD / (spread + norm.eps).sqrt() * norm.weight + norm.bias
        fused = block.attn.c_attn
        weight_DO = fused.weight if family == "gpt2" else fused.weight.T
        qkv_BTO = n_BTD @ weight_DO + fused.bias
        q_BTHd = qkv_BTO[..., :32].unflatten(-1, (4, 8))
        k_BTKd = qkv_BTO[..., 32 : 32 + 8 * (4 if family == "gpt2" else 1)].unflatten(-1, (-1, 8))
        k_BTHd = k_BTKd.expand(-1, -1, 4, -1)
        expected = torch.einsum("bhd,bthd->bht", q_BTHd[:, -1], k_BTHd) / math.sqrt(8)
        content = towers[position].scores(seen[position]).content_BHC
        # The norm of a tiny model rounds on the way; what is split off is nothing like it.
        assert torch.allclose(content, expected, atol=1e-6)
        total = towers[position].scores(seen[position]).total_BHC
        assert (total - expected).abs().max() > 0.05


def test_a_bias_by_distance_is_position_alone() -> None:
    lm = tiny_lm("falcon_alibi", DOUBLE)
    batch = prompt_only(tiny_batch((8, 8)))
    towers = towers_of(lm, [1])
    with seeing(lm, [1]) as seen:
        lm.logits(batch)
    position_BHT = towers[1].scores(seen[1]).position_BHC
    slopes_H = torch.tensor([2.0 ** (-2 * (h + 1)) for h in range(4)], dtype=DOUBLE)
    expected = slopes_H[:, None] * torch.arange(8) / math.sqrt(8)
    assert torch.allclose(position_BHT, expected.expand(2, -1, -1), atol=1e-2 * expected.max())
    # With output_attentions Falcon adds its bias twice: the reference is read through the values.
    attention_BHT = read_heads_of(lm, batch, list(lm.layout)[4:])[1].attention_BHT
    total_BHT = towers[1].scores(seen[1]).total_BHC
    assert torch.allclose(total_BHT.softmax(-1), attention_BHT, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "phi3", "falcon_new", "gpt_bigcode"])
def test_grouped_queries_share_their_own_key_head(family: str) -> None:
    lm = tiny_lm(family, DOUBLE)
    maps = towers_of(lm, [0])[0].maps
    n_BTD = torch.randn(1, 3, 32, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    q, k = maps.queries(n_BTD)[0, -1], maps.keys(n_BTD)[0]
    for head in range(4):
        query_dD, key_dD = maps.of_head(head)
        group = 4 // len(maps.key_KdD)
        own_T = n_BTD[0] @ key_dD.T @ query_dD @ n_BTD[0, -1]
        bias_q, bias_k = maps.query_bias_Hd[head], maps.key_bias_Kd[head // group]
        full_T = (n_BTD[0] @ key_dD.T + bias_k) @ (query_dD @ n_BTD[0, -1] + bias_q)
        assert torch.allclose(k[:, head // group] @ q[head], full_T)
        if not bias_q.any():
            assert torch.allclose(full_T, own_T)


def test_what_is_no_inner_product_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="soft cap"):
        towers_of(tiny_lm("gemma2", DOUBLE), [0])
    with pytest.raises(UnsupportedModelError, match="do not give the model's attention"):
        towers_of(tiny_lm("gptj", DOUBLE), [0])


def test_reading_picks_the_same_scores_as_all_columns() -> None:
    lm = tiny_lm("llama", DOUBLE)
    batch = tiny_batch((9, 9))
    towers = towers_of(lm, range(LAYERS))
    columns = torch.tensor([[1, 4, 6], [2, 3, 7]])
    with seeing(lm, range(LAYERS)) as seen:
        lm.logits(prompt_only(batch))
    for position, one in read_towers(lm, batch, towers, columns):
        whole = towers[position].scores(seen[position])
        for kind in ("content_BHC", "position_BHC"):
            picked = getattr(whole, kind).gather(2, columns[:, None].expand(-1, 4, -1))
            assert torch.allclose(getattr(one.scores, kind), picked, atol=1e-9)


def _planted(query_dD: Tensor, key_dD: Tensor, prompts: int) -> tuple[Any, Any, Any]:
    """Scores of a head whose inputs are class directions plus noise, and the labels."""
    rng = torch.Generator().manual_seed(1)
    classes_CD = torch.eye(2, 12, dtype=DOUBLE)
    shown = torch.tensor([[0, 1, 1, 0, 1, 0]]).expand(prompts, -1)
    asked = torch.arange(prompts) % 2
    noise = torch.randn(prompts, 7, 12, dtype=DOUBLE, generator=rng)
    noise[..., :2] = 0
    n_BCD = classes_CD[torch.cat([shown, asked[:, None]], dim=1)] + noise
    maps = QueryKeyMap(
        query_dD[None], torch.zeros(1, 4, dtype=DOUBLE), key_dD[None],
        torch.zeros(1, 4, dtype=DOUBLE), 0.5,
    )  # fmt: skip
    scores = split_scores(maps, Scheme(), Seen(n_BCD))
    return scores.total_BHC[:, 0, :-1].numpy(), shown.numpy(), asked.numpy()


def test_a_planted_metric_retrieves_everything_and_a_random_one_nothing() -> None:
    plane_dD = torch.eye(4, 12, dtype=DOUBLE)
    plane_dD[2:] = 0
    found = retrieval(*_planted(plane_dD, plane_dD, 200))
    assert {name: float(value.mean()) for name, value in found.items()} == {
        "auroc": 1.0, "precision_at_1": 1.0, "reciprocal_rank": 1.0, "knn_accuracy": 1.0
    }  # fmt: skip
    noise_dD = torch.zeros(4, 12, dtype=DOUBLE)
    noise_dD[:, 2:] = torch.randn(4, 10, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    found = retrieval(*_planted(noise_dD, noise_dD.flip(0), 2000))
    assert abs(found["auroc"].mean() - 0.5) < 4 * found["auroc"].std() / math.sqrt(2000)
    opposite = retrieval(*_planted(plane_dD, -plane_dD, 200))
    assert opposite["auroc"].max() == 0
    assert opposite["reciprocal_rank"].max() == 1 / 4


def test_auroc_counts_pairs_and_ties() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(4, size=(50, 5)).astype(float)
    same = rng.integers(2, size=(50, 5)).astype(bool)
    for row, found in enumerate(auroc(score, same)):
        pairs = [
            (score[row, i] > score[row, j]) + 0.5 * (score[row, i] == score[row, j])
            for i in range(5) for j in range(5) if same[row, i] and not same[row, j]
        ]  # fmt: skip
        assert np.isnan(found) if not pairs else found == pytest.approx(np.mean(pairs))


def test_spectrum_is_that_of_the_whole_form() -> None:
    rng = torch.Generator().manual_seed(0)
    query, key = (torch.randn(5, 20, dtype=DOUBLE, generator=rng) for _ in range(2))
    found, whole = bilinear_spectrum(query, key), query.T @ key
    assert torch.allclose(found.singular_d, torch.linalg.svdvals(whole)[:5])
    symmetric = (whole + whole.T) / 2
    values = torch.linalg.eigvalsh(symmetric)
    assert found.symmetric_share == pytest.approx(float((symmetric**2).sum() / (whole**2).sum()))
    assert found.positive_share == pytest.approx(
        float(values.clamp(min=0).sum() / values.abs().sum())
    )
    metric = bilinear_spectrum(query, query)
    assert metric.symmetric_share == pytest.approx(1)
    assert metric.positive_share == pytest.approx(1)


def test_correlations_find_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    pearson, ranked = prompt_correlation(x, 2 * x + 0.1 * rng.normal(size=400), seed=0)
    assert pearson.low > 0.99
    assert ranked.low > 0.98
    assert pearson.high <= 1
    pearson, _ = prompt_correlation(x, rng.normal(size=400), seed=0)
    assert pearson.low < 0 < pearson.high
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(np.array([1, 1, 2]), np.array([0, 0, 5])) == pytest.approx(1)
    assert head_correlation(x[:40], x[:40] ** 3, seed=0).low == pytest.approx(1)


def test_the_bundled_models_heads_hold_towers() -> None:
    subject = bundled_label_subject()
    found = TowersAnalysis(prompts=96, random_sets=20, pictured_prompts=8).run(subject, quiet)
    table = next(t for t in found.tables if t.name == "retrieval")
    aurocs = {r[0]: r[4] for r in table.rows if r[2:4] == ["total", "auroc"]}
    assert len(aurocs) == bundled_lm().layout.total
    assert max(aurocs.values()) > 0.95
    assert min(aurocs.values()) < 0.6
    assert found.scalars["accuracy/within_labels"] >= found.scalars["accuracy/full_vocabulary"]
    for picture in found.pictures:
        assert picture.draw().axes


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_the_analysis_runs_on_other_families(family: str) -> None:
    found = TowersAnalysis(prompts=8, random_sets=5, pictured_prompts=4).run(
        label_subject(family), quiet
    )
    assert {"auroc/circuit", "auroc/stream", "auroc_to_gate/spearman"} <= set(found.scalars)


def test_tasks_without_labels_are_refused() -> None:
    with pytest.raises(NotApplicable, match="closed set"):
        TowersAnalysis(prompts=4).run(tiny_subject(), quiet)
