"""Colours and small pieces that the pictures of the analyses share.

A report is 860 pixels wide: letters of figures wider than `WIDEST` inches are too small in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BLUE, ORANGE, GREEN, GREY = "#0d5ea8", "#e66100", "#3d7a3d", "#5b6270"
LINES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, ":", "^"), ("#8a3ffc", "-.", "D"))
"""Colour, dash and mark of the first four series: told apart without colour, too."""

WIDEST = 9.0
SOFT_GRID = "#dfe3ea"
MOST_NAMED = 18
"""Rows or columns of a map that are all named; of more, some are."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that keeps its labels inside."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(figure: Figure, count: int, columns: int) -> list[Any]:
    """Return `count` axes in rows of up to `columns`; the rest of the grid stays empty."""
    rows = -(-count // columns)
    grid = figure.subplots(rows, min(columns, count), squeeze=False).flatten()
    for axes in grid[count:]:
        axes.set_visible(False)
    return list(grid[:count])


def finish(axes: Any, *, grid: str | None = "y") -> None:
    """Give axes the look of all headloc pictures."""
    from headloc.reporting.pictures import quiet_axes

    if grid is not None:
        axes.grid(axis=grid, color=SOFT_GRID, lw=0.8)
        axes.set_axisbelow(True)
    quiet_axes(axes)


def heat_map(
    figure: Figure,
    axes: Any,
    grid: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    diverging: bool = False,
    limit: float | None = None,
    written: bool = True,
) -> None:
    """Draw a matrix; diverging maps are centred on zero.

    Args:
        figure: the figure.
        axes: where to draw.
        grid: the values, NaN where there is none.
        rows: labels of the rows.
        columns: labels of the columns.
        label: what the colours mean.
        diverging: whether zero lies in the middle.
        limit: value at the end of the scale; the largest when None.
        written: whether the values are written into small maps.
    """
    most = limit if limit is not None else float(np.nanmax(np.abs(grid), initial=1e-12))
    # Cells are drawn one by one: a bitmap inside a report is blurred, and barred by its policy.
    image = axes.pcolormesh(
        np.ma.masked_invalid(grid),
        cmap="RdBu_r" if diverging else "Blues",
        vmin=-most if diverging else 0.0,
        vmax=most,
    )
    axes.set_ylim(len(rows), 0)
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        every = 1 if len(names) <= MOST_NAMED else -(-len(names) // (MOST_NAMED // 2))
        axis.set_ticks(np.arange(0, len(names), every) + 0.5, list(names)[::every])
    if len(columns) > 6 and max(map(len, columns)) > 3:
        axes.tick_params(axis="x", rotation=60)
    if written and grid.size <= 144:
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * most
                axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center",
                          fontsize=7.5, color="white" if dark else "#2b2f38")  # fmt: skip
    finish(axes, grid=None)
    for spine in axes.spines.values():
        spine.set_visible(False)
    colour_bar(figure, image, axes, label)


def colour_bar(figure: Figure, shown: Any, axes: Any, label: str) -> Any:
    """Draw what the colours mean, as vectors, and return the bar.

    Args:
        figure: the figure.
        shown: what is coloured (the mappable).
        axes: the axes that it stands beside.
        label: what the colours mean.
    """
    bar = figure.colorbar(shown, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label(label)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)
        bar.solids.set_edgecolor("face")
    return bar
