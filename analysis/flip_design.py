"""Prompts and their label-reversed twins, counterbalanced.

Every drawn example gives four pairs: its demonstrations in order and in reverse, each asked for a
text of two classes.  The twin of a prompt has the same texts in the same places under the next
rotation of the labels.  Averaged over the four, neither the place of a label nor the query's class
is tied to what the twin changes.

Shapes: P drawn examples, N demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from headloc.randomness import stream

from .base import NotApplicable, Subject

if TYPE_CHECKING:
    from headloc.tasks import Example, TaskFamily

CELLS = ("as drawn", "order reversed", "query swapped", "both")
"""The four pairs of an example."""

_TRIES = 200


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of one cell.

    Attributes:
        base: P prompts.
        twin: the same with the labels rotated.
    """

    base: tuple[Example, ...]
    twin: tuple[Example, ...]


def counterbalanced(subject: Subject, examples: Sequence[Example]) -> dict[str, Pairs]:
    """Return the pairs of every cell.

    Args:
        subject: what is analysed.
        examples: P drawn examples.

    Raises:
        NotApplicable: when the task has no label-reversed twins.
    """
    flip: Callable[[Example], Example] | None = getattr(subject.task, "flipped", None)
    if flip is None:
        raise NotApplicable(
            f"The task {subject.task.name!r} has no twins with reversed labels: use task=labels."
        )
    rng = stream(subject.seed, "analysis", "flip", "queries")
    swapped = [_other_query(subject.task, example, rng) for example in examples]
    cells = zip(CELLS, (examples, examples, swapped, swapped), (False, True) * 2, strict=True)
    found = {}
    for name, drawn, backwards in cells:
        base = tuple(_reversed(e) if backwards else e for e in drawn)
        found[name] = Pairs(base, tuple(flip(e) for e in base))
    return found


def _reversed(example: Example) -> Example:
    return replace(example, demonstrations=example.demonstrations[::-1])


def _other_query(task: TaskFamily, example: Example, rng: np.random.Generator) -> Example:
    """Return the example with a query of another class, which it does not show."""
    shown = {d.input for d in example.demonstrations} | {example.query}
    for _ in range(_TRIES):
        other = task.example(example.task, rng, shots=0, items="score")
        if other.answer != example.answer and other.query not in shown:
            return replace(example, query=other.query, answer=other.answer)
    raise NotApplicable(
        f"No text of another class was found for the task {example.task!r} in {_TRIES} draws: its "
        "classes have too few texts."
    )


def partners(shown_base: Sequence[int], shown_twin: Sequence[int]) -> list[int]:
    """Return, for each demonstration of a prompt, the one of the twin with the same label.

    The k-th demonstration of a label goes with the k-th of that label in the twin.

    Raises:
        NotApplicable: when a label is shown more often in one of the two.
    """
    if sorted(shown_base) != sorted(shown_twin):
        raise NotApplicable(
            "Reversed twins need as many demonstrations of every label: give task.shots as a "
            "multiple of the number of labels."
        )
    places: dict[int, list[int]] = {}
    for place, label in enumerate(shown_twin):
        places.setdefault(label, []).append(place)
    taken = dict.fromkeys(places, 0)
    found = []
    for label in shown_base:
        found.append(places[label][taken[label]])
        taken[label] += 1
    return found
