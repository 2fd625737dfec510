"""Geometry of the report's path section: inline SVG in the colours of the page.

The axis of sizes is linear up to 64 heads and logarithmic beyond, because what matters happens
among few heads.  All lengths are in the units of the viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headloc.bank.result import PathResult
from headloc.components import MlpId
from headloc.heads import HeadId
from headloc.reporting.geometry import Frame, Place, Tick, points

WIDTH, HEIGHT = 720.0, 320.0
_PLOT = Frame(48.0, 12.0, 700.0, 270.0)
_LINEAR_UP_TO = 64
SHOWN = 32
"""Heads of the stability grid."""

_SIDE, _NAMES = 22.0, 64.0


@dataclass(frozen=True, slots=True)
class Whisker:
    """The gate sets of one penalty: mean, and ranges over seeds both ways."""

    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    title: str


@dataclass(frozen=True, slots=True)
class PathChart:
    """The accuracy-against-heads curve; `line` and `band` are points of SVG polygons."""

    line: str
    band: str
    penalties: tuple[Whisker, ...]
    elbow: Place
    recommended: Place
    aim: float
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class StabilityCell:
    """How often a head is emitted at a penalty."""

    x: float
    y: float
    opacity: float
    title: str


@dataclass(frozen=True, slots=True)
class StabilityGrid:
    """Heads (rows, best first) by penalties (columns)."""

    width: float
    height: float
    side: float
    cells: tuple[StabilityCell, ...]
    heads: tuple[tuple[float, str, bool], ...]
    weights: tuple[tuple[float, str], ...]


def path_chart(path: PathResult) -> PathChart:
    """Lay the curve, the penalties, the elbow and the recommended circuit out."""
    most = path.curve[-1].size
    line = [(_x(point.size, most), _PLOT.y(point.accuracy)) for point in path.curve]
    lower = [(_x(point.size, most), _PLOT.y(point.seeds.smallest)) for point in path.curve]
    upper = [(_x(point.size, most), _PLOT.y(point.seeds.largest)) for point in path.curve]
    bend, chosen = path.curve[path.elbow], path.recommended
    return PathChart(
        points(line),
        points([*upper, *reversed(lower)]),
        _whiskers(path, most),
        _place(bend.size, bend.accuracy, most, "elbow"),
        _place(len(chosen.heads), chosen.accuracy, most, "recommended circuit"),
        _PLOT.y(path.keep * path.full),
        tuple(Tick(_x(size, most), str(size)) for size in _ticks(most)),
        _PLOT.accuracies(),
    )


def stability_grid(path: PathResult, heads: Sequence[HeadId | MlpId]) -> StabilityGrid:
    """Lay out how often each head is emitted at each penalty, the best heads of the ranking first.

    Args:
        path: what the bank found.
        heads: every gated component of the model in flat order.
    """
    order = path.ranking.argsort(descending=True, stable=True).tolist()[:SHOWN]
    shares = path.stability_WA.tolist()
    cells = tuple(
        StabilityCell(
            _NAMES + _SIDE * column,
            _SIDE * row,
            round(shares[column][index], 3),
            f"{heads[index]} at penalty {weight:g}: emitted by "
            f"{round(shares[column][index] * path.seeds)} of {path.seeds}",
        )
        for row, index in enumerate(order)
        for column, weight in enumerate(path.weights)
    )
    chosen = set(path.recommended.heads)
    return StabilityGrid(
        _NAMES + _SIDE * len(path.weights) + 8,
        _SIDE * len(order) + 52,
        _SIDE,
        cells,
        tuple((_SIDE * (i + 0.5), str(heads[h]), h in chosen) for i, h in enumerate(order)),
        tuple((_NAMES + _SIDE * (i + 0.5), f"{w:g}") for i, w in enumerate(path.weights)),
    )


def _whiskers(path: PathResult, most: int) -> tuple[Whisker, ...]:
    return tuple(
        Whisker(
            _x(one.size.mean, most),
            _PLOT.y(one.accuracy.mean),
            _x(one.size.smallest, most),
            _x(one.size.largest, most),
            _PLOT.y(one.accuracy.largest),
            _PLOT.y(one.accuracy.smallest),
            f"penalty {one.weight:g}: {one.size.mean:.1f} heads, accuracy {one.accuracy.mean:.3f} "
            f"({one.accuracy.smallest:.3f} to {one.accuracy.largest:.3f} over seeds)",
        )
        for one in path.penalties
    )


def _place(size: int, accuracy: float, most: int, name: str) -> Place:
    title = f"{name}: {size} heads, accuracy {accuracy:.3f}"
    return Place(_x(size, most), _PLOT.y(accuracy), title)


def _x(size: float, most: int) -> float:
    share = size / most if most <= _LINEAR_UP_TO else math.log1p(size) / math.log1p(most)
    return _PLOT.x(share)


def _ticks(most: int) -> list[int]:
    """Return round sizes from 0 to all heads, none too close to the last."""
    if most <= _LINEAR_UP_TO:
        step = max(1, round(most / 8))
        inner = [size for size in range(step, most, step) if most - size > step / 2]
    else:
        inner = [size for size in (4**power for power in range(12)) if size < most / 2]
    return [0, *inner, most]
