"""Which classes stand for which label words: the tasks of the `labels` family.

An assignment is an ordered choice of as many classes as there are labels.  Every choice comes with
all its rotations, so that each class takes each label once; with two labels these are the
assignment and its label-reversed twin (Yu & Ananiadou 2024, arXiv 2402.02872).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from headloc.errors import TaskError
from headloc.randomness import stable_hash, stream

_MOST_LISTED = 20_000

Assignment = tuple[str, ...]
"""The class of each label, in the order of the labels."""


@dataclass(frozen=True, slots=True)
class Assignments:
    """Assignments by task name, for training and held out."""

    train: dict[str, Assignment]
    held_out: dict[str, Assignment]


def choose_assignments(
    classes: Sequence[str],
    labels: Sequence[str],
    *,
    held_out_share: float,
    max_tasks: int,
    seed: int,
) -> Assignments:
    """Choose tasks, and hold out a share of the combinations of classes with all their rotations.

    A stable hash of the seed and the classes decides, so neither the order nor the number of the
    other combinations moves the choice.  With a single combination nothing can be held out.

    Raises:
        TaskError: when there are fewer classes than labels.
    """
    if len(classes) < len(labels):
        raise TaskError(
            f"There are {len(classes)} classes ({', '.join(classes)}) for the {len(labels)} labels "
            f"{', '.join(labels)}. Give data with more classes, or fewer labels."
        )
    chosen = _combinations(classes, len(labels), max(1, max_tasks // len(labels)), seed)
    held = round(held_out_share * len(chosen))
    if held_out_share and len(chosen) > 1:
        held = min(max(held, 1), len(chosen) - 1)
    ranked = sorted(chosen, key=lambda chosen: stable_hash("held out", str(seed), *chosen))
    out = set(ranked[:held])
    return Assignments(
        train=_named([choice for choice in chosen if choice not in out], labels),
        held_out=_named([choice for choice in chosen if choice in out], labels),
    )


def task_name(assignment: Assignment, labels: Sequence[str]) -> str:
    """The name of an assignment, such as `animals=foo,fruits=bar`."""
    return ",".join(f"{name}={label}" for name, label in zip(assignment, labels, strict=True))


def rotate(assignment: Assignment) -> Assignment:
    """The next rotation: every class takes another label."""
    return assignment[-1:] + assignment[:-1]


def _named(chosen: Sequence[Assignment], labels: Sequence[str]) -> dict[str, Assignment]:
    named = {}
    for assignment in chosen:
        for _ in labels:
            named[task_name(assignment, labels)] = assignment
            assignment = rotate(assignment)
    return named


def _combinations(classes: Sequence[str], size: int, most: int, seed: int) -> list[Assignment]:
    """Up to `most` combinations: all, those of the smallest hash, or (of very many) a draw."""
    total = math.comb(len(classes), size)
    if total <= _MOST_LISTED:
        every = list(combinations(classes, size))
        kept = sorted(every, key=lambda choice: stable_hash("choice", str(seed), *choice))[:most]
        return [choice for choice in every if choice in set(kept)] if most < total else every
    rng = stream(seed, "assignments")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < min(most, _MOST_LISTED):
        picked = rng.choice(len(classes), size=size, replace=False)
        drawn[tuple(sorted(int(i) for i in picked))] = None
    return [tuple(classes[i] for i in choice) for choice in drawn]
