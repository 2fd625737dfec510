"""Which of several named tasks are trained on and which are held out.

Splits are fixed by name: neither the order of files nor a random number has a part in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headloc.errors import TaskError, suggest


def split_tasks(
    found: Sequence[str], picked: Sequence[str] | None, held_out: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks for training and those held out, each in the order in which they were found.

    Args:
        found: names of the tasks that there are.
        picked: tasks to train on; None for all that are not held out.
        held_out: tasks to keep out.

    Raises:
        TaskError: when a name is unknown, a task is named for both, or none is left to train on.
    """
    for option, names in (("held_out", held_out), ("tasks", picked or ())):
        for name in names:
            if name not in found:
                hint = suggest(name, found)
                raise TaskError(f"task.{option} names {name!r}, no task here. {hint}")
    both = [name for name in picked or () if name in held_out]
    if both:
        raise TaskError(
            f"task.held_out names {', '.join(both)}, also trained on by task.tasks. Leave a task "
            "out of one of the two."
        )
    trained = set(found) - set(held_out) if picked is None else set(picked)
    if not trained:
        raise TaskError(
            f"task.held_out={list(held_out)} holds out every task, which leaves nothing to train "
            "on. Hold out fewer, or give more files."
        )
    return _ordered(found, trained), _ordered(found, held_out)


def refuse_copies(
    train: Sequence[str], held_out: Sequence[str], tables: Mapping[str, Mapping[str, str]]
) -> None:
    """Refuse a held-out task whose items are those of a trained task under another name.

    Raises:
        TaskError: naming the two.
    """
    for kept in held_out:
        for name in train:
            if tables[kept] == tables[name]:
                raise TaskError(
                    f"The held-out task {kept!r} has the items of {name!r}, so it is also trained "
                    "on. Remove one of the two files, or hold both out."
                )


def _ordered(found: Sequence[str], names: Sequence[str] | set[str]) -> tuple[str, ...]:
    return tuple(name for name in found if name in names)
