"""What a model can do is found out by trying it on a few tokens.

A model that cannot do something says so in many ways, most of them errors of Python or torch.
Memory that runs out is not one of them: it says nothing about the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from headloc.errors import UnsupportedModelError
from headloc.faults import out_of_memory
from headloc.lm.passes import no_room

T = TypeVar("T")

_UNABLE = (
    UnsupportedModelError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError
)  # fmt: skip


class CannotError(Exception):
    """The model cannot do what was tried; the cause says how that showed."""


@contextmanager
def probing() -> Iterator[None]:
    """Try something on a few tokens.

    Raises:
        NoRoomError: when memory ran out, so that nothing was found out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise no_room("a few tokens, to see what the model can do") from error


def attempt(run: Callable[[], T]) -> T:
    """Do something that not every model can do.

    Args:
        run: runs the model on a few tokens.

    Raises:
        CannotError: when the model cannot do it. Running out of memory is passed on as it is.
    """
    try:
        return run()
    except _UNABLE as error:
        if out_of_memory(error):
            raise
        raise CannotError from error
