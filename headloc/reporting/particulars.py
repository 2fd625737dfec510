"""What a circuit was found with, as tables of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headloc.reporting.text import task_name

if TYPE_CHECKING:
    from headloc.circuit import Circuit


def particulars(circuit: Circuit) -> dict[str, Mapping[str, Any]]:
    """Return model, task, objective and selection of a circuit."""
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
