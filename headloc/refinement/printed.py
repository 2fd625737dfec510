"""What the console shows of a refinement, in lines of at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

from headloc.heads import HeadId

if TYPE_CHECKING:
    from rich.table import Table

    from headloc.refinement.result import Refinement
    from headloc.refinement.rows import Difference

SPLITS = {"seen": "tasks trained on", "held_out": "held-out tasks"}
CONTEXTS = {
    "few_shot": "few-shot prompts",
    "zero_shot": "zero-shot prompts",
    "shuffled": "few-shot, labels shuffled",
}
_WIDTH = 80
_SHOWN = 12
"""Heads that a line names."""


def lines(result: Refinement) -> list[str]:
    """Return the heads, the verdict table and the differences."""
    significance = result.significance
    found = [
        f"selected     {len(result.scan.heads)}",
        f"significant  {_named(significance.significant)}",
        f"main         {_named(significance.main)}",
    ]
    if significance.reason is not None:
        found.append(f"no main heads: {significance.reason}")
    tables = [*_rendered(heads(result)), *_rendered(verdict(result))]
    return [*found, *tables, *_differences(result), *_sizes(result), _cost(result)]


def heads(result: Refinement) -> Table:
    """Return the table of the significant heads, the largest gain first."""
    table = _table("head", "best dose", "accuracy", "at dose 0", "gain", "q", "main")
    significance = result.significance
    effects = [effect for effect in significance.effects if effect.significant]
    for effect in sorted(effects, key=lambda one: (-one.gain, one.head)):
        table.add_row(
            str(effect.head),
            str(effect.best_dose),
            f"{effect.accuracy:.3f}",
            f"{effect.baseline:.3f}",
            f"{effect.gain:.3f}",
            f"{effect.q:.1e}",
            "main" if effect.head in significance.main else "",
        )
    return table


def verdict(result: Refinement) -> Table:
    """Return the verdict table: one line per condition, one column per split."""
    tables = list(result.tables.values())
    names = [f"{SPLITS[name]}\nn = {len(t.contexts)}" for name, t in result.tables.items()]
    table = _table("accuracy [95 % interval]", *names, justify="left")
    for context, title in CONTEXTS.items():
        keys = [row.key for row in tables[0].rows if row.context == context]
        if keys:
            table.add_row(title)
        for key in keys:
            rows = [one.row(key) for one in tables]
            table.add_row(f"  {rows[0].label}", *(str(row.accuracy(result.seed)) for row in rows))
            spreads = [row.spread for row in rows]
            if any(spreads):
                table.add_row(
                    "    smallest to largest",
                    *("" if s is None else f"{s[0]:.3f} to {s[1]:.3f}" for s in spreads),
                )
    return table


def _differences(result: Refinement) -> list[str]:
    return [
        _difference(SPLITS[name], one)
        for name, table in result.tables.items()
        for one in table.differences
    ]


def _difference(split: str, one: Difference) -> str:
    pair = f"{one.first} - {one.second}".replace("_", " ")
    return f"{pair}, {split}: {one.estimate}, McNemar p = {one.p:.2g}"


def _sizes(result: Refinement) -> list[str]:
    """Return, per split, at which sizes the learned ranking does better or worse than AIE's."""
    found = []
    for name, curve in result.sizes.items():
        better, worse = (_numbers(curve.sizes_where(kind)) for kind in ("better", "worse"))
        told = f"learned ranking against AIE, {SPLITS[name]} (n = {curve.prompts}):"
        found.append(f"{told} better with {better} heads, worse with {worse}")
    return found


def _numbers(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) or "none"


def _cost(result: Refinement) -> str:
    cost, spent = result.cost, result.ledger.forward_equivalents()
    return (
        f"dose scan: {cost.setup_tokens:,} + {cost.scan_tokens:,} tokens, the latter through "
        f"{cost.depth_share:.0%} of the layers; {spent:,.0f} forward-equivalents in all"
    )


def _named(found: Sequence[HeadId]) -> str:
    rest = len(found) - _SHOWN
    names = " ".join(str(head) for head in found[:_SHOWN])
    return f"{len(found)}  {names}" + (f" and {rest} more" if rest > 0 else "")


def _table(*columns: str, justify: str = "right") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    return table


def _rendered(table: Table) -> list[str]:
    from rich.console import Console

    buffer = StringIO()
    Console(file=buffer, width=_WIDTH, color_system=None, highlight=False).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]
