"""How many rows run together: as many as asked for, or as many as memory allows.

A pass that runs out of device memory is repeated with half the rows, and later passes of its kind
start from there.  Rows do not influence one another, so the results are the same to rounding.

Shape legend: B rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from headloc.errors import NoRoomError
from headloc.faults import out_of_memory

log = logging.getLogger(__name__)

T = TypeVar("T")


def no_room(kind: str) -> NoRoomError:
    """Return the error of a row that is too much for memory, which says what to do.

    Args:
        kind: the kind of pass.
    """
    return NoRoomError(
        f"A single row does not fit into the memory of the device ({kind}). Use a smaller "
        "dtype (model.dtype=bfloat16), shorter prompts (fewer task.shots), fewer gate sets "
        "(sparsity.seeds, sparsity.weights), or spread the model over several devices "
        "(model.device_map=auto)."
    )


class PassSizes:
    """The largest passes that a model has room for, by kind of pass.

    A kind is a name such as "training" or "evaluation": passes of one kind need about the same
    memory per row.
    """

    def __init__(self) -> None:
        """Start without any limit."""
        self._most: dict[str, int] = {}

    def __getitem__(self, kind: str) -> int | None:
        """Return the most rows of a pass of this kind, None while memory has set no limit."""
        return self._most.get(kind)

    def halve(self, kind: str, rows: int) -> None:
        """Take down that `rows` rows were too many; the first time of a kind is told.

        Raises:
            NoRoomError: when a single row was too many.
        """
        if rows <= 1:
            raise no_room(kind)
        half = (rows + 1) // 2
        if kind not in self._most:
            log.warning(
                "Out of memory with %d rows at once (%s): going on with %d at once, or fewer. The "
                "results are the same to rounding.",
                rows,
                kind,
                half,
            )
        self._most[kind] = half


def in_passes(
    sizes: PassSizes,
    kind: str,
    rows: int,
    run: Callable[[slice], T],
    *,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[T]:
    """Run consecutive rows in passes, halving them when memory runs out.

    Args:
        sizes: what the model has room for; updated.
        kind: the kind of pass.
        rows: rows in all.
        run: runs a slice of them; it must leave nothing behind when it fails.
        most: rows of a pass where memory sets no limit; all of them when None.
        progress: called with (rows done, rows in all).

    Returns:
        What `run` gave for every pass, in order.

    Raises:
        NoRoomError: when a single row does not fit.
    """
    found: list[T] = []
    start = 0
    while start < rows:
        size = min(rows - start, most or rows, sizes[kind] or rows)
        part = slice(start, start + size)
        try:
            found.append(run(part))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            short = True
        else:
            short = False
        # Outside the handler: the exception holds the frames, and with them the tensors.
        if short:
            sizes.halve(kind, size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start += size
        if progress is not None:
            progress(start, rows)
    return found
