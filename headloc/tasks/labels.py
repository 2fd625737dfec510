"""Labels: classify words or sentences into label words that mean nothing.

Source: Yu & Ananiadou 2024, arXiv 2402.02872.

A task assigns classes to labels, such as `animals=foo,fruits=bar`; only the demonstrations tell
which class has which label.  Demonstrations are balanced over the labels and in random order.

Held out is a share of the *combinations* of classes, with every order of theirs.  Data with exactly
as many classes as there are labels has one combination, so nothing can be held out and `held_out`
is empty; what is fresh in evaluation are then the texts (`items="fit"` and `items="score"` share
none).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from headloc.errors import TaskError
from headloc.tasks.assignments import choose_assignments, rotate, task_name
from headloc.tasks.checks import Items, integer, share, texts
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.family import TaskFamily, TemplateSpec
from headloc.tasks.files import fingerprint, halves
from headloc.tasks.label_files import read_classes

_SHOTS_PER_LABEL = 2


class Labels(TaskFamily):
    """Classification into arbitrary label words.

    Args:
        path: a JSON or CSV file of texts and classes; None takes the words that ship with headloc.
        labels: two label words or more.
        shots: demonstrations per example; those that do not divide evenly go to random labels.
        shots_per_label: the same counted per label (2 when neither is given).
        template: name of a template, or its four pieces.
        held_out_share: share of the combinations of classes kept out of training.
        seed: decides which combinations are used and which are held out.
        max_tasks: most tasks to use; every combination used comes with all its label rotations.

    Raises:
        TaskError: when the data has the wrong shape, too few classes or too few texts.
    """

    name: ClassVar[str] = "labels"

    def __init__(
        self,
        path: str | Path | None = None,
        labels: Sequence[str] = ("foo", "bar"),
        shots: int | None = None,
        shots_per_label: int | None = None,
        template: TemplateSpec = "arrow",
        held_out_share: float = 0.2,
        seed: int = 0,
        max_tasks: int = 400,
    ) -> None:
        self.labels = texts("task.labels", labels)
        if len(self.labels) < 2:
            raise TaskError("task.labels names fewer than two labels. Give two or more: [foo,bar].")
        super().__init__(template=template, shots=_total(shots, shots_per_label, len(self.labels)))
        self._path = path
        self._held_out_share = share("task.held_out_share", held_out_share)
        self._seed = integer("task.seed", seed, minimum=0)
        self._max_tasks = integer("task.max_tasks", max_tasks, minimum=len(self.labels))
        self._classes = read_classes(path)
        self._pools = {name: _pools(members) for name, members in self._classes.items()}
        self._class_of = {text: name for name, members in self._classes.items() for text in members}
        chosen = choose_assignments(
            tuple(self._classes),
            self.labels,
            held_out_share=self._held_out_share,
            max_tasks=self._max_tasks,
            seed=self._seed,
        )
        self.train, self.held_out = tuple(chosen.train), tuple(chosen.held_out)
        self._assignments = {**chosen.train, **chosen.held_out}
        self.check_items()

    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "path": None if self._path is None else str(self._path),
            "labels": list(self.labels),
            "shots": self.shots,
            "template": self._template_option(),
            "held_out_share": self._held_out_share,
            "seed": self._seed,
            "max_tasks": self._max_tasks,
        }

    def provenance(self) -> dict[str, Any]:
        """Number of texts of each class, and a fingerprint of them all."""
        counts = {name: len(members) for name, members in self._classes.items()}
        return {"classes": counts, "data": fingerprint(self._classes)}

    def answers(self, task: str) -> tuple[str, ...]:
        """The label words."""
        self._known(task)
        return self.labels

    def flipped(self, example: Example) -> Example:
        """The same texts under the next rotation of the labels: with two labels, the reversed twin.

        Raises:
            TaskError: when the example is not one of this family.
        """
        twin = rotate(self._assignments[self._known(example.task)])
        other = self._relabel(example, task_name(twin, self.labels))
        if other is None:
            raise TaskError(f"The example of {example.task} has texts that are not in this data.")
        return other

    def check_items(self, *, shots: int | None = None, items: Items = "all") -> None:
        """Make sure that every class has enough texts; see the base class."""
        each = -(-self._shots(shots) // len(self.labels))
        used = {name for classes in self._assignments.values() for name in classes}
        for name in self._classes:
            if name in used:
                self._members(name, each + 1, items)

    def _members(self, name: str, needed: int, items: Items) -> tuple[str, ...]:
        members = self._classes[name] if items == "all" else self._pools[name][items]
        if len(members) < needed:
            pool = "" if items == "all" else f" in its {items!r} half"
            raise TaskError(
                f"Class {name!r} has {len(members)} texts{pool}, but an example may need {needed}. "
                "Use fewer shots, or give the class more texts."
            )
        return members

    def _pairs(self, task: str, items: Items) -> Sequence[Demonstration]:
        return [
            Demonstration(text, label)
            for name, label in zip(self._assignments[task], self.labels, strict=True)
            for text in self._members(name, 0, items)
        ]

    def _draw(
        self, task: str, rng: np.random.Generator, shots: int, items: Items, turn: int
    ) -> Example:
        """Draw the query's label by turns, then texts of each class without replacement."""
        asked = turn % len(self.labels)
        counts = np.full(len(self.labels), shots // len(self.labels))
        extra = rng.permutation(len(self.labels))[: shots % len(self.labels)]
        counts[extra] += 1
        shown: list[Demonstration] = []
        query = ""
        for index, (name, label) in enumerate(
            zip(self._assignments[task], self.labels, strict=True)
        ):
            count = int(counts[index]) + (index == asked)
            members = self._members(name, count, items)
            picked = [members[i] for i in rng.choice(len(members), size=count, replace=False)]
            if index == asked:
                query = picked.pop()
            shown += [Demonstration(text, label) for text in picked]
        order = rng.permutation(len(shown))
        return Example(task, tuple(shown[i] for i in order), query, self.labels[asked])

    def _relabel(self, example: Example, task: str) -> Example | None:
        label_of = dict(zip(self._assignments[task], self.labels, strict=True))
        inputs = [*(pair.input for pair in example.demonstrations), example.query]
        found = [label_of.get(self._class_of.get(text, "")) for text in inputs]
        labels = [label for label in found if label is not None]
        if len(labels) < len(inputs):
            return None
        shown = (Demonstration(*pair) for pair in zip(inputs[:-1], labels[:-1], strict=True))
        return Example(task, tuple(shown), example.query, labels[-1])

    def _others(self, example: Example) -> Sequence[str]:
        """The other rotations of the same classes, held out or not: only they know the texts."""
        assignment = self._assignments[self._known(example.task)]
        names = []
        for _ in self.labels[1:]:
            assignment = rotate(assignment)
            names.append(task_name(assignment, self.labels))
        return names


def _total(shots: int | None, per_label: int | None, labels: int) -> int:
    if per_label is None:
        per_label = _SHOTS_PER_LABEL if shots is None else None
    if per_label is None:
        return integer("task.shots", shots, minimum=0)
    total = integer("task.shots_per_label", per_label, minimum=0) * labels
    if shots is not None and shots != total:
        raise TaskError(
            f"task.shots={shots} contradicts task.shots_per_label={per_label}, which makes {total} "
            f"with {labels} labels. Give one of the two."
        )
    return total


def _pools(members: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    fit, score = halves(list(members))
    return {
        "fit": tuple(text for text in members if text in fit),
        "score": tuple(text for text in members if text in score),
    }
