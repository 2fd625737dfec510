"""Fixed prompts that are used as they are, without demonstrations: the base of such families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headloc.errors import TaskError
from headloc.tasks.checks import Items, integer, known_pool
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.family import Split, TaskFamily
from headloc.tasks.files import halves
from headloc.tasks.template import Template


@dataclass(frozen=True, slots=True)
class AsItIs(Template):
    """The template of whole prompts: nothing is put around them."""

    in_pre: str = ""
    in_sep: str = ""
    out_pre: str = ""
    out_sep: str = ""

    def __post_init__(self) -> None:
        """Nothing has to separate an input from its label where there are no demonstrations."""


class WholePrompts(TaskFamily):
    """Fixed prompts, task by task.

    Half of each task's prompts is for finding heads, the other half for scoring them.  A draw holds
    every prompt once at most, so it may be smaller than what was asked for.

    Args:
        answers: the answer to every prompt, by task.
    """

    def __init__(self, answers: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(template=AsItIs(), shots=0)
        self._answers = answers
        self.train, self.held_out = tuple(answers), ()
        self._pools = {
            task: dict(zip(("fit", "score"), map(set, halves(list(own))), strict=True))
            for task, own in answers.items()
        }

    def draw(
        self,
        n: int,
        rng: np.random.Generator,
        *,
        split: Split,
        shots: int | None = None,
        items: Items = "all",
    ) -> list[Example]:
        """Draw up to n different prompts in random order, the tasks taking turns.

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

    def describe(self) -> dict[str, Any]:
        """Everything needed to build the family again, in plain JSON values."""
        return {**super().describe(), "shots": 0}

    def _shots(self, shots: int | None) -> int:
        if shots:
            raise TaskError(
                f"Whole prompts (task={self.name}) take no demonstrations. Leave shots at 0, or "
                "use task=pairs."
            )
        return 0

    def _pairs(self, task: str, items: Items) -> Sequence[Demonstration]:
        return [
            Demonstration(prompt, answer)
            for prompt, answer in self._answers[task].items()
            if items == "all" or prompt in self._pools[task][items]
        ]

    def _relabel(self, example: Example, task: str) -> Example | None:
        return None
