"""Tables, sentences and pictures of `periodic.py`.

Shapes: K numbers, F frequencies, r coordinates, q quadratures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import drawing
from .base import Findings, Picture, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

MOST_HEADS = 12
"""Heads that are drawn; the tables have all."""

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class PeriodRow:
    """One head at one period; R^2 at the best phase with its interval and permutation null."""

    period: float
    control: bool
    cosine: float
    sine: float
    best: float
    worst: float
    phase: float
    left_out: float
    low: float
    high: float
    null_median: float
    null_95: float
    p: float
    q: float = math.nan


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Power by frequency, raw and with the linear trend in k taken out.

    The limits are the 95th percentiles of the largest power of shuffled k.
    """

    frequencies_F: Array
    power_F: Array
    limit: float
    detrended_F: Array
    detrended_limit: float

    def peaks(self) -> list[tuple[float, float]]:
        """Return (period, power) of the local maxima above the limit, trend taken out."""
        power = self.detrended_F
        inner = range(1, len(power) - 1)
        tops = [i for i in inner if power[i] >= power[i - 1] and power[i] > power[i + 1]]
        if power[-1] > power[-2]:
            tops.append(len(power) - 1)
        found = [(1 / self.frequencies_F[i], float(power[i])) for i in tops]
        return sorted((p for p in found if p[1] > self.detrended_limit), key=lambda p: -p[1])


@dataclass(frozen=True, slots=True)
class HeadPeriods:
    """Everything about one head.

    Attributes:
        head: its name.
        rows: periods.
        trends: share of the variance that polynomials in k of degree 1, 2 and 3 explain.
        spectrum: the free spectrum.
        circles: by period, cos and sin predicted for every k from the other k, [K, q].
        components_Kr: coordinates.
    """

    head: str
    rows: tuple[PeriodRow, ...]
    trends: tuple[float, ...]
    spectrum: Spectrum
    circles: Mapping[float, Array] = field(default_factory=dict)
    components_Kr: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def with_q(self, values: Sequence[float]) -> HeadPeriods:
        """Return the head with q-values."""
        rows = tuple(replace(row, q=q) for row, q in zip(self.rows, values, strict=True))
        return replace(self, rows=rows)

    def strength(self) -> float:
        """Return the mean left-out R^2 of the periods that are no controls."""
        own = [row.left_out for row in self.rows if not row.control]
        return float(np.mean(own)) if own else 0.0


def findings(
    heads: Sequence[HeadPeriods], k_K: Array, *, dimensions: int, permutations: int, prompts: int
) -> Findings:
    """Put everything together."""
    columns = (
        "head", "period", "control", "r2_cos", "r2_sin", "r2", "low", "high", "r2_worst_phase",
        "phase", "r2_left_out", "null_median", "null_95", "p", "q",
    )  # fmt: skip
    rows = [
        [head.head, row.period, row.control, row.cosine, _none(row.sine), row.best, row.low,
         row.high, row.worst, row.phase, row.left_out, row.null_median, row.null_95, row.p, row.q]
        for head in heads for row in head.rows
    ]  # fmt: skip
    drawn = heads[:MOST_HEADS]
    return Findings(
        _scalars(heads),
        (
            Table("periods", columns, rows,
                  f"R^2 of cos(2 pi k / period + phase) on {dimensions} coordinates of the "
                  f"{len(k_K)} task means: at phases 0 and pi/2, at the best and the worst phase; "
                  f"95 % interval over the {prompts} prompts behind every mean; for numbers left "
                  f"out of the fit; null of {permutations} permutations of k; q after "
                  "Benjamini-Hochberg over all rows."),
            Table("trends", ("head", "degree", "share"),
                  [[h.head, i + 1, share] for h in heads for i, share in enumerate(h.trends)],
                  "Share of the variance between task means that a polynomial in k explains."),
            Table("spectrum", ("head", "frequency", "period", "power", "limit", "power_detrended",
                               "limit_detrended"), _spectrum_rows(heads),
                  "Share of the variance between task means at every frequency; limit: 95th "
                  "percentile of the largest power over all frequencies with k shuffled."),
        ),
        (
            Picture("periods", "R^2 at the best phase (dot, 95 % interval) and for numbers left "
                    "out (cross); grey: 95th percentile with k shuffled.",
                    partial(_draw_periods, drawn)),
            Picture("spectrum", "Share of the variance at every period, the linear trend in k "
                    "taken out (full) and as it is (thin); dashed: 95 % limit of shuffled k.",
                    partial(_draw_spectra, drawn)),
            Picture("circles_digit", "Feature circles: cos and sin of each number, predicted from "
                    "the coordinates by a fit on the other numbers; colour: unit digit.",
                    partial(_draw_circles, drawn, k_K, "digit")),
            Picture("circles_magnitude", "The same for the long periods; colour: the number.",
                    partial(_draw_circles, drawn, k_K, "magnitude")),
            Picture("components", "The task means along their first principal components; colour: "
                    "the number.", partial(_draw_components, drawn, k_K)),
        ),
        _sentences(heads, k_K, permutations),
    )  # fmt: skip


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _spectrum_rows(heads: Sequence[HeadPeriods]) -> list[list[Any]]:
    return [
        [h.head, float(f), float(1 / f), float(a), h.spectrum.limit, float(b),
         h.spectrum.detrended_limit]
        for h in heads
        for f, a, b in zip(h.spectrum.frequencies_F, h.spectrum.power_F, h.spectrum.detrended_F,
                           strict=True)
    ]  # fmt: skip


