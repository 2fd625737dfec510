"""Pictures inside of a page: SVG elements, with words for those who cannot see them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from headloc.reporting.text import visible

if TYPE_CHECKING:
    from markupsafe import Markup


def inline_svg(drawn: str, label: str) -> Markup:
    """Return an SVG file as an element of HTML, as wide as the page at most.

    Args:
        drawn: the text of the file.  It is put into the page as it is: draw it, never read it from
            anywhere.
        label: what the picture shows, in words.
    """
    from markupsafe import Markup, escape

    element = drawn[drawn.index("<svg") :]
    # What only a file of its own needs.
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # The viewBox keeps the proportions.
    element = re.sub(
        r'^<svg\b([^>]*?) width="([^"]*)"',
        r'<svg\1 style="--natural: \2; max-width: \2"',
        element,
        count=1,
    )
    element = re.sub(r'^<svg\b([^>]*?) height="[^"]*"', r"<svg\1", element, count=1)
    words = escape(visible(label))
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{words}"', 1))
