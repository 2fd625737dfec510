"""The dose curves: accuracy of every selected head alone, by its dose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.files import write_bytes
from headloc.reporting.pictures import STYLE, picture_path, quiet_axes, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headloc.heads import HeadId
    from headloc.refinement.result import Refinement

_COLOURS = ("#2b6cb0", "#e66100", "#1b7f5c", "#8e44ad", "#b8860b", "#c0392b", "#16808d", "#5d4037")
_MARKS = "osD^vP*X"
_QUIET = "#b8c0cc"


def save_dose_picture(result: Refinement, folder: Path, caption: str) -> list[Path]:
    """Write pictures/doses.png and .svg; the same result gives the same SVG, byte for byte."""
    from matplotlib import rc_context

    paths = []
    with rc_context(STYLE):
        figure = draw_doses(result, caption)
        for kind in ("png", "svg"):
            path = picture_path(folder, "doses", kind)
            write_bytes(path, rendered(figure, kind))
            paths.append(path)
    return paths


def draw_doses(result: Refinement, caption: str) -> Figure:
    """Draw one curve per head: main heads named and marked, the others quiet."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    quiet_axes(axes)
    significance = result.significance
    main = list(significance.main)
    for head in sorted(result.scan.heads, key=lambda one: one in main):
        _curve(axes, result, head, main, head in significance.significant)
    clean = significance.clean_accuracy
    axes.axhline(clean, color="#2b2f38", lw=1.0, ls=(0, (4, 3)), label="few-shot, untouched")
    axes.set_xlabel("dose c of one head, the other selected heads at their cross-task mean")
    axes.set_ylabel("zero-shot accuracy")
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(result.scan.doses[0], result.scan.doses[-1])
    axes.set_title(
        f"{len(result.scan.heads)} selected, {len(significance.significant)} significant, "
        f"{len(main)} main heads\n{caption}",
        loc="left",
    )
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _curve(
    axes: Any, result: Refinement, head: HeadId, main: list[HeadId], significant: bool
) -> None:
    accuracy_C = result.scan.accuracy_HC[result.scan.heads.index(head)]
    if head not in main:
        style = "-" if significant else ":"
        axes.plot(result.scan.doses, accuracy_C, color=_QUIET, lw=1.0, ls=style)
        return
    number = main.index(head) % len(_COLOURS)
    axes.plot(
        result.scan.doses,
        accuracy_C,
        color=_COLOURS[number],
        marker=_MARKS[number],
        ms=3.5,
        lw=1.6,
        label=str(head),
    )
