"""Geometry of the refinement's charts in the report: dose curves, and the accuracy of every layer.

All lengths are in the units of the viewBox, 720 wide.

Shapes: H selected heads, C doses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headloc.reporting.geometry import Frame, Place, Tick, points, spread_over, whole_ticks

if TYPE_CHECKING:
    from headloc.heads import HeadId
    from headloc.refinement.result import Refinement

NAMED = 6
"""Main heads that are drawn in a colour of their own, the largest gains first."""

_LABEL_HEIGHT = 16.0


@dataclass(frozen=True, slots=True)
class DoseCurve:
    """One head's accuracy by dose.

    Attributes:
        points: attribute of a polyline.
        kind: d0, d1, ... for the named main heads; main, significant or other for the rest.
        title: what hovering over it shows.
    """

    points: str
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class NamedHead:
    """A main head that is named beside its curve.

    Attributes:
        kind: class of its curve.
        name: the head.
        end: last point of the curve.
        label: height of the name.
        best: the best dose.
    """

    kind: str
    name: str
    end: tuple[float, float]
    label: float
    best: Place


@dataclass(frozen=True, slots=True)
class DoseChart:
    """Dose curves of all selected heads; `clean` is the height of the few-shot accuracy."""

    frame: Frame
    curves: tuple[DoseCurve, ...]
    named: tuple[NamedHead, ...]
    clean: float
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    told: str


@dataclass(frozen=True, slots=True)
class LayerChart:
    """Accuracy of the whole-residual task vector at every layer; the best layer is marked."""

    frame: Frame
    line: str
    places: tuple[Place, ...]
    best: Place
    clean: float
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    told: str


def dose_chart(result: Refinement) -> DoseChart:
    """Lay the dose curves out, quiet ones first, so that main heads lie on top."""
    frame = Frame(48.0, 12.0, 630.0, 270.0)
    significance, doses = result.significance, result.scan.doses
    ranked = sorted(significance.main, key=lambda head: (-significance.effect(head).gain, head))
    kinds = {head: f"d{i}" if i < NAMED else "main" for i, head in enumerate(ranked)}
    kinds |= {
        head: "significant" for head in significance.significant if head not in significance.main
    }
    drawn = sorted(result.scan.heads, key=lambda head: _DEPTH.get(kinds.get(head, "other"), 3))
    return DoseChart(
        frame,
        tuple(_curve(result, frame, head, kinds.get(head, "other")) for head in drawn),
        _named(result, frame, ranked[:NAMED]),
        frame.y(significance.clean_accuracy),
        tuple(
            Tick(frame.x(spread_over(doses, d)), str(d)) for d in whole_ticks(doses[0], doses[-1])
        ),
        frame.accuracies(),
        _told(result, ranked),
    )


def layer_chart(result: Refinement) -> LayerChart:
    """Lay the layer curve out."""
    frame = Frame(48.0, 12.0, 700.0, 190.0)
    accuracies = result.residual_accuracies
    layers = range(len(accuracies))
    places = tuple(
        Place(frame.x(spread_over(layers, i)), frame.y(a), f"layer {i}: accuracy {a:.3f}")
        for i, a in enumerate(accuracies)
    )
    return LayerChart(
        frame,
        points((place.x, place.y) for place in places),
        places,
        places[result.residual_layer],
        frame.y(result.significance.clean_accuracy),
        tuple(Tick(places[i].x, str(i)) for i in whole_ticks(0, layers[-1], about=10)),
        frame.accuracies(),
        "; ".join(place.title for place in places),
    )


_DEPTH = {"other": 0, "significant": 1, "main": 2}


def _curve(result: Refinement, frame: Frame, head: HeadId, kind: str) -> DoseCurve:
    effect = result.significance.effect(head)
    title = (
        f"{head}: accuracy {effect.accuracy:.3f} at dose {effect.best_dose}, "
        f"{effect.baseline:.3f} at dose 0, q = {effect.q:.2g}"
    )
    return DoseCurve(points(_places(result, frame, head)), kind, title)


def _places(result: Refinement, frame: Frame, head: HeadId) -> list[tuple[float, float]]:
    doses = result.scan.doses
    accuracy_C = result.scan.accuracy_HC[result.scan.heads.index(head)]
    return [
        (frame.x(spread_over(doses, dose)), frame.y(float(accuracy)))
        for dose, accuracy in zip(doses, accuracy_C, strict=True)
    ]


def _named(
    result: Refinement, frame: Frame, ranked: Sequence[HeadId]
) -> tuple[NamedHead, ...]:  # fmt: skip
    places = {head: _places(result, frame, head) for head in ranked}
    by_height = sorted(ranked, key=lambda head: places[head][-1][1])
    labels = dict(zip(by_height, _apart([places[head][-1][1] for head in by_height]), strict=True))
    return tuple(
        NamedHead(f"d{i}", str(head), places[head][-1], labels[head], _best(result, frame, head))
        for i, head in enumerate(ranked)
    )


def _best(result: Refinement, frame: Frame, head: HeadId) -> Place:
    effect = result.significance.effect(head)
    x = frame.x(spread_over(result.scan.doses, effect.best_dose))
    return Place(x, frame.y(effect.accuracy), f"{head}: best at dose {effect.best_dose}")


def _apart(heights: Sequence[float]) -> list[float]:
    """Return rising heights moved down as far as needed for lines of text not to overlap."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _LABEL_HEIGHT) if placed else height)
    return placed


def _told(result: Refinement, ranked: Sequence[HeadId]) -> str:
    """Return the chart in words."""
    effects = [result.significance.effect(head) for head in ranked[:NAMED]]
    parts = [
        f"{effect.head} rises from {effect.baseline:.3f} to {effect.accuracy:.3f} at dose "
        f"{effect.best_dose}"
        for effect in effects
    ]
    rest = len(result.scan.heads) - len(parts)
    return "; ".join([*parts, f"{rest} further heads, see the table"])
