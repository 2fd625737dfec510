"""HTML pages that open anywhere, without a network and without scripts.

Prompts, tokens and names come from data, so everything is escaped by the template engine, and a
content policy in the page forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headloc.reporting.text import duration, percent, visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, context: Mapping[str, Any]) -> str:
    """Return a page.

    Args:
        template: file name of a template in headloc/reporting.
        context: what it shows.
    """
    return _environment().get_template(template).render(context)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("headloc.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": lambda text: visible(text, keep="\n"),
        "capitalise": lambda text: text[:1].upper() + text[1:],
        "percent": percent,
        "duration": duration,
        "thousands": lambda value: f"{value:,.0f}",
    }
    return environment
