"""Names and progress of the stages of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from headloc.objectives.prompts import Progress

Stages = Callable[[str], AbstractContextManager[Progress]]
"""Opens a stage by its name; inside, the progress callable takes (done, in all)."""


@contextmanager
def silent(name: str) -> Iterator[Progress]:
    """A stage that shows nothing."""
    yield _ignore


def _ignore(done: int, total: int) -> None:
    return None
