"""Tables, sentences and pictures of `self_correction.py`.

Shapes: N demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate

from . import drawing
from .base import Findings, Picture, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

MOST_HEADS = 12
WRONG, RIGHT = "wrong label", "other right one"
ALL_HEADS = "all heads"


@dataclass(frozen=True, slots=True)
class Pairing:
    """Correlation by lag 1, 2, ..., over all pairs, and the cancellation ratio."""

    by_lag: tuple[Estimate, ...]
    correlation: Estimate
    cancellation: Estimate


@dataclass(frozen=True, slots=True)
class Company:
    """How the signals of demonstrations that stand together go together.

    Attributes:
        head: the head, or all heads.
        shots: number of demonstrations n.
        plain: statistics of a, attention-free.
        weighted: statistics of b = alpha a, or None.
        steady: the same with every a at its mean: competition for attention alone.
        null_correlation: mean correlation of a with demonstrations shuffled across prompts.
        null_cancellation: the same of the cancellation ratio.
    """

    head: str
    shots: int
    plain: Pairing
    weighted: Pairing | None
    steady: Pairing | None
    null_correlation: Array
    null_cancellation: Array

    @property
    def null_interval(self) -> tuple[float, float]:
        """The central 95 % of the shuffled correlations."""
        low, high = np.percentile(self.null_correlation, (2.5, 97.5))
        return float(low), float(high)

    @property
    def p(self) -> float:
        """One-sided p-value: how often shuffling gives so negative a correlation."""
        below = (self.null_correlation <= self.plain.correlation.value).sum()
        return float((1 + below) / (1 + len(self.null_correlation)))

    @property
    def verdict(self) -> str:
        """What the correlations say; the intervention has the last word.

        cancelling: attention-free signals are anticorrelated beyond shuffling.  competition: only
        the weighted ones are.  none: neither.
        """
        if self.plain.correlation.high < 0 and self.plain.correlation.value < self.null_interval[0]:
            return "cancelling"
        if self.weighted is not None and self.weighted.correlation.high < 0:
            return "competition"
        return "none"


@dataclass(frozen=True, slots=True)
class Correction:
    """kappa_ij of one head for one corrupted demonstration.

    Attributes:
        head: the head, or all heads.
        kind: wrong label, or other right one (the control).
        corrupted: i, from 0.
        kappa: along the task's direction, for every j.
        kappa_subspace: over the whole subspace.
        net: the sum of the latter over all later demonstrations; None for the last one.
        by_order: kappa in each order of the demonstrations.
        earlier_moved: largest change of an earlier signal, relative to the corrupted one's.
    """

    head: str
    kind: str
    corrupted: int
    kappa: tuple[Estimate, ...]
    kappa_subspace: tuple[Estimate, ...]
    net: Estimate | None
    by_order: tuple[tuple[Estimate, ...], ...]
    earlier_moved: float


def findings(company: Sequence[Company], corrections: Sequence[Correction], shots: int) -> Findings:
    """Put everything together."""
    heads = list(dict.fromkeys(one.head for one in company))
    return Findings(
        _scalars(company, corrections),
        (
            Table("correlations", ("head", "shots", "signals", "measure", "value", "low", "high",
                                   "n", "null_low", "null_high", "p"), _company_rows(company),
                  "Correlation of the demonstrations' signals over prompts, centred per task and "
                  "position, by lag and over all pairs; cancellation: Var(sum)/sum(Var). Null: "
                  "demonstrations shuffled across prompts. Signals: attention-free; weighted by "
                  "attention (softmax alone gives -1/(n-1)); weighted with every signal at its "
                  "mean."),
            Table("kappa", ("head", "kind", "corrupted", "read_at", "along", "kappa", "low", "high",
                            "n"), _correction_rows(corrections),
                  "Share of the change at the corrupted demonstration that another one takes back "
                  "(negative: it changes in the same direction)."),
            Table("orders", ("head", "kind", "corrupted", "order", "kappa_later", "low", "high"),
                  _order_rows(corrections), "The next demonstration's share in each order of the "
                  "same demonstrations."),
            Table("verdicts", ("head", "shots", "correlation", "p", "verdict"),
                  [[c.head, c.shots, c.plain.correlation.value, c.p, c.verdict] for c in company],
                  "What the correlations alone say."),
        ),
        (
            Picture("correlations", "Mean correlation between the signals of two demonstrations: "
                    "attention-free (blue, 95 % interval) beside the shuffled null (grey), and as "
                    "the head weighs them (orange), beside what softmax alone gives (cross).",
                    partial(_draw_company, company)),
            Picture("kappa", f"Share of a wrong label's error that another demonstration takes "
                    f"back, over the subspace, {ALL_HEADS if ALL_HEADS in heads else heads[0]}: "
                    "wrong label, and the control.", partial(_draw_kappa, corrections, shots)),
            Picture("kappa_heads", "The same for the next demonstration, head by head.",
                    partial(_draw_heads, corrections, heads)),
        ),
        _sentences(company, corrections, heads),
    )  # fmt: skip


def _company_rows(company: Sequence[Company]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for one in company:
        low, high = one.null_interval
        for name, part in (("free", one.plain), ("weighted", one.weighted),
                           ("weighted, signals at their mean", one.steady)):  # fmt: skip
            if part is None:
                continue
            free = name == "free"
            begin, e = [one.head, one.shots, name], part.correlation
            null = [low, high, one.p] if free else [None, None, None]
            rows.append([*begin, "correlation", e.value, e.low, e.high, e.n, *null])
            for lag, e in enumerate(part.by_lag, start=1):
                rows.append([*begin, f"lag {lag}", e.value, e.low, e.high, e.n, None, None, None])
            ends: list[Any] = [None, None]
            if free:
                ends = np.percentile(one.null_cancellation, (2.5, 97.5)).tolist()
            e = part.cancellation
            rows.append([*begin, "cancellation", e.value, e.low, e.high, e.n, *ends, None])
    return rows


def _correction_rows(corrections: Sequence[Correction]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for c in corrections:
        begin = [c.head, c.kind, c.corrupted + 1]
        for along, parts in (("direction", c.kappa), ("subspace", c.kappa_subspace)):
            for j, e in enumerate(parts, start=1):
                rows.append([*begin, j, along, e.value, e.low, e.high, e.n])
        if c.net is not None:
            rows.append([*begin, "all later", "subspace", c.net.value, c.net.low, c.net.high,
                         c.net.n])  # fmt: skip
    return rows


def _order_rows(corrections: Sequence[Correction]) -> list[list[Any]]:
    rows = []
    for c in corrections:
        for order, parts in enumerate(c.by_order, start=1):
            if c.corrupted + 1 < len(parts):
                e = parts[c.corrupted + 1]
                rows.append([c.head, c.kind, c.corrupted + 1, order, e.value, e.low, e.high])
    return rows


def _scalars(company: Sequence[Company], corrections: Sequence[Correction]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for one in company:
        key = f"{one.head.replace(' ', '_')}/{one.shots}_shots"
        scalars |= one.plain.correlation.to_metrics(f"{key}/correlation")
        scalars |= one.plain.cancellation.to_metrics(f"{key}/cancellation")
        scalars[f"{key}/correlation/p"] = one.p
        if one.weighted is not None:
            scalars |= one.weighted.correlation.to_metrics(f"{key}/weighted_correlation")
            scalars[f"{key}/softmax_alone"] = -1 / (one.shots - 1)
    for c in corrections:
        if c.corrupted == 0:
            key = f"{c.head.replace(' ', '_')}/kappa/{c.kind.replace(' ', '_')}"
            for j, e in enumerate(c.kappa_subspace[1:], start=2):
                scalars |= e.to_metrics(f"{key}/1_{j}")
            if c.net is not None:
                scalars |= c.net.to_metrics(f"{key}/net")
    scalars["earlier_moved"] = max(c.earlier_moved for c in corrections)
    return scalars


def _sentences(
    company: Sequence[Company], corrections: Sequence[Correction], heads: Sequence[str]
) -> tuple[str, ...]:
    said = []
    chief = ALL_HEADS if ALL_HEADS in heads else heads[0]
    for one in company:
        if one.head == chief:
            low, high = one.null_interval
            said.append(
                f"{one.shots} demonstrations, {chief}: attention-free signals correlate with "
                f"{one.plain.correlation} (shuffled {low:.3f} to {high:.3f}); their sum varies "
                f"{one.plain.cancellation} times as much as if they were independent."
            )
    most = max(one.shots for one in company)
    verdicts = [one for one in company if one.shots == most and one.head != ALL_HEADS]
    counts = {
        v: [c.head for c in verdicts if c.verdict == v] for v in ("cancelling", "competition")
    }
    said.append(
        f"Head by head at {most} demonstrations: signals cancel in "
        f"{', '.join(counts['cancelling']) or 'none'}; merely compete for attention in "
        f"{', '.join(counts['competition']) or 'none'}."
    )
    for kind in (WRONG, RIGHT):
        found = next(c for c in corrections if (c.head, c.kind, c.corrupted) == (chief, kind, 0))
        what = "a wrong first label" if kind == WRONG else "another right first demonstration"
        said.append(
            f"Of the change that {what} makes to its own signal, the next demonstration takes "
            f"back {found.kappa_subspace[1]} and the last {found.kappa_subspace[-1]} ({chief}; "
            "negative: it changes in the same direction)."
        )
    wrong, right = (
        next(c for c in corrections if (c.head, c.kind, c.corrupted) == (chief, kind, 0))
        for kind in (WRONG, RIGHT)
    )
    corrects = wrong.net is not None and right.net is not None
    corrects = corrects and wrong.net.low > max(0.0, right.net.high)  # type: ignore[union-attr]
    said.append(
        f"All later demonstrations together take back {wrong.net} of a wrong first label's error "
        f"and {right.net} of the control's change ({chief})."
    )
    said.append(
        "By the intervention a wrong first label is "
        + ("taken back by a later demonstration." if corrects else "not taken back beyond what "
           "another right demonstration does: no self-correction.")
    )  # fmt: skip
    said.append(
        "Negative control: the signals of earlier demonstrations move by at most "
        f"{max(c.earlier_moved for c in corrections):.1g} of the change at the wrong label."
    )
    return tuple(said)


def _draw_company(company: Sequence[Company]) -> Figure:
    counts = list(dict.fromkeys(one.shots for one in company))
    heads = list(dict.fromkeys(one.head for one in company))[: MOST_HEADS + 1]
    figure = drawing.new_figure(3.3 * len(counts) + 1.0, 0.34 * len(heads) + 1.5)
    for axes, shots in zip(drawing.panels(figure, len(counts), 4), counts, strict=True):
        own = [one for one in company if one.shots == shots and one.head in heads]
        for y, one in enumerate(own):
            low, high = one.null_interval
            axes.barh(y, high - low, 0.8, left=low, color="#d9dee7")
            _interval(axes, one.plain.correlation, y - 0.14, drawing.BLUE, "o")
            if one.weighted is not None:
                _interval(axes, one.weighted.correlation, y + 0.16, drawing.ORANGE, "s")
        axes.plot([-1 / (shots - 1)] * len(own), range(len(own)), "x", color="#2b2f38", ms=5)
        axes.axvline(0, color=drawing.GREY, lw=0.9)
        axes.set_yticks(range(len(own)), [one.head for one in own], fontsize=8.5)
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.set_xlabel("correlation")
        axes.set_title(f"{shots} demonstrations", loc="left")
        drawing.finish(axes, grid="x")
    return figure


def _interval(axes: Any, e: Estimate, y: float, colour: str, mark: str) -> None:
    axes.plot([e.low, e.high], [y, y], color=colour, lw=1.8)
    axes.plot([e.value], [y], mark, color=colour, ms=4)


def _draw_kappa(corrections: Sequence[Correction], shots: int) -> Figure:
    heads = list(dict.fromkeys(c.head for c in corrections))
    chief = ALL_HEADS if ALL_HEADS in heads else heads[0]
    figure = drawing.new_figure(8.4, 0.42 * shots + 2.0)
    places = [str(i + 1) for i in range(shots)]
    grids = {}
    for kind in (WRONG, RIGHT):
        grid = np.full((shots, shots), np.nan)
        for c in corrections:
            if (c.head, c.kind) == (chief, kind):
                grid[c.corrupted] = [e.value for e in c.kappa_subspace]
        np.fill_diagonal(grid, np.nan)
        grids[kind] = grid
    limit = max(0.05, *(float(np.nanmax(np.abs(grid))) for grid in grids.values()))
    for axes, (kind, grid) in zip(figure.subplots(1, 2), grids.items(), strict=True):
        drawing.heat_map(figure, axes, grid, places, places, label="share taken back",
                         diverging=True, limit=limit)  # fmt: skip
        axes.set_xlabel("read at demonstration")
        axes.set_ylabel("changed demonstration")
        axes.set_title(kind, loc="left")
    return figure


def _draw_heads(corrections: Sequence[Correction], heads: Sequence[str]) -> Figure:
    shown_heads = list(heads)[: MOST_HEADS + 1]
    figure = drawing.new_figure(6.4, 0.36 * len(shown_heads) + 1.4)
    axes = figure.add_subplot()
    for y, head in enumerate(shown_heads):
        for kind, colour, mark, shift in (
            (WRONG, drawing.BLUE, "o", -0.14),
            (RIGHT, drawing.GREY, "s", 0.16),
        ):
            c = next(c for c in corrections if (c.head, c.kind, c.corrupted) == (head, kind, 0))
            _interval(axes, c.kappa_subspace[1], y + shift, colour, mark)
    axes.plot([], [], "o", color=drawing.BLUE, label=WRONG)
    axes.plot([], [], "s", color=drawing.GREY, label=RIGHT)
    axes.axvline(0, color=drawing.GREY, lw=0.9)
    axes.set_yticks(range(len(shown_heads)), shown_heads)
    axes.set_ylim(len(shown_heads) - 0.4, -0.6)
    axes.set_xlabel("share of the change at demonstration 1 that demonstration 2 takes back")
    axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    drawing.finish(axes, grid="x")
    return figure
