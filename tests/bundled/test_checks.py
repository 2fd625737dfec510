"""The checks' own parts: intervals, elimination, gates, function vectors, label shuffling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from headloc.bundled.card import write_card
from headloc.bundled.check_heads import eliminate, knock_out, token_groups
from headloc.bundled.check_vectors import VectorTest, shuffle_labels, task_means
from headloc.bundled.figures import Figure
from headloc.bundled.mixture import AddKPrompts, step_generator
from headloc.bundled.probes import CachedPrompts, accuracy, gated, head_outputs, last_logits
from headloc.bundled.recipe import AddKMix, Recipe
from headloc.bundled.task_vectors import adding
from headloc.bundled.tokenizer import build_tokenizer
from headloc.bundled.training import build_model
from headloc.bundled.vocabulary import Attempt

RECIPE = Recipe.from_dict(
    {"architecture": {"layers": 3, "heads": 4, "kv_heads": 2, "head_width": 8, "width": 16}}
)
TOKENIZER = build_tokenizer()
PROMPTS = AddKPrompts(TOKENIZER.get_vocab(), AddKMix())
OFFSETS_B = torch.tensor([3, 3, 9, 9])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build_model(RECIPE, TOKENIZER).eval().requires_grad_(False)


def test_wilson_interval() -> None:
    figure = Figure.share(90, 100)
    assert figure.value == 0.9
    assert figure.low == pytest.approx(0.8256, abs=1e-3)
    assert figure.high == pytest.approx(0.9448, abs=1e-3)
    assert Figure.share(0, 10).low == 0.0


def test_elimination_keeps_the_heads_that_count() -> None:
    worth = torch.tensor([[0.0, 5.0], [1.0, 3.0]])

    def score(gates_LH: Tensor) -> float:
        return float((gates_LH * worth).sum())

    found = eliminate(score, (2, 2))
    assert found.order == ((0, 0), (1, 0), (1, 1), (0, 1))
    assert found.scores == (9.0, 8.0, 5.0, 0.0)
    assert found.gates(2, (2, 2)).tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_cached_last_token_equals_the_full_pass(model: LlamaForCausalLM) -> None:
    batch = PROMPTS.scored(OFFSETS_B, 5, 0.0, step_generator(1, 0))
    cached = CachedPrompts(model, batch)
    full_BV = last_logits(model, batch.ids_BT)
    for _ in range(2):
        torch.testing.assert_close(cached.logits(), full_BV, rtol=1e-4, atol=1e-5)
    base_BLZ = head_outputs(model, batch.ids_BT)
    with gated(model, torch.zeros(3, 4), base_BLZ):
        torch.testing.assert_close(cached.logits(), full_BV, rtol=1e-4, atol=1e-5)
    with gated(model, torch.zeros(3, 4), torch.zeros_like(base_BLZ)):
        assert not torch.allclose(cached.logits(), full_BV)


def test_function_vectors_are_sums_of_head_contributions(model: LlamaForCausalLM) -> None:
    few_shot = PROMPTS.scored(OFFSETS_B, 5, 0.0, step_generator(2, 0))
    zero_shot = PROMPTS.zero_shot(OFFSETS_B, step_generator(3, 0))
    means = task_means(model, few_shot, tasks=2)
    assert means.contributions.shape == (2, 3, 4, 16)
    one_layer = torch.zeros(3, 4)
    one_layer[1] = 1.0
    projection = model.model.layers[1].self_attn.o_proj
    vectors_BD = projection(means.outputs[:, 1]).repeat_interleave(2, dim=0)
    with adding(model, 1, vectors_BD):
        wanted_BV = last_logits(model, zero_shot.ids_BT)
    torch.testing.assert_close(VectorTest(model, means, zero_shot).logits(one_layer, 1), wanted_BV)


def test_shuffled_labels_all_move() -> None:
    batch = PROMPTS.scored(OFFSETS_B, 5, 0.0, step_generator(4, 0))
    shuffled = shuffle_labels(batch, 5, step_generator(5, 0))
    positions = token_groups(5)["labels"]
    before_BN, after_BN = batch.ids_BT[:, positions], shuffled.ids_BT[:, positions]
    assert not (before_BN == after_BN).any()
    assert torch.equal(before_BN.sort(dim=1).values, after_BN.sort(dim=1).values)
    assert torch.equal(batch.ids_BT[:, ~positions], shuffled.ids_BT[:, ~positions])


def test_knocking_out_nothing_changes_nothing(model: LlamaForCausalLM) -> None:
    batch = PROMPTS.scored(OFFSETS_B, 5, 0.0, step_generator(6, 0))
    nothing_T = torch.zeros(23, dtype=torch.bool)
    plain = accuracy(last_logits(model, batch.ids_BT), batch.answers_B)
    assert knock_out(model, batch, nothing_T) == plain
    groups = torch.stack(list(token_groups(5).values()))
    assert groups.sum(dim=0).tolist() == [0] + [1] * 20 + [0, 0]


def test_card_lists_figures_curve_and_attempts(tmp_path: Path) -> None:
    curve = [{"step": 25, "seconds": 60.0, "loss": 1.5, "add_k/accuracy": 0.25}]
    figures = {"facts/all": Figure.share(9, 10), "heads/total": Figure(12, 0)}
    attempts = [Attempt("More depth.", "No gain.")]
    path = write_card(tmp_path, RECIPE, figures, curve, 1234, attempts)
    card = path.read_text(encoding="utf-8")
    assert "| facts/all | 0.900 [0.596, 0.982] | 10 |" in card
    assert "| 25 | 60 | 1.5 | 0.25 |" in card
    assert "* **More depth.** No gain." in card
    assert "1,234 parameters" in card
