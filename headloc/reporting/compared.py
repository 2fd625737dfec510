"""Published beside measured, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headloc.references import Comparison, ComparisonRow

_READ = {"seen": "read in the paper", "digest": "read in a secondary summary"}


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A line of the table, in words.

    Attributes:
        quantity: what it is.
        meaning: what the figure says.
        published: the published figure; `missing` or `not applicable`.
        source: where it stands, empty where nothing is published.
        measured: the run's figure; empty where it was not measured.
        interval: its 95 % interval and n, as far as known.
        note: how the two compare.
    """

    quantity: str
    meaning: str
    published: str
    source: str
    measured: str
    interval: str
    note: str


def compared(found: Comparison | None) -> dict[str, Any] | None:
    """Return what the section on published figures shows, None without a reference."""
    if found is None:
        return None
    return {
        "reference": found.reference,
        "model": found.model,
        "comparable": found.comparable,
        "rows": [_row(row, found) for row in found.rows],
        "heads": _heads(found),
        "changes": found.changes,
    }


def measured_text(row: ComparisonRow) -> str:
    """Return the measured figure as text, empty where there is none; counts without decimals."""
    if row.measured is None:
        return ""
    is_count = "heads/" in (row.metric or "")
    return f"{row.measured:.0f}" if is_count else f"{row.measured:.3f}"


def _row(row: ComparisonRow, found: Comparison) -> ComparedRow:
    parts = [row.interval, "" if row.n is None else f"n = {row.n}"]
    other_model = bool(found.reference.published and not found.comparable and row.measured)
    return ComparedRow(
        row.quantity,
        row.meaning,
        row.published,
        _in_words(row.source),
        measured_text(row),
        ", ".join(part for part in parts if part),
        "not compared: another model" if other_model else row.note,
    )


def _heads(found: Comparison) -> dict[str, Any] | None:
    overlap = found.heads
    if overlap is None:
        return None
    chosen = set(overlap.selected)
    ranked = zip(overlap.published, overlap.ranks, strict=True)
    return {
        "rows": [(str(head), rank, head in chosen) for head, rank in ranked],
        "overlap": overlap,
        "source": _in_words(found.reference.heads_section),
    }


def _in_words(source: str) -> str:
    """Return a section and how it was read in words; empty where nothing was read."""
    section, _, read = source.rpartition(", ")
    return f"{section}, {_READ[read]}" if read in _READ else ""
