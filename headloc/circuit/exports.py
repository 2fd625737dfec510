"""A circuit in the formats that other tools read.

heads   JSON list of [layer, head] (DCM, function-vector lists)
csv     one row per head
mib     MIB / EAP-IG graph JSON in its head-only form: heads are scored, everything else is kept
headkv  retrieval-head / HeadKV score file: {"layer-head": [score]}, on one line, scores >= 0
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from headloc.circuit.circuit import Circuit
from headloc.errors import HeadlocError, suggest
from headloc.heads import HeadId


def export_text(circuit: Circuit, kind: str) -> str:
    """Return the text of an export.

    Raises:
        HeadlocError: for an unknown format.
    """
    if kind not in EXPORTS:
        raise HeadlocError(f"format={kind!r} is unknown. {suggest(kind, EXPORTS)}")
    return EXPORTS[kind](circuit)


def all_heads(circuit: Circuit) -> list[HeadId]:
    """Return every head of the circuit's model in flat order."""
    counts = circuit.heads_per_layer
    layers = circuit.model.get("layer_indices", range(len(counts)))
    return [
        HeadId(layer, head)
        for layer, count in zip(layers, counts, strict=True)
        for head in range(count)
    ]


def _heads(circuit: Circuit) -> str:
    return json.dumps([[head.layer, head.head] for head in sorted(circuit.heads)]) + "\n"


def _csv(circuit: Circuit) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "head", "gate", "score", "selected"])
    chosen = set(circuit.heads)
    for head, gate, score in zip(
        all_heads(circuit), circuit.gates.tolist(), circuit.scores.tolist(), strict=True
    ):
        row = [head.layer, head.head, f"{gate:.6g}", f"{score:.6g}", int(head in chosen)]
        writer.writerow(row)
    return text.getvalue()


def _mib(circuit: Circuit) -> str:
    """Head-only graph JSON; nodes without a score are always kept by its readers."""
    chosen = set(circuit.heads)
    layers = len(circuit.heads_per_layer)
    nodes: dict[str, dict[str, Any]] = {"input": {"in_graph": True}}
    for head, score in zip(all_heads(circuit), circuit.scores.tolist(), strict=True):
        nodes[f"a{head.layer}.h{head.head}"] = {"in_graph": head in chosen, "score": score}
    nodes |= {f"m{layer}": {"in_graph": True} for layer in range(layers)}
    nodes["logits"] = {"in_graph": True}
    config = {
        "n_layers": layers,
        "n_heads": max(circuit.heads_per_layer),
        "parallel_attn_mlp": bool(circuit.model.get("parallel_attention", False)),
        "d_model": circuit.model.get("width"),
    }
    return json.dumps({"cfg": config, "nodes": nodes, "edges": {}}, allow_nan=False) + "\n"


def _headkv(circuit: Circuit) -> str:
    gates = circuit.gates.clamp(min=0).tolist()
    pairs = zip(all_heads(circuit), gates, strict=True)
    return json.dumps({f"{head.layer}-{head.head}": [gate] for head, gate in pairs}) + "\n"


EXPORTS: dict[str, Callable[[Circuit], str]] = {
    "heads": _heads,
    "csv": _csv,
    "mib": _mib,
    "headkv": _headkv,
}
