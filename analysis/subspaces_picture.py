"""Pictures of `subspaces.py`.

Shapes: S random sets, N prompts, R components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import drawing
from .head_spaces import RELIABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .subspaces_shown import Arm, HeadSummary, PairSummary

SPLIT_NAMES = {"train": "tasks trained on", "held_out": "held-out tasks"}
PALE = "#9aa3b2"


def draw_spectrum(
    heads: Sequence[HeadSummary], spectra: Mapping[str, NDArray[np.float64]], size: int
) -> Figure:
    """Draw the cumulative spectrum of every head."""
    figure = drawing.new_figure(6.8, 4.2)
    axes = figure.add_subplot()
    reliable = {head.head for head in heads if head.reliability >= RELIABLE}
    for head, shares in sorted(spectra.items(), key=lambda pair: pair[0] in reliable):
        line = np.concatenate([[0.0], shares.cumsum()])
        colour, dash = (drawing.BLUE, "-") if head in reliable else (PALE, ":")
        axes.plot(range(len(line)), line, dash, marker="o", ms=3, color=colour, alpha=0.8, lw=1.2)
    axes.axhline(0.95, color=drawing.GREY, lw=1.0, ls=(0, (4, 3)))
    axes.annotate("95 %", (0.99, 0.945), xycoords=("axes fraction", "data"), ha="right",
                  va="top", fontsize=8.5, color=drawing.GREY)  # fmt: skip
    axes.axvline(size, color=drawing.GREY, lw=0.8, alpha=0.5)
    axes.annotate(f"r = {size}", (size, 0.02), xytext=(4, 0), textcoords="offset points",
                  fontsize=8.5, color=drawing.GREY)  # fmt: skip
    axes.set_xlim(0, min(16, max(map(len, spectra.values()))))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("principal components")
    axes.set_ylabel("share of the variance")
    axes.plot([], [], "-o", ms=3, color=drawing.BLUE, label=f"tell tasks apart ({len(reliable)})")
    axes.plot([], [], ":o", ms=3, color=PALE, label=f"do not ({len(heads) - len(reliable)})")
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.06))
    drawing.finish(axes)
    return figure


def draw_arms(arms: Sequence[Arm], seed: int) -> Figure:
    """Draw accuracy by the number of dimensions kept."""
    splits = list(dict.fromkeys(arm.split for arm in arms))
    figure = drawing.new_figure(4.6 * len(splits) + 0.6, 4.0)
    for axes, split in zip(drawing.panels(figure, len(splits), 2), splits, strict=True):
        own = [arm for arm in arms if arm.split == split]
        for kind, name, look in (
            ("components", "principal components", drawing.LINES[0]),
            ("random", "random dimensions", drawing.LINES[1]),
        ):
            _draw_line(axes, [arm for arm in own if arm.kind == kind], name, look, seed)
        full = next(arm for arm in own if arm.kind == "full").accuracy(seed)
        axes.axhline(full.value, color=drawing.GREY, lw=1.0, ls=(0, (4, 3)))
        axes.annotate("untouched", (0.01, full.value), xycoords=("axes fraction", "data"),
                      ha="left", va="bottom", fontsize=8.5, color=drawing.GREY)  # fmt: skip
        axes.set_ylim(-0.03, 1.08)
        axes.set_xlabel("dimensions kept per head")
        axes.set_ylabel("accuracy")
        axes.set_title(f"{SPLIT_NAMES[split]}, n = {full.n}", loc="left")
        drawing.finish(axes)
    figure.axes[0].legend(frameon=False, fontsize=9, loc="center right")
    return figure


def _draw_line(
    axes: Any, arms: Sequence[Arm], name: str, look: tuple[str, str, str], seed: int
) -> None:
    colour, dash, mark = look
    line = sorted(arms, key=lambda arm: arm.size or 0)
    found = [arm.accuracy(seed) for arm in line]
    sizes = [arm.size for arm in line]
    axes.plot(sizes, [f.value for f in found], dash, marker=mark, ms=4, color=colour, label=name)
    each = [arm.outcomes_SN.mean(1) for arm in line]
    low = [min(f.low, float(e.min())) for f, e in zip(found, each, strict=True)]
    high = [max(f.high, float(e.max())) for f, e in zip(found, each, strict=True)]
    axes.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)


def draw_overlaps(heads: Sequence[HeadSummary], pairs: Sequence[PairSummary]) -> Figure:
    """Draw the overlap of every pair of heads."""
    names = [head.head for head in heads]
    grid = np.diag([head.overlap_of_halves for head in heads])
    for pair in pairs:
        i, j = names.index(pair.head), names.index(pair.other)
        grid[i, j] = grid[j, i] = pair.overlap
    side = min(9.0, 0.45 * len(names) + 2.2)
    figure = drawing.new_figure(side + 0.8, side)
    drawing.heat_map(figure, figure.add_subplot(), grid, names, names, label="overlap", limit=1.0)
    return figure
