"""Models that a peer library opens from a folder, and the heads that it is to close."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from headloc.bundled import load_bundled, model_dir
from headloc.circuit import Circuit
from headloc.circuit.exports import export_text
from headloc.lm.batch import Role
from headloc.lm.frozen import FrozenLM
from tests.tiny import tiny_model

MODELS = ("bundled", "gpt2", "llama_wide")
"""A trained Llama-type model; tiny random models: GPT-2, and Llama with grouped queries and heads
wider than hidden size over heads."""

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
"""Largest difference of logits in float32, whose size is 1 to 30 here."""


def model_folder(name: str, folder: Path) -> Path:
    """Return a model in hub format; tiny ones get the bundled model's tokenizer, which a peer wants
    to load although token ids are all that runs."""
    if name == "bundled":
        return model_dir()
    tiny_model(name).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_dir() / file, folder)
    return folder


def own_lm(name: str) -> FrozenLM:
    """Return the same model in headloc."""
    return load_bundled() if name == "bundled" else FrozenLM(tiny_model(name))


def token_ids(lm: FrozenLM) -> Tensor:
    """Return three rows of ten tokens."""
    draw = torch.Generator().manual_seed(5)
    return torch.randint(3, lm.vocab_size, (3, 10), generator=draw)


@torch.no_grad()
def own_logits(circuit: Circuit, lm: FrozenLM, ids_BT: Tensor) -> Tensor:
    """Return headloc's logits under a circuit, of every column."""
    with circuit.apply(lm):
        return lm.model(ids_BT).logits


def closed_heads(circuit: Circuit) -> list[list[int]]:
    """Return the closed heads of every layer, read from the exported graph file as a peer would."""
    nodes = json.loads(export_text(circuit, "mib"))["nodes"]
    return [
        [head for head in range(count) if not nodes[f"a{layer}.h{head}"]["in_graph"]]
        for layer, count in enumerate(circuit.heads_per_layer)
    ]


def off_value(circuit: Circuit, layer: int, head: int) -> Tensor | float:
    """Return what a closed head puts out at the last prompt token."""
    if circuit.objective["off_value"] == "zero":
        return 0.0
    return circuit.tensors[f"off/{layer:03d}"][int(Role.LAST), head]