def _scalars(heads: Sequence[HeadPeriods]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for head in heads:
        for row in head.rows:
            key = f"{head.head}/r2/{row.period:.4g}"
            scalars[key] = row.best
            scalars |= {f"{key}/low": row.low, f"{key}/high": row.high, f"{key}/q": row.q,
                        f"{key}/left_out": row.left_out, f"{key}/null_95": row.null_95}  # fmt: skip
        for degree, share in enumerate(head.trends, start=1):
            scalars[f"{head.head}/trend/{degree}"] = share
    return scalars


def _sentences(heads: Sequence[HeadPeriods], k_K: Array, permutations: int) -> tuple[str, ...]:
    def passed(row: PeriodRow) -> bool:
        return row.q <= LEVEL and row.left_out > 0 and row.low > row.null_95

    said = []
    for control, name in ((False, "fitted periods"), (True, "control periods")):
        rows = [(head.head, row) for head in heads for row in head.rows if row.control is control]
        hits = [(head, row) for head, row in rows if passed(row)]
        if rows:
            said.append(
                f"{len(hits)} of {len(rows)} readings of the {name} are beyond chance "
                f"({permutations} permutations, q <= {LEVEL}), and predict numbers left out."
            )
    hits = [(head.head, row) for head in heads for row in head.rows if passed(row)]
    both = [(head, row) for head, row in hits if row.worst > row.null_95]
    if both:
        head, row = max(both, key=lambda pair: pair[1].worst)
        said.append(
            f"The clearest circle has period {row.period:.4g} in {head}: R^2 {row.best:.3f} at the "
            f"best phase and {row.worst:.3f} at the worst, {row.left_out:.3f} for numbers left out."
        )
    peaks = [(head.head, *peak) for head in heads for peak in head.spectrum.peaks()[:1]]
    if peaks:
        found = ", ".join(f"{head} {period:.3g} ({power:.0%})" for head, period, power in peaks[:8])
        said.append(f"Strongest periods of the free spectrum, linear trend taken out: {found}.")
    else:
        said.append("The free spectrum has no peak beyond what shuffled numbers give.")
    trends = [head.trends for head in heads]
    said.append(
        f"A straight line in k explains {min(t[0] for t in trends):.0%} to "
        f"{max(t[0] for t in trends):.0%} of the variance between task means, a cubic "
        f"{min(t[2] for t in trends):.0%} to {max(t[2] for t in trends):.0%}."
    )
    span = float(k_K.max() - k_K.min()) + 1
    longest = max((peak[0] for head in heads for peak in head.spectrum.peaks()[:1]), default=0.0)
    if longest > span / 2:
        said.append(
            f"The numbers span {span:.0f}: a period longer than {span / 2:.0f} does not come round "
            "twice, so it cannot be told from a smooth curve through the numbers."
        )
    return tuple(said)


def _draw_periods(heads: Sequence[HeadPeriods]) -> Figure:
    columns = min(3, len(heads))
    rows = -(-len(heads) // columns)
    figure = drawing.new_figure(3.5 * columns, 2.3 * rows + 0.5)
    for axes, head in zip(drawing.panels(figure, len(heads), columns), heads, strict=True):
        ordered = sorted(head.rows, key=lambda row: row.period)
        for x, row in enumerate(ordered):
            axes.bar(x, row.null_95, 0.7, color="#d9dee7")
            colour = drawing.ORANGE if row.control else drawing.BLUE
            axes.plot([x, x], [row.low, row.high], color=colour, lw=2)
            axes.plot([x], [row.best], "o", color=colour, ms=5)
            axes.plot([x], [max(row.left_out, -0.05)], "x", color="#2b2f38", ms=5, mew=1.5)
        axes.set_xticks(range(len(ordered)), [f"{row.period:.3g}" for row in ordered])
        axes.set_ylim(-0.08, 1.05)
        axes.set_title(head.head, loc="left")
        drawing.finish(axes)
    figure.supxlabel("period (orange: controls)", fontsize=10)
    figure.supylabel("R^2", fontsize=10)
    return figure


def _draw_spectra(heads: Sequence[HeadPeriods]) -> Figure:
    columns = min(3, len(heads))
    rows = -(-len(heads) // columns)
    figure = drawing.new_figure(3.5 * columns, 2.1 * rows + 0.5)
    marks = [2, 2.5, 10 / 3, 5, 10, 25]
    for axes, head in zip(drawing.panels(figure, len(heads), columns), heads, strict=True):
        found = head.spectrum
        axes.plot(found.frequencies_F, found.power_F, color=drawing.GREY, lw=0.8, alpha=0.8)
        axes.plot(found.frequencies_F, found.detrended_F, color=drawing.BLUE, lw=1.6)
        axes.axhline(found.detrended_limit, color=drawing.ORANGE, lw=1, ls=(0, (4, 3)))
        inside = [m for m in marks if 1 / m >= found.frequencies_F[0]]
        axes.set_xticks([1 / m for m in inside], [f"{m:.3g}" for m in inside], fontsize=7.5)
        axes.set_ylim(0, max(1.0, float(found.power_F.max())) * 1.02)
        axes.set_title(head.head, loc="left")
        drawing.finish(axes)
    figure.supxlabel("period", fontsize=10)
    figure.supylabel("share of the variance", fontsize=10)
    return figure


def _draw_circles(heads: Sequence[HeadPeriods], k_K: Array, colour: str) -> Figure:
    kept = sorted(heads, key=lambda head: -head.strength())[:6]
    wanted = [p for p in kept[0].circles if kept[0].circles[p].shape[1] == 2]
    periods = [p for p in wanted if (p <= 10) == (colour == "digit")] or wanted
    figure = drawing.new_figure(2.1 * len(periods) + 0.9, 2.15 * len(kept) + 0.3)
    grid = figure.subplots(len(kept), len(periods), squeeze=False)
    shade = k_K % 10 if colour == "digit" else k_K
    dots = None
    for row, head in enumerate(kept):
        for column, period in enumerate(periods):
            axes, points = grid[row, column], head.circles[period]
            angle = 2 * np.pi * k_K / period
            ideal = np.stack([np.cos(angle), np.sin(angle)], axis=1)
            centre = ideal.mean(0)
            turn = np.linspace(0, 2 * np.pi, 100)
            axes.plot(np.cos(turn) - centre[0], np.sin(turn) - centre[1], color="#c3c9d4", lw=0.9)
            dots = axes.scatter(points[:, 0], points[:, 1], c=shade, s=22, lw=0,
                                cmap="twilight_shifted" if colour == "digit" else "viridis",
                                vmin=0 if colour == "digit" else None,
                                vmax=10 if colour == "digit" else None)  # fmt: skip
            limit = 1.25 + float(np.abs(centre).max())
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)
            axes.set_aspect("equal")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"period {period:.3g}", fontsize=9.5)
            if column == 0:
                axes.set_ylabel(head.head)
            drawing.finish(axes, grid=None)
    if dots is not None:
        bar = drawing.colour_bar(figure, dots, grid, "")
        bar.set_label("unit digit of k" if colour == "digit" else "k")
    return figure


def _draw_components(heads: Sequence[HeadPeriods], k_K: Array) -> Figure:
    kept = [head for head in heads if head.components_Kr.shape[1] >= 2]
    columns = max(1, min(4, len(kept)))
    rows = max(1, -(-len(kept) // columns))
    figure = drawing.new_figure(2.7 * columns + 0.8, 2.6 * rows + 0.3)
    if not kept:
        return figure
    order = np.argsort(k_K)
    places = drawing.panels(figure, len(kept), columns)
    dots: Any = None
    for axes, head in zip(places, kept, strict=True):
        points = head.components_Kr
        axes.plot(points[order, 0], points[order, 1], color="#c3c9d4", lw=0.8, zorder=1)
        dots = axes.scatter(points[:, 0], points[:, 1], c=k_K, s=20, cmap="viridis", lw=0, zorder=2)
        for index in order[:: max(1, len(order) // 6)]:
            axes.annotate(f"{k_K[index]:.0f}", points[index, :2], xytext=(3, 3), fontsize=7,
                          textcoords="offset points", color="#2b2f38")  # fmt: skip
        axes.set_title(head.head, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        drawing.finish(axes, grid=None)
    drawing.colour_bar(figure, dots, places, "k")
    figure.supxlabel("component 1", fontsize=10)
    figure.supylabel("component 2", fontsize=10)
    return figure
