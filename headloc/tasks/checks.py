"""Checks of what a task is built and drawn with, one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Literal

from headloc.errors import TaskError

Items = Literal["all", "fit", "score"]
"""Pool of data items: `fit` and `score` share none, for families whose items come from data."""


def integer(name: str, value: object, *, minimum: int | None = None) -> int:
    """The value as an int.

    Raises:
        TaskError: when it is not an integer, or is below `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TaskError(f"{name}={value!r} is not an integer. Give a whole number.")
    if minimum is not None and value < minimum:
        raise TaskError(f"{name}={value} is too small. Give {minimum} or more.")
    return int(value)


def optional_integer(name: str, value: object, *, minimum: int | None = None) -> int | None:
    """The same, where None means that nothing was asked for."""
    return None if value is None else integer(name, value, minimum=minimum)


def integers(name: str, value: object) -> tuple[int, ...]:
    """A list of integers (or a single one) without repetitions, in the order given.

    Raises:
        TaskError: when it is something else.
    """
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(dict.fromkeys(integer(name, item) for item in items))


def share(name: str, value: object, *, below: float = 1.0) -> float:
    """The value as a share, `0 <= value < below`.

    Raises:
        TaskError: when it is not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < below:
        raise TaskError(
            f"{name}={value!r} is not a share. Give a number from 0 to below {below:g}."
        )
    return float(value)


def texts(name: str, value: object) -> tuple[str, ...]:
    """A list of distinct texts (or a single one) with something visible in each.

    Raises:
        TaskError: when it is something else.
    """
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for item in items:
        if not isinstance(item, str) or not item.strip():
            raise TaskError(f"{name} contains {item!r}. Give words, such as {name}=[foo,bar].")
    words = tuple(str(item) for item in items)
    if len(set(words)) < len(words):
        raise TaskError(
            f"{name}=[{', '.join(words)}] names the same thing twice. Give each one once."
        )
    return words


def known_pool(items: Items) -> Items:
    """The name of a pool of items.

    Raises:
        TaskError: when it is another name.
    """
    if items not in ("all", "fit", "score"):
        raise TaskError(f"items={items!r} is not a pool. Give 'all', 'fit' or 'score'.")
    return items


def require_items(task: str, available: int, shots: int, items: Items) -> None:
    """Make sure that a task has items enough for the demonstrations and a query.

    Raises:
        TaskError: when it has fewer.
    """
    if available < shots + 1:
        pool = "" if items == "all" else f" in its {items!r} half"
        raise TaskError(
            f"Task {task!r} has {available} items{pool}, but {shots} shots and a query need "
            f"{shots + 1}. Use fewer shots or give more items."
        )
