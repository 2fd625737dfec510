"""The life of a tap: hooks go on, count how often they fire, and always come off.

A tap that did not fire is an error, never a silent no-op: an effect that was never applied looks
exactly like an effect of size zero.

Shape legend: B rows, T columns of the current forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from headloc.errors import HeadlocError, TapError


class Tap(Protocol):
    """One hook on one module: counts its firings, knows how to attach itself."""

    layer: int
    fired: int

    def attach(self) -> RemovableHandle:
        """Put the hook on its module."""


class TapCount:
    """How often each tapped layer fired while the context was open."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        """Watch these taps."""
        self._taps = taps

    @property
    def fired(self) -> dict[int, int]:
        """Firings by model layer."""
        return {tap.layer: tap.fired for tap in self._taps}

    def check(self) -> None:
        """Raise unless every layer fired, and all equally often.

        Raises:
            TapError: naming the layers that did not.
        """
        counts = self.fired
        most = max(counts.values(), default=0)
        if most == 0:
            layers = ", ".join(map(str, counts)) or "none"
            raise TapError(
                f"No forward ran through the tapped layers ({layers}), so the tap had no effect. "
                "Run the model inside the `with` block, on the same FrozenLM."
            )
        behind = {layer: count for layer, count in counts.items() if count != most}
        if behind:
            found = ", ".join(f"layer {layer}: {count}" for layer, count in behind.items())
            raise TapError(
                f"Tapped layers fired unequally ({found}; expected {most} each). A layer was "
                "skipped (layer drop, early exit, a part of the model run alone), a forward was "
                "interrupted, or a fused kernel went round the module that carries the hook."
            )


@contextmanager
def attached(taps: Sequence[Tap]) -> Iterator[TapCount]:
    """Keep taps on for the length of the block; on a normal exit, check that all of them fired.

    Raises:
        TapError: on a normal exit, when a tap did not fire as often as the others, or none did.
    """
    count = TapCount(taps)
    handles: list[RemovableHandle] = []
    try:
        for tap in taps:
            handles.append(tap.attach())
        yield count
    finally:
        for handle in handles:
            handle.remove()
    # Reached only without an exception, so that the user's own error is never masked.
    count.check()


def check_columns(columns: slice | None) -> None:
    """Refuse a slice with a step.

    Raises:
        HeadlocError: when the slice does not name one run of neighbouring columns.
    """
    if columns is not None and columns.step not in (None, 1):
        raise HeadlocError(f"columns={columns} has a step; give one run of neighbouring columns.")


def column_range(columns: slice | None, total: int) -> tuple[int, int]:
    """First and one-past-last of the T columns of the current forward.

    Raises:
        TapError: when the slice reaches beyond the columns that are running, or selects none; the
            usual cause is `batch.predicting` used in a forward that starts at a prefix cache.
    """
    if columns is None:
        return 0, total
    start, stop, _ = columns.indices(total)
    edges = (columns.start or 0, columns.stop or 0)
    beyond = max(edges) > total or min(edges) < -total
    if beyond or start >= stop:
        raise TapError(
            f"The tap is for columns {columns.start}..{columns.stop}, but the current forward has "
            f"{total} columns. With a prefix cache only the predicting columns run: use "
            "columns=None there."
        )
    return start, stop


def splice(whole_BT: Tensor, part: Tensor, start: int, stop: int) -> Tensor:
    """`whole` with columns start .. stop-1 replaced; `part` itself when that is all of them."""
    if start == 0 and stop == whole_BT.shape[1]:
        return part
    return torch.cat([whole_BT[:, :start], part.to(whole_BT.dtype), whole_BT[:, stop:]], dim=1)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Gates and added vectors are applied in float32, or in float64 when the model is."""
    return torch.float64 if dtype == torch.float64 else torch.float32
