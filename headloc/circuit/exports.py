"""A circuit in the formats that other tools read; `headloc.interop` reads them back.

heads             JSON list of [layer, head], as DCM keeps them
function_vectors  JSON list of [layer, head, score], best first
csv               one row per head, and behind them one per gated feed-forward block, whose head is
                  "MLP"
mib               MIB / EAP-IG graph JSON in its head-only form: heads are scored, and feed-forward
                  blocks where they were gated; everything else is kept
headkv            retrieval-head / HeadKV score file: {"layer-head": [score]}, on one line,
                  scores >= 0

The formats heads, function_vectors and headkv have no place for feed-forward blocks (`left_out`
says so).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from headloc.circuit.circuit import Circuit
from headloc.components import MlpId
from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.files import csv_text
from headloc.heads import HeadId

PARALLEL = frozenset({"codegen", "cohere", "cohere2", "falcon", "gpt_neox", "gptj", "phi"})
"""Model types whose attention and feed-forward block read the same input, by default."""


def export_text(circuit: Circuit, kind: str) -> str:
    """Return the text of an export.

    Raises:
        HeadlocError: for an unknown format.
    """
    if kind not in EXPORTS:
        raise HeadlocError(f"format={kind!r} is unknown. {suggest(kind, EXPORTS)}")
    return EXPORTS[kind](circuit)


def left_out(circuit: Circuit, kind: str) -> str | None:
    """Return what an export of this circuit does not tell, in words; None where it tells all."""
    part = circuit.feed_forward
    if part is None or kind not in _HEAD_ONLY:
        return None
    kept = " ".join(str(MlpId(layer)) for layer in part.kept) or "none"
    return f"format={kind} holds heads only; feed-forward blocks of the circuit: {kept}"


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


def _function_vectors(circuit: Circuit) -> str:
    scores = dict(zip(all_heads(circuit), circuit.scores.tolist(), strict=True))
    ranked = sorted(circuit.heads, key=lambda head: (-scores[head], head))
    return json.dumps([[head.layer, head.head, scores[head]] for head in ranked]) + "\n"


def _csv(circuit: Circuit) -> str:
    chosen = set(circuit.heads)
    rows: list[tuple[object, ...]] = [
        (head.layer, head.head, gate, score, head in chosen)
        for head, gate, score in zip(
            all_heads(circuit), circuit.gates.tolist(), circuit.scores.tolist(), strict=True
        )
    ]
    part = circuit.feed_forward
    if part is not None:
        pairs = zip(part.layers, part.gates.tolist(), part.scores.tolist(), strict=True)
        rows += [(layer, "MLP", gate, score, layer in part.kept) for layer, gate, score in pairs]
    return csv_text(("layer", "head", "gate", "score", "selected"), rows)


def _mib(circuit: Circuit) -> str:
    """Head-only graph JSON; nodes without a score are always kept by its readers."""
    _check_grid(circuit)
    chosen = set(circuit.heads)
    layers = len(circuit.heads_per_layer)
    nodes: dict[str, dict[str, Any]] = {"input": {"in_graph": True}}
    for head, score in zip(all_heads(circuit), circuit.scores.tolist(), strict=True):
        nodes[f"a{head.layer}.h{head.head}"] = {"in_graph": head in chosen, "score": score}
    nodes |= {f"m{layer}": {"in_graph": True} for layer in range(layers)}
    part = circuit.feed_forward
    if part is not None:
        for layer, score in zip(part.layers, part.scores.tolist(), strict=True):
            nodes[f"m{layer}"] = {"in_graph": layer in part.kept, "score": score}
    nodes["logits"] = {"in_graph": True}
    config = {
        "n_layers": layers,
        "n_heads": max(circuit.heads_per_layer),
        "parallel_attn_mlp": circuit.model.get("model_type") in PARALLEL,
        "d_model": circuit.model.get("width"),
    }
    return json.dumps({"cfg": config, "nodes": nodes, "edges": {}}, allow_nan=False) + "\n"


def _check_grid(circuit: Circuit) -> None:
    """Refuse models that a graph file cannot describe: it numbers layers and heads without gaps."""
    counts = circuit.heads_per_layer
    layers = list(circuit.model.get("layer_indices", range(len(counts))))
    if len(set(counts)) > 1 or layers != list(range(len(counts))):
        raise CircuitError(
            f"format=mib describes models with the same number of heads in every layer; "
            f"{circuit.model.get('name')!r} has {list(counts)} heads in layers {layers}. Use "
            "format=csv or format=heads."
        )


def _headkv(circuit: Circuit) -> str:
    gates = circuit.gates.clamp(min=0).tolist()
    if not any(gates):
        raise CircuitError(
            "format=headkv shares a budget out in proportion to the gates, but every gate of this "
            "circuit is 0. Use format=csv or format=heads."
        )
    pairs = zip(all_heads(circuit), gates, strict=True)
    return json.dumps({f"{head.layer}-{head.head}": [gate] for head, gate in pairs}) + "\n"


_HEAD_ONLY = frozenset({"heads", "function_vectors", "headkv"})

EXPORTS: dict[str, Callable[[Circuit], str]] = {
    "heads": _heads,
    "function_vectors": _function_vectors,
    "csv": _csv,
    "mib": _mib,
    "headkv": _headkv,
}
