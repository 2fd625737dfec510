"""A family of tasks: what to draw prompts from.

A family holds several tasks of one kind (add-k for many k), some for training and some held out
(Hu et al. 2025).  It draws examples from random streams that the caller names
(`headloc.randomness`), and can corrupt an example: shuffle its labels (Todd et al. 2024), have
another task label it (for the off-value `resample`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

import numpy as np

from headloc.errors import TaskError, suggest
from headloc.tasks.checks import Items, integer, known_pool, require_items
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.shuffling import derange
from headloc.tasks.template import Template, resolve_template

Split = Literal["train", "held_out"]
TemplateSpec = str | Mapping[str, str] | Template
_TURNS = 2**31


class TaskFamily(ABC):
    """Base class of the families; a subclass says what its tasks, items and labels are.

    Attributes:
        name: name of the family in the registry.
        template: how examples are rendered.
        shots: number of demonstrations unless a call says otherwise.
        train: names of the tasks for training.
        held_out: names of the tasks kept for evaluation; may be empty.
    """

    name: ClassVar[str]
    template: Template
    shots: int
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def __init__(self, *, template: TemplateSpec, shots: int) -> None:
        self.template = resolve_template(template)
        self._template_name = template if isinstance(template, str) else None
        self.shots = integer("task.shots", shots, minimum=0)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, in values that JSON can hold."""

    @abstractmethod
    def _pairs(self, task: str, items: Items) -> Sequence[Demonstration]:
        """The solved items of a task, each input once."""

    @abstractmethod
    def _relabel(self, example: Example, task: str) -> Example | None:
        """The same inputs and query with the labels of another task; None where it has none."""

    def answers(self, task: str) -> tuple[str, ...] | None:
        """The closed set of labels of a task, or None when there is no such set."""
        self._known(task)
        return None

    def provenance(self) -> dict[str, Any]:
        """Facts about the data that are not options, such as a fingerprint of a file."""
        return {}

    def example(
        self,
        task: str,
        rng: np.random.Generator,
        *,
        shots: int | None = None,
        items: Items = "all",
    ) -> Example:
        """Draw one example: demonstrations without replacement, the query not among them.

        Args:
            task: one of `train` or `held_out`.
            rng: the stream to draw from.
            shots: number of demonstrations (the family's own when None).
            items: pool of data items; a family that generates its items ignores it.

        Raises:
            TaskError: when the task is unknown or has too few items.
        """
        turn = int(rng.integers(_TURNS))
        return self._draw(self._known(task), rng, self._shots(shots), known_pool(items), turn)

    def draw(
        self,
        n: int,
        rng: np.random.Generator,
        *,
        split: Split,
        shots: int | None = None,
        items: Items = "all",
    ) -> list[Example]:
        """Draw n examples, the tasks of the split taking turns in a shuffled order.

        Every task gets the same number of examples, up to one.

        Raises:
            TaskError: when the split has no tasks, or a task too few items.
        """
        tasks, count = self._split(split), self._shots(shots)
        order = rng.permutation(len(tasks))
        turns = rng.permutation(integer("n", n, minimum=0))
        return [
            self._draw(tasks[order[i % len(order)]], rng, count, known_pool(items), int(turn))
            for i, turn in enumerate(turns)
        ]

    def _draw(
        self, task: str, rng: np.random.Generator, shots: int, items: Items, turn: int
    ) -> Example:
        """Draw one example; `turn` numbers the draws, for families with classes to balance."""
        pairs = self._pairs(task, items)
        require_items(task, len(pairs), shots, items)
        *shown, query = (pairs[i] for i in rng.choice(len(pairs), size=shots + 1, replace=False))
        return Example(task, tuple(shown), query.input, query.output)

    def check_items(self, *, shots: int | None = None, items: Items = "all") -> None:
        """Make sure that every task has enough items, before a run starts.

        Raises:
            TaskError: naming the first task that has too few.
        """
        for task in (*self.train, *self.held_out):
            require_items(
                task, len(self._pairs(task, known_pool(items))), self._shots(shots), items
            )

    def shuffled(self, example: Example, rng: np.random.Generator) -> Example:
        """Permute the labels of the demonstrations so that none keeps its own (Todd et al. 2024).

        Raises:
            TaskError: when there is no such permutation.
        """
        labels = derange([shown.output for shown in example.demonstrations], rng)
        shown = tuple(
            Demonstration(pair.input, label)
            for pair, label in zip(example.demonstrations, labels, strict=True)
        )
        return replace(example, demonstrations=shown)

    def counterfactual(self, example: Example, rng: np.random.Generator) -> Example:
        """The same query and inputs, labelled by a random other training task.

        `task` and `answer` of the result are those of the other task, and the answer differs.

        Raises:
            TaskError: when the example shows no demonstrations, or no other task fits.
        """
        if not example.demonstrations:
            raise TaskError(
                "A zero-shot example has no demonstrations that another task could label. "
                "Use shots=1 or more, or off-values that need no other task (zero, mean)."
            )
        others = self._others(example)
        for i in rng.permutation(len(others)):
            other = self._relabel(example, others[i])
            if other is not None and other.answer != example.answer:
                return other
        return self._unrelated(example, rng)

    def _others(self, example: Example) -> Sequence[str]:
        """Tasks that may label the example instead of its own."""
        return [task for task in self.train if task != example.task]

    def _unrelated(self, example: Example, rng: np.random.Generator) -> Example:
        """What to do when no other task knows the example's inputs."""
        raise TaskError(
            f"No other training task of {self.name} gives {example.query!r} another answer than "
            f"{example.task} does. Add training tasks, or use off-values zero or mean."
        )

    def describe(self) -> dict[str, Any]:
        """Everything needed to build the family again (`rebuild_task`), in plain JSON values."""
        return {
            "family": self.name,
            "options": self.options(),
            "template": asdict(self.template),
            "train": list(self.train),
            "held_out": list(self.held_out),
            "provenance": self.provenance(),
        }

    def _template_option(self) -> str | dict[str, str]:
        return self._template_name or asdict(self.template)

    def _known(self, task: str) -> str:
        if task not in self.train and task not in self.held_out:
            names = (*self.train, *self.held_out)
            raise TaskError(f"{self.name} has no task {task!r}. {suggest(task, names)}")
        return task

    def _shots(self, shots: int | None) -> int:
        return self.shots if shots is None else integer("shots", shots, minimum=0)

    def _split(self, split: Split) -> tuple[str, ...]:
        if split not in ("train", "held_out"):
            raise TaskError(f"split={split!r} is not a split. Give 'train' or 'held_out'.")
        tasks = self.train if split == "train" else self.held_out
        if not tasks:
            raise TaskError(
                f"The family {self.name} has no held-out tasks to draw from. "
                "Hold some tasks out, or score fresh prompts of the training tasks."
            )
        return tasks
