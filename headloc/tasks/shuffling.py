"""Label shuffles in which no demonstration keeps its label, as Todd et al. 2024 corrupt prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from headloc.errors import TaskError

_TRIES = 32


def derange(labels: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A random permutation of the labels in which every position gets another value.

    Uniform permutations are tried first, so the result is uniform among the valid ones whenever
    those are not rare; otherwise one is constructed.

    Raises:
        TaskError: when none exists: one value takes more than half of the positions.
    """
    value, most = Counter(labels).most_common(1)[0] if labels else ("", 2)
    if 2 * most > len(labels):
        raise TaskError(_impossible(labels, value, most))
    for _ in range(_TRIES):
        shuffled = [labels[i] for i in rng.permutation(len(labels))]
        if all(new != old for new, old in zip(shuffled, labels, strict=True)):
            return shuffled
    return _rotate(labels, most, rng)


def _impossible(labels: Sequence[str], value: str, most: int) -> str:
    if not labels:
        return "A zero-shot example has no labels to shuffle. Use shots=2 or more."
    return (
        f"The labels [{', '.join(labels)}] cannot be shuffled so that every one changes: "
        f"{value!r} stands in {most} of {len(labels)} places. "
        "Use more shots, labels that repeat less, or (for two labels) an even number of shots."
    )


def _rotate(labels: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    """Sort positions by value and move labels `most` places on: each lands on another value."""
    values = sorted(set(labels))
    rank = dict(zip(values, rng.permutation(len(values)), strict=True))
    tie = rng.permutation(len(labels))
    order = sorted(range(len(labels)), key=lambda i: (rank[labels[i]], tie[i]))
    out = list(labels)
    for place, target in enumerate(order):
        out[target] = labels[order[(place + most) % len(order)]]
    return out
