"""The report of a run: one HTML file that opens anywhere (see `page.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.bank.chart import path_chart, stability_grid
from headloc.circuit.application import FROM_MEANS
from headloc.files import write_text
from headloc.refinement.report import refinement_context
from headloc.reporting.charts import accuracy_chart, head_map, training_panels
from headloc.reporting.compared import compared
from headloc.reporting.conditions import meanings
from headloc.reporting.feed_forward import all_components, mlp_rows
from headloc.reporting.figures import (
    SPLITS,
    accuracy_rows,
    cost_rows,
    facts,
    figure,
    split_sizes,
)
from headloc.reporting.outcomes import example_rows, outcome_rows
from headloc.reporting.page import render
from headloc.reporting.particulars import particulars
from headloc.reporting.rows import (
    head_rows,
    often_replicated,
    ranked,
    replicate_rows,
)
from headloc.reporting.text import model_name, percent, plural, task_name
from headloc.reporting.versions import package_versions

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.localizer.run import Localization
    from headloc.references import Comparison
    from headloc.refinement.result import Refinement

_TEMPLATE = "report.html.j2"


def write_report(
    result: Localization,
    config_yaml: str,
    path: Path,
    lm: FrozenLM,
    *,
    comparison: Comparison | None = None,
    refinement: Refinement | None = None,
) -> None:
    """Write the report of a run.

    Args:
        result: what the run found.
        config_yaml: the resolved configuration as text.
        path: the HTML file.
        lm: the model, whose tokenizer decodes the answers.
        comparison: the run beside published figures, where its experiment has a reference.
        refinement: the refinement of its circuit, where there is one.
    """
    context = {
        **_context(result, config_yaml, lm),
        "comparison": compared(comparison),
        "refinement": None if refinement is None else refinement_context(refinement),
    }
    write_text(path, render(_TEMPLATE, context))


def _context(result: Localization, config_yaml: str, lm: FrozenLM) -> dict[str, Any]:
    circuit, metrics = result.circuit, result.metrics
    rows = head_rows(circuit, result.replicates)
    outcomes = outcome_rows(result, lm)
    sizes = split_sizes(metrics)
    present = [i for i, prefix in enumerate(SPLITS) if prefix in sizes]
    from_means = circuit.objective.get("name") in FROM_MEANS
    return {
        "task": task_name(circuit.task),
        "model": model_name(circuit.model),
        "circuit": circuit,
        "headline": _headline(metrics),
        "facts": [fact for fact in facts(metrics) if fact.label not in ("time",)],
        "splits": [(name, sizes[prefix]) for prefix, name in SPLITS.items() if prefix in sizes],
        "accuracies": accuracy_rows(metrics),
        "present": present,
        "from_means": from_means,
        "meanings": meanings(metrics, from_means=from_means),
        "chart": accuracy_chart(accuracy_rows(metrics)),
        "map": head_map(rows, mlp_rows(circuit, result.replicates)),
        "blocks": mlp_rows(circuit, result.replicates),
        "heads": ranked(rows),
        "often": often_replicated(rows),
        "replicates": replicate_rows(result),
        "path": _path(result),
        "panels": training_panels(result),
        "examples": example_rows(outcomes),
        "prompts": len(outcomes),
        "costs": cost_rows(metrics),
        "cost": metrics.get("cost/forward_equivalents", 0.0),
        "details": particulars(circuit),
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
        "grid": stability_grid(result.path, all_components(result.circuit)),
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
    if "mlps/count" in metrics:
        blocks = plural(metrics["mlps/total"], "feed-forward block")
        parts["heads"] += f" and {metrics['mlps/count']:.0f} of {blocks}"
    for name in ("full", "circuit", "random", "off"):
        found = figure(metrics, f"{prefix}accuracy/{name}")
        if found is not None:
            parts[name] = percent(found.value)
    if f"{prefix}accuracy_kept" in metrics:
        parts["kept"] = percent(metrics[f"{prefix}accuracy_kept"])
    return parts
