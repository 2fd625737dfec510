"""Task families by name, and families from their own description."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from headloc.errors import TaskError, suggest
from headloc.tasks.add_k import AddK
from headloc.tasks.facts import Facts
from headloc.tasks.family import TaskFamily
from headloc.tasks.labels import Labels
from headloc.tasks.multiply_k import MultiplyK
from headloc.tasks.pairs import Pairs
from headloc.tasks.prompts import Prompts
from headloc.tasks.subtract_k import SubtractK

_FAMILIES: dict[str, type[TaskFamily]] = {
    family.name: family for family in (AddK, SubtractK, MultiplyK, Labels, Pairs, Prompts, Facts)
}


def family_names() -> tuple[str, ...]:
    """The names that `build_task` knows."""
    return tuple(_FAMILIES)


def option_names(name: str) -> tuple[str, ...]:
    """The options of a family.

    Raises:
        TaskError: when there is no such family.
    """
    return tuple(inspect.signature(_family(name)).parameters)


def build_task(name: str, options: Mapping[str, Any] | None = None) -> TaskFamily:
    """Build a family from its name and options; options left out have their defaults.

    Raises:
        TaskError: when the name or an option is unknown, or an option's value does not fit.
    """
    family, known = _family(name), option_names(name)
    if not isinstance(options, Mapping | None):
        raise TaskError(f"The options of task={name} are {options!r}. Give a mapping of options.")
    given = dict(options or {})
    for option in given:
        if option not in known:
            raise TaskError(f"task={name} has no option {option!r}. {suggest(str(option), known)}")
    return family(**given)


def rebuild_task(description: Mapping[str, Any]) -> TaskFamily:
    """Build the family that `TaskFamily.describe` described.

    Raises:
        TaskError: when the description is not one, or the data it was made from has changed.
    """
    try:
        name, options = description["family"], description["options"]
    except (KeyError, TypeError):
        raise TaskError(
            "A task description needs 'family' and 'options', as TaskFamily.describe() writes them."
        ) from None
    family = build_task(name, options)
    provenance = description.get("provenance")
    recorded = provenance.get("data") if isinstance(provenance, Mapping) else None
    if recorded is not None and recorded != family.provenance().get("data"):
        raise TaskError(
            f"The data of task={name} has changed since it was recorded. Use the original files, "
            "or build the task anew from its options."
        )
    return family


def _family(name: str) -> type[TaskFamily]:
    if not isinstance(name, str) or name not in _FAMILIES:
        raise TaskError(f"There is no task {name!r}. {suggest(name, _FAMILIES)}")
    return _FAMILIES[name]
