"""Pictures of `periodic.py`.

Shapes: K numbers, F frequencies, r coordinates, q quadratures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .periodic_values import HeadPeriods

Array = NDArray[np.float64]

MOST_CIRCLES = 6
"""Heads whose circles are drawn."""


def draw_periods(heads: Sequence[HeadPeriods]) -> Figure:
    """Draw R^2 by period, head by head."""
    columns = min(3, len(heads))
    rows = -(-len(heads) // columns)
    figure = drawing.new_figure(drawing.WIDEST, 2.0 * rows + 0.5)
    for axes, head in zip(drawing.panels(figure, len(heads), columns), heads, strict=True):
        best = sorted(head.of("best phase"), key=lambda row: row.period)
        beyond = {row.period: row.r2 for row in head.of("best phase beyond a cubic")}
        for x, row in enumerate(best):
            axes.bar(x, row.null_95, 0.7, color="#d9dee7")
            colour = drawing.ORANGE if row.control else drawing.BLUE
            axes.plot([x, x], [row.low, row.high], color=colour, lw=2)
            axes.plot([x], [row.r2], "o", color=colour, ms=5)
            held = row.left_out.r2 if row.left_out else 0.0
            axes.plot([x], [max(held, -0.05)], "x", color="#2b2f38", ms=5, mew=1.5)
            axes.plot([x + 0.28], [beyond[row.period]], "^", color=drawing.GREEN, ms=4)
        axes.set_xticks(range(len(best)), [f"{row.period:.3g}" for row in best])
        axes.set_ylim(-0.08, 1.05)
        axes.set_title(head.head, loc="left")
        drawing.finish(axes)
    figure.supxlabel("period (orange: controls)", fontsize=10)
    figure.supylabel("R^2", fontsize=10)
    return figure


def draw_spectra(heads: Sequence[HeadPeriods]) -> Figure:
    """Draw the free spectrum of every head."""
    columns = min(3, len(heads))
    rows = -(-len(heads) // columns)
    figure = drawing.new_figure(drawing.WIDEST, 1.9 * rows + 0.5)
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


def draw_circles(heads: Sequence[HeadPeriods], k_K: Array, colour: str) -> Figure:
    """Draw the feature circles, one column per head and one row per period.

    Args:
        heads: the heads; those with the clearest periods are drawn.
        k_K: the numbers.
        colour: digit, or magnitude.
    """
    kept = sorted(heads, key=lambda head: -head.strength())[:MOST_CIRCLES]
    controls = {row.period for head in kept for row in head.rows if row.control}
    round_ = [p for p, points in kept[0].circles.items() if points.shape[1] == 2]
    periods = [p for p in round_ if p not in controls] or round_
    figure = drawing.new_figure(
        min(drawing.WIDEST, 1.45 * len(kept) + 1.0), 1.4 * max(1, len(periods)) + 0.4
    )
    grid = figure.subplots(max(1, len(periods)), len(kept), squeeze=False)
    shade, dots = (k_K % 10 if colour == "digit" else k_K), None
    looks: dict[str, Any] = (
        {"cmap": "twilight_shifted", "vmin": 0, "vmax": 10}
        if colour == "digit"
        else {"cmap": "viridis"}
    )
    for row, period in enumerate(periods):
        angle_K = 2 * np.pi * k_K / period
        centre = np.array([np.cos(angle_K).mean(), np.sin(angle_K).mean()])
        turn = np.linspace(0, 2 * np.pi, 100)
        limit = 1.3 + float(np.abs(centre).max())
        for column, head in enumerate(kept):
            axes, points = grid[row, column], np.clip(head.circles[period], -limit, limit)
            axes.plot(np.cos(turn) - centre[0], np.sin(turn) - centre[1], color="#c3c9d4", lw=0.9)
            dots = axes.scatter(points[:, 0], points[:, 1], c=shade, s=13, lw=0, clip_on=False,
                                **looks)  # fmt: skip
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)
            axes.set_aspect("equal")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(head.head, fontsize=9.5)
            if column == 0:
                axes.set_ylabel(f"period {period:.3g}", fontsize=9.5)
            drawing.finish(axes, grid=None)
    if dots is not None:
        bar = drawing.colour_bar(
            figure, dots, grid, "unit digit of k" if colour == "digit" else "k"
        )
        if colour == "digit":
            bar.set_ticks([0, 2, 4, 6, 8])
    return figure


def draw_components(heads: Sequence[HeadPeriods], k_K: Array) -> Figure:
    """Draw the task means along the first two components of every head."""
    kept = [head for head in heads if head.components_Kr.shape[1] >= 2]
    columns = max(1, min(4, len(kept)))
    rows = max(1, -(-len(kept) // columns))
    figure = drawing.new_figure(2.05 * columns + 0.8, 2.0 * rows + 0.3)
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
