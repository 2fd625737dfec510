"""Does a saved circuit fit the model and the task that a command was given?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from headloc.errors import CircuitError

if TYPE_CHECKING:
    from headloc.circuit import Circuit
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import TaskFamily


def check_same_template(circuit: Circuit, task: TaskFamily, path: object) -> None:
    """Refuse a circuit whose prompts were rendered otherwise.

    Raises:
        CircuitError: naming both templates.
    """
    found, given = circuit.task.get("template"), asdict(task.template)
    if found != given:
        raise CircuitError(
            f"The circuit {path} was found with the template {found}; the task here has {given}. "
            "Give task.template as it was then, or the circuit of this template."
        )


def check_same_model(circuit: Circuit, lm: FrozenLM) -> None:
    """Refuse a circuit of another model of the same shape; another dtype is no other model.

    Raises:
        CircuitError: naming both models.
    """
    known = (circuit.model.get("name"), circuit.model.get("revision"))
    same_name = known == (lm.source.name, lm.source.revision)
    if not same_name and circuit.model.get("fingerprint") != lm.source.fingerprint:
        raise CircuitError(
            f"The circuit was found in {circuit.model.get('name')!r}, and {lm.source.name!r} has "
            "other weights. Load the model that the circuit names."
        )
