"""What a behaviour is, and what trying one on a family gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headloc.errors import HeadlocError


@dataclass(frozen=True)
class Behaviour:
    """Something that headloc promises of every family of models.

    Attributes:
        name: what is promised, in a few words.
        column: its heading in the table of support; behaviours of one heading share a cell, which
            says yes where all of them hold.
        check: tries it on a family's tiny model.  It returns where the promise holds, raises a
            HeadlocError where the family is refused, and an AssertionError where the promise is
            broken.
        refused: families that are refused, with a pattern that the reason must match.
    """

    name: str
    column: str
    check: Callable[[str], None]
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Outcome:
    """What trying a behaviour gave: `refusal` is the reason, None where it works."""

    refusal: str | None = None

    @property
    def works(self) -> bool:
        """Whether the promise holds."""
        return self.refusal is None


def attempt(behaviour: Behaviour, family: str) -> Outcome:
    """Try a behaviour; a broken promise is an AssertionError and never an outcome."""
    try:
        behaviour.check(family)
    except HeadlocError as error:
        return Outcome(str(error))
    return Outcome()
