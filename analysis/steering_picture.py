"""Pictures of `steering.py`.

Shapes: P prompts, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate

from . import drawing
from .arms import Arm
from .resampling import Resamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .steering_shown import Steered

MEASURES = ("exact", "unit digit", "parity", "tens")
LARGEST_ERROR = 15
"""Errors beyond it share a bar."""

_COLOURS = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.GREY)


def draw_arms(arms: Sequence[Arm], resamples: Resamples) -> Figure:
    """Draw what is right in every arm; random subspaces are hollow, in the row of their group."""
    contexts = list(dict.fromkeys(arm.context for arm in arms))
    figure = drawing.new_figure(drawing.WIDEST, 6.2)
    labels = dict.fromkeys(arm.label.replace(" random", "") for arm in arms)
    last = ("onto nothing",)
    rows = sorted(labels, key=lambda label: (label in last, " " in label and "whole" not in label))
    grid = figure.subplots(1, len(contexts), sharey=True, squeeze=False)[0]
    for axes, context in zip(grid, contexts, strict=True):
        for arm in arms:
            if arm.context != context:
                continue
            random = "random" in arm.mode
            y = rows.index(arm.label.replace(" random", ""))
            for index, measure in enumerate(MEASURES):
                e = resamples.mean(arm.hits(measure).mean(0))
                place = y + (index - 1.5) * 0.2
                axes.plot([e.value], [place], "osD^"[index], color=_COLOURS[index], ms=4.5,
                          mfc="white" if random else _COLOURS[index], mew=0.9)  # fmt: skip
                if not random:
                    axes.plot([e.low, e.high], [place, place], color=_COLOURS[index], lw=1.3)
        for y in range(0, len(rows), 2):
            axes.axhspan(y - 0.5, y + 0.5, color="#f3f5f8", lw=0, zorder=0)
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.05, 1.05)
        axes.set_xlabel("share right")
        axes.set_title(context.replace("_", "-"), loc="left")
        drawing.finish(axes, grid="x")
    marks: list[Any] = [
        grid[0].plot([], [], "osD^"[i], color=_COLOURS[i], ms=5, label=measure)[0]
        for i, measure in enumerate(MEASURES)
    ]
    marks += grid[0].plot([], [], "o", color=drawing.GREY, mfc="white", ms=5, label="random")
    figure.legend(handles=marks, frameon=False, fontsize=9, ncols=5, loc="outside upper center")
    return figure


def draw_errors(arms: Sequence[Arm]) -> Figure:
    """Draw a histogram of the errors of every arm."""
    kept = [arm for arm in arms if "random" not in arm.mode]
    columns = min(3, len(kept))
    rows = -(-len(kept) // columns)
    figure = drawing.new_figure(drawing.WIDEST, 1.6 * rows + 0.5)
    edges = np.arange(-LARGEST_ERROR - 0.5, LARGEST_ERROR + 1)
    for axes, arm in zip(drawing.panels(figure, len(kept), columns), kept, strict=True):
        errors = np.clip(arm.errors, -LARGEST_ERROR, LARGEST_ERROR)
        weights = np.full(len(errors), 1 / arm.said_SP.size)
        axes.hist(errors, bins=edges, weights=weights, color=drawing.BLUE)
        axes.set_title(arm.label, loc="left", fontsize=9.5)
        axes.set_ylim(0, 1.02)
        drawing.finish(axes)
    figure.supxlabel(f"said minus right (beyond {LARGEST_ERROR} in the outer bars)", fontsize=10)
    figure.supylabel("share", fontsize=10)
    return figure


def draw_steering(
    moves: Sequence[Steered],
    k_K: NDArray[np.int64],
    order: NDArray[np.int64],
    success: Mapping[str, Estimate],
) -> Figure:
    """Draw success from k to k' as one matrix per kind of rewriting."""
    columns = min(2, len(moves))
    rows = -(-len(moves) // columns)
    figure = drawing.new_figure(4.4 * columns, 3.9 * rows)
    labels = [str(k) for k in k_K[order]]
    for axes, move in zip(drawing.panels(figure, len(moves), columns), moves, strict=True):
        grid = move.matrix()[np.ix_(order, order)]
        drawing.heat_map(figure, axes, grid, labels, labels, label="success", limit=1.0,
                         written=False)  # fmt: skip
        axes.tick_params(labelsize=8)
        axes.set_xlabel("to k'")
        axes.set_ylabel("from k")
        axes.set_title(f"{move.kind}: {success[move.kind].value:.2f}", loc="left")
    return figure
