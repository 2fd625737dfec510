"""`headloc guide`: read a guide on a terminal, or as Markdown in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headloc.errors import HeadlocError
from headloc.guides import guide_names, guide_summary, guide_text


def run(arguments: Sequence[str]) -> None:
    """Print a guide, or the list of guides.

    Args:
        arguments: nothing for the list; a name; or the words of a command, whose first names its
            guide: `headloc guide circuit diff`.

    Raises:
        HeadlocError: for a name that no guide has.
    """
    if not arguments:
        _print_list()
        return
    if any("=" in word or word.startswith("-") for word in arguments):
        raise HeadlocError("Give the name of a guide and nothing else; `headloc guide` lists them.")
    _print(guide_text(arguments[0]))


def _print_list() -> None:
    names = guide_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {guide_summary(name)}")
    print("\nheadloc guide NAME prints one.")


def _print(text: str) -> None:
    if not sys.stdout.isatty():
        # As it is, so that it can be kept as a file or read by another program.
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(emoji=False)
    # Longer lines are hard to read.
    console.print(Markdown(text), width=min(console.width, 100))
