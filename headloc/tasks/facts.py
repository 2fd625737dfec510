"""Facts: whole prompts that one word completes, relation by relation.

Each relation is a task.  Prompts are used as they are, without demonstrations, so there is nothing
in them for a few-shot localizer; they are for `analysis=attribution` and for the comparison of head
rankings on recalled facts.  `fact_files.py` tells how a file looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from headloc.errors import TaskError, suggest
from headloc.tasks.checks import integer, texts
from headloc.tasks.example import Example
from headloc.tasks.fact_files import KnownFact, bundled_facts, read_facts
from headloc.tasks.files import BUNDLED, fingerprint, require_path
from headloc.tasks.whole_prompts import WholePrompts


class Facts(WholePrompts):
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
        super().__init__(
            {
                name: {prompt: fact.target for prompt, fact in facts.items()}
                for name, facts in self._facts.items()
            }
        )

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
