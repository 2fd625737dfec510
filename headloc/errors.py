"""The errors a user of headloc can cause, and the sentence each of them is told.

Every message names what was given, what was expected and what to do next.  The command line
prints the message alone and exits with status 2, or 3 where the result is saved and only files that
can be made again are missing; a traceback is shown only when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 4000
"""Characters of a message; what a broken file holds may be quoted in it, at any length."""


class HeadlocError(Exception):
    """A mistake in what the user gave, or a limit of headloc, with what to do about it.

    Attributes:
        status: what the command line exits with.
    """

    status = 2

    def __str__(self) -> str:
        text = super().__str__()
        left_out = len(text) - _LONGEST
        if left_out <= 0:
            return text
        half = _LONGEST // 2
        return f"{text[:half]} [{left_out} characters left out] {text[-half:]}"


class IncompleteError(HeadlocError):
    """A result is saved, but files that can be made again from it are missing."""

    status = 3


class NoRoomError(HeadlocError):
    """Memory does not suffice for the smallest piece of work."""


class NonFiniteError(HeadlocError):
    """The model, its scores or the gates hold NaN or infinity, so nothing can be said of them."""


class UnsupportedModelError(HeadlocError):
    """The model's heads could not be located; the message says which check failed."""


class TapError(HeadlocError):
    """A tap did not fire where it was expected to, so its effect cannot be trusted."""


class TaskError(HeadlocError):
    """A task, a template or a task file cannot give scorable prompts."""


class CircuitError(HeadlocError):
    """A circuit file is broken, or does not belong to the model it is used with."""


def suggest(given: object, known: Iterable[str]) -> str:
    """Return a sentence naming the closest known names, or all of them when none is close."""
    names = sorted(known)
    close = get_close_matches(str(given)[:200], names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(name) for name in close)}?"
    return f"Known: {', '.join(names)}."
