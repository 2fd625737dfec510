"""Arithmetic with a hidden number k: the common base of add-k, subtract-k and multiply-k.

    y = f(x, k)      with k to be read off the demonstrations (Hu et al. 2025, section 2)

All tasks of a family have the same inputs: otherwise the range of x would give k away.  A share of
demonstrations may carry the label of another k (`wrong_labels`), so that one demonstration is not
enough.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from headloc.errors import TaskError
from headloc.tasks.checks import Items, integer, integers, optional_integer, share
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.family import TaskFamily, TemplateSpec

HELD_OUT_K = (2, 16, 20, 21, 27)
"""The k that Hu et al. 2025 keep for evaluation in add-k; the other families use the same ones."""


class Arithmetic(TaskFamily):
    """Tasks of one operation, named by its verb and k, as in `add_7`.

    Args:
        k: the k of the tasks; when None, all of `k_min..k_max`.
        k_min, k_max: first and last k, both included.
        x_min, x_max: first and last input, both included.
        held_out_k: k kept out of training.  Of the default, those that are not among the tasks are
            ignored; of any other list each must be one.
        shots: demonstrations per example.
        template: name of a template, or its four pieces.
        wrong_labels: probability that a demonstration shows the label of another training k.
        y_min, y_max: bounds on the label; they leave out every x whose label would be outside for
            one of the k, so that all tasks keep the same inputs.

    Raises:
        TaskError: when nothing is left to train on, or some k has too few x for the shots.
    """

    verb: ClassVar[str]
    noun: ClassVar[str]

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
        numbers = _numbers(self._chosen, *self._range, self.noun)
        self.x_min, self.x_max = _ordered("x", x_min, x_max)
        self.y_min = optional_integer("task.y_min", y_min)
        self.y_max = optional_integer("task.y_max", y_max)
        self.wrong_labels = share("task.wrong_labels", wrong_labels)
        self._held_out_k = integers("task.held_out_k", held_out_k)
        held = _held_out(numbers, self._held_out_k, self.noun)
        self._k = {f"{self.verb}_{number}": number for number in numbers}
        self.train = tuple(name for name, number in self._k.items() if number not in held)
        self.held_out = tuple(name for name, number in self._k.items() if number in held)
        inputs = self._valid(numbers)
        self._check(inputs)
        self._solved = {
            name: tuple(self._solve(x, number) for x in inputs) for name, number in self._k.items()
        }

    @abstractmethod
    def apply(self, x: int, k: int) -> int:
        """The label of x under k; monotonic in k for every x."""

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
        """The same input with the label of a random other training k."""
        others = [self._k[other] for other in self.train if other != task]
        return self._solve(int(pair.input), others[rng.integers(len(others))])

    def _relabel(self, example: Example, task: str) -> Example | None:
        inputs = [*(pair.input for pair in example.demonstrations), example.query]
        solved = [self._solve(int(x), self._k[task]) for x in inputs]
        return Example(task, tuple(solved[:-1]), example.query, solved[-1].output)

    def _solve(self, x: int, k: int) -> Demonstration:
        return Demonstration(str(x), str(self.apply(x, k)))

    def _valid(self, numbers: Collection[int]) -> list[int]:
        """The inputs whose label is within bounds for each of some k."""
        low = -math.inf if self.y_min is None else self.y_min
        high = math.inf if self.y_max is None else self.y_max
        # Labels are monotonic in k, so the outermost k decide.
        ends = (min(numbers), max(numbers))
        return [
            x
            for x in range(self.x_min, self.x_max + 1)
            if all(low <= self.apply(x, k) <= high for k in ends)
        ]

    def _check(self, inputs: Sequence[int]) -> None:
        if len(inputs) < self.shots + 1:
            raise TaskError(
                f"{self._scarce(inputs)} ({self._bounds()}), but task.shots={self.shots} and a "
                f"query need {self.shots + 1}. Widen the range, drop {_a(self.noun)}, or use fewer "
                "shots."
            )
        if self.wrong_labels and len(self.train) < 2:
            raise TaskError(
                f"task.wrong_labels={self.wrong_labels} needs two training {self.noun}s or more; "
                f"there is {len(self.train)}. Add {self.noun}s or set task.wrong_labels=0."
            )

    def _scarce(self, inputs: Sequence[int]) -> str:
        """Blame one k where it has too few inputs of its own, and otherwise all of them."""
        fewest = min(self._k.values(), key=lambda k: len(self._valid([k])))
        alone = len(self._valid([fewest]))
        if alone <= self.shots:
            return f"k={fewest} has {alone} valid x"
        return f"The {len(self._k)} {self.noun}s have {len(inputs)} valid x in common"

    def _bounds(self) -> str:
        given = {
            "x_min": self.x_min, "x_max": self.x_max, "y_min": self.y_min, "y_max": self.y_max
        }  # fmt: skip
        return ", ".join(
            f"task.{name}={value}" for name, value in given.items() if value is not None
        )


def _ordered(name: str, low: int, high: int) -> tuple[int, int]:
    low, high = integer(f"task.{name}_min", low), integer(f"task.{name}_max", high)
    if low > high:
        raise TaskError(
            f"task.{name}_min={low} is above task.{name}_max={high}, so there is no {name}. "
            f"Give a {name}_min of at most {name}_max."
        )
    return low, high


def _numbers(chosen: tuple[int, ...] | None, k_min: int, k_max: int, noun: str) -> tuple[int, ...]:
    if chosen is None:
        low, high = _ordered("k", k_min, k_max)
        return tuple(range(low, high + 1))
    if not chosen:
        raise TaskError(
            f"task.k is an empty list. Give one {noun} or more, such as task.k=[1,2,3]."
        )
    return chosen


def _held_out(numbers: tuple[int, ...], asked: tuple[int, ...], noun: str) -> frozenset[int]:
    unknown = [k for k in asked if k not in numbers]
    if unknown and asked != HELD_OUT_K:
        raise TaskError(
            f"task.held_out_k={list(asked)} names {unknown}, not among the {noun}s "
            f"{numbers[0]}..{numbers[-1]}. Name only {noun}s of the task, or give "
            "task.held_out_k=[]."
        )
    held = frozenset(asked) & frozenset(numbers)
    if len(held) == len(numbers):
        raise TaskError(
            f"task.held_out_k={sorted(held)} holds out every {noun}, which leaves nothing to train "
            f"on. Give more {noun}s, or task.held_out_k=[] to train on all of them."
        )
    return held


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
