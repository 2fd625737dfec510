"""Names from outside that become names of files stay where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headloc.bundled.checkpoint import load, save
from headloc.circuit import Circuit
from headloc.commands.compare import build_methods
from headloc.errors import HeadlocError
from headloc.files import file_name, read_json, write_json
from headloc.lm.checkpoint import check_folder
from tests.circuit.made import tiny_circuit
from tests.tiny import tiny_lm

PATHS = (
    "../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "C:x", "x\0", "x\n", ".hidden", "x ", "x.",
    "a" * 101, "\u202etxt",
)  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_no_file_name(name: str) -> None:
    with pytest.raises(HeadlocError, match="cannot name a file"):
        file_name(name, "A table")


@pytest.mark.parametrize("name", ["heads", "L1 H2", "add_k", "größe", "a.b-c+d=e", "x" * 100])
def test_a_plain_name_is_one(name: str, tmp_path: Path) -> None:
    assert file_name(name, "A table") == name
    (tmp_path / name).write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_method_is_not_saved_elsewhere() -> None:
    options = {"../../x": {"_target_": "headloc.baselines.chance.RandomOrder"}}
    with pytest.raises(HeadlocError, match="A method is called"):
        build_methods(options, None)


def test_a_training_state_names_no_file_elsewhere(tmp_path: Path) -> None:
    from headloc.bundled.checkpoint import Progress
    from headloc.bundled.optimizers import Optimizers
    from headloc.bundled.recipe import Recipe
    from headloc.bundled.tokenizer import build_tokenizer
    from headloc.bundled.training import build_model
    from tests.bundled.test_training import MICRO

    recipe = Recipe.from_dict(MICRO)
    model = build_model(recipe, build_tokenizer())
    optimizer = Optimizers(model, recipe.optimisation)
    folder = tmp_path / "state"
    save(folder, model, optimizer, Progress(2, 1.0, (), recipe.to_dict()))
    assert load(folder, model, optimizer, recipe.to_dict()) is not None
    state = read_json(folder / "state.json", "state")
    (folder / state["tensors"]).rename(tmp_path / state["tensors"])
    write_json(folder / "state.json", {**state, "tensors": f"../{state['tensors']}"})
    with pytest.raises(HeadlocError, match="cannot name a file"):
        load(folder, model, optimizer, recipe.to_dict())


def test_a_checkpoint_s_index_names_no_file_elsewhere(tmp_path: Path) -> None:
    tiny_lm("llama").model.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../outside.safetensors"}}
    write_json(tmp_path / "model" / "model.safetensors.index.json", index)
    with pytest.raises(HeadlocError):
        check_folder(tmp_path / "model")


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    made = tiny_circuit(tiny_lm("llama"))
    shared = Circuit(
        heads=made.heads, gates=made.gates, scores=made.gates, model=made.model,
        objective=made.objective, task=made.task, selection={}, seed=0, tensors=made.tensors,
    )  # fmt: skip
    read = Circuit.load(shared.save(tmp_path / "circuit"))
    assert torch.equal(read.gates, made.gates)
    assert torch.equal(read.scores, made.gates)
