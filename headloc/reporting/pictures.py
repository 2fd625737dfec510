"""Pictures of a run as PNG and SVG files: heads, training, accuracies, the path if there is one.

Drawn with figure objects alone, so nothing of a caller's matplotlib is touched, and the same result
gives the same SVG, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.files import write_bytes
from headloc.reporting.text import model_name, one_line, task_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headloc.circuit import Circuit
    from headloc.localizer.run import Localization

STYLE = {
    "svg.hashsalt": "headloc",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5b6270",
    "text.parse_math": False,
}


def save_pictures(result: Localization, folder: Path) -> list[Path]:
    """Write the pictures into `folder`/pictures and return their paths."""
    from matplotlib import rc_context

    from headloc.bank.picture import draw_path
    from headloc.reporting.picture_accuracies import draw_accuracies
    from headloc.reporting.picture_heads import draw_heads
    from headloc.reporting.picture_training import draw_training

    drawings: dict[str, Callable[[Localization], Figure]] = {
        "heads": draw_heads,
        "training": draw_training,
        "accuracies": draw_accuracies,
    }
    if result.path is not None:
        drawings["path"] = draw_path
    paths = []
    with rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw(result)
            for kind in ("png", "svg"):
                path = picture_path(folder, name, kind)
                write_bytes(path, rendered(figure, kind))
                paths.append(path)
    return paths


def picture_path(folder: Path, name: str, kind: str = "png") -> Path:
    """Return where a picture of a run lies."""
    return folder / "pictures" / f"{name}.{kind}"


def caption(circuit: Circuit) -> str:
    """Return which model and task a picture is about."""
    return f"{one_line(task_name(circuit.task), 40)}, {one_line(model_name(circuit.model), 50)}"


def rendered(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file.

    Text is drawn as outlines; the comments in which an SVG would repeat it are left out, as names
    and tokens may hold characters that XML does not allow.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = BytesIO()
    if kind == "svg":
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": "headloc"})
        return re.sub(rb"<!--.*?-->\n?", b"", buffer.getvalue(), flags=re.DOTALL)
    else:
        figure.set_dpi(160)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "headloc"})
    return buffer.getvalue()


def quiet_axes(axes: Any) -> None:
    """Take ticks and frame lines off that say nothing."""
    axes.tick_params(length=0, colors="#2b2f38")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
