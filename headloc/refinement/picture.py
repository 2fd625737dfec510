"""The pictures of a refinement: accuracy of every selected head alone by its dose, and of the
learned ranking and of AIE's by size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.files import write_bytes
from headloc.refinement.printed import SPLITS
from headloc.reporting.pictures import STYLE, picture_path, quiet_axes, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headloc.heads import HeadId
    from headloc.refinement.result import Refinement

_COLOURS = ("#2b6cb0", "#e66100", "#1b7f5c", "#8e44ad", "#b8860b", "#c0392b", "#16808d", "#5d4037")
_MARKS = "osD^vP*X"
_QUIET = "#b8c0cc"
_RANKINGS = (
    ("learned", "learned ranking", _COLOURS[0], "o", "-"),
    ("aie", "average indirect effect", _COLOURS[1], "s", "--"),
)


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


def save_size_picture(result: Refinement, folder: Path, caption: str) -> list[Path]:
    """Write pictures/sizes.png and .svg; without sizes, remove those of an earlier run."""
    from matplotlib import rc_context

    paths = [picture_path(folder, "sizes", kind) for kind in ("png", "svg")]
    if not result.sizes:
        for path in paths:
            path.unlink(missing_ok=True)
        return []
    with rc_context(STYLE):
        figure = draw_sizes(result, caption)
        for path in paths:
            write_bytes(path, rendered(figure, path.suffix[1:]))
    return paths


def draw_sizes(result: Refinement, caption: str) -> Figure:
    """Draw both rankings by size, one panel per split, with their 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.9 * len(result.sizes), 3.8), layout="constrained")
    panels = figure.subplots(1, len(result.sizes), squeeze=False, sharey=True)[0]
    for axes, (split, curve) in zip(panels, result.sizes.items(), strict=True):
        quiet_axes(axes)
        for name, label, colour, mark, style in _RANKINGS:
            estimates = [getattr(point, name) for point in curve.points]
            axes.fill_between(
                curve.sizes,
                [one.low for one in estimates],
                [one.high for one in estimates],
                color=colour,
                alpha=0.18,
                lw=0,
            )
            axes.plot(
                curve.sizes,
                [one.value for one in estimates],
                color=colour,
                marker=mark,
                ls=style,
                ms=3.5,
                lw=1.6,
                label=label,
            )
        last = curve.sizes[-1]
        powers = [2**i for i in range(last.bit_length())]
        axes.set_xscale("log", base=2)
        axes.set_xticks(powers, [str(size) for size in powers])
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("heads")
        axes.set_title(f"{SPLITS[split]}, n = {curve.prompts}", loc="left")
    panels[0].set_ylabel("zero-shot accuracy of the function vector")
    panels[-1].legend(frameon=False, loc="lower right")
    figure.suptitle(caption, x=0.01, ha="left")
    return figure


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
