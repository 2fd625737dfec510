"""Facts: whole prompts that one word completes, relation by relation.

Each relation is a task.  Prompts are used as they are, without demonstrations, so there is nothing
in them for a few-shot localizer; they are for `analysis=attribution` and for the comparison of head
rankings on recalled facts.  `fact_files.py` tells how a file looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from headloc.errors import TaskError, suggest
from headloc.tasks.checks import Items, integer, known_pool, texts
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.fact_files import KnownFact, bundled_facts, read_facts
from headloc.tasks.family import Split, TaskFamily
from headloc.tasks.files import BUNDLED, fingerprint, halves, require_path
from headloc.tasks.prompts import AsItIs


class Facts(TaskFamily):
    """Facts of one or several relations.

    Half of each relation's facts is for finding heads, the other half for scoring them.  A draw
    holds every fact once at most, so it may be smaller than what was asked for.

    Args:
        path: a JSON file; `bundled` for the facts that the bundled model was trained on.
        relations: names of the relations to keep; all when None.
        max_items: facts per relation that are kept, in the order of the file; all when None.

    Raises:
        TaskError: for a file that holds no such list, the same prompt with two targets, or a
            relation that is not in it.
    """

    name: ClassVar[str] = "facts"

    def __init__(
        self,
        path: str | Path = BUNDLED,
        relations: Sequence[str] | None = None,
        max_items: int | None = None,
    ) -> None:
        super().__init__(template=AsItIs(), shots=0)
        require_path(path, "FILE, a JSON list of facts, or task.path=bundled")
        self._path, self._relations, self._max_items = path, relations, max_items
        file = Path(path).expanduser()
        found = bundled_facts() if str(path) == BUNDLED else read_facts(file)
        self._facts = _by_relation(found, str(path))
        if relations is not None:
            for name in texts("task.relations", relations):
                if name not in self._facts:
                    known = suggest(name, tuple(self._facts))
                    raise TaskError(f"{path} has no relation {name!r}. {known}")
            self._facts = {name: self._facts[name] for name in texts("relations", relations)}
        if max_items is not None:
            most = integer("task.max_items", max_items, minimum=1)
            self._facts = {name: dict(list(f.items())[:most]) for name, f in self._facts.items()}
        self.train, self.held_out = tuple(self._facts), ()
        self._pools = {
            name: dict(zip(("fit", "score"), halves(list(facts)), strict=True))
            for name, facts in self._facts.items()
        }

    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        relations = None if self._relations is None else list(texts("relations", self._relations))
        return {"path": str(self._path), "relations": relations, "max_items": self._max_items}

    def provenance(self) -> dict[str, Any]:
        """Number of facts, and a fingerprint of them all."""
        data = [
            [fact.relation, fact.prompt, fact.target]
            for facts in self._facts.values()
            for fact in facts.values()
        ]
        return {"items": len(data), "data": fingerprint(data)}

    def fact(self, example: Example) -> KnownFact:
        """The fact that an example was made of."""
        return self._facts[self._known(example.task)][example.query]

    def draw(
        self,
        n: int,
        rng: np.random.Generator,
        *,
        split: Split,
        shots: int | None = None,
        items: Items = "all",
    ) -> list[Example]:
        """Draw up to n different facts, the relations taking turns.

        Raises:
            TaskError: when demonstrations or held-out tasks are asked for: there are none.
        """
        self._shots(shots)
        queues = []
        for task in self._split(split):
            pairs = self._pairs(task, known_pool(items))
            order = rng.permutation(len(pairs))
            queues.append([Example(task, (), pairs[i].input, pairs[i].output) for i in order])
        longest = max(map(len, queues))
        turns = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
        return turns[: integer("n", n, minimum=0)]

    def _shots(self, shots: int | None) -> int:
        if shots:
            raise TaskError("Facts take no demonstrations. Leave shots at 0, or use task=pairs.")
        return 0

    def _pairs(self, task: str, items: Items) -> Sequence[Demonstration]:
        return [
            Demonstration(prompt, fact.target)
            for prompt, fact in self._facts[task].items()
            if items == "all" or prompt in self._pools[task][items]
        ]

    def _relabel(self, example: Example, task: str) -> Example | None:
        return None

    def describe(self) -> dict[str, Any]:
        """Everything needed to build the family again, in plain JSON values."""
        return {**super().describe(), "shots": 0}


def _by_relation(facts: Sequence[KnownFact], where: str) -> dict[str, dict[str, KnownFact]]:
    """Return the facts by relation and prompt, repetitions dropped."""
    found: dict[str, dict[str, KnownFact]] = {}
    for fact in facts:
        known = found.setdefault(fact.relation, {}).setdefault(fact.prompt, fact)
        if known.target != fact.target:
            raise TaskError(
                f"{where}: the prompt {fact.prompt[-60:]!r} has the targets {known.target!r} and "
                f"{fact.target!r}. Keep one of the two."
            )
    return found
