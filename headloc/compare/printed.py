"""A comparison as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from headloc.commands.columns import columns
from headloc.compare.by_size import tables
from headloc.compare.records import Summary, optimum_crossing, summaries
from headloc.compare.run import Comparison, UnderOffValue
from headloc.evaluation.intervals import mean_interval

HEADER = (
    "method", "chosen", "kept", "smallest", "CPR", "CMD", "log-k area", "cost", "overlap",
    "the first is below it at", "largest gap to the best sets",
)  # fmt: skip

LEGEND = (
    "chosen: heads of the smallest set that keeps enough on selection prompts, by seed",
    "kept: its accuracy on fresh prompts over that of the whole model",
    "smallest: the size that keeps enough on the fresh prompts themselves",
    "CPR, CMD, log-k area: of accuracy, mean over seeds, in each method's signed order",
    "cost: forward-equivalents of the ranking, with the prefixes and off-values that it uses",
    "overlap: Jaccard index of the chosen sets of two seeds",
    "the first is below it at: sizes at which the paired 95 % interval of the first method minus "
    "this one lies under zero; in brackets by the band for all sizes together",
)


def printed(found: Comparison) -> list[str]:
    """Return the table of every off-value, the verdict on the first method, and the legend."""
    lines: list[str] = []
    for result in found.results:
        rows = summaries(found, result)
        lines += [
            "   ".join(f"{name} {value}" for name, value in frame(found, result)),
            *columns(HEADER, [cells(row) for row in rows]),
            "",
            *(
                line
                for table in tables(found, result)
                for line in (table.caption, *columns(table.header, table.rows), "")
            ),
            *verdict(found, result, rows),
            "",
        ]
    return [*lines, *(line for text in LEGEND for line in wrap(text, 96, subsequent_indent="  "))]


def frame(found: Comparison, result: UnderOffValue) -> list[tuple[str, str]]:
    """Return the accuracies that frame all others, and how the best sets were found, by name."""
    full = mean_interval(result.test.full_N, found.seed)
    return [
        ("off-value", result.off_value),
        ("whole model", f"{full} (n = {full.n})"),
        ("all heads closed", f"{result.test.accuracy(()):.3f}"),
        ("best sets by", f"{result.optimum.search} search"),
    ]


def cells(row: Summary) -> list[str]:
    """Return the cells of one method."""
    size, gap = row.to_optimum.worst
    return [
        row.method,
        _each(row.sizes),
        " ".join(f"{value:.3f}" for value in row.kept),
        _each(row.crossing),
        _mean([own.cpr for own in row.areas]),
        _mean([own.cmd for own in row.areas]),
        _mean([own.log_area for own in row.areas]),
        f"{row.cost:,.0f}",
        f"{row.overlap:.2f}",
        _below(row),
        f"{-gap:+.3f} at {size}",
    ]


def verdict(found: Comparison, result: UnderOffValue, rows: Sequence[Summary]) -> list[str]:
    """Return how the first method stands against the best sets, the others and the budget."""
    own = rows[0]
    best = optimum_crossing(found, result)
    away = [size - best for size in own.sizes]
    rivals = [row for row in rows if row.against is not None]
    alone = [f"{row.method} at {_each(row.against.below)}" for row in rivals
             if row.against is not None and row.against.below]  # fmt: skip
    band = [row.method for row in rivals if row.against is not None and row.against.below_band]
    share = own.cost / result.patching_cost
    return [
        f"{own.method}: {_each(own.sizes)} heads chosen, the best sets keep "
        f"{found.settings.keep:.0%} from {best} heads on: {_signed(away)}",
        f"  below another method, sizes taken alone: {'; '.join(alone) or 'nowhere'}",
        f"  below another method, all sizes together: {', '.join(band) or 'none'}",
        f"  cost {own.cost:,.0f} forward-equivalents, {share:.2f} of exact patching of every head "
        f"({result.patching_cost:,.0f})",
    ]


def _below(row: Summary) -> str:
    if row.against is None:
        return "-"
    band = f" [{_each(row.against.below_band)}]" if row.against.below_band else ""
    return (_each(row.against.below) or "no size") + band


def _each(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _signed(values: Sequence[int]) -> str:
    return " ".join(f"{value:+d}" for value in values)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"
