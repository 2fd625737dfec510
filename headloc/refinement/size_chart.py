"""Geometry of the report's charts of accuracy by size: the learned ranking and AIE's.

All lengths are in the units of the viewBox, 720 wide.  Sizes lie on a logarithmic axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headloc.refinement.size_curve import SizeCurve, SizePoint
from headloc.reporting.geometry import Frame, Place, Tick, points


@dataclass(frozen=True, slots=True)
class Better:
    """A size at which the rankings differ significantly: where, and which one is better."""

    place: Place
    verdict: str


@dataclass(frozen=True, slots=True)
class SizeChart:
    """Both curves of one split; `told` says them in words."""

    split: str
    prompts: int
    frame: Frame
    learned: str
    aie: str
    learned_places: tuple[Place, ...]
    aie_places: tuple[Place, ...]
    marked: tuple[Better, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    told: str


def size_chart(curve: SizeCurve, split: str) -> SizeChart:
    """Lay both curves of a split out.

    Args:
        curve: the outcomes.
        split: name of the split, as people read it.
    """
    frame = Frame(48.0, 12.0, 700.0, 210.0)
    learned = tuple(_place(frame, curve, one, one.learned.value, "learned") for one in curve.points)
    aie = tuple(_place(frame, curve, one, one.aie.value, "AIE") for one in curve.points)
    return SizeChart(
        split=split,
        prompts=curve.prompts,
        frame=frame,
        learned=points((place.x, place.y) for place in learned),
        aie=points((place.x, place.y) for place in aie),
        learned_places=learned,
        aie_places=aie,
        marked=tuple(
            Better(place, one.verdict)
            for one, place in zip(curve.points, learned, strict=True)
            if one.verdict
        ),
        x=_ticks(frame, curve),
        y=frame.accuracies(),
        told="; ".join(place.title for place in (*learned, *aie)),
    )


def _place(frame: Frame, curve: SizeCurve, one: SizePoint, value: float, name: str) -> Place:
    x = frame.x(_share(one.size, curve.sizes[-1]))
    return Place(x, frame.y(value), f"{name}, {one.size} heads: {value:.3f}")


def _ticks(frame: Frame, curve: SizeCurve) -> tuple[Tick, ...]:
    """Return ticks at the powers of two."""
    last = curve.sizes[-1]
    powers = [2**i for i in range(last.bit_length())]
    return tuple(Tick(frame.x(_share(size, last)), str(size)) for size in powers)


def _share(size: int, last: int) -> float:
    return 0.5 if last == 1 else math.log(size) / math.log(last)
