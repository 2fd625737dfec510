"""Aligned columns of plain text, for tables of commands of their own."""

from __future__ import annotations

from collections.abc import Sequence

from headloc.reporting.text import visible


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of left-aligned columns under a header and a rule; the last column is free."""
    cells = [list(map(visible, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header) - 1)]
    lines = [_line(row, widths) for row in cells]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f"{text:<{width}}" for text, width in zip(row[:-1], widths, strict=True)]
    return "  ".join([*padded, row[-1]]).rstrip()
