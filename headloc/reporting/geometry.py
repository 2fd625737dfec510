"""Lengths and places that all charts of the reports share, in the units of a chart's viewBox."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ACCURACIES = (0, 0.25, 0.5, 0.75, 1.0)
"""Ticks of an axis of accuracies."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Place:
    """A mark with what hovering over it shows."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot inside a chart: its edges, and where values lie in it."""

    left: float
    top: float
    right: float
    bottom: float

    def x(self, share: float) -> float:
        """Return the place of a share of the width, 0 at the left."""
        return round(self.left + (self.right - self.left) * share, 2)

    def y(self, value: float, top: float = 1.0) -> float:
        """Return the place of a value on a scale from 0 to `top`, 0 at the bottom."""
        return round(self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, value / top)), 2)

    def accuracies(self) -> tuple[Tick, ...]:
        """Return the ticks of a vertical axis of accuracies."""
        return tuple(Tick(self.y(value), f"{value:g}") for value in ACCURACIES)


def points(places: Iterable[tuple[float, float]]) -> str:
    """Return the `points` attribute of a polyline or polygon."""
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def whole_ticks(first: int, last: int, about: int = 5) -> list[int]:
    """Return about that many whole numbers from `first` to `last`, both among them."""
    every = max(1, math.ceil((last - first + 1) / about))
    inner = [n for n in range(every, last, every) if n > first and last - n > every / 2]
    return sorted({first, *inner, last})


def spread_over(values: Sequence[int], value: int) -> float:
    """Return where a value lies between the first and the last of some values, from 0 to 1."""
    first, last = values[0], values[-1]
    return 0.5 if last == first else (value - first) / (last - first)
