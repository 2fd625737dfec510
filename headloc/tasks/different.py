"""Draw prompts that are all different, for what is tested or given an interval.

A prompt that is drawn twice has the same outcome twice: intervals would be too narrow and p-values
too small, by as much as prompts repeat.  Few-shot prompts hardly ever do; zero-shot ones do: there
are no more of them than a task has items.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from headloc.tasks.checks import Items
    from headloc.tasks.example import Example
    from headloc.tasks.family import Split, TaskFamily


def draw_different(
    task: TaskFamily,
    n: int,
    rng: np.random.Generator,
    *,
    split: Split,
    items: Items,
    key: Callable[[Example], Hashable],
) -> list[Example]:
    """Draw up to n examples of different prompts.

    The first n draws come first, those of prompts that occurred before left out; further draws fill
    up until there are n, or until as many draws again bring nothing new.

    Args:
        task: the task family.
        n: how many.
        rng: the stream to draw from.
        split: train or held_out tasks.
        items: pool of data items.
        key: what makes two examples the same prompt (`Objective.prompt_key`).

    Raises:
        TaskError: as `TaskFamily.draw`.
    """
    found: dict[Hashable, Example] = {}
    while True:
        before = len(found)
        for example in task.draw(n, rng, split=split, items=items):
            found.setdefault(key(example), example)
        if len(found) >= n or len(found) == before:
            return list(found.values())[:n]
