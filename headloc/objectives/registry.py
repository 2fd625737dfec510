"""Objectives by name, for circuits that were saved with one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from headloc.errors import HeadlocError, suggest
from headloc.objectives.base import Objective
from headloc.objectives.function_vector import FunctionVector
from headloc.objectives.in_place import InPlace
from headloc.objectives.patch import Patch

_OBJECTIVES: dict[str, type[Objective]] = {
    cls.name: cls for cls in (InPlace, FunctionVector, Patch)
}


def rebuild_objective(description: Mapping[str, Any]) -> Objective:
    """Build the objective that `Objective.describe` described.

    Raises:
        HeadlocError: when its name or one of its settings is unknown.
    """
    settings = dict(description)
    name = str(settings.pop("name", ""))
    if name not in _OBJECTIVES:
        raise HeadlocError(f"there is no objective {name!r}. {suggest(name, _OBJECTIVES)}")
    cls = _OBJECTIVES[name]
    known = inspect.signature(cls).parameters
    unknown = sorted(set(settings) - known.keys())
    if unknown:
        raise HeadlocError(f"{name} has no setting {unknown[0]!r}. {suggest(unknown[0], known)}")
    return cls(**settings)
