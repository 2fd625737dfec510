"""The report of a comparison: one HTML file that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headloc.compare.by_size import tables
from headloc.compare.picture import draw
from headloc.compare.printed import HEADER, LEGEND, cells, frame, verdict
from headloc.compare.records import summaries
from headloc.compare.run import Comparison
from headloc.files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from headloc.lm.frozen import FrozenLM

_TEMPLATE = "methods_report.html.j2"


def write_report(found: Comparison, lm: FrozenLM, task: str, config_yaml: str, path: Path) -> None:
    """Write the report.

    Args:
        found: the comparison.
        lm: the model.
        task: name of the task family.
        config_yaml: the resolved configuration as text.
        path: the HTML file.
    """
    from headloc.reporting.page import render
    from headloc.reporting.text import model_name
    from headloc.reporting.versions import package_versions

    parts = []
    for result in found.results:
        rows = summaries(found, result)
        parts.append(
            {
                "off_value": result.off_value,
                "frame": frame(found, result),
                "verdict": verdict(found, result, rows),
                "rows": [cells(row) for row in rows],
                "tables": tables(found, result),
            }
        )
    context = {
        "methods": len(found.results[0].found),
        "model": model_name(lm.source.to_dict()),
        "task": task,
        "picture": _picture(found),
        "parts": parts,
        "header": HEADER,
        "legend": LEGEND,
        "versions": package_versions(),
        "config": config_yaml,
    }
    write_text(path, render(_TEMPLATE, context))


def _picture(found: Comparison) -> Markup:
    from matplotlib import rc_context

    from headloc.reporting.inline import inline_svg
    from headloc.reporting.pictures import STYLE, rendered

    with rc_context(STYLE):
        drawn = rendered(draw(found), "svg").decode()
    methods = ", ".join(found.results[0].found)
    return inline_svg(
        drawn,
        f"Accuracy by number of heads of {methods} and the best sets; the numbers are those of the "
        "tables below",
    )
