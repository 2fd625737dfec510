"""What headloc reads back of its own and of other tools' prompt files: examples and readers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headloc.bundled import checkpoint as training_state
from headloc.bundled.optimizers import Optimizers
from headloc.bundled.recipe import Recipe
from headloc.bundled.tokenizer import build_tokenizer
from headloc.bundled.training import build_model
from headloc.circuit import Circuit
from headloc.commands.evaluate import own_objective
from headloc.errors import HeadlocError
from headloc.interop.prompt_files import read_prompts
from headloc.journal import Entry, open_journal
from headloc.lm.ledger import TokenLedger
from headloc.objectives.mean_cache import MeanCache, OneMean
from headloc.objectives.task_means import TaskMeans
from headloc.run_note import FOLDER, Run
from headloc.tasks import AddK
from tests.bundled.test_training import MICRO
from tests.circuit.made import tiny_circuit
from tests.tiny import tiny_lm
from tests.trust.target import Target


def applied_circuit(folder: Path) -> Target:
    """A circuit with means and feed-forward blocks, applied to its model."""
    lm, task = tiny_lm("llama"), AddK()
    made = tiny_circuit(lm, mlps=True)
    made.save(folder)
    files = {name: (folder / name).read_bytes() for name in ("circuit.json", "gates.safetensors")}
    ids = torch.tensor([[1, 2, 3, 4]])

    def read(place: Path) -> None:
        circuit = Circuit.load(place)
        circuit.check_model(lm)
        own_objective(circuit, lm, task, seed=0, prompts=2)
        with torch.no_grad(), circuit.apply(lm):
            lm.model(ids)

    return Target("circuit, applied", files, read)


def prompt_files() -> list[Target]:
    """Prompt files of other tools."""
    pairs = [("1 + 2 =", "1 + 7 ="), ("4 + 4 =", "2 + 1 ="), ("a:", "b:")]
    listed = [
        {"clean": clean, "corrupt": corrupt, "answers": [" x"], "wrong_answers": [" y"]}
        for clean, corrupt in pairs
    ]
    table = "".join(f"{clean},{corrupt},{i},{i + 1}\n" for i, (clean, corrupt) in enumerate(pairs))
    lines = "".join(
        json.dumps({"clean": f"{a}<predict> 3</predict>", "corrupted": f"{b}<predict>4</predict>"})
        + "\n"
        for a, b in pairs
    )
    contents = {
        "auto_circuit": json.dumps({"prompts": listed}),
        "eap_ig": f"clean,corrupted,correct_idx,incorrect_idx\n{table}",
        "edge_pruning": lines,
    }

    def target(kind: str, content: str) -> Target:
        return Target(
            f"prompt file {kind}", {"file": content.encode()},
            lambda place: read_prompts(place / "file", kind, lambda token: f" <{token}>"),
        )  # fmt: skip

    return [target(kind, content) for kind, content in contents.items()]


def vector_circuit(folder: Path) -> Target:
    """A circuit with task means, scored on its model."""
    lm = tiny_lm("llama")
    task = AddK(k=[1, 2], held_out_k=[])
    made = tiny_circuit(lm)
    names = (*task.train, *task.held_out)
    means = TaskMeans(
        names, tuple(torch.randn(len(names), x.heads, x.width) for x in lm.layout.layers)
    )
    objective = {"name": "function_vector", "layer": 1}
    replace(
        made, objective=objective, task=task.describe(), tensors=means.to_tensors("means")
    ).save(folder)
    files = {name: (folder / name).read_bytes() for name in ("circuit.json", "gates.safetensors")}

    def read(place: Path) -> None:
        circuit = Circuit.load(place)
        circuit.check_model(lm)
        own_objective(circuit, lm, task, seed=0, prompts=2)

    return Target("circuit, task means", files, read)


def stages(folder: Path) -> Target:
    """The note and a finished stage of a run that is taken up."""
    settings = {"seed": 3, "task": {"shots": 5, "k": [1, 2]}}

    def once(place: Path, resume: bool) -> None:
        run = Run("localize", place, settings)
        journal = open_journal(run, {"model": "model"}, resume=resume, writes=True)
        journal.begin()
        journal.once(
            "means",
            lambda: torch.zeros(3),
            lambda tensor: Entry({"x": tensor}, {"heads": [1, 2]}),
            lambda entry: entry.tensors["x"] + sum(entry.facts["heads"]),
            ledger=TokenLedger(),
            stage="means",
        )

    once(folder, False)
    names = [str(FOLDER / name) for name in ("run.json", "means.safetensors")]
    files = {name: (folder / name).read_bytes() for name in names}
    return Target("stages of a run", files, lambda place: once(place, True))


def means(folder: Path) -> Target:
    """A cached task mean; what cannot be used counts as none."""
    lm = tiny_lm("llama")
    shapes = [(layer.heads, layer.width) for layer in lm.layout.layers]
    name = "means.safetensors"
    MeanCache(folder).keep(name, OneMean(tuple(torch.zeros(shape) for shape in shapes)))

    def read(place: Path) -> None:
        found = MeanCache(place).read(name, lm, False)
        if found is None:
            raise HeadlocError("Estimated again.")
        assert [tuple(z_Hd.shape) for z_Hd in found.z] == shapes

    return Target("task mean", {name: (folder / name).read_bytes()}, read)


def training(folder: Path) -> Target:
    """The state of an interrupted training of the bundled model."""
    recipe = Recipe.from_dict(MICRO)
    model = build_model(recipe, build_tokenizer())
    optimizer = Optimizers(model, recipe.optimisation)
    progress = training_state.Progress(2, 1.0, ({"step": 2.0, "loss": 1.0},), recipe.to_dict())
    training_state.save(folder, model, optimizer, progress)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(place: Path) -> Any:
        return training_state.load(place, model, optimizer, recipe.to_dict())

    return Target("training state", files, read)
