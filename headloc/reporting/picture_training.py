"""The course of training: task loss, accuracy on the selection prompts, open heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headloc.reporting.pictures import caption, quiet_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headloc.localizer.run import Localization

PANELS: Mapping[str, Mapping[str, str]] = {
    "task loss (nats)": {"train/task_loss": "task loss"},
    "accuracy, selection prompts": {"val/accuracy": "accuracy"},
    "open heads": {
        "gates/open_expected": "expected",
        "gates/open_sampled": "sampled",
        "gates/open_hard": "gate above 0.5",
    },
}
"""Curves by panel, with their names."""

_STROKES = (("#0d5ea8", "-"), ("#e66100", "--"), ("#5b6270", ":"))


def draw_training(result: Localization) -> Figure:
    """Draw the three panels over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.3), layout="constrained")
    figure.suptitle(f"training: {caption(result.circuit)}", x=0.01, ha="left", fontsize=11)
    shown = panels(result)
    for axes, (title, names) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        _panel(axes, title, curves(result, names))
    return figure


def panels(result: Localization) -> dict[str, Mapping[str, str]]:
    """Return the curves by panel; open gates count feed-forward blocks where these are gated."""
    more = "" if result.circuit.feed_forward is None else " and feed-forward blocks"
    return {f"{title}{more if title == 'open heads' else ''}": c for title, c in PANELS.items()}


def curves(result: Localization, names: Mapping[str, str]) -> dict[str, list[tuple[int, float]]]:
    """Return named curves as (epoch, value), without the epochs in which nothing was logged."""
    return {label: _points(result.history.curves.get(key, ())) for key, label in names.items()}


def _points(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(epoch, value) for epoch, value in enumerate(values, start=1) if math.isfinite(value)]


def _panel(axes: Any, title: str, lines: Mapping[str, list[tuple[int, float]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for (label, points), (colour, dashes) in zip(lines.items(), _STROKES, strict=False):
        x, y = [epoch for epoch, _ in points], [value for _, value in points]
        marker = "o" if len(points) == 1 else None
        axes.plot(x, y, color=colour, linestyle=dashes, lw=2.0, marker=marker, label=label)
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dfe3ea", lw=0.8)
    axes.set_axisbelow(True)
    if title.startswith("accuracy"):
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    quiet_axes(axes)
