"""The tables of the console, which fit 80 columns and read well in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headloc.reporting.feed_forward import counted, mlp_rows
from headloc.reporting.figures import SPLITS, accuracy_rows, facts, split_sizes
from headloc.reporting.rows import HeadRow, head_rows, ranked
from headloc.reporting.text import model_name, one_line, percent, plural, task_name, visible

if TYPE_CHECKING:
    from rich.box import Box
    from rich.table import Table

    from headloc.bank.result import PathResult
    from headloc.circuit import Circuit

SHOWN = 40
"""Heads that are listed one by one; the rest are in heads.csv."""


def title(circuit: Circuit) -> str:
    """Return the first line: how many heads of which model for which task."""
    return f"{counted(circuit)} of {model_name(circuit.model)} for {task_name(circuit.task)}"


def heads(circuit: Circuit, replicates: Sequence[Circuit] = ()) -> Table:
    """Return the table of the selected heads, most important first."""
    from rich.table import Table

    rows = ranked(head_rows(circuit, replicates))
    table = Table(box=_lines(), pad_edge=False, caption=_caption(rows), caption_justify="left")
    table.add_column("head")
    for name in ("gate", "score"):
        table.add_column(name, justify="right")
    if replicates:
        table.add_column("replicates", justify="right")
    for row in rows[:SHOWN]:
        cells = [str(row.head), f"{row.gate:.3f}", f"{row.score:.3f}"]
        table.add_row(*cells, *([row.chosen] if replicates else []))
    for block in (row for row in mlp_rows(circuit, replicates) if row.selected):
        cells = [str(block.block), f"{block.gate:.3f}", f"{block.score:.3f}"]
        table.add_row(*cells, *([block.chosen] if replicates else []))
    return table


def accuracies(metrics: Mapping[str, float]) -> Table | None:
    """Return the table of accuracies with intervals, None where there are none."""
    from rich.table import Table

    rows, sizes = accuracy_rows(metrics), split_sizes(metrics)
    if not rows:
        return None
    present = [i for i in range(len(SPLITS)) if any(row.figures[i] for row in rows)]
    table = Table(box=_lines(), pad_edge=False)
    table.add_column("accuracy [95 % interval]")
    for i in present:
        prefix, name = list(SPLITS.items())[i]
        table.add_column(f"{name}\nn = {sizes.get(prefix, 0)}")
    for row in rows:
        figures = [row.figures[i] for i in present]
        table.add_row(row.label, *("-" if f is None else str(f) for f in figures))
        spreads = ["" if f is None else f.spread for f in figures]
        if any(spreads):
            table.add_row("  smallest to largest", *spreads)
    return table


def path(found: PathResult) -> Table:
    """Return the table of a sparsity path, one line per penalty, with ranges over seeds."""
    from rich.table import Table

    table = Table(box=_lines(), pad_edge=False, caption=_ranges(found), caption_justify="left")
    table.add_column("penalty")
    for name in ("heads", "accuracy, selection", "Jaccard", "stable heads"):
        table.add_column(name, justify="right")
    for point in found.penalties:
        size, accuracy = point.size, point.accuracy
        table.add_row(
            f"{point.weight:g}",
            f"{size.mean:.1f} [{size.smallest:.0f}, {size.largest:.0f}]",
            f"{accuracy.mean:.3f} [{accuracy.smallest:.3f}, {accuracy.largest:.3f}]",
            f"{point.jaccard:.2f}",
            str(len(point.stable)),
        )
    return table


def fact_lines(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return what else there is to say, as (label, text)."""
    return [(fact.label, fact.value) for fact in facts(metrics)]


def provenance(circuit: Circuit) -> list[tuple[str, str]]:
    """Return where a circuit comes from, as (label, text)."""
    model = circuit.model
    total = sum(circuit.heads_per_layer)
    return [
        ("model", f"{model_name(model)} ({model.get('model_type')}, {model.get('dtype')})"),
        ("task", f"{task_name(circuit.task)} {_options(circuit.task.get('options', {}))}".strip()),
        ("objective", _options(circuit.objective)),
        ("selection", _options(circuit.selection) or "-"),
        ("heads", f"{len(circuit.heads)} of {total} ({percent(len(circuit.heads) / total)})"),
        *_blocks(circuit),
        ("seed", str(circuit.seed)),
    ]


def _blocks(circuit: Circuit) -> list[tuple[str, str]]:
    part = circuit.feed_forward
    if part is None:
        return []
    names = " ".join(str(row.block) for row in mlp_rows(circuit) if row.selected) or "none"
    return [("FFNs", f"{len(part.kept)} of {len(part.layers)} feed-forward blocks: {names}")]


def _options(options: Mapping[str, object]) -> str:
    shown = [f"{key}={one_line(value, 60)}" for key, value in options.items() if value is not None]
    return visible(" ".join(shown))


def _ranges(found: PathResult) -> str:
    return f"ranges over {plural(found.seeds, 'seed')}; full model {found.full:.3f}"


def _caption(rows: Sequence[HeadRow]) -> str | None:
    if not rows:
        return "no head was selected"
    rest = len(rows) - SHOWN
    return f"and {rest} more" if rest > 0 else None


def _lines() -> Box:
    from rich import box

    return box.SIMPLE_HEAD
