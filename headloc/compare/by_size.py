"""A comparison size by size: accuracy kept, gap to and overlap with the best sets, and between
methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from headloc.compare.records import jaccard, optimum_crossing
from headloc.compare.run import Comparison, Found, UnderOffValue

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures as text: a caption, its header, and its rows."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def shown_sizes(found: Comparison, result: UnderOffValue) -> list[int]:
    """Return the sizes a table shows: some of all, and those around the smallest good best set."""
    best = optimum_crossing(found, result)
    wanted = {*_STEPS, best - 1, best, best + 1}
    total = found.layout.total
    return [k for k in found.sizes if k in wanted and 0 < k < total and k in result.optimum.sets]


def tables(found: Comparison, result: UnderOffValue) -> list[Table]:
    """Return the tables of one off-value: kept accuracy, gap, overlap, and methods with methods."""
    full, best = result.test.full, result.optimum.sets

    def gap(own: Found, size: int) -> float:
        accuracy = result.test.accuracy
        return accuracy(best[size]) - accuracy(own.ranking.at(size))

    kept = _by_size(
        "accuracy kept on fresh prompts, mean over seeds", found, result, "{:.3f}",
        lambda own, size: result.test.accuracy(own.ranking.at(size)) / full,
    )  # fmt: skip
    best_kept = [f"{result.test.accuracy(best[k]) / full:.3f}" for k in shown_sizes(found, result)]
    optimum = (f"best sets ({result.optimum.search})", *best_kept)
    return [
        Table(kept.caption, kept.header, (*kept.rows, optimum)),
        _by_size("gap to the best set, in accuracy", found, result, "{:+.3f}", gap),
        _by_size(
            "overlap with the best set (Jaccard index)", found, result, "{:.2f}",
            lambda own, size: jaccard(own.ranking.at(size), best[size]),
        ),
        _between(found, result),
    ]  # fmt: skip


def _by_size(
    caption: str,
    found: Comparison,
    result: UnderOffValue,
    form: str,
    value: Callable[[Found, int], float],
) -> Table:
    sizes = shown_sizes(found, result)
    rows = [
        (name, *(form.format(fmean(value(own, size) for own in many)) for size in sizes))
        for name, many in result.found.items()
    ]
    return Table(caption, ("heads", *map(str, sizes)), tuple(rows))


def _between(found: Comparison, result: UnderOffValue) -> Table:
    """Return the overlap of every two methods at the smallest size that is enough for the best."""
    size = optimum_crossing(found, result)
    names = list(result.found)
    rows = [
        (name, *(_overlap(result.found[name], result.found[other], size) for other in names))
        for name in names
    ]
    caption = f"overlap of methods at {size} heads (Jaccard index, same seed, mean over seeds)"
    # Numbers for names: eleven names do not fit a line.
    header = ("", *(str(number) for number in range(1, len(names) + 1)))
    numbered = [(f"{n} {row[0]}", *row[1:]) for n, row in enumerate(rows, start=1)]
    return Table(caption, header, tuple(numbered))


def _overlap(first: Sequence[Found], second: Sequence[Found], size: int) -> str:
    pairs = zip(first, second, strict=True)
    return f"{fmean(jaccard(a.ranking.at(size), b.ranking.at(size)) for a, b in pairs):.2f}"
