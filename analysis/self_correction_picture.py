"""Pictures of `self_correction.py`.

Shapes: N demonstrations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headloc.evaluation.intervals import Estimate

from . import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .self_correction_shown import Company, Correction

MOST_HEADS = 12
WRONG, RIGHT = "wrong label", "other right one"
ALL_HEADS = "all heads"


def first_heads(names: Iterable[str]) -> list[str]:
    """Return the heads that are drawn: all together, and the first ones."""
    different = list(dict.fromkeys(names))
    return sorted(different, key=lambda name: name != ALL_HEADS)[: MOST_HEADS + 1]


def draw_company(company: Sequence[Company]) -> Figure:
    """Draw the correlations of the signals, by number of demonstrations."""
    counts = list(dict.fromkeys(one.shots for one in company))
    heads = first_heads(one.head for one in company)
    figure = drawing.new_figure(drawing.WIDEST, 0.34 * len(heads) + 1.5)
    for axes, shots in zip(drawing.panels(figure, len(counts), 4), counts, strict=True):
        own = [one for one in company if one.shots == shots and one.head in heads]
        for y, one in enumerate(own):
            low, high = one.null_interval
            axes.barh(y, high - low, 0.8, left=low, color="#d9dee7")
            _interval(axes, one.plain.correlation, y - 0.14, drawing.BLUE, "o")
            if one.weighted is not None:
                _interval(axes, one.weighted.correlation, y + 0.16, drawing.ORANGE, "s")
        axes.plot([-1 / (shots - 1)] * len(own), range(len(own)), "x", color="#2b2f38", ms=5)
        axes.axvline(0, color=drawing.GREY, lw=0.9)
        axes.set_yticks(range(len(own)), [one.head for one in own], fontsize=8.5)
        axes.tick_params(labelsize=8.5)
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.set_xlabel("correlation")
        axes.set_title(f"{shots} demonstrations", loc="left")
        drawing.finish(axes, grid="x")
    return figure


def _interval(axes: Any, e: Estimate, y: float, colour: str, mark: str) -> None:
    axes.plot([e.low, e.high], [y, y], color=colour, lw=1.8)
    axes.plot([e.value], [y], mark, color=colour, ms=4)


def draw_kappa(corrections: Sequence[Correction], shots: int) -> Figure:
    """Draw kappa of every pair of demonstrations, for the wrong label and the control."""
    heads = list(dict.fromkeys(c.head for c in corrections))
    chief = ALL_HEADS if ALL_HEADS in heads else heads[0]
    figure = drawing.new_figure(8.4, 0.42 * shots + 2.0)
    places = [str(i + 1) for i in range(shots)]
    grids = {}
    for kind in (WRONG, RIGHT):
        grid = np.full((shots, shots), np.nan)
        for c in corrections:
            if (c.head, c.kind, c.shots) == (chief, kind, shots):
                grid[c.corrupted] = [e.value for e in c.kappa_subspace]
        np.fill_diagonal(grid, np.nan)
        grids[kind] = grid
    limit = max(0.05, *(float(np.nanmax(np.abs(grid))) for grid in grids.values()))
    for axes, (kind, grid) in zip(figure.subplots(1, 2), grids.items(), strict=True):
        drawing.heat_map(figure, axes, grid, places, places, label="share taken back",
                         diverging=True, limit=limit)  # fmt: skip
        axes.set_xlabel("read at demonstration")
        axes.set_ylabel("changed demonstration")
        axes.set_title(kind, loc="left")
    return figure


def draw_heads(corrections: Sequence[Correction], heads: Sequence[str]) -> Figure:
    """Draw what the next demonstration takes back, head by head."""
    shown_heads = first_heads(heads)
    figure = drawing.new_figure(6.4, 0.36 * len(shown_heads) + 1.4)
    axes = figure.add_subplot()
    for y, head in enumerate(shown_heads):
        for kind, colour, mark, shift in (
            (WRONG, drawing.BLUE, "o", -0.14),
            (RIGHT, drawing.GREY, "s", 0.16),
        ):
            c = next(c for c in corrections if (c.head, c.kind, c.corrupted) == (head, kind, 0))
            _interval(axes, c.kappa_subspace[1], y + shift, colour, mark)
    axes.plot([], [], "o", color=drawing.BLUE, label=WRONG)
    axes.plot([], [], "s", color=drawing.GREY, label=RIGHT)
    axes.axvline(0, color=drawing.GREY, lw=0.9)
    axes.set_yticks(range(len(shown_heads)), shown_heads)
    axes.set_ylim(len(shown_heads) - 0.4, -0.6)
    axes.set_xlabel("share of the change at demonstration 1 that demonstration 2 takes back")
    axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    drawing.finish(axes, grid="x")
    return figure
