"""The picture of a comparison: accuracy kept by size, and what is left without the set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headloc.compare.outcomes import complement
from headloc.compare.run import Comparison, Found, UnderOffValue
from headloc.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headloc.baselines.method import HeadSet

_COLOURS = (
    "#d9480f", "#0d5ea8", "#3d7a3d", "#7b3fa0", "#8a6d00", "#00838f", "#a3262a", "#5b6270",
    "#c2185b", "#6d4c41", "#9aa1ad", "#c5cad3",
)  # fmt: skip


def save_picture(found: Comparison, folder: Path) -> list[Path]:
    """Write pictures/compare.png and .svg and return their paths."""
    from matplotlib import rc_context

    from headloc.reporting.pictures import STYLE, picture_path, rendered

    paths = []
    with rc_context(STYLE):
        figure = draw(found)
        for kind in ("png", "svg"):
            paths.append(picture_path(folder, "compare", kind))
            write_bytes(paths[-1], rendered(figure, kind))
    return paths


def draw(found: Comparison) -> Figure:
    """Draw one row of panels per off-value."""
    from matplotlib.figure import Figure

    rows = len(found.results)
    figure = Figure(figsize=(11.5, 4.0 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    total = found.layout.total
    for result, (left, right) in zip(found.results, axes, strict=True):
        _curves(left, found, result, lambda own: own)
        _curves(right, found, result, lambda own: complement(own, total))
        left.set_title(f"only these heads open (off-value {result.off_value})", loc="left")
        right.set_title("only these heads closed", loc="left")
        left.set_ylabel(f"accuracy, n = {len(result.test.full_N)}")
        for panel in (left, right):
            panel.set_xlabel("heads")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    return figure


def _curves(
    axes: Any, found: Comparison, result: UnderOffValue, which: Callable[[HeadSet], HeadSet]
) -> None:
    from headloc.reporting.pictures import quiet_axes

    for number, (name, many) in enumerate(result.found.items()):
        curve_SK = np.array([_accuracies(found, result, own, which) for own in many])
        first = name == found.first
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(found.sizes, curve_SK.mean(0), color=colour, lw=2.4 if first else 1.2,
                  zorder=5 if first else 2, label=name.replace("_", " "))  # fmt: skip
        if first:
            axes.fill_between(found.sizes, curve_SK.min(0), curve_SK.max(0), color=colour,
                              alpha=0.18, lw=0)  # fmt: skip
    known = [size for size in found.sizes if size in result.optimum.sets]
    best = [result.test.accuracy(which(result.optimum.sets[size])) for size in known]
    axes.plot(known, best, color="#1b1f27", lw=1.4, ls=(0, (2, 2)), zorder=4,
              label=f"best sets ({result.optimum.search})")  # fmt: skip
    axes.axhline(found.settings.keep * result.test.full, color="#5b6270", lw=0.9, ls=(0, (5, 4)))
    axes.set_ylim(-0.03, 1.05)
    axes.grid(axis="y", color="#dfe3ea", lw=0.8)
    quiet_axes(axes)


def _accuracies(
    found: Comparison, result: UnderOffValue, own: Found, which: Callable[[HeadSet], HeadSet]
) -> list[float]:
    return [result.test.accuracy(which(own.ranking.at(size))) for size in found.sizes]
