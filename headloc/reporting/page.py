"""HTML pages that open anywhere, without a network and without scripts.

Prompts, tokens and names come from data, so every value that a template puts into a page is escaped
by the template engine, control and direction characters included, and a content policy in the page
forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headloc.reporting.text import duration, percent, visible

if TYPE_CHECKING:
    from jinja2 import BaseLoader, Environment


def render(template: str, context: Mapping[str, Any]) -> str:
    """Return a page.

    Args:
        template: file name of a template in headloc/reporting.
        context: what it shows.
    """
    from jinja2 import PackageLoader

    loader = PackageLoader("headloc.reporting", "")
    return environment_of(loader).get_template(template).render(context)


def environment_of(loader: BaseLoader) -> Environment:
    """Return the template engine of every page.

    Args:
        loader: finds templates by name.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=_shown,
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


def _shown(value: object) -> object:
    """Return what is put into a page for a value: text without characters that nobody sees."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return visible(value, keep="\n")
    return value
