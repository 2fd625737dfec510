"""The model card of a circuit: front matter for a model hub, and what a reader wants to know."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from headloc.circuit.application import FROM_MEANS
from headloc.components import MlpId
from headloc.reporting.text import visible

if TYPE_CHECKING:
    from headloc.circuit.circuit import Circuit

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_SHOWN = (
    ("accuracy/full", "full model"),
    ("accuracy/circuit", "circuit, other heads off"),
    ("accuracy/without_circuit", "full model without the circuit"),
    ("accuracy/random", "random heads, same number"),
    ("accuracy/off", "every head off"),
)
_SHOWN_MEANS = (
    ("accuracy/full", "few-shot prompts, the model as it is"),
    ("accuracy/circuit", "zero-shot prompts, task means of the circuit's heads"),
    ("accuracy/without_circuit", "zero-shot prompts, task means of all other heads"),
    ("accuracy/random", "zero-shot prompts, task means of random heads, same number"),
    ("accuracy/off", "zero-shot prompts, no task mean of a head"),
)
_SHOWN_MLPS = (
    ("accuracy/full", "full model"),
    ("accuracy/circuit", "circuit with its feed-forward blocks, everything else off"),
    ("accuracy/heads_open_mlps", "its heads, every feed-forward block on"),
    ("accuracy/heads_only", "its heads, every feed-forward block off"),
    ("accuracy/mlps_only", "its feed-forward blocks, every head off"),
    ("accuracy/no_mlps", "every head on, every feed-forward block off"),
    ("accuracy/without_circuit", "full model without the circuit"),
    ("accuracy/random", "random components, as many of each kind"),
    ("accuracy/off", "every head and feed-forward block off"),
)


def circuit_card(circuit: Circuit, repo_id: str | None = None) -> str:
    """Return README.md of a circuit's folder, or of the hub repository that it is loaded from."""
    heads = ", ".join(str(head) for head in circuit.heads) or "none"
    total = sum(circuit.heads_per_layer)
    lines = [
        "---",
        "library_name: headloc",
        "tags: [attention-heads, circuit, mechanistic-interpretability]",
        *_base_model(circuit),
        "---",
        "",
        "# Attention-head circuit",
        "",
        f"{len(circuit.heads)} of {total} attention heads of {_code(circuit.model.get('name'))} "
        f"(`{_code_inner(circuit.model.get('model_type'))}`), {_origin(circuit)}: {heads}.",
        "",
        f"Heads are zero-based: `L15H2` is head 2 of layer 15. {_intervention(circuit)}",
        "",
        *_feed_forward(circuit),
        *_figures(circuit),
        "## How to load",
        "",
        *_loading(circuit, repo_id),
        "",
        "## Limits",
        "",
        _limits(circuit),
        "",
    ]
    return "\n".join(lines)


def _base_model(circuit: Circuit) -> list[str]:
    """Return the line of the front matter that names the model; a hub takes nothing but its ids."""
    name = str(circuit.model.get("name", ""))
    return [f"base_model: {json.dumps(name)}"] if _HUB_ID.fullmatch(name) else []


def _imported(circuit: Circuit) -> bool:
    return circuit.selection.get("rule") == "imported"


def _origin(circuit: Circuit) -> str:
    if _imported(circuit):
        return (
            f"imported from {_code(circuit.selection.get('file'))} "
            f"({_code(circuit.selection.get('format'))})"
        )
    return f"found by headloc on the task {_code(circuit.task.get('family'))}"


def _limits(circuit: Circuit) -> str:
    if _imported(circuit):
        return (
            "The heads were chosen by another tool; nothing here tells for which task, and no "
            "accuracy was measured. The off-value was set at the import."
        )
    return (
        "The circuit is what one training run found for one task, one prompt template and one "
        "off-value. Another seed may choose other heads of equal worth; a different off-value is a "
        "different question."
    )


def _intervention(circuit: Circuit) -> str:
    """Say what the heads do that are in the circuit, or not."""
    objective = circuit.objective
    name = objective.get("name")
    if name not in FROM_MEANS:
        return (
            "A head outside the circuit is closed: its output is replaced by its off-value "
            f"({_code(objective.get('off_value'))}) at the gated positions "
            f"({_code(objective.get('positions'))})."
        )
    if name == "patch":
        return (
            "In zero-shot prompts the output of each head of the circuit at the last token is "
            "replaced by its mean over few-shot prompts of the task."
        )
    layer = objective.get("layer")
    number = layer if isinstance(layer, int) else _code(layer)
    place = "a third of the depth" if layer is None else f"layer {number}"
    return (
        "The sum of their mean outputs over few-shot prompts of a task, the function vector, is "
        f"added to the last token of zero-shot prompts at {place} "
        f"({_code(objective.get('site', 'attention'))}); a head outside the circuit adds its "
        f"off-value ({_code(objective.get('off_value'))}). The means are stored with the circuit."
    )


def _loading(circuit: Circuit, repo_id: str | None) -> list[str]:
    """Show how to use the circuit, by what its objective allows."""
    if circuit.objective.get("name") in FROM_MEANS:
        return [
            "```bash",
            "headloc circuit show path/to/this/folder",
            "headloc evaluate circuit=path/to/this/folder",
            "```",
            "",
            '`Circuit.load("path/to/this/folder")` of the package `headloc` gives heads, gates and '
            "means in Python.",
        ]
    source = (
        'Circuit.load("path/to/this/folder")'
        if repo_id is None
        else f"Circuit.from_pretrained({json.dumps(repo_id)})"
    )
    return [
        "```python",
        "from headloc import Circuit, load_lm",
        "",
        f"lm = load_lm({json.dumps(str(circuit.model.get('name')))})",
        f"circuit = {source}",
        "with circuit.apply(lm):  # or a plain transformers model",
        "    ...  # lm.model(...) or lm.model.generate(...)",
        "```",
    ]


def _feed_forward(circuit: Circuit) -> list[str]:
    part = circuit.feed_forward
    if part is None:
        return []
    kept = ", ".join(str(MlpId(layer)) for layer in part.kept) or "none"
    return [
        f"Feed-forward blocks were gated as well: {len(part.kept)} of {len(part.layers)} stay on "
        f"({kept}); `L3MLP` is that of layer 3. The others are closed like the heads.",
        "",
    ]


def _figures(circuit: Circuit) -> list[str]:
    metrics = circuit.metrics
    rows = []
    shown = _SHOWN_MEANS if circuit.objective.get("name") in FROM_MEANS else _SHOWN
    for key, label in shown if circuit.feed_forward is None else _SHOWN_MLPS:
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
    return visible(value).replace("`", "'").replace("|", "/")
