"""The path as a picture: accuracy against heads, and how stable the heads are.

Shapes: W penalties, A heads in flat order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headloc.bank.chart import SHOWN
from headloc.reporting.feed_forward import all_components

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headloc.bank.result import PathResult
    from headloc.localizer.run import Localization

_BLUE, _ORANGE, _INK, _GRID = "#0d5ea8", "#e66100", "#1b1f27", "#dfe3ea"


def draw_path(result: Localization) -> Figure:
    """Draw the curve with the emitted gate sets beside the stability of the best heads.

    Raises:
        ValueError: when the run trained no path.
    """
    from matplotlib.figure import Figure

    from headloc.reporting.pictures import caption, quiet_axes

    path = result.path
    if path is None:
        raise ValueError("This run trained no sparsity path.")
    rows = min(SHOWN, path.stability_WA.shape[1])
    figure = Figure(figsize=(10.5, max(4.2, 0.2 * rows + 1.6)), layout="constrained")
    figure.suptitle(f"sparsity path: {caption(result.circuit)}", x=0.01, ha="left", fontsize=11)
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    _curve(left, path)
    _stability(right, path, [str(head) for head in all_components(result.circuit)])
    for axes in (left, right):
        quiet_axes(axes)
    return figure


def _curve(axes: Any, path: PathResult) -> None:
    sizes = [point.size for point in path.curve]
    low = [point.seeds.smallest for point in path.curve]
    high = [point.seeds.largest for point in path.curve]
    axes.fill_between(sizes, low, high, color=_BLUE, alpha=0.18, lw=0, label="range over seeds")
    axes.plot(sizes, [p.accuracy for p in path.curve], color=_BLUE, lw=2, label="mean ranking")
    x, y = [p.size.mean for p in path.penalties], [p.accuracy.mean for p in path.penalties]
    axes.errorbar(
        x,
        y,
        yerr=_ends([p.accuracy for p in path.penalties]),
        xerr=_ends([p.size for p in path.penalties]),
        fmt="D",
        ms=5,
        mfc="white",
        color=_ORANGE,
        label="emitted, by penalty",
    )
    axes.axhline(
        path.keep * path.full, color=_INK, lw=0.9, ls=":", label=f"{path.keep:.0%} of full"
    )
    bend, chosen = path.curve[path.elbow], path.recommended
    axes.plot([bend.size], [bend.accuracy], "s", color=_INK, ms=7, mfc="none", label="elbow")
    axes.plot(
        [len(chosen.heads)],
        [chosen.accuracy],
        "*",
        color=_INK,
        ms=13,
        label="recommended",
        zorder=5,
    )
    if sizes[-1] > 64:
        axes.set_xscale("symlog", linthresh=8)
    axes.set_xlim(left=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("heads")
    axes.set_title("accuracy, selection prompts", loc="left")
    axes.grid(axis="y", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")


def _ends(spreads: list[Any]) -> list[list[float]]:
    """Return how far each range reaches below and above its mean."""
    below = [max(0.0, spread.mean - spread.smallest) for spread in spreads]
    return [below, [max(0.0, spread.largest - spread.mean) for spread in spreads]]


def _stability(axes: Any, path: PathResult, names: list[str]) -> None:
    order = path.ranking.argsort(descending=True, stable=True).tolist()[:SHOWN]
    axes.imshow(path.stability_WA[:, order].T.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(order)), [names[index] for index in order], fontsize=7.5)
    weights = [f"{weight:g}" for weight in path.weights]
    axes.set_xticks(range(len(weights)), weights, rotation=90, fontsize=8)
    axes.set_xlabel("penalty")
    axes.set_title("share of seeds that emit it", loc="left", fontsize=10)
