"""Pictures of `signals.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate

from . import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILLS = ("#0d5ea8", "#f0a35e", "#7fb58a", "#b9a5d6", "#d86b6b", "#8d99ae", "#d9dee7", "#2b2f38")
_HATCHES = ("", "///", "", "...", "", "xxx", "", "")


def draw_shares(names: Sequence[str], shares: Sequence[Mapping[str, Estimate]]) -> Figure:
    """Draw the groups' shares as stacked bars, negative ones to the left of zero."""
    figure = drawing.new_figure(8.0, 0.36 * len(names) + 1.9)
    axes = figure.add_subplot()
    right, left = np.zeros(len(names)), np.zeros(len(names))
    for index, group in enumerate(shares[0]):
        values = np.array([found[group].value for found in shares])
        if np.abs(values).max() < 5e-4:
            continue
        start = np.where(values >= 0, right, left)
        axes.barh(range(len(names)), values, 0.72, left=start, color=_FILLS[index],
                  hatch=_HATCHES[index], edgecolor="white", lw=0, label=group)  # fmt: skip
        right += np.maximum(values, 0)
        left += np.minimum(values, 0)
    for position in (0.0, 1.0):
        axes.axvline(position, color=drawing.GREY, lw=0.9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("share of the output along the task's direction (sums to 1)")
    axes.legend(frameon=False, ncols=4, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1.0))
    drawing.finish(axes, grid="x")
    return figure


def draw_heads(
    names: Sequence[str], peaking: Sequence[Estimate], alignment: Sequence[Estimate]
) -> Figure:
    """Draw the peaking ratio and the alignment of every head with intervals."""
    figure = drawing.new_figure(8.0, 0.3 * len(names) + 1.6)
    first, second = figure.subplots(1, 2, sharey=True)
    _dots(first, peaking, "attention on labels / elsewhere", 1.0)
    first.set_yticks(range(len(names)), names)
    first.invert_yaxis()
    if max(e.value for e in peaking) > 20 * max(1e-3, min(e.value for e in peaking)):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        first.set_xscale("log")
        first.xaxis.set_major_locator(LogLocator(numticks=6))
        first.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        first.xaxis.set_minor_formatter(NullFormatter())
    _dots(second, alignment, "cosine with the task's direction", 0.0)
    second.set_xlim(-1, 1.02)
    return figure


def _dots(axes: Any, found: Sequence[Estimate], label: str, neutral: float) -> None:
    axes.axvline(neutral, color=drawing.GREY, lw=0.9, ls=(0, (4, 3)))
    for index, e in enumerate(found):
        axes.plot([e.low, e.high], [index, index], color=drawing.BLUE, lw=2)
        axes.plot([e.value], [index], "o", color=drawing.BLUE, ms=5)
    axes.set_xlabel(label)
    drawing.finish(axes, grid="x")


def draw_decoding(
    accuracy: Mapping[str, Sequence[Estimate]],
    confusion_KK: NDArray[np.float64],
    offsets_K: NDArray[np.int64],
    chance: float,
) -> Figure:
    """Draw accuracy by position of the demonstration, and what is said against what is shown."""
    figure = drawing.new_figure(drawing.WIDEST, 4.2)
    first, second = figure.subplots(1, 2)
    for name, found in accuracy.items():
        if name.endswith("by direction"):
            continue
        places = range(1, len(found) + 1)
        pooled = name == "all heads"
        colour = drawing.ORANGE if pooled else drawing.BLUE
        first.plot(places, [e.value for e in found], "-o", color=colour, ms=4 if pooled else 3,
                   lw=2 if pooled else 1, alpha=1.0 if pooled else 0.45)  # fmt: skip
        if pooled:
            first.fill_between(places, [e.low for e in found], [e.high for e in found],
                               color=colour, alpha=0.2, lw=0)  # fmt: skip
    first.axhline(chance, color=drawing.GREY, lw=1.0, ls=(0, (4, 3)), label="chance")
    first.plot([], [], "-o", ms=4, lw=2, color=drawing.ORANGE, label="all heads")
    first.plot([], [], "-o", ms=3, lw=1, alpha=0.45, color=drawing.BLUE, label="single heads")
    first.legend(frameon=False, fontsize=8.5, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
    steps = len(next(iter(accuracy.values())))
    first.set_xticks(range(1, steps + 1))
    first.set_xlim(0.8, steps + 0.2)
    first.set_ylim(-0.03, 1.05)
    first.set_xlabel("demonstration")
    first.set_ylabel("offset decoded from its signal")
    drawing.finish(first)
    share = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    labels = [str(k) for k in offsets_K]
    drawing.heat_map(figure, second, share, labels, labels, label="share of signals", limit=1.0,
                     written=False)  # fmt: skip
    second.set_xlabel("offset decoded")
    second.set_ylabel("offset shown")
    second.tick_params(labelsize=7)
    return figure


def draw_leakage(grid_NN: NDArray[np.float64]) -> Figure:
    """Draw the leakage between demonstrations."""
    places = [str(i + 1) for i in range(len(grid_NN))]
    figure = drawing.new_figure(0.6 * len(places) + 2.6, 0.5 * len(places) + 1.8)
    axes = figure.add_subplot()
    drawing.heat_map(figure, axes, grid_NN, places, places, label="relative strength",
                     diverging=True, limit=1.0)  # fmt: skip
    axes.set_xlabel("offset of demonstration")
    axes.set_ylabel("read at demonstration")
    return figure
