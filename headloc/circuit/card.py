"""The model card of a circuit: front matter for a model hub, and what a reader wants to know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headloc.circuit.circuit import Circuit

_SHOWN = (
    ("accuracy/full", "full model"),
    ("accuracy/circuit", "circuit, other heads off"),
    ("accuracy/without_circuit", "full model without the circuit"),
    ("accuracy/random", "random heads, same number"),
    ("accuracy/off", "every head off"),
)


def circuit_card(circuit: Circuit) -> str:
    """Return README.md of a circuit's folder."""
    heads = ", ".join(str(head) for head in circuit.heads) or "none"
    total = sum(circuit.heads_per_layer)
    lines = [
        "---",
        "library_name: headloc",
        "tags: [attention-heads, circuit, mechanistic-interpretability]",
        f"base_model: {json.dumps(str(circuit.model.get('name', 'unknown')))}",
        "---",
        "",
        "# Attention-head circuit",
        "",
        f"{len(circuit.heads)} of {total} attention heads of {_code(circuit.model.get('name'))} "
        f"(`{_code_inner(circuit.model.get('model_type'))}`), found by headloc on the task "
        f"{_code(circuit.task.get('family'))}: {heads}.",
        "",
        "Heads are zero-based: `L15H2` is head 2 of layer 15. A head outside the circuit is "
        "closed: "
        f"its output is replaced by its off-value ({_code(circuit.objective.get('off_value'))}) at "
        f"the gated positions ({_code(circuit.objective.get('positions'))}).",
        "",
        *_figures(circuit),
        "## How to load",
        "",
        "```python",
        "from headloc import Circuit, load_lm",
        "",
        f"lm = load_lm({json.dumps(str(circuit.model.get('name')))})",
        'circuit = Circuit.load("path/to/this/folder")',
        "with circuit.apply(lm):",
        "    ...  # lm.model(...) or lm.model.generate(...)",
        "```",
        "",
        "## Limits",
        "",
        "The circuit is what one training run found for one task, one prompt template and one "
        "off-value. Another seed may choose other heads of equal worth; a different off-value is a "
        "different question.",
        "",
    ]
    return "\n".join(lines)


def _figures(circuit: Circuit) -> list[str]:
    metrics = circuit.metrics
    rows = []
    for key, label in _SHOWN:
        if key in metrics:
            rows.append(
                f"| {label} | {_cell(metrics, key)} | {_cell(metrics, f'held_out/{key}')} |"
            )
    if not rows:
        return []
    return [
        "## Accuracy on fresh prompts",
        "",
        "95 % bootstrap intervals over prompts; none of these prompts was trained or selected on.",
        "",
        "| | tasks trained on | held-out tasks |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _cell(metrics: Any, key: str) -> str:
    if key not in metrics:
        return "-"
    low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    size = metrics.get(f"{key}/n")
    return f"{metrics[key]:.3f}{interval}" + ("" if size is None else f", n = {int(size)}")


def _code(value: Any) -> str:
    return f"`{_code_inner(value)}`"


def _code_inner(value: Any) -> str:
    # Names come from files and tokenizers: keep them from breaking out of the code span.
    return str(value).replace("`", "'").replace("\n", " ").replace("|", "/")
