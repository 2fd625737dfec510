"""The layer-by-head map of the gates, the selected heads outlined.

Shapes: L layers with heads, H most heads of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headloc.reporting.feed_forward import MlpRow, counted, mlp_rows
from headloc.reporting.pictures import caption, quiet_axes
from headloc.reporting.rows import HeadRow, head_rows, layers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from headloc.localizer.run import Localization

_LABELS = 24
"""Most tick labels of an axis."""


def draw_heads(result: Localization) -> Figure:
    """Draw the map; cells of heads that a layer does not have stay empty."""
    from matplotlib.figure import Figure

    rows, blocks = head_rows(result.circuit, result.replicates), mlp_rows(result.circuit)
    own = {layer for layer, _ in layers_of(result.circuit.model)}
    layers = sorted(own | {row.block.layer for row in blocks})
    grid_LH = _grid(rows, layers, blocks)
    tall, wide = grid_LH.shape
    cell = min(0.42, 9.0 / wide, 12.0 / tall)
    figure = Figure(
        figsize=(max(4.6, wide * cell + 2.2), max(2.6, tall * cell + 1.6)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(
        grid_LH, cmap=_colours(), vmin=0.0, vmax=1.0, aspect="equal", interpolation="nearest"
    )
    _outline(axes, rows, blocks, layers, wide)
    _label(axes, layers, wide, bool(blocks))
    axes.set_title(
        f"{counted(result.circuit)} selected (outlined)\n{caption(result.circuit)}",
        loc="left",
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.03)
    bar.set_label("gate")
    bar.outline.set_visible(False)
    return figure


def _grid(
    rows: list[HeadRow], layers: list[int], blocks: Sequence[MlpRow] = ()
) -> NDArray[np.float64]:
    """Return gates_LH, NaN where a layer has fewer heads.

    Feed-forward blocks, where they were gated, have the last column, behind an empty one.
    """
    wide = max(row.head.head for row in rows) + 1
    grid_LH = np.full((len(layers), wide + (2 if blocks else 0)), np.nan)
    position = {layer: i for i, layer in enumerate(layers)}
    for row in rows:
        grid_LH[position[row.head.layer], row.head.head] = row.gate
    for block in blocks:
        grid_LH[position[block.block.layer], -1] = block.gate
    return grid_LH


def _colours() -> Any:
    """Return a light-to-dark map of one hue, which reads without colour vision and in grey."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#eef2f7", "#8fb4d9", "#2b6cb0", "#0d2f5c"]
    return LinearSegmentedColormap.from_list("gates", stops).with_extremes(bad="#ffffff00")


def _outline(
    axes: Any, rows: list[HeadRow], blocks: list[MlpRow], layers: list[int], wide: int
) -> None:
    from matplotlib.patches import Rectangle

    position = {layer: i for i, layer in enumerate(layers)}
    chosen = [(row.head.head, row.head.layer) for row in rows if row.selected]
    chosen += [(wide - 1, row.block.layer) for row in blocks if row.selected]
    for column, layer in chosen:
        corner = (column - 0.44, position[layer] - 0.44)
        axes.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor="#e66100", lw=1.8))


def _label(axes: Any, layers: list[int], wide: int, blocks: bool) -> None:
    quiet_axes(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)
    every_row, every_column = -(-len(layers) // _LABELS), -(-wide // _LABELS)
    axes.set_yticks(range(0, len(layers), every_row), layers[::every_row])
    heads = wide - 2 if blocks else wide
    places = [*range(0, heads, every_column), *([wide - 1] if blocks else [])]
    axes.set_xticks(places, [*map(str, range(0, heads, every_column)), *["MLP"] * blocks])
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    # White lines between the cells.
    axes.set_xticks(np.arange(-0.5, wide), minor=True)
    axes.set_yticks(np.arange(-0.5, len(layers)), minor=True)
    axes.grid(which="minor", color="white", lw=1.2 if wide <= 64 else 0.3)
    axes.tick_params(which="minor", length=0)
