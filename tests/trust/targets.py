"""Everything of a user's that headloc reads: a valid example, and how it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from headloc.circuit import Circuit
from headloc.circuit.card import circuit_card
from headloc.cli import main
from headloc.errors import HeadlocError
from headloc.interop.reading import read_heads
from headloc.lm.checkpoint import check_folder
from headloc.lm.loading import load_lm
from headloc.localizer.fitting import _check_checkpoint
from headloc.objectives.registry import rebuild_objective
from headloc.randomness import stream
from headloc.tasks import Labels, Pairs, TaskFamily, rebuild_task
from headloc.tasks.facts import Facts
from headloc.tasks.prompts import Prompts
from tests.circuit.made import tiny_circuit
from tests.lm.test_loading import save_tokenizer
from tests.tiny import tiny_lm
from tests.trust.run_targets import (
    applied_circuit,
    means,
    prompt_files,
    stages,
    training,
    vector_circuit,
)
from tests.trust.target import Target


def targets(folder: Path) -> list[Target]:
    """Return all targets; `folder` is for making their valid files."""
    return [
        circuit(folder / "circuit"), *tasks(), *head_files(), config(), model(folder),
        loaded(folder), checkpoint(folder), *prompt_files(), applied_circuit(folder / "applied"),
        vector_circuit(folder / "vector"),
        stages(folder / "stages"), means(folder / "means"), training(folder / "training"),
    ]  # fmt: skip


def circuit(folder: Path) -> Target:
    """A circuit, read as `headloc circuit show` and `headloc evaluate` do."""
    tiny_circuit(tiny_lm("llama")).save(folder)
    files = {name: (folder / name).read_bytes() for name in ("circuit.json", "gates.safetensors")}

    def read(place: Path) -> None:
        found = Circuit.load(place)
        circuit_card(found)
        rebuild_objective(found.objective)
        _draw(rebuild_task(found.task))

    return Target("circuit", files, read)


def tasks() -> list[Target]:
    """Task files of every kind."""
    words = ["ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lynx"]
    pairs = [{"input": word, "output": word.upper()} for word in words]
    classes = [{"text": word, "class": "ab"[i % 2]} for i, word in enumerate(words)]
    table = "text,class\n" + "".join(f"{row['text']},{row['class']}\n" for row in classes)
    whole = [{"prompt": f"{w} ->", "answer": f" {w}", "counterfactual": "x ->"} for w in words]
    known = [{"prompt": f"The {w} says", "subject": w, "target": f" {w}{w}"} for w in words]

    def target(name: str, file: str, content: Any, make: Callable[[Path], TaskFamily]) -> Target:
        text = content if isinstance(content, str) else json.dumps(content)
        return Target(name, {file: text.encode()}, lambda place: _draw(make(place / file)))

    return [
        target("pairs", "pairs.json", pairs, lambda file: Pairs(str(file), shots=2)),
        target("labels, JSON", "labels.json", classes, lambda file: Labels(str(file), shots=2)),
        target("labels, CSV", "labels.csv", table, lambda file: Labels(str(file), shots=2)),
        target("prompts", "prompts.json", whole, lambda file: Prompts(str(file))),
        target("facts", "facts.json", known, lambda file: Facts(str(file))),
    ]


def head_files() -> list[Target]:
    """Head files of other tools."""
    heads = [[0, 1], [1, 2], [1, 3]]
    names = [f"a{layer}.h{head}" for layer in range(2) for head in range(4)]
    graph = {
        "cfg": {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32},
        "nodes": {name: {"in_graph": i % 2 == 0, "score": i / 8} for i, name in enumerate(names)},
        "edges": {},
    }  # fmt: skip
    table = "layer,head,gate,score,selected\n" + "".join(
        f"{layer},{head},0.5,{layer + head},{head % 2}\n" for layer in range(2) for head in range(4)
    )
    contents: dict[str, Any] = {
        "heads": heads,
        "function_vectors": [[layer, head, 0.25] for layer, head in heads],
        "csv": table,
        "mib": graph,
        "headkv": {f"{layer}-{head}": [0.0, 0.5] for layer in range(2) for head in range(4)},
    }

    def target(kind: str, content: Any) -> Target:
        text = content if isinstance(content, str) else json.dumps(content)
        return Target(
            f"head file {kind}", {"file.json": text.encode()},
            lambda place: read_heads(place / "file.json", kind),
        )  # fmt: skip

    return [target(kind, content) for kind, content in contents.items()]


def config() -> Target:
    """An experiment of the user's, composed by the command line."""
    experiment = {
        "defaults": [{"override /gates": "l1"}, {"override /task": "add_k"}],
        "task": {"shots": 3, "k": [1, 2, 3], "held_out_k": [2]},
        "sparsity": {"weight": 0.1}, "seed": 3, "data": {"train_prompts": 16},
    }  # fmt: skip
    text = "# @package _global_\n" + yaml.safe_dump(experiment)

    def read(place: Path) -> None:
        arguments = ["localize", "--config-dir", str(place), "experiment=mine", "--cfg", "job"]
        if main(arguments) != 0:
            raise HeadlocError("refused on the command line")

    return Target("config", {"experiment/mine.yaml": text.encode()}, read)


def model(folder: Path) -> Target:
    """The files of a checkpoint that are checked before transformers sees any of it."""
    place = folder / "model"
    tiny_lm("llama").model.save_pretrained(place)
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
    files = {
        "config.json": (place / "config.json").read_bytes(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model.safetensors": b"",
    }
    return Target("checkpoint folder", files, check_folder)


def loaded(folder: Path) -> Target:
    """A whole model folder, loaded."""
    place = folder / "loaded"
    tiny_lm("llama").model.save_pretrained(place)
    save_tokenizer(place)
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    files = {name: (place / name).read_bytes() for name in names}
    return Target("model", files, lambda place: load_lm(str(place), local_only=True))


def checkpoint(folder: Path) -> Target:
    """The checkpoint of the gates that a run is resumed from."""
    module = torch.nn.Module()
    module.log_alpha = torch.nn.Parameter(torch.zeros(12))
    file = folder / "last.ckpt"
    torch.save({"state_dict": {"log_alpha": torch.zeros(12)}, "epoch": 3}, file)
    return Target(
        "gate checkpoint", {"last.ckpt": file.read_bytes()},
        lambda place: _check_checkpoint(place / "last.ckpt", module),
    )  # fmt: skip


def _draw(family: TaskFamily) -> None:
    family.check_items(items="fit")
    family.draw(3, stream(0, "fuzz"), split="train", items="fit")
