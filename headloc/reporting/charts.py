"""Geometry of the report's own charts: inline SVG that follows the page's colours, light and dark.

All lengths are in the units of a chart's viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headloc.reporting.feed_forward import MlpRow
from headloc.reporting.figures import AccuracyRow, Figure
from headloc.reporting.geometry import ACCURACIES, Frame, Tick, points, whole_ticks
from headloc.reporting.picture_training import curves
from headloc.reporting.picture_training import panels as shown_panels
from headloc.reporting.rows import HeadRow

if TYPE_CHECKING:
    from headloc.localizer.run import Localization


@dataclass(frozen=True, slots=True)
class Cell:
    """A head in the map; `title` is what hovering over it shows."""

    x: float
    y: float
    opacity: float
    selected: bool
    title: str


@dataclass(frozen=True, slots=True)
class HeadMap:
    """The layer-by-head map."""

    width: float
    height: float
    side: float
    cells: tuple[Cell, ...]
    layers: tuple[Tick, ...]
    heads: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """One accuracy with its interval and, for random sets, its range."""

    y: float
    x: float
    low: float
    high: float
    smallest: float | None
    largest: float | None
    title: str


@dataclass(frozen=True, slots=True)
class AccuracyChart:
    """A row per condition, a series of marks per split."""

    width: float
    height: float
    rows: tuple[Tick, ...]
    ticks: tuple[Tick, ...]
    series: tuple[tuple[Mark, ...], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line; `points` is the attribute of a polyline, `end` its last point."""

    name: str
    points: str
    end: tuple[float, float] | None
    last: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over epochs."""

    title: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    curves: tuple[Curve, ...]


LEFT, TOP = 34.0, 8.0
_PLOT = Frame(44.0, 10.0, 306.0, 160.0)
"""The plot of a panel."""

ROW, CHART_LEFT, CHART_WIDTH = 40.0, 200.0, 720.0
_RIGHT = 24.0


def head_map(rows: Sequence[HeadRow], blocks: Sequence[MlpRow] = ()) -> HeadMap:
    """Lay the heads out, one line per layer that has any.

    Args:
        rows: every head.
        blocks: the gated feed-forward blocks, which get a column of their own.
    """
    layers = sorted({row.head.layer for row in rows} | {row.block.layer for row in blocks})
    wide = max(row.head.head for row in rows) + 1
    side = min(44.0, max(9.0, 680.0 / wide))
    line = {layer: i for i, layer in enumerate(layers)}
    cells = tuple(
        Cell(
            LEFT + side * row.head.head,
            TOP + side * line[row.head.layer],
            round(min(1.0, max(0.0, row.gate)), 3),
            row.selected,
            head_title(row),
        )
        for row in rows
    )
    aside = LEFT + side * wide + 8
    cells += tuple(
        Cell(
            aside,
            TOP + side * line[row.block.layer],
            round(min(1.0, max(0.0, row.gate)), 3),
            row.selected,
            row.title,
        )
        for row in blocks
    )
    mlp = (Tick(aside + max(side, 28.0) / 2, "MLP"),) if blocks else ()
    bottom = TOP + side * len(layers)
    every = max(1, math.ceil(16 / side))
    return HeadMap(
        aside + (max(side, 28.0) + 4 if blocks else 0),
        bottom + 36,
        side,
        cells,
        tuple(Tick(TOP + side * (line[i] + 0.5), str(i)) for i in layers if not line[i] % every),
        tuple(Tick(LEFT + side * (i + 0.5), str(i)) for i in range(0, wide, max(1, every))) + mlp,
    )


def head_title(row: HeadRow) -> str:
    """Return what hovering over a head says."""
    text = f"{row.head}: gate {row.gate:.3f}, score {row.score:.3f}, "
    text += "in the circuit" if row.selected else "not in the circuit"
    return text if row.share is None else f"{text}, chosen by {row.chosen} replicates"


def accuracy_chart(rows: Sequence[AccuracyRow]) -> AccuracyChart:
    """Lay the accuracies out on one scale from 0 to 1."""
    count = max((len(row.figures) for row in rows), default=0)
    series = []
    for index in range(count):
        marks = [
            _mark(ROW * (i + 0.5) + (index - (count - 1) / 2) * 15, found, row.label)
            for i, row in enumerate(rows)
            if (found := row.figures[index]) is not None
        ]
        series.append(tuple(marks))
    return AccuracyChart(
        CHART_WIDTH,
        ROW * len(rows) + 26,
        tuple(Tick(ROW * (i + 0.5), row.label) for i, row in enumerate(rows)),
        tuple(Tick(_scaled(value), f"{value:g}") for value in ACCURACIES),
        tuple(series),
    )


def _mark(y: float, found: Figure, label: str) -> Mark:
    title = f"{label}: {found}"
    if found.spread:
        title += f", random sets {found.spread}"
    return Mark(
        y,
        _scaled(found.value),
        _scaled(found.value if found.low is None else found.low),
        _scaled(found.value if found.high is None else found.high),
        None if found.smallest is None else _scaled(found.smallest),
        None if found.largest is None else _scaled(found.largest),
        title,
    )


def _scaled(share: float) -> float:
    return round(CHART_LEFT + share * (CHART_WIDTH - CHART_LEFT - _RIGHT), 2)


def training_panels(result: Localization) -> list[Panel]:
    """Lay the training curves out, one panel per kind of figure."""
    laid_out = []
    for title, names in shown_panels(result).items():
        lines = {name: points for name, points in curves(result, names).items() if points}
        values = [value for points in lines.values() for _, value in points]
        if not values:
            continue
        last = max(epoch for points in lines.values() for epoch, _ in points)
        steps = ACCURACIES if title.startswith("accuracy") else _steps(max(values))
        laid_out.append(
            Panel(
                title,
                tuple(Tick(_x(epoch, last), str(epoch)) for epoch in whole_ticks(1, last)),
                tuple(Tick(_PLOT.y(value, steps[-1]), f"{value:g}") for value in steps),
                tuple(_curve(name, points, last, steps[-1]) for name, points in lines.items()),
            )
        )
    return laid_out


def _curve(name: str, values: Sequence[tuple[int, float]], last: int, top: float) -> Curve:
    places = [(_x(epoch, last), _PLOT.y(value, top)) for epoch, value in values]
    return Curve(name, points(places), places[-1], f"{values[-1][1]:.3g}")


def _x(epoch: int, last: int) -> float:
    return _PLOT.x((epoch - 1) / (last - 1) if last > 1 else 0.5)


def _steps(largest: float) -> Sequence[float]:
    """Return round values from 0 to just above `largest`."""
    if largest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / 4))
    step = next(power * k for k in (1, 2, 2.5, 5, 10, 20) if power * k * 4 >= largest)
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]
