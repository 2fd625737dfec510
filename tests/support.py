"""What headloc can do with every family: the table of support, from the suite of behaviours.

    python -m tests.support           prints the table
    python -m tests.support --write   puts it into the README

A cell runs the same checks as `tests/architectures/test_behaviours.py`: it says yes where all of
its column hold on the family's tiny model, and no where the family is refused with a reason.  A
promise that is broken ends this with its AssertionError.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from headloc.lm.families import FAMILIES as KNOWN
from tests.architectures.registry import COLUMNS, works
from tests.tiny import FAMILIES, SPECS

PAGE = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- support: python -m tests.support --write -->", "<!-- end of support -->"


def table() -> str:
    """Return the table in Markdown: families that can do the same share a line."""
    lines: dict[tuple[bool, ...], list[str]] = {}
    for family in FAMILIES:
        found = tuple(works(column, family) for column in COLUMNS)
        lines.setdefault(found, []).append(_name(family))
    ranked = sorted(lines.items(), key=lambda line: (-sum(line[0]), line[1]))
    rows = [
        (", ".join(_once(names)), *("yes" if works else "no" for works in found))
        for found, names in ranked
    ]
    tested = {SPECS[family].model_type.removesuffix("_text") for family in FAMILIES}
    untested = sorted({name.removesuffix("_text") for name in KNOWN} - tested)
    if untested:
        rows.append((", ".join(untested), *("probed" for _ in COLUMNS)))
    heading = ("families", *COLUMNS)
    return "\n".join([_row(heading), _row("---" for _ in heading), *(_row(row) for row in rows)])


def _name(family: str) -> str:
    """Return the model type, with what the tiny model varies in brackets."""
    kind = SPECS[family].model_type.removesuffix("_text")
    rest = family.removeprefix(SPECS[family].model_type).removeprefix(kind).strip("_")
    return kind if not rest or rest == "text" else f"{kind} ({rest.replace('_', ' ')})"


def _once(names: Iterable[str]) -> list[str]:
    """Leave variants out that stand beside their plain form."""
    names = sorted(set(names))
    return [name for name in names if name.partition(" ")[0] == name
            or name.partition(" ")[0] not in names]  # fmt: skip


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, or write it into its page."""
    logging.disable(logging.WARNING)
    disable_progress_bar()
    if "--write" not in sys.argv:
        print(table())
        return
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
