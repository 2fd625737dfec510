"""EAP-IG (github.com/hannamw/EAP-IG): its graph opens our file, and ranks our heads alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc.circuit.exports import export_text
from tests.circuit.made import tiny_circuit
from tests.tiny import tiny_lm

# The peer's own warnings are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def graphs() -> Any:
    # It is not on the package index; a package of the name `eap` there is another one.
    return pytest.importorskip("eap.graph", reason="EAP-IG is not installed").Graph


def test_the_best_nodes_are_the_heads_of_the_circuit(graphs: Any, tmp_path: Path) -> None:
    circuit = tiny_circuit(tiny_lm("gpt2"))
    chosen = torch.tensor([head in circuit.heads for head in tiny_lm("gpt2").layout])
    circuit = replace(circuit, scores=circuit.scores.abs() * torch.where(chosen, 1.0, -1.0))
    file = tmp_path / "importances.json"
    file.write_text(export_text(circuit, "mib"))
    graph = graphs.from_json(str(file))
    graph.apply_topn(len(circuit.heads), absolute=False, level="node")
    kept = {name for name, node in graph.nodes.items() if node.in_graph}
    heads = {f"a{head.layer}.h{head.head}" for head in circuit.heads}
    assert {name for name in kept if name.startswith("a")} == heads
    assert {"input", "m0", "m1"} <= kept
