"""Pairs: tasks given by lists of inputs and outputs, such as countries and capitals.

One file is one task, named by the file.  Items are split once into two pools, `fit` and `score`, so
that prompts a circuit is scored on share no item with those it was found on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from headloc.errors import TaskError
from headloc.randomness import stable_hash
from headloc.tasks.checks import Items, optional_integer, texts
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.family import TaskFamily, TemplateSpec
from headloc.tasks.files import BUNDLED, fingerprint, halves
from headloc.tasks.pair_files import OnConflict, read_pair_files
from headloc.tasks.splits import refuse_copies, split_tasks

_MOST_ANSWERS = 10


class Pairs(TaskFamily):
    """Tasks from pairs files.

    Args:
        path: a JSON file, a list of them, a folder of them, or `bundled` (facts that ship with
            headloc: capital, continent and the like).
        shots: demonstrations per example.
        template: name of a template, or its four pieces.
        held_out: tasks (names of files without `.json`) kept out of training.
        tasks: tasks to train on, jointly or one alone; None for all that are not held out.  Tasks
            that are named neither here nor in `held_out` are left out altogether.
        max_items: use at most this many items of a file, a stable sample.
        on_conflict: `error` refuses a file in which an input has several outputs, `drop` leaves out
            these inputs.

    Raises:
        TaskError: when a file is not a list of pairs, a task has too few items, nothing is left to
            train on, or a held-out task is also trained on, be it under another name.
    """

    name: ClassVar[str] = "pairs"

    def __init__(
        self,
        path: str | Path | Sequence[str | Path] = BUNDLED,
        shots: int = 5,
        template: TemplateSpec = "arrow",
        held_out: str | Sequence[str] = (),
        max_items: int | None = None,
        on_conflict: OnConflict = "error",
        tasks: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(template=template, shots=shots)
        if on_conflict not in ("error", "drop"):
            raise TaskError(f"task.on_conflict={on_conflict!r}: give 'error' or 'drop'.")
        self._path = path
        self._max_items = optional_integer("task.max_items", max_items, minimum=1)
        self._on_conflict: OnConflict = on_conflict
        found = read_pair_files(path, on_conflict)
        self._picked = None if tasks is None else texts("task.tasks", tasks)
        held_out = texts("task.held_out", held_out)
        self.train, self.held_out = split_tasks(tuple(found), self._picked, held_out)
        used = {*self.train, *self.held_out}
        self._items = {
            task: _sample(pairs, self._max_items) for task, pairs in found.items() if task in used
        }
        self._pools = {task: _pools(pairs) for task, pairs in self._items.items()}
        self._tables = {
            task: {pair.input: pair.output for pair in pairs} for task, pairs in self._items.items()
        }
        refuse_copies(self.train, self.held_out, self._tables)
        self.check_items()

    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        path = self._path
        return {
            "path": str(path) if isinstance(path, (str, Path)) else [str(item) for item in path],
            "shots": self.shots,
            "template": self._template_option(),
            "held_out": list(self.held_out),
            "max_items": self._max_items,
            "on_conflict": self._on_conflict,
            "tasks": None if self._picked is None else list(self._picked),
        }

    def provenance(self) -> dict[str, Any]:
        """Number of items of each task, and a fingerprint of them all."""
        counts = {task: len(pairs) for task, pairs in self._items.items()}
        return {"items": counts, "data": fingerprint(self._tables)}

    def answers(self, task: str) -> tuple[str, ...] | None:
        """The outputs of a task that has few of them: up to ten, each twice on average or more."""
        pairs = self._items[self._known(task)]
        outputs = sorted({pair.output for pair in pairs})
        closed = len(outputs) <= min(_MOST_ANSWERS, len(pairs) // 2)
        return tuple(outputs) if closed else None

    def _pairs(self, task: str, items: Items) -> Sequence[Demonstration]:
        return self._items[task] if items == "all" else self._pools[task][items]

    def _relabel(self, example: Example, task: str) -> Example | None:
        table = self._tables[task]
        inputs = [pair.input for pair in example.demonstrations]
        if any(text not in table for text in (*inputs, example.query)):
            return None
        shown = tuple(Demonstration(text, table[text]) for text in inputs)
        return Example(task, shown, example.query, table[example.query])

    def _unrelated(self, example: Example, rng: np.random.Generator) -> Example:
        """Whole demonstrations of another training task.

        No file knows what that task makes of the query, so the answer stays the example's: it is no
        longer what the demonstrations ask for.
        """
        able = [task for task in self._others(example) if len(self._items[task]) > example.shots]
        if not able:
            return super()._unrelated(example, rng)
        task = able[int(rng.integers(len(able)))]
        pairs = [pair for pair in self._items[task] if pair.input != example.query]
        picked = rng.choice(len(pairs), size=example.shots, replace=False)
        return replace(example, task=task, demonstrations=tuple(pairs[i] for i in picked))


def _sample(pairs: tuple[Demonstration, ...], most: int | None) -> tuple[Demonstration, ...]:
    if most is None or len(pairs) <= most:
        return pairs
    ranked = sorted(pairs, key=lambda pair: stable_hash("sample", pair.input))
    kept = {pair.input for pair in ranked[:most]}
    return tuple(pair for pair in pairs if pair.input in kept)


def _pools(pairs: tuple[Demonstration, ...]) -> dict[str, tuple[Demonstration, ...]]:
    fit, score = halves([pair.input for pair in pairs])
    return {
        "fit": tuple(pair for pair in pairs if pair.input in fit),
        "score": tuple(pair for pair in pairs if pair.input in score),
    }
