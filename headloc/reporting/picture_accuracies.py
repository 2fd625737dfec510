"""Accuracies of the verdict with intervals, on seen and on held-out tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headloc.reporting.figures import SPLITS, AccuracyRow, accuracy_rows, split_sizes
from headloc.reporting.pictures import caption, quiet_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

    from headloc.localizer.run import Localization
    from headloc.reporting.figures import Figure

_FILLS = (("#0d5ea8", ""), ("#f0a35e", "///"))
_THICK = 0.36


def draw_accuracies(result: Localization) -> Picture:
    """Draw a bar per condition and split; a grey line spans the range over random sets."""
    from matplotlib.figure import Figure as Picture

    rows, sizes = accuracy_rows(result.metrics), split_sizes(result.metrics)
    figure = Picture(figsize=(8.0, 0.62 * len(rows) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    present = [i for i, prefix in enumerate(SPLITS) if prefix in sizes]
    for place, index in enumerate(present):
        offset = (place - (len(present) - 1) / 2) * _THICK
        prefix, name = list(SPLITS.items())[index]
        _bars(axes, rows, index, offset, f"{name} (n = {sizes[prefix]})")
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.set_xlabel("accuracy, 95 % interval (grey: range over the random sets)")
    axes.set_title(caption(result.circuit), loc="left", pad=28)
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9,
                borderaxespad=0.2)  # fmt: skip
    axes.grid(axis="x", color="#dfe3ea", lw=0.8)
    axes.set_axisbelow(True)
    quiet_axes(axes)
    return figure


def _bars(axes: Any, rows: list[AccuracyRow], index: int, offset: float, label: str) -> None:
    colour, hatch = _FILLS[index]
    found = [(y + offset, row.figures[index]) for y, row in enumerate(rows) if row.figures[index]]
    heights = [y for y, _ in found]
    values = [figure.value for _, figure in found if figure is not None]
    axes.barh(heights, values, _THICK * 0.92, color=colour, hatch=hatch, edgecolor="white", lw=0,
              label=label)  # fmt: skip
    for y, figure in found:
        if figure is not None:
            _mark(axes, y, figure)


def _mark(axes: Any, y: float, figure: Figure) -> None:
    """Draw the interval, the range and the number of one bar."""
    end = figure.value
    if figure.smallest is not None and figure.largest is not None:
        axes.plot([figure.smallest, figure.largest], [y, y], color="#9aa2b1", lw=4.5, alpha=0.75,
                  solid_capstyle="butt")  # fmt: skip
        end = max(end, figure.largest)
    if figure.low is not None and figure.high is not None:
        axes.plot([figure.low, figure.high], [y, y], color="#1b1f27", lw=1.3, marker="|", ms=5)
        end = max(end, figure.high)
    axes.text(end + 0.015, y, f"{figure.value:.3f}", va="center", fontsize=8.5, color="#2b2f38")
