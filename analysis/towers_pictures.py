"""Pictures of `towers.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate

from . import drawing
from .bilinear import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]


def draw_retrieval(
    names: Sequence[str], kinds: Mapping[str, Sequence[Estimate]], others: Array
) -> Figure:
    """Draw the area under the curve of the circuit's heads, and of all others."""
    figure = drawing.new_figure(8.0, 0.55 * len(names) + 2.2)
    axes = figure.add_subplot()
    axes.axvline(0.5, color=drawing.GREY, lw=0.9, ls=(0, (4, 3)))
    width = 0.8 / len(kinds)
    for row, (kind, found) in enumerate(kinds.items()):
        colour, _, mark = drawing.LINES[row]
        places = np.arange(len(names)) + (row - (len(kinds) - 1) / 2) * width
        label = {"total": "score", "content": "content part", "position": "position part",
                 "stream": "residual stream"}[kind]  # fmt: skip
        axes.hlines(places, [e.low for e in found], [e.high for e in found], color=colour, lw=2)
        axes.plot([e.value for e in found], places, mark, color=colour, ms=5, label=label)
    jitter = np.linspace(-0.25, 0.25, len(others)) if len(others) else others
    axes.plot(others, len(names) + jitter, ".", color="#8d99ae", ms=5, label="other heads (score)")
    axes.set_yticks(range(len(names) + 1), [*names, "other heads"])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("AUROC: demonstrations of the query's class against the others")
    axes.legend(frameon=False, ncols=3, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1.0))
    drawing.finish(axes, grid="x")
    return figure


def draw_plane(found: Mapping[str, Any]) -> Figure:
    """Draw both towers, classes by colour, keys filled and queries as crosses."""
    figure = drawing.new_figure(7.2, 4.0)
    axes = figure.add_subplot()
    classes = sorted(set(found["key_classes"]) | set(found["query_classes"]))
    for index, name in enumerate(classes):
        colour = drawing.LINES[index % len(drawing.LINES)][0]
        key = np.array([c == name for c in found["key_classes"]])
        query = np.array([c == name for c in found["query_classes"]])
        axes.plot(*found["keys"][key].T, "o", color=colour, ms=3.5, alpha=0.45, mew=0,
                  label=f"keys behind {name}")  # fmt: skip
        axes.plot(*found["queries"][query].T, "x", color=colour, ms=7, mew=1.6,
                  label=f"queries of {name}")  # fmt: skip
    axes.set_xlabel(f"first component ({found['share']:.0%} of the variance in the plane)")
    axes.set_ylabel("second component")
    axes.set_title(f"{found['head']}: queries and keys without position", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_aspect("equal", adjustable="datalim")
    drawing.finish(axes, grid=None)
    return figure


def draw_spectra(
    names: Sequence[str], kept: Sequence[Spectrum], others: Sequence[Spectrum]
) -> Figure:
    """Draw the singular values of the circuit's heads over those of all others."""
    figure = drawing.new_figure(7.2, 4.0)
    axes = figure.add_subplot()
    for spectrum in others:
        axes.plot(_scaled(spectrum), color="#c8cfda", lw=0.8)
    for index, (name, spectrum) in enumerate(zip(names, kept, strict=True)):
        colour, dash, mark = drawing.LINES[index % len(drawing.LINES)]
        label = f"{name} (symmetric {spectrum.symmetric_share:.2f})" if len(names) <= 12 else None
        axes.plot(_scaled(spectrum), mark, ls=dash, color=colour, ms=3.5, lw=1.6, label=label)
    axes.set_xlabel("index")
    axes.set_ylabel("singular value, the first being 1")
    if len(names) <= 12:
        axes.legend(frameon=False, fontsize=8.5)
    drawing.finish(axes)
    return figure


def _scaled(spectrum: Spectrum) -> Array:
    values = spectrum.singular_d.cpu().numpy()
    return np.asarray(values / max(values[0], 1e-300))
