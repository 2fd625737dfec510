"""The picture of a search over insertion layers: accuracy by layer, one line a site.

With the heads of single layers in the search, a second panel shows the layer that the heads come
from against the layer that their vector enters, at the first site.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headloc.evaluation.layer_search import LayerSearch, PlaceScore
from headloc.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = (("#0d5ea8", "-", "o"), ("#e66100", "--", "s"), ("#3d7a3d", ":", "^"))


def save_layer_picture(found: LayerSearch, deciding: str, folder: Path) -> list[Path]:
    """Write pictures/layers.png and .svg and return their paths."""
    from matplotlib import rc_context

    from headloc.reporting.pictures import STYLE, picture_path, rendered

    paths = []
    with rc_context(STYLE):
        figure = draw_layers(found, deciding)
        for kind in ("png", "svg"):
            paths.append(picture_path(folder, "layers", kind))
            write_bytes(paths[-1], rendered(figure, kind))
    return paths


def draw_layers(found: LayerSearch, deciding: str) -> Figure:
    """Draw the deciding head set's accuracy at every place."""
    from matplotlib.figure import Figure

    single = list(dict.fromkeys(s.heads for s in found.scores if s.heads.startswith("heads of")))
    figure = Figure(figsize=(11.5 if single else 7.0, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if single else 1, squeeze=False)[0]
    _lines(axes[0], found, deciding)
    if single:
        _map(figure, axes[1], found, single)
    return figure


def _lines(axes: Any, found: LayerSearch, deciding: str) -> None:
    from headloc.reporting.pictures import quiet_axes

    scores = found.of(deciding)
    for site, (colour, dash, mark) in zip(_sites(scores), _LINES, strict=False):
        own = [score for score in scores if score.place.site == site]
        layers = [score.place.layer for score in own]
        axes.plot(layers, [s.accuracy.value for s in own], dash, marker=mark, color=colour, ms=4,
                  label=site)  # fmt: skip
        axes.fill_between(layers, [s.accuracy.low for s in own], [s.accuracy.high for s in own],
                          color=colour, alpha=0.15, lw=0)  # fmt: skip
    for name, level in (("few-shot", found.few_shot), ("zero-shot", found.zero_shot)):
        axes.axhline(level.value, color="#5b6270", lw=1.0, ls=(0, (4, 3)))
        axes.annotate(name, (0.01, level.value), xycoords=("axes fraction", "data"), ha="left",
                      va="bottom", fontsize=8.5, color="#5b6270")  # fmt: skip
    axes.set_ylim(-0.03, 1.06)
    axes.set_xticks(sorted({score.place.layer for score in scores}))
    axes.set_xlabel("insertion layer")
    axes.set_ylabel("zero-shot accuracy, 95 % interval")
    axes.set_title(f"function vector of {_named(deciding)}, n = {found.few_shot.n}", loc="left")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(axis="y", color="#dfe3ea", lw=0.8)
    quiet_axes(axes)


def _map(figure: Figure, axes: Any, found: LayerSearch, single: list[str]) -> None:
    from headloc.reporting.pictures import quiet_axes

    site = found.scores[0].place.site
    rows = [[s for s in found.of(name) if s.place.site == site] for name in single]
    grid = np.array([[score.accuracy.value for score in row] for row in rows])
    image = axes.imshow(grid, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", origin="lower")
    axes.set_xticks(range(grid.shape[1]), [score.place.layer for score in rows[0]])
    axes.set_yticks(range(grid.shape[0]), [name.rpartition(" ")[2] for name in single])
    axes.set_xlabel(f"insertion layer ({site})")
    axes.set_ylabel("layer of the heads")
    axes.set_title("heads of single layers", loc="left")
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.03).set_label("zero-shot accuracy")
    quiet_axes(axes)


def _sites(scores: tuple[PlaceScore, ...]) -> list[str]:
    return list(dict.fromkeys(score.place.site for score in scores))


def _named(deciding: str) -> str:
    return "the circuit" if deciding == "circuit" else deciding
