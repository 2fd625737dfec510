"""One HTML page over all findings, which opens anywhere, without a network and without scripts.

Pictures are inline SVG; everything else is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.files import write_text
from headloc.reporting.inline import inline_svg
from headloc.reporting.page import environment_of
from headloc.reporting.text import model_name, plural, task_name, visible
from headloc.reporting.versions import package_versions

from .base import Analysis, Cell, Findings, Picture, Subject, Table
from .saving import FINDINGS, rendered_picture

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MOST_ROWS = 40
"""Rows of a table that the page shows; the csv file has all."""


def write_report(
    subject: Subject,
    found: Sequence[tuple[Analysis, Findings]],
    skipped: Mapping[str, str],
    config_yaml: str,
    path: Path,
) -> None:
    """Write the page.

    Args:
        subject: what was analysed.
        found: the analyses with their findings, in the order of the page.
        skipped: reason by name of every analysis that did not apply.
        config_yaml: the resolved configuration as text.
        path: the HTML file.
    """
    template = _environment().get_template("analysis.html.j2")
    write_text(path, template.render(_context(subject, found, skipped, config_yaml, path.parent)))


def _environment() -> Environment:
    from jinja2 import FunctionLoader

    environment = environment_of(FunctionLoader(_source))
    environment.filters["cell"] = cell_text
    return environment


def _source(name: str) -> str:
    """Return a template: the page itself is here, its frame is that of every report."""
    home = "headloc.analysis" if name == "analysis.html.j2" else "headloc.reporting"
    return files(home).joinpath(name).read_text(encoding="utf-8")


def _context(
    subject: Subject,
    found: Sequence[tuple[Analysis, Findings]],
    skipped: Mapping[str, str],
    config_yaml: str,
    folder: Path,
) -> dict[str, Any]:
    return {
        "task": task_name(subject.task.describe()),
        "model": model_name(subject.lm.source.to_dict()),
        "heads": subject.heads,
        "count": plural(len(subject.heads), "head"),
        "sections": [_section(one, findings, folder) for one, findings in found],
        "skipped": skipped,
        "details": {
            "Model": {k: v for k, v in subject.lm.source.to_dict().items() if v is not None},
            "Task": subject.task.options(),
            "Prompts": {"seed": subject.seed, "prompts per task mean": subject.mean_prompts},
        },
        "versions": package_versions(),
        "config": config_yaml,
    }


def _section(analysis: Analysis, found: Findings, folder: Path) -> dict[str, Any]:
    saved = folder / FINDINGS / analysis.name
    return {
        "name": analysis.name,
        "question": analysis.question,
        "sentences": found.sentences,
        "pictures": [(p.caption, _drawn(p, saved)) for p in found.pictures],
        "tables": [_shown(table) for table in found.tables],
        "options": analysis.options(),
    }


def _shown(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "caption": table.caption,
        "columns": table.columns,
        "rows": table.rows[:MOST_ROWS],
        "rest": max(0, len(table.rows) - MOST_ROWS),
    }


def _drawn(picture: Picture, saved: Path) -> Markup:
    """Return a picture as an element of the page; mostly its file has been drawn already."""
    path = saved / f"{picture.name}.svg"
    drawn = path.read_bytes() if path.is_file() else rendered_picture(picture, ("svg",))["svg"]
    return inline_svg(drawn.decode("utf-8"), picture.caption)


def cell_text(value: Cell) -> str:
    """Return a cell of a table for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.2g}"
    return visible(value)
