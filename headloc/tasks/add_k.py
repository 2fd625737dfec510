"""Add-k: `y = x + k` with a hidden offset k (METHODS 2; P1 section 2).

Defaults are the paper's: k in 1..30, x in 1..100, five shots, `12->19#`, and k in
{2, 16, 20, 21, 27} held out.  Deviation: a share of demonstrations may carry the label of another
offset (`wrong_labels`), so that one demonstration is not enough.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from headloc.errors import TaskError
from headloc.tasks.checks import Items, integer, integers, optional_integer, share
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.family import TaskFamily, TemplateSpec

HELD_OUT_K = (2, 16, 20, 21, 27)
"""Offsets that P1 keeps for evaluation."""


class AddK(TaskFamily):
    """The add-k tasks, named `add_<k>`.

    Args:
        k: the offsets; when None, all of `k_min..k_max`.
        k_min, k_max: first and last offset, both included.
        x_min, x_max: first and last input, both included.
        held_out_k: offsets kept out of training.  Of the default, those that are not among the
            offsets are ignored; of any other list each must be one.
        shots: demonstrations per example.
        template: name of a template, or its four pieces.
        wrong_labels: probability that a demonstration shows `x + k'` of another training offset.
        y_min, y_max: bounds on the label; they leave out every x whose label would be outside for
            one of the offsets, so that all tasks keep the same inputs.

    Raises:
        TaskError: when nothing is left to train on, or some k has too few x for the shots.
    """

    name: ClassVar[str] = "add_k"

    def __init__(
        self,
        k: int | Sequence[int] | None = None,
        k_min: int = 1,
        k_max: int = 30,
        x_min: int = 1,
        x_max: int = 100,
        held_out_k: Sequence[int] = HELD_OUT_K,
        shots: int = 5,
        template: TemplateSpec = "arrow",
        wrong_labels: float = 0.0,
        y_min: int | None = None,
        y_max: int | None = None,
    ) -> None:
        super().__init__(template=template, shots=shots)
        self._range = (integer("task.k_min", k_min), integer("task.k_max", k_max))
        self._chosen = None if k is None else integers("task.k", k)
        offsets = _offsets(self._chosen, *self._range)
        self.x_min, self.x_max = _ordered("x", x_min, x_max)
        self.y_min = optional_integer("task.y_min", y_min)
        self.y_max = optional_integer("task.y_max", y_max)
        self.wrong_labels = share("task.wrong_labels", wrong_labels)
        self._held_out_k = integers("task.held_out_k", held_out_k)
        held = _held_out(offsets, self._held_out_k)
        self._k = {f"add_{offset}": offset for offset in offsets}
        self.train = tuple(name for name, offset in self._k.items() if offset not in held)
        self.held_out = tuple(name for name, offset in self._k.items() if offset in held)
        # Every task has the same inputs: otherwise the range of x would give the offset away.
        inputs = self._valid(offsets)
        self._check(inputs)
        self._solved = {
            name: tuple(_solved(x, offset) for x in inputs) for name, offset in self._k.items()
        }

    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "k": None if self._chosen is None else list(self._chosen),
            "k_min": self._range[0],
            "k_max": self._range[1],
            "x_min": self.x_min,
            "x_max": self.x_max,
            "held_out_k": list(self._held_out_k),
            "shots": self.shots,
            "template": self._template_option(),
            "wrong_labels": self.wrong_labels,
            "y_min": self.y_min,
            "y_max": self.y_max,
        }

    def offset(self, task: str) -> int:
        """The k of a task.

        Raises:
            TaskError: when the family has no such task.
        """
        return self._k[self._known(task)]

    def _pairs(self, task: str, items: Items) -> Sequence[Demonstration]:
        return self._solved[task]

    def _draw(
        self, task: str, rng: np.random.Generator, shots: int, items: Items, turn: int
    ) -> Example:
        example = super()._draw(task, rng, shots, items, turn)
        if not self.wrong_labels:
            return example
        wrong = rng.random(shots) < self.wrong_labels
        shown = tuple(
            self._mislabel(pair, task, rng) if bad else pair
            for pair, bad in zip(example.demonstrations, wrong, strict=True)
        )
        return replace(example, demonstrations=shown)

    def _mislabel(self, pair: Demonstration, task: str, rng: np.random.Generator) -> Demonstration:
        """The same input with the label of a random other training offset."""
        others = [self._k[other] for other in self.train if other != task]
        return _solved(int(pair.input), others[rng.integers(len(others))])

    def _relabel(self, example: Example, task: str) -> Example | None:
        inputs = [*(pair.input for pair in example.demonstrations), example.query]
        solved = [_solved(int(x), self._k[task]) for x in inputs]
        return Example(task, tuple(solved[:-1]), example.query, solved[-1].output)

    def _valid(self, offsets: Collection[int]) -> list[int]:
        """The inputs whose label is within bounds for each of some offsets."""
        low = -math.inf if self.y_min is None else self.y_min
        high = math.inf if self.y_max is None else self.y_max
        inputs = range(self.x_min, self.x_max + 1)
        least, most = min(offsets), max(offsets)
        return [x for x in inputs if low <= x + least and x + most <= high]

    def _check(self, inputs: Sequence[int]) -> None:
        if len(inputs) < self.shots + 1:
            raise TaskError(
                f"{self._scarce(inputs)} ({self._bounds()}), but task.shots={self.shots} and a "
                f"query need {self.shots + 1}. Widen the range, drop an offset, or use fewer shots."
            )
        if self.wrong_labels and len(self.train) < 2:
            raise TaskError(
                f"task.wrong_labels={self.wrong_labels} needs two training offsets or more; "
                f"there is {len(self.train)}. Add offsets or set task.wrong_labels=0."
            )

    def _scarce(self, inputs: Sequence[int]) -> str:
        """Blame one offset where it has too few inputs of its own, and otherwise all of them."""
        fewest = min(self._k.values(), key=lambda k: len(self._valid([k])))
        alone = len(self._valid([fewest]))
        if alone <= self.shots:
            return f"k={fewest} has {alone} valid x"
        return f"The {len(self._k)} offsets have {len(inputs)} valid x in common"

    def _bounds(self) -> str:
        given = {
            "x_min": self.x_min, "x_max": self.x_max, "y_min": self.y_min, "y_max": self.y_max
        }  # fmt: skip
        return ", ".join(
            f"task.{name}={value}" for name, value in given.items() if value is not None
        )


def _solved(x: int, k: int) -> Demonstration:
    return Demonstration(str(x), str(x + k))


def _ordered(name: str, low: int, high: int) -> tuple[int, int]:
    low, high = integer(f"task.{name}_min", low), integer(f"task.{name}_max", high)
    if low > high:
        raise TaskError(
            f"task.{name}_min={low} is above task.{name}_max={high}, so there is no {name}. "
            f"Give a {name}_min of at most {name}_max."
        )
    return low, high


def _offsets(chosen: tuple[int, ...] | None, k_min: int, k_max: int) -> tuple[int, ...]:
    if chosen is None:
        low, high = _ordered("k", k_min, k_max)
        return tuple(range(low, high + 1))
    if not chosen:
        raise TaskError("task.k is an empty list. Give one offset or more, such as task.k=[1,2,3].")
    return chosen


def _held_out(offsets: tuple[int, ...], asked: tuple[int, ...]) -> frozenset[int]:
    unknown = [k for k in asked if k not in offsets]
    if unknown and asked != HELD_OUT_K:
        raise TaskError(
            f"task.held_out_k={list(asked)} names {unknown}, not among the offsets "
            f"{offsets[0]}..{offsets[-1]}. Name only offsets of the task, or give "
            "task.held_out_k=[]."
        )
    held = frozenset(asked) & frozenset(offsets)
    if len(held) == len(offsets):
        raise TaskError(
            f"task.held_out_k={sorted(held)} holds out every offset, which leaves nothing to train "
            "on. Give more offsets, or task.held_out_k=[] to train on all of them."
        )
    return held
