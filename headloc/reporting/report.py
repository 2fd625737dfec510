"""The report: one HTML file that opens anywhere, without a network and without scripts.

Prompts, tokens and names come from data, so everything is escaped by the template engine, and a
content policy in the page forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.bank.chart import path_chart, stability_grid
from headloc.files import write_text
from headloc.reporting.charts import accuracy_chart, head_map, training_panels
from headloc.reporting.figures import (
    MEANINGS,
    SPLITS,
    accuracy_rows,
    cost_rows,
    facts,
    figure,
    split_sizes,
)
from headloc.reporting.outcomes import example_rows, outcome_rows
from headloc.reporting.rows import (
    all_heads,
    head_rows,
    often_replicated,
    ranked,
    replicate_rows,
)
from headloc.reporting.text import duration, model_name, percent, plural, task_name, visible
from headloc.reporting.versions import package_versions

if TYPE_CHECKING:
    from jinja2 import Environment

    from headloc.lm.frozen import FrozenLM
    from headloc.localizer.run import Localization

_TEMPLATE = "report.html.j2"


def write_report(result: Localization, config_yaml: str, path: Path, lm: FrozenLM) -> None:
    """Write the report of a run.

    Args:
        result: what the run found.
        config_yaml: the resolved configuration as text.
        path: the HTML file.
        lm: the model, whose tokenizer decodes the answers.
    """
    template = _environment().from_string(
        files("headloc.reporting").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    )
    write_text(path, template.render(_context(result, config_yaml, lm)))


def _environment() -> Environment:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "visible": lambda text: visible(text, keep="\n"),
        "percent": percent,
        "duration": duration,
        "thousands": lambda value: f"{value:,.0f}",
    }
    return environment


def _context(result: Localization, config_yaml: str, lm: FrozenLM) -> dict[str, Any]:
    circuit, metrics = result.circuit, result.metrics
    rows = head_rows(circuit, result.replicates)
    outcomes = outcome_rows(result, lm)
    sizes = split_sizes(metrics)
    present = [i for i, prefix in enumerate(SPLITS) if prefix in sizes]
    return {
        "task": task_name(circuit.task),
        "model": model_name(circuit.model),
        "circuit": circuit,
        "headline": _headline(metrics),
        "facts": [fact for fact in facts(metrics) if fact.label not in ("time",)],
        "splits": [(name, sizes[prefix]) for prefix, name in SPLITS.items() if prefix in sizes],
        "accuracies": accuracy_rows(metrics),
        "present": present,
        "meanings": MEANINGS,
        "chart": accuracy_chart(accuracy_rows(metrics)),
        "map": head_map(rows),
        "heads": ranked(rows),
        "often": often_replicated(rows),
        "replicates": replicate_rows(result),
        "path": _path(result),
        "panels": training_panels(result),
        "examples": example_rows(outcomes),
        "prompts": len(outcomes),
        "costs": cost_rows(metrics),
        "cost": metrics.get("cost/forward_equivalents", 0.0),
        "details": _details(result),
        "versions": package_versions(),
        "config": config_yaml,
    }


def _path(result: Localization) -> dict[str, Any] | None:
    """Return what the section on the sparsity path shows, None without one."""
    if result.path is None:
        return None
    return {
        "found": result.path,
        "chart": path_chart(result.path),
        "grid": stability_grid(result.path, all_heads(result.circuit.model)),
    }


def _headline(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the parts of the first sentence, on held-out tasks where there are any."""
    prefix = "held_out/" if "held_out/accuracy/circuit" in metrics else ""
    count, total = metrics["heads/count"], metrics["heads/total"]
    parts = {
        "heads": f"{count:.0f} of {plural(total, 'attention head')}",
        "split": SPLITS[prefix],
        "share": percent(count / total),
    }
    for name in ("full", "circuit", "random", "off"):
        found = figure(metrics, f"{prefix}accuracy/{name}")
        if found is not None:
            parts[name] = percent(found.value)
    if f"{prefix}accuracy_kept" in metrics:
        parts["kept"] = percent(metrics[f"{prefix}accuracy_kept"])
    return parts


def _details(result: Localization) -> dict[str, Mapping[str, Any]]:
    """Return model, task, objective and selection as tables of settings."""
    circuit = result.circuit
    model = {key: value for key, value in circuit.model.items() if value is not None}
    model["heads"] = _brief_heads(circuit.heads_per_layer)
    task = {
        "family": task_name(circuit.task),
        **circuit.task.get("options", {}),
        "tasks trained on": ", ".join(map(str, circuit.task.get("train", ()))) or "-",
        "held-out tasks": ", ".join(map(str, circuit.task.get("held_out", ()))) or "-",
    }
    return {
        "Model": model,
        "Task": {key: value for key, value in task.items() if value is not None},
        "Objective": circuit.objective,
        "Selection": {**circuit.selection, "seed": circuit.seed},
    }


def _brief_heads(heads: tuple[int, ...]) -> str:
    if len(set(heads)) == 1:
        return f"{heads[0]} in each of {len(heads)} layers"
    return ", ".join(map(str, heads))
