"""What one check of a model found, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headloc.errors import HeadlocError

Status = Literal["ok", "note", "failed", "skipped"]
"""ok; works, but something is worth knowing; cannot be used like this; not asked."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: what was checked.
        status: how it went.
        found: what was found, in a sentence.
        advice: what to do about it, empty where there is nothing to do.
        figures: numbers behind it, flat.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "status": self.status,
            "found": self.found,
            "advice": self.advice,
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks of one model on one task.

    Attributes:
        model: identity of the model (`ModelSource.to_dict`).
        task: description of the task.
        checks: in the order they were made.
    """

    model: Mapping[str, Any]
    task: Mapping[str, Any]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that stand in the way of a localization."""
        return tuple(check for check in self.checks if check.status == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "model": dict(self.model),
            "task": dict(self.task),
            "checks": [check.to_dict() for check in self.checks],
        }


def guarded(name: str, ask: Callable[[], Check]) -> Check:
    """Make a check; what headloc refuses is a failed one, with the reason it gives."""
    try:
        return ask()
    except HeadlocError as error:
        return Check(name, "failed", "refused", str(error))
