"""Draw prompts that are all different, and were not fitted to, for what is tested or scored.

A prompt that is drawn twice has the same outcome twice: intervals would be too narrow and p-values
too small, by as much as prompts repeat.  Few-shot prompts hardly ever do; zero-shot ones do: there
are no more of them than a task has items.  For the same reason zero-shot prompts of one stream may
be those of another, where a family makes its items by rule and has no two pools of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from headloc.tasks.checks import Items
    from headloc.tasks.example import Example
    from headloc.tasks.family import Split, TaskFamily

log = logging.getLogger(__name__)

_FEWEST = 256
"""Further draws that must bring nothing new before a task counts as exhausted."""


def draw_different(
    task: TaskFamily,
    n: int,
    rng: np.random.Generator,
    *,
    split: Split,
    items: Items,
    key: Callable[[Example], Hashable],
    without: Set[Hashable] = frozenset(),
) -> list[Example]:
    """Draw up to n examples of different prompts.

    The first n draws come first, those of prompts that occurred before left out; further draws fill
    up until there are n, or until many draws again bring nothing new.

    Args:
        task: the task family.
        n: how many.
        rng: the stream to draw from.
        split: train or held_out tasks.
        items: pool of data items.
        key: what makes two examples the same prompt (`Objective.prompt_key`).
        without: keys of prompts to leave out, as something was fitted to them; where a task has no
            others they are drawn all the same, with a warning.

    Raises:
        TaskError: as `TaskFamily.draw`.
    """
    fresh: dict[Hashable, Example] = {}
    fitted: dict[Hashable, Example] = {}
    count = n
    while True:
        before = len(fresh) + len(fitted)
        for example in task.draw(count, rng, split=split, items=items):
            own = key(example)
            (fitted if own in without else fresh).setdefault(own, example)
        if len(fresh) >= n or len(fresh) + len(fitted) == before:
            break
        count = max(n, _FEWEST)
    if fitted and not fresh:
        log.warning(
            "The tasks of %s have %d different prompts for this intervention, and all of them were "
            "fitted to: the scores are not on fresh prompts. Give more items (a wider range of x, "
            "a longer file), or fewer data.train_prompts.",
            task.name,
            len(fitted),
        )
    return list((fresh or fitted).values())[:n]
