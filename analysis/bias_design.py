"""Prompts that lean: one label shown less often, or last.

Shapes: P drawn examples, N demonstrations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from .base import NotApplicable

if TYPE_CHECKING:
    from headloc.tasks import Example

BALANCED, RARER, COMMONER = "balanced", "query's label rarer", "query's label commoner"
"""The three sets of `leaning_counts`."""

Pattern = tuple[bool, ...]
"""For each place of a prompt, whether the query's label stands there."""


def leaning_counts(
    examples: Sequence[Example], removed: int, rng: np.random.Generator
) -> dict[str, list[Example]]:
    """Return the examples as they are, and with demonstrations of one label taken out.

    The demonstrations to go are drawn at random among those of the label: the query's own, or that
    of another label, the first by its name after the query's.

    Args:
        examples: balanced examples.
        removed: demonstrations of a label that go.
        rng: stream to draw from.

    Raises:
        NotApplicable: for unbalanced examples, or when no demonstration of a label would be left.
    """
    found: dict[str, list[Example]] = {BALANCED: list(examples), RARER: [], COMMONER: []}
    for example in examples:
        counts = Counter(d.output for d in example.demonstrations)
        if len(set(counts.values())) != 1 or min(counts.values()) <= removed or len(counts) < 2:
            raise NotApplicable(
                f"Label bias needs prompts that show every label equally often and more than "
                f"{removed} times: give task.shots as a multiple of the number of labels, "
                f"{2 * len(counts) or 4} or more."
            )
        others = sorted(set(counts) - {example.answer})
        other = next((name for name in others if name > example.answer), others[0])
        found[RARER].append(_without(example, example.answer, removed, rng))
        found[COMMONER].append(_without(example, other, removed, rng))
    return found


def _without(example: Example, label: str, removed: int, rng: np.random.Generator) -> Example:
    places = [i for i, d in enumerate(example.demonstrations) if d.output == label]
    gone = set(rng.permutation(places)[:removed].tolist())
    kept = (d for i, d in enumerate(example.demonstrations) if i not in gone)
    return replace(example, demonstrations=tuple(kept))


def order_patterns(own: int, others: int, most: int, rng: np.random.Generator) -> list[Pattern]:
    """Return orders of demonstrations by label; with the query's label last, then first, ahead.

    Args:
        own: demonstrations of the query's label.
        others: all others.
        most: number of orders, 2 or more.
        rng: stream to draw the rest from.
    """
    places = own + others
    last = tuple([False] * others + [True] * own)
    first = tuple([True] * own + [False] * others)
    every = [
        tuple(i in chosen for i in range(places))
        for chosen in map(set, combinations(range(places), own))
    ] if places <= 16 else [
        tuple(bool(x) for x in rng.permutation(first)) for _ in range(20 * most)
    ]  # fmt: skip
    rest = sorted(set(every) - {last, first})
    picked = [rest[i] for i in rng.permutation(len(rest))[: max(0, most - 2)]]
    return [last, first, *sorted(picked)]


def ordered(example: Example, pattern: Pattern) -> Example:
    """Return the example with its demonstrations in an order, those of a label as they came.

    Raises:
        NotApplicable: when the example shows the query's label another number of times.
    """
    own = [d for d in example.demonstrations if d.output == example.answer]
    others = [d for d in example.demonstrations if d.output != example.answer]
    if len(own) != sum(pattern) or len(others) != len(pattern) - sum(pattern):
        raise NotApplicable(
            "Orders are compared on prompts that show every label equally often: give task.shots "
            "as a multiple of the number of labels."
        )
    queue = {True: iter(own), False: iter(others)}
    return replace(example, demonstrations=tuple(next(queue[place]) for place in pattern))


def pattern_name(pattern: Pattern) -> str:
    """Return an order in letters: q for the query's label, o for others."""
    return "".join("q" if own else "o" for own in pattern)
