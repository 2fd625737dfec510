"""The recipe, and training that resumes to the weights of an uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from headloc.bundled.checks import SMALL
from headloc.bundled.optimizers import schedule
from headloc.bundled.recipe import Optimisation, Recipe
from headloc.bundled.release import build
from headloc.bundled.training import train
from headloc.errors import HeadlocError

MICRO = {
    "architecture": {
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "head_width": 8,
        "width": 16,
        "ffn_width": 16,
        "max_positions": 64,
    },
    "add_k": {"prompts_per_task": 2, "instruction_prompts": 8},
    "labels": {"prompts": 4},
    "facts": {"sentences": 4},
    "dictionary": {"prompts": 4},
    "task_vector": {"layer": 0, "sources": [0, 1]},
    "optimisation": {"steps": 6, "warmup": 2},
    "checkpoint_every": 2,
    "report_every": 2,
}


needs_muon = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="the recipe's optimizer came with torch 2.9"
)


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


@needs_muon
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(MICRO)
    whole = train(recipe, tmp_path / "whole")

    def kill(step: int, steps: int, record: dict[str, float]) -> None:
        assert steps == 6
        assert record["loss"] > 0
        if step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(recipe, tmp_path / "cut", progress=kill)
    assert not (tmp_path / "cut" / "model").exists()
    steps: list[int] = []
    resumed = train(recipe, tmp_path / "cut", progress=lambda step, *_: steps.append(step))
    assert steps == [4, 6]
    first, second = (load_file(f / "model.safetensors") for f in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    curves = [json.loads((tmp_path / run / "curve.json").read_text()) for run in ("whole", "cut")]
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]] == [2, 4, 6]
    assert [row["loss"] for row in curves[0]] == [row["loss"] for row in curves[1]]


@needs_muon
def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(MICRO)
    before = load_file(train(recipe, tmp_path) / "model.safetensors")
    steps: list[int] = []
    after = load_file(
        train(recipe, tmp_path, progress=lambda step, *_: steps.append(step)) / "model.safetensors"
    )
    assert steps == []
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(recipe, tmp_path, resume=False, progress=lambda step, *_: steps.append(step))
    assert steps == [2, 4, 6]


@needs_muon
def test_a_checkpoint_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    train(Recipe.from_dict(MICRO), tmp_path)
    with pytest.raises(HeadlocError, match="another recipe"):
        train(Recipe.from_dict(MICRO | {"seed": 8}), tmp_path)
    (tensors,) = (tmp_path / "checkpoint").glob("step-*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(HeadlocError, match="cannot be read"):
        train(Recipe.from_dict(MICRO), tmp_path)


@needs_muon
def test_training_leaves_global_random_state_and_threads(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    train(Recipe.from_dict(MICRO), tmp_path)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


@needs_muon
def test_build_writes_hub_format_with_a_card(tmp_path: Path) -> None:
    folder = build(Recipe.from_dict(MICRO), tmp_path, sizes=SMALL)
    assert {path.name for path in folder.iterdir()} >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "not discoveries" in card
    assert "| heads/total | 4 |" in card
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["facts/all"]["samples"] > 100
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("12->19#5->", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, 7, model.config.vocab_size)


def test_recipe_round_trip_and_unknown_keys() -> None:
    recipe = Recipe.from_dict(MICRO)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(HeadlocError, match=r"recipe\.add_k has no shots"):
        Recipe.from_dict({"add_k": {"shots": 3}})


def test_learning_rate_schedule() -> None:
    choices = Optimisation(steps=100, warmup=10, final_share=0.1)
    shares = [schedule(step, choices) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0)
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=0.01)
