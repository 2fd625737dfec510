"""Few-shot examples before they are rendered: demonstrations, a query and its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One solved item of a task."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Example:
    """A query with its answer, and the demonstrations that show the task.

    Attributes:
        task: name of the task within its family, such as `add_7`.
        demonstrations: solved items in the order they are shown; none in a zero-shot example.
        query: the input to be answered; never among the demonstrations of a drawn example.
        answer: the right output for the query.
    """

    task: str
    demonstrations: tuple[Demonstration, ...]
    query: str
    answer: str

    @property
    def shots(self) -> int:
        """Number of demonstrations."""
        return len(self.demonstrations)

    def zero_shot(self) -> Example:
        """The query alone."""
        return replace(self, demonstrations=())

    def to_dict(self) -> dict[str, Any]:
        """The example in plain values that JSON can hold."""
        return {
            "task": self.task,
            "demonstrations": [[shown.input, shown.output] for shown in self.demonstrations],
            "query": self.query,
            "answer": self.answer,
        }
