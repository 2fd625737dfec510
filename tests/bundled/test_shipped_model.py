"""The shipped model's figures on small samples: what the rest of headloc may rely on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headloc.bundled import load_bundled, model_dir
from headloc.bundled.checks import SMALL, Bench
from headloc.bundled.vocabulary import facts


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    folder = model_dir()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        yield Bench(model, AutoTokenizer.from_pretrained(folder), seed=99, sizes=SMALL)


def test_shape_and_size() -> None:
    folder = model_dir()
    assert os.path.getsize(folder / "model.safetensors") <= 8_000_000
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert config.model_type == "llama"
    assert config.num_hidden_layers * config.num_attention_heads >= 30
    assert config.num_key_value_heads < config.num_attention_heads
    assert "not discoveries" in (folder / "README.md").read_text(encoding="utf-8")


def test_add_k(bench: Bench) -> None:
    figures = bench.add_k()
    assert figures["add_k/wrong_0/shots_5"].value >= 0.97
    assert figures["add_k/zero_shot"].value <= 0.08
    assert figures["add_k/instruction"].value >= 0.97
    noisy = [figures[f"add_k/wrong_30/shots_{shots}"].value for shots in SMALL.shots]
    assert noisy[0] + 0.1 < noisy[1] < noisy[2] + 0.02


def test_classification_of_unseen_assignments(bench: Bench) -> None:
    assert bench.labels()["labels/held_out/classes_2/per_label_3"].value >= 0.95


def test_facts(bench: Bench) -> None:
    assert len(facts()) >= 100
    assert bench.facts()["facts/all"].value >= 0.95


def test_label_tokens_carry_the_signal(bench: Bench) -> None:
    figures = bench.token_groups()
    assert figures["knock_out/labels"].value < 0.5 * figures["knock_out/inputs"].value


@pytest.mark.slow
def test_function_vector_restores_the_ability(bench: Bench) -> None:
    figures = bench.vectors()
    assert figures["vector/layer_2/into_2"].value >= 0.95
    assert figures["vector/greedy_2/into_2"].value >= figures["vector/aie_2/into_2"].value


@pytest.mark.slow
def test_few_heads_suffice(bench: Bench) -> None:
    figures = bench.sparsity()
    for task in ("add_k", "labels"):
        assert 1 < figures[f"heads/{task}/needed_for_95"].value <= 19
        assert figures[f"heads/{task}/accuracy_with_none"].value < 0.3


def test_generation_answers_in_text() -> None:
    lm = load_bundled()
    ids = lm.tokenizer("12->19#30->37#44->51#5->", return_tensors="pt")
    out = lm.model.generate(**ids, max_new_tokens=1, do_sample=False)
    assert lm.tokenizer.decode(out[0, -1:]) == "12"
